"""Durable copies of the metadata: written as chunks, proved against the log, named by the root, restored at a start.

    VACUUM INTO -> digest == digest of (older dump + log)? -> chunks -> read back -> root names it -> log trimmed
                                  `-- no: nothing is named, the operator is told (the file or a disk lies)

Invariants:
1. The root names a dump only after its digest equals that of a copy built from the older dump (or nothing) and the
   log, in another file: a flipped bit in the local file never enters both dumps.
2. All of its chunks are complete (no index missing) and were read back.
3. The log is trimmed only up to the older of two named dumps.
4. Chunks of dumps have no rows: the root and `held()` are what names them; the collector asks both.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import apsw
import msgspec
import trio

from trivium.cluster.clock import Clock, Executor
from trivium.cluster.errors import ChunkLost, ClusterError, Corrupt, NotFound, Unavailable
from trivium.cluster.hashing import blake128
from trivium.cluster.model import ChunkId, ChunkKind, DumpEntry, Group, NewChunk, Placed, Ref
from trivium.cluster.pieces import PieceData
from trivium.metadata import database, recovery, replay
from trivium.metadata.digest import digest
from trivium.metadata.metalog import MetaLog
from trivium.metadata.recovery import DumpSource

log = logging.getLogger(__name__)

LOG_BYTES = 64 << 20  # of log since the last dump
PERIOD_S = 3600.0  # with changes
CHECK_S = 30.0
PIECE_BYTES = 4 << 20
NOBODY = bytes(16)
LOST = (NotFound, ChunkLost, Corrupt)  # what waiting does not bring back


class ChunkStore(Protocol):
    """What is used of cluster.chunks.Chunks."""

    async def put(self, pool: int, pieces: Sequence[PieceData], *, kind: int, reserve_class: int) -> Any: ...
    async def get(self, ref: Ref, *, placed: Placed | None = None) -> memoryview: ...
    def settle(self, stored: Any) -> None: ...
    def give_up(self, stored: Any) -> None: ...


class DumpRoot(Protocol):
    """The root's part that dumps own."""

    def dumps(self) -> tuple[DumpEntry, ...]: ...
    async def set_dumps(self, dumps: tuple[DumpEntry, ...]) -> None: ...


class Part(msgspec.Struct, frozen=True, array_like=True):
    placed: Placed
    digest: bytes  # of its bytes


class Index(msgspec.Struct, frozen=True, array_like=True):
    """Contents of a dump's index chunk."""

    seq: int
    chain_hash: bytes
    digest: bytes
    size: int
    parts: tuple[Part, ...]


_encode = msgspec.msgpack.Encoder().encode
_decode_index = msgspec.msgpack.Decoder(Index).decode


class DumpRefused(Exception):
    """Operator: the local database is not what dump and log say. It must be rebuilt before it is dumped."""


@dataclass(slots=True)
class DumpParts:
    """What a Dumper is made of. `pool` answers the pool with the largest m, `group` the row of a group number,
    `log_bytes` how much was logged in this life, `drop` queues chunks (with their places) that nothing names now."""

    path: str
    metalog: MetaLog
    chunks: ChunkStore
    root: DumpRoot
    executor: Executor
    clock: Clock
    pool: Callable[[], int]
    group: Callable[[int], Awaitable[Group]]
    log_bytes: Callable[[], int]
    drop: Callable[[tuple[Placed, ...]], Awaitable[None]]


