"""`trivium fsck --lost`: what cannot be read, by name. Rows say which chunks; a volume's map says which bytes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from trivium.cluster.errors import ClusterError
from trivium.cluster.model import ChunkId
from trivium.metadata import losses
from trivium.metadata.messages import MetadataError
from trivium.metadata.pool import Pool
from trivium.metadata.tx import Reader
from trivium.nbd.errors import VolumeError
from trivium.nbd.map import BLOCK_SHIFT, is_flat
from trivium.nbd.solo import SoloChunks
from trivium.nbd.volume import Volume
from trivium.nbd.volumelog import ClusterLogs

if TYPE_CHECKING:
    from trivium.admin.processes.lead import Leader

STEP_BLOCKS = 1 << 16


async def report(leader: Leader) -> dict[str, Any]:
    """In the server: chunks and names. Places found empty are noted first, so that the rows know them."""
    await leader.upkeep.note_empty()
    answer: dict[str, Any] = await leader.read(partial(_report, usable=leader.substrate.watch.usable()))
    return answer


def _report(reader: Reader, usable: frozenset[bytes]) -> dict[str, Any]:
    found = losses.lost_chunks(reader, usable)
    return {
        "lost_chunks": [[chunk.session, chunk.counter] for chunk in found.lost],
        "away_chunks": [[chunk.session, chunk.counter] for chunk in found.away],
        "lost": [_fields(loss) for loss in losses.affected(reader, found.lost)],
        "away": [_fields(loss) for loss in losses.affected(reader, found.away)],
    }


def _fields(loss: losses.Loss) -> dict[str, Any]:
    return {
        "kind": loss.kind,
        "name": loss.name,
        "ranges": [list(one) for one in loss.ranges],
        "chunks": [str(chunk) for chunk in loss.chunks],
    }


async def volume_ranges(pool: Pool, name: str, chunks: frozenset[ChunkId]) -> list[list[int]] | str:
    """In the command: the byte ranges of a volume that lie in those chunks; in words why its map cannot be read."""
    logs = ClusterLogs(pool.metadata, pool.nodes, random=_random())
    try:
        volume = await Volume.open(
            name, metadata=pool.metadata, chunks=SoloChunks(pool.chunks), logs=logs, read_only=True
        )
    except (ClusterError, MetadataError, VolumeError) as error:
        return f"its map cannot be read: {error}"
    core = volume.core
    blocks = volume.size >> BLOCK_SHIFT
    ranges: list[list[int]] = []
    for start in range(0, blocks, STEP_BLOCKS):
        for first, count, entry in core.lookup(start, min(STEP_BLOCKS, blocks - start)):
            info = None if is_flat(entry) else core.table.get(entry >> 16)
            if info is None or info.ref.chunk not in chunks:
                continue
            offset, length = first << BLOCK_SHIFT, count << BLOCK_SHIFT
            if ranges and sum(ranges[-1]) == offset:
                ranges[-1][1] += length
            else:
                ranges.append([offset, length])
    return ranges


def _random() -> Any:
    import random

    return random.SystemRandom()
