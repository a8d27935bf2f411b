"""Dumps: proved against the log before the root names them, restored when the local file is gone (attacks 28, 51)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from tests.fakes.metadata import memory_map, recover_or_form
from tests.fakes.metalog import MemoryMetaLog
from trivium.cluster.clock import InlineExecutor, TrioClock
from trivium.cluster.errors import NotFound, Unavailable
from trivium.cluster.model import ChunkId, DumpEntry, Group, NewChunk, Placed, Ref
from trivium.cluster.pieces import PieceData
from trivium.metadata import database, schema
from trivium.metadata.digest import digest
from trivium.metadata.dump import Dumper, DumpParts, DumpRefused, sources
from trivium.metadata.records import RecordKind, make
from trivium.metadata.recovery import RecoveryFailed, recover

GROUP = Group(1, 1, 4, 2, tuple(bytes([i]) * 16 for i in range(1, 7)))
EXECUTOR = InlineExecutor()


class DictChunks:
    """Chunks in a dictionary."""

    def __init__(self) -> None:
        self.data: dict[ChunkId, bytes] = {}
        self.counter = 0
        self.missing = 0
        self.given_up: list[ChunkId] = []
        self.settled: list[ChunkId] = []

    async def put(self, pool: int, pieces: Sequence[PieceData], *, kind: int, reserve_class: int) -> Any:
        await trio.lowlevel.checkpoint()
        self.counter += 1
        chunk = ChunkId(9, self.counter)
        data = bytes(pieces[0].data)  # type: ignore[arg-type]
        self.data[chunk] = data
        new = NewChunk(chunk, b"n" * 16, GROUP.id, GROUP.digest, len(data), self.missing, int(kind))
        return SimpleNamespace(refs=(Ref(chunk, 0, len(data)),), chunks=(new,))

    async def get(self, ref: Ref, *, placed: Placed | None = None) -> memoryview:
        await trio.lowlevel.checkpoint()
        if ref.chunk not in self.data:
            raise NotFound(str(ref.chunk))
        return memoryview(self.data[ref.chunk])[ref.offset : ref.offset + ref.length]

    def settle(self, stored: Any) -> None:
        self.settled.append(stored.chunks[0].chunk)

    def give_up(self, stored: Any) -> None:
        self.given_up.append(stored.chunks[0].chunk)


class ListRoot:
    def __init__(self) -> None:
        self.entries: tuple[DumpEntry, ...] = ()

    def dumps(self) -> tuple[DumpEntry, ...]:
        return self.entries

    async def set_dumps(self, dumps: tuple[DumpEntry, ...]) -> None:
        self.entries = dumps


@dataclass
class Bench:
    path: str
    metalog: MemoryMetaLog
    chunks: DictChunks
    root: ListRoot
    dumper: Dumper
    dropped: list[Placed]

    def change(self, name: str, size: int = 100) -> None:
        """One record, applied as the writer does."""
        db = database.open_writer(self.path)
        db.execute("BEGIN")
        session = database.record_changes(db)
        db.execute("INSERT INTO settings (name, value) VALUES (?, ?)", (name, bytes(size)))
        payload = session.patchset()
        session.close()
        last = self.metalog.records[-1]
        record = make(RecordKind.PATCHSET, payload, schema=schema.VERSION, last_seq=last.seq, last_hash=last.hash)
        self.metalog.records.append(record)
        database.set_applied(db, record.seq, record.hash)
        db.execute("COMMIT")
        db.close()

    def state(self) -> tuple[tuple[int, bytes], bytes]:
        db = database.open_writer(self.path)
        try:
            return database.applied(db), digest(db)
        finally:
            db.close()

    def lose_the_file(self) -> None:
        for path in Path(self.path).parent.glob("trivium.db*"):
            path.unlink()

    async def recover(self) -> str:
        return await recover(self.path, self.metalog, sources(self.chunks, self.root.entries, EXECUTOR), EXECUTOR)


async def bench(tmp_path: Path) -> Bench:
    metalog, chunks, root = MemoryMetaLog(), DictChunks(), ListRoot()
    path = str(tmp_path / "trivium.db")
    await recover_or_form(path, metalog, memory_map(), TrioClock())
    dropped: list[Placed] = []

    async def group(number: int) -> Group:
        return GROUP

    async def drop(places: tuple[Placed, ...]) -> None:
        dropped.extend(places)

    parts = DumpParts(path, metalog, chunks, root, EXECUTOR, TrioClock(), lambda: 1, group, lambda: 0, drop)
    return Bench(path, metalog, chunks, root, Dumper(parts), dropped)


def test_two_dumps_trim_the_log_and_restore_the_database(tmp_path: Path) -> None:
    async def main() -> None:
        it = await bench(tmp_path)
        it.change("a")
        first = await it.dumper.write()
        assert (first.seq, it.metalog.trimmed) == (schema.VERSION + 1, 0)
        it.change("b", 9_000_000 // 10)
        second = await it.dumper.write()
        assert (second.seq, it.metalog.trimmed) == (first.seq + 1, first.seq)
        it.change("c")
        third = await it.dumper.write()
        assert it.root.entries == (second, third) and it.metalog.trimmed == second.seq
        assert {placed.chunk for placed in it.dropped} & it.dumper.held() == set()
        assert first.index in it.dropped and not it.chunks.given_up
        it.change("d")
        wanted = it.state()
        it.lose_the_file()
        assert await it.recover() == "rebuilt"
        assert it.state() == wanted

        again = Dumper(it.dumper._parts)  # a new life knows what the dumps are made of
        await again.load()
        assert again.held() == it.dumper.held()

        it.lose_the_file()
        for chunk in [third.index.chunk]:  # the newest one is lost: the older one and the log make the same
            del it.chunks.data[chunk]
        assert await it.recover() == "rebuilt"
        assert it.state() == wanted

        it.lose_the_file()
        it.chunks.data.clear()
        with pytest.raises(RecoveryFailed):
            await it.recover()

    trio.run(main)


def test_a_flipped_bit_in_the_local_file_is_never_dumped(tmp_path: Path) -> None:
    async def main() -> None:
        it = await bench(tmp_path)
        it.change("a")
        first = await it.dumper.write()
        it.change("b")
        db = database.open_writer(it.path)
        db.execute("UPDATE settings SET value = x'ff' WHERE name = 'a'")  # no record says so
        db.close()
        with pytest.raises(DumpRefused):
            await it.dumper.write()
        assert it.root.entries == (first,) and it.metalog.trimmed == 0
        assert not list(Path(it.path).parent.glob("dump-*"))

    trio.run(main)


def test_a_dump_with_a_missing_shard_is_given_up(tmp_path: Path) -> None:
    async def main() -> None:
        it = await bench(tmp_path)
        it.chunks.missing = 4
        with pytest.raises(Unavailable):
            await it.dumper.write()
        assert it.root.entries == () and it.chunks.given_up and not it.dumper.held()
        it.chunks.missing = 0
        await it.dumper.write()
        assert len(it.root.entries) == 1

    trio.run(main)


def test_a_dump_that_reads_back_otherwise_is_not_named(tmp_path: Path) -> None:
    async def main() -> None:
        it = await bench(tmp_path)
        put = it.chunks.put

        async def rot(*args: Any, **options: Any) -> Any:
            stored = await put(*args, **options)
            chunk = stored.chunks[0].chunk
            if chunk.counter == 1:
                it.chunks.data[chunk] = b"\1" + it.chunks.data[chunk][1:]
            return stored

        it.chunks.put = rot  # type: ignore[method-assign]
        with pytest.raises(Exception, match="does not have the bytes"):
            await it.dumper.write()
        assert it.root.entries == ()

    trio.run(main)


def test_a_lost_dump_is_no_reason_to_write_no_other(tmp_path: Path) -> None:
    """The older of two dumps lost too many shards: the newer one is loaded, proves the next, and the lost one goes."""

    async def main() -> None:
        it = await bench(tmp_path)
        for name in "ab":
            it.change(name)
            await it.dumper.write()
        first, second = it.root.entries
        del it.chunks.data[first.index.chunk]
        again = Dumper(it.dumper._parts)
        await again.load()
        assert again.asked.is_set() and second.index.chunk in again.held()
        it.change("c")
        third = await again.write()
        assert it.root.entries == (second, third)
        del it.chunks.data[third.index.chunk]  # the newest is lost: the log goes back to the older one
        it.change("d")
        fourth = await again.write()
        assert it.root.entries == (second, fourth) and it.metalog.trimmed == second.seq

    trio.run(main)