class Dumper:
    def __init__(self, parts: DumpParts) -> None:
        self._parts = parts
        self._held: dict[ChunkId, Placed] = {}
        self._index: dict[ChunkId, tuple[Placed, ...]] = {}  # index chunk -> all chunks of that dump
        self._bytes_then = 0
        self._time_then = parts.clock.boot_s()
        self._busy = trio.Lock()
        self.asked = trio.Event()  # set it to have one written soon (a drive went out)

    def held(self) -> frozenset[ChunkId]:
        """Chunks that named dumps, or one being written, are made of: never orphans."""
        return frozenset(self._held)

    def drives(self) -> frozenset[bytes]:
        """Drives that the root's dumps lie on (as far as they have been read)."""
        named = {drive for entry in self._parts.root.dumps() for drive in entry.index.group.drives}
        return frozenset(named | {drive for placed in self._held.values() for drive in placed.group.drives})

    def places(self) -> tuple[Placed, ...]:
        """Every chunk of the named dumps, for a scrub."""
        return tuple(placed for chunks in self._index.values() for placed in chunks)

    async def load(self) -> None:
        """Learn what the root's dumps are made of. Nothing may be collected before. A dump that is lost for good is
        no reason to wait: another one is written soon. Unavailable: later again."""
        for entry in self._parts.root.dumps():
            try:
                self._note(entry.index, await read_index(self._parts.chunks, entry))
            except LOST as error:
                log.error("the dump of record %d is lost, another one is written: %s", entry.seq, error)
                self.asked.set()

    async def run(self) -> None:
        """Write a dump whenever one is due; none at start."""
        while True:
            with trio.move_on_after(CHECK_S):
                await self.asked.wait()
            if self.asked.is_set() or self._due():
                self.asked = trio.Event()
                try:
                    await self.write()
                except (ClusterError, DumpRefused, apsw.Error, OSError) as error:
                    log.error("no dump was written: %s", error)

    def _due(self) -> bool:
        dumps = self._parts.root.dumps()
        if dumps and dumps[-1].seq == self._parts.metalog.last_seq:
            return False
        logged = self._parts.log_bytes() - self._bytes_then
        return logged >= LOG_BYTES or self._parts.clock.boot_s() - self._time_then >= PERIOD_S

    async def write(self) -> DumpEntry:
        """Write, prove, name; then trim the log. Raises ClusterError (later again) and DumpRefused."""
        async with self._busy:
            logged, began = self._parts.log_bytes(), self._parts.clock.boot_s()
            with _beside(self._parts.path) as folder:
                copy = os.path.join(folder, "dump.db")
                seq, chain_hash, wanted = await self._parts.executor.run(snapshot, self._parts.path, copy)
                base = await self._prove(os.path.join(folder, "proof.db"), seq, chain_hash, wanted)
                entry = await self._store(copy, seq, chain_hash, wanted)
            dumps = self._parts.root.dumps()
            await self._parts.root.set_dumps((entry,) if base is None else (base, entry))
            self._bytes_then, self._time_then = logged, began
            if base is not None:
                await self._parts.metalog.trim(base.seq)
            for old in dumps:
                if old != base:
                    await self._drop(old)
            return entry

    # ---- inside ---------------------------------------------------------------------------------------------

    async def _prove(self, path: str, seq: int, chain_hash: bytes, wanted: bytes) -> DumpEntry | None:
        """Build the same state from the newest dump that reads (or nothing) and the log; answers that dump.
        DumpRefused when it is another state."""
        parts = self._parts
        base: DumpEntry | None = None
        for entry in reversed(parts.root.dumps()):
            try:
                await restore(parts.chunks, entry, path, parts.executor)
                base = entry
                break
            except LOST as error:
                log.error("the dump of record %d cannot be read: %s", entry.seq, error)
                await parts.executor.run(_truncate, path)
        await recovery.replay_log(path, parts.metalog, parts.executor, upto=seq)
        have = await parts.executor.run(_state, path)
        if have != (seq, chain_hash, wanted):
            raise DumpRefused(f"the database at record {seq} is not what the last dump and the log make of it")
        return base

    async def _store(self, copy: str, seq: int, chain_hash: bytes, wanted: bytes) -> DumpEntry:
        stored: list[Any] = []
        try:
            parts: list[Part] = []
            size = os.stat(copy).st_size
            for offset in range(0, size, PIECE_BYTES):
                data = await self._parts.executor.run(_read_at, copy, offset)
                parts.append(Part(await self._put(stored, offset, seq, data), blake128(data)))
            index = Index(seq, chain_hash, wanted, size, tuple(parts))
            placed = await self._put(stored, 0, seq, _encode(index))
            entry = DumpEntry(placed, seq, wanted, chain_hash, size)
            await self._read_back(entry)
        except BaseException:
            for one in stored:
                self._parts.chunks.give_up(one)
                for new in one.chunks:
                    self._held.pop(new.chunk, None)
            raise
        for one in stored:
            self._parts.chunks.settle(one)
        self._note(placed, index)
        return entry

    async def _put(self, stored: list[Any], offset: int, seq: int, data: bytes) -> Placed:
        piece = PieceData(NOBODY, offset, seq, data)
        one = await self._parts.chunks.put(self._parts.pool(), [piece], kind=ChunkKind.DUMP, reserve_class=3)
        stored.append(one)
        new: NewChunk = one.chunks[0]
        placed = Placed(
            new.chunk, new.nonce, new.length, new.missing, seq, await self._parts.group(new.group), new.kind
        )
        self._held[new.chunk] = placed
        if new.missing:
            raise Unavailable("a shard of the dump could not be stored; it is written anew")
        return placed

    async def _read_back(self, entry: DumpEntry) -> None:
        index = await read_index(self._parts.chunks, entry)
        for part in index.parts:
            await _read_part(self._parts.chunks, part)

    def _note(self, index_chunk: Placed, index: Index) -> None:
        places = (index_chunk, *(part.placed for part in index.parts))
        self._index[index_chunk.chunk] = places
        self._held.update({placed.chunk: placed for placed in places})

    async def _drop(self, entry: DumpEntry) -> None:
        """The root names it no more: its chunks may go."""
        places = self._index.pop(entry.index.chunk, ())
        for placed in places:
            self._held.pop(placed.chunk, None)
        if places:
            await self._parts.drop(places)


