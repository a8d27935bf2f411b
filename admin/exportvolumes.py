"""Raw images of volumes out of drive directories, with the code that serves them: a read-only Volume over salvage."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import trio

from trivium.admin.export import Target, free_name
from trivium.cluster.chunks import PieceData, Stored
from trivium.cluster.errors import ClusterError, Unavailable
from trivium.cluster.model import ChunkKind, NewChunk, Placed, Ref
from trivium.cluster.salvage import Salvage
from trivium.cluster.salvagelog import SegmentFiles
from trivium.cluster.shardreader import AtHand
from trivium.metadata import volumes
from trivium.metadata.messages import MetadataError, OpenVolume, VolumeState
from trivium.metadata.salvage import SalvageChunks
from trivium.metadata.tx import Reader
from trivium.nbd.backend import VolumeLog
from trivium.nbd.errors import VolumeError
from trivium.nbd.volume import Volume

STEP = 1 << 20


class OfflineMetadata:
    """Answers a reader's OpenVolume from the rebuilt database."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def call(self, *operations: Any, chunks: Sequence[NewChunk] = ()) -> tuple[Any, ...]:
        (operation,) = operations
        assert isinstance(operation, OpenVolume) and operation.read_only
        return (volumes.read_state(self._reader, operation.name),)

    async def ask(self, query: Any) -> Any:
        raise Unavailable("there is no pool")


class OfflineChunks(SalvageChunks):
    """The volume's ChunkStore: gets only."""

    async def put(
        self, pool: int, pieces: Sequence[PieceData], *, kind: int = ChunkKind.DATA, lease: int = 0,
        reserve_class: int = 0,
    ) -> Stored:  # fmt: skip
        raise Unavailable("there is no pool")

    async def at_hand(self, ref: Ref, *, placed: Placed | None = None) -> AtHand:
        return AtHand(0, {})

    async def put_again(self, stored: Stored) -> Stored:
        raise Unavailable("there is no pool")


class OfflineLogs:
    def __init__(self, files: SegmentFiles, notes: list[str]) -> None:
        self._files, self._notes = files, notes

    async def take_over(self, state: VolumeState) -> tuple[VolumeLog, list[tuple[int, bytes | memoryview]]]:
        raise Unavailable("there is no pool")

    async def read(self, state: VolumeState) -> AsyncIterator[bytes | memoryview]:
        seq = state.log[0].first_seq - 1 if state.log else 0
        for record in self._files.records(state.log):
            seq = record.seq
            yield memoryview(record.payload)
        last = state.log[-1].last_seq if state.log else None
        if last is not None and seq < last:
            self._notes.append(
                f"volume {state.info.name}: its log ends at record {seq}, not {last}: writes are missing"
            )


async def export_volumes(reader: Reader, salvage: Salvage, target: Target) -> None:
    """A raw image NAME.raw of each volume below volumes/."""
    names = [row[0] for row in reader.all("SELECT name FROM volumes WHERE name != '' ORDER BY name")]
    top = target.path / "volumes"
    for name in names:
        top.mkdir(mode=0o700, exist_ok=True)
        files = SegmentFiles(salvage.drives)
        try:
            volume = await Volume.open(
                name, metadata=OfflineMetadata(reader), chunks=OfflineChunks(salvage, reader),
                logs=OfflineLogs(files, target.done.notes), read_only=True,
            )  # fmt: skip
        except (ClusterError, MetadataError, VolumeError) as error:
            target.done.lost.append(f"volume {name}: {error}")
            continue
        path = free_name(top / f"{name.replace('/', '%2F')[:240]}.raw")
        made = await trio.to_thread.run_sync(target.write, path, volume.size, _parts(volume), f"volume {name}")
        target.done.volumes += made == path


def _parts(volume: Volume) -> Iterator[tuple[int, bytes | str]]:
    """What is not zeros; runs on a thread, reads in the event loop."""
    for start in range(0, volume.size, STEP):
        yield from trio.from_thread.run(_step, volume, start, min(STEP, volume.size - start))


async def _step(volume: Volume, start: int, length: int) -> list[tuple[int, bytes | str]]:
    """Smaller and smaller ranges where something is lost."""
    try:
        data = bytes(await volume.read(start, length))
        return [(start, data)] if data.count(0) != len(data) else []
    except ClusterError as error:
        if length <= 4096:
            return [(start, f"bytes {start} to {start + length - 1}: {error}")]
    half = max(4096, length // 2 // 4096 * 4096)
    return await _step(volume, start, half) + await _step(volume, start + half, length - half)