# ---- restoring ----------------------------------------------------------------------------------------------


def sources(chunks: ChunkStore, dumps: Sequence[DumpEntry], executor: Executor) -> list[DumpSource]:
    """The root's dumps as recovery takes them."""

    def source(entry: DumpEntry) -> DumpSource:
        async def write_to(path: str) -> None:
            await restore(chunks, entry, path, executor)

        return DumpSource(entry.seq, entry.chain_hash, write_to)

    return [source(entry) for entry in dumps]


async def restore(chunks: ChunkStore, entry: DumpEntry, path: str, executor: Executor) -> None:
    """Write the dump's database file. Corrupt when it is not what the root names."""
    index = await read_index(chunks, entry)
    await executor.run(_truncate, path)
    offset = 0
    for part in index.parts:
        data = await _read_part(chunks, part)
        await executor.run(_write_at, path, offset, data)
        offset += len(data)
    have = await executor.run(_state, path)
    if have != (entry.seq, entry.chain_hash, entry.digest):
        raise Corrupt(f"the dump of record {entry.seq} does not have the digest that the root names")


def decode_index(data: bytes | memoryview) -> Index:
    """Corrupt, whatever the bytes are."""
    try:
        return _decode_index(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"the index of a dump cannot be decoded: {error}") from None


async def read_index(chunks: ChunkStore, entry: DumpEntry) -> Index:
    placed = entry.index
    index = decode_index(await chunks.get(Ref(placed.chunk, 0, placed.length), placed=placed))
    if (index.seq, index.chain_hash, index.digest) != (entry.seq, entry.chain_hash, entry.digest):
        raise Corrupt(f"the index of the dump of record {entry.seq} is of another dump")
    return index


async def _read_part(chunks: ChunkStore, part: Part) -> memoryview:
    data = await chunks.get(Ref(part.placed.chunk, 0, part.placed.length), placed=part.placed)
    if blake128(data) != part.digest:
        raise Corrupt(f"chunk {part.placed.chunk} of a dump does not have the bytes that were written")
    return data


# ---- on threads ---------------------------------------------------------------------------------------------


def snapshot(path: str, copy: str) -> tuple[int, bytes, bytes]:
    """A compact copy of one snapshot of the database; answers its (seq, chain hash, digest)."""
    db = database.open_reader(path)
    try:
        db.pragma("query_only", False)  # it counts the copy as a write; the file itself is open for reading only
        db.execute("VACUUM INTO ?", (copy,))
    finally:
        db.close()
    return _state(copy)


def _state(path: str) -> tuple[int, bytes, bytes]:
    db = database.open_writer(path)
    try:
        wrong = db.pragma("quick_check")
        if wrong != "ok":
            raise replay.ReplayFailed(f"{path} is damaged: {wrong}")
        return (*database.applied(db), digest(db))
    finally:
        db.close()


def _read_at(path: str, offset: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(PIECE_BYTES)


def _truncate(path: str) -> None:
    with open(path, "wb"):
        os.chmod(path, 0o600)


def _write_at(path: str, offset: int, data: memoryview) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


@contextmanager
def _beside(path: str) -> Any:
    """A private folder on the database's own disk, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="dump-", dir=os.path.dirname(path) or ".") as folder:
        yield folder
