"""A pool for volumes in memory: metadata rows, chunks and logs by the documented rules, with crashes between any steps.

Everything that a call has made stays when its caller is cancelled, as with real processes: each operation has a
checkpoint before and after its effect. `PoolState` survives; clients made by `connect()` are one process each.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from trivium.cluster.chunks import PieceData, Stored
from trivium.cluster.errors import ChunkLost, Fenced, NoSpace, Unavailable
from trivium.cluster.model import ChunkId, ChunkKind, NewChunk, Placed, Ref, SegmentEntry
from trivium.cluster.shardreader import AtHand
from trivium.metadata.messages import (
    Checkpoint,
    CloseVolume,
    CommitSegment,
    FsInfo,
    GetVolume,
    ListVolumes,
    MetadataError,
    NarrowChunks,
    OpenVolume,
    SetVolumeLog,
    StatFs,
    VolumeChunk,
    VolumeInfo,
    VolumeState,
)


@dataclass
class LogFile:
    """One log: records survive, a takeover fences the writers before it."""

    fence: int = 0
    first_seq: int = 1
    records: list[bytes] = field(default_factory=list)


@dataclass
class PoolState:
    random: random.Random
    size: int = 64 << 20
    lease: int = 0
    holder: int = 0
    upto: int = 0
    checkpoint: Ref | None = None
    used: int = 0
    rows: dict[ChunkId, VolumeChunk] = field(default_factory=dict)
    chunks: dict[ChunkId, bytes] = field(default_factory=dict)
    log: LogFile = field(default_factory=LogFile)
    sessions: int = 0
    full: bool = False
    free: int = 1 << 40
    refuse_chunks: int = 0  # so many commits answer CHUNK_REFUSED
    away: int = 0  # so many operations answer Unavailable
    narrow: set[ChunkId] = field(default_factory=set)
    calls: list[Any] = field(default_factory=list)

    def collect(self) -> None:
        """What the collector may do at any time: chunks without a row go."""
        keep = set(self.rows) | ({self.checkpoint.chunk} if self.checkpoint else set())
        for chunk in [chunk for chunk in self.chunks if chunk not in keep]:
            del self.chunks[chunk]

    def connect(self) -> Client:
        self.sessions += 1
        return Client(self, self.sessions)

    def trouble(self) -> None:
        if self.away:
            self.away -= 1
            raise Unavailable("away for a test")


class Client:
    """Metadata and chunks of one process."""

    def __init__(self, pool: PoolState, session: int) -> None:
        self.pool = pool
        self.session = session
        self._counter = 0

    # ---- metadata

    async def call(self, *operations: Any, chunks: Sequence[NewChunk] = ()) -> tuple[Any, ...]:
        await trio.lowlevel.checkpoint()
        for operation in operations:
            self._check(operation)
        if any(isinstance(op, CommitSegment | Checkpoint) for op in operations) and self.pool.refuse_chunks:
            self.pool.refuse_chunks -= 1
            raise MetadataError("CHUNK_REFUSED", "for a test")
        new = {chunk.chunk: chunk for chunk in chunks}
        results = tuple(self._apply(operation, new) for operation in operations)
        self.pool.calls.extend(operations)
        await trio.lowlevel.checkpoint()
        return results

    async def ask(self, query: Any) -> Any:
        await trio.lowlevel.checkpoint()
        match query:
            case ListVolumes():
                return (self._state().info,)
            case GetVolume():
                return self._state().info
            case NarrowChunks():
                return tuple(chunk for chunk in self.pool.narrow if chunk in self.pool.rows)
            case StatFs():
                return FsInfo(1 << 40, 0 if self.pool.full else self.pool.free, 0)
        raise NotImplementedError

    def _check(self, operation: Any) -> None:
        lease = getattr(operation, "lease", None)
        if lease is not None and (lease != self.pool.lease or self.pool.holder != self.session):
            raise MetadataError("LEASE_LOST", f"lease {lease} is not the current one ({self.pool.lease})")
        opens = isinstance(operation, OpenVolume) and not operation.read_only and operation.takeover != "break"
        if opens and self.pool.holder:
            raise MetadataError("EBUSY", f"session {self.pool.holder} has it")

    def _apply(self, operation: Any, new: dict[ChunkId, NewChunk]) -> Any:
        pool = self.pool
        match operation:
            case OpenVolume():
                if not operation.read_only:
                    pool.lease += 1
                    pool.holder = self.session
                return self._state()
            case CloseVolume():
                pool.holder = 0
            case CommitSegment():
                if operation.covers_upto < operation.first_write:
                    raise MetadataError("EINVAL", "a chunk's write numbers are a range")
                assert operation.chunk in new and operation.chunk in pool.chunks, "a row names a chunk that is there"
                row = VolumeChunk(new[operation.chunk], operation.covers_upto, operation.first_write)
                pool.rows[operation.chunk] = row
            case Checkpoint():
                assert operation.upto >= pool.upto, "checkpoints do not go back"
                assert operation.ref is not None and operation.ref.offset == 0
                for chunk in operation.died:
                    pool.rows.pop(chunk, None)
                pool.upto, pool.checkpoint, pool.used = operation.upto, operation.ref, operation.used
            case SetVolumeLog():
                pass
        return None

    def _state(self) -> VolumeState:
        pool = self.pool
        info = VolumeInfo(1, "v", pool.size, 0, pool.used, pool.holder, pool.lease)
        chain = (SegmentEntry(b"s" * 16, (), pool.log.first_seq),)
        return VolumeState(info, pool.lease, pool.upto, pool.checkpoint, tuple(pool.rows.values()), chain)

    # ---- chunks

    async def put(
        self,
        pool: int,
        pieces: Sequence[PieceData],
        *,
        kind: int = ChunkKind.DATA,
        lease: int = 0,
        reserve_class: int = 0,
    ) -> Stored:
        await trio.lowlevel.checkpoint()
        self.pool.trouble()
        if self.pool.full:
            raise NoSpace("the pool is full")
        parts = [b"".join(p.data) if isinstance(p.data, list) else bytes(p.data) for p in pieces]
        data = b"".join(parts)
        assert 0 < len(data) <= (8 << 20 if kind == ChunkKind.VOLUME else 4 << 20)
        stored = self._store(data, kind)
        for _ in range(self.pool.random.randrange(4)):
            await trio.lowlevel.checkpoint()
        return stored

    def _store(self, data: bytes, kind: int) -> Stored:
        self._counter += 1
        chunk = ChunkId(self.session, self._counter)
        self.pool.chunks[chunk] = data
        new = NewChunk(chunk, b"n" * 16, 1, b"g" * 16, len(data), 0, int(kind))
        return Stored((Ref(chunk, 0, len(data)),), (new,))

    async def get(self, ref: Ref, *, placed: Placed | None = None) -> memoryview:
        await trio.lowlevel.checkpoint()
        self.pool.trouble()
        data = self.pool.chunks.get(ref.chunk)
        if data is None:
            raise ChunkLost(f"chunk {ref.chunk} is nowhere")
        await trio.lowlevel.checkpoint()
        assert ref.offset + ref.length <= len(data)
        return memoryview(data)[ref.offset : ref.offset + ref.length]

    async def at_hand(self, ref: Ref, *, placed: Placed | None = None) -> AtHand:
        await trio.lowlevel.checkpoint()
        return AtHand(1, {})

    def settle(self, stored: Stored) -> None: ...

    def give_up(self, stored: Stored) -> None:
        for new in stored.chunks:
            self.pool.chunks.pop(new.chunk, None)

    async def put_again(self, stored: Stored) -> Stored:
        await trio.lowlevel.checkpoint()
        return self._store(self.pool.chunks[stored.refs[0].chunk], stored.chunks[0].kind)

    # ---- logs

    async def take_over(self, state: VolumeState) -> tuple[MemoryLog, list[tuple[int, bytes | memoryview]]]:
        await trio.lowlevel.checkpoint()
        log = self.pool.log
        if state.lease < log.fence:
            raise Fenced("a later writer has taken the log over")
        log.fence = state.lease
        await trio.lowlevel.checkpoint()
        return MemoryLog(self.pool, state.lease), [(log.first_seq + i, record) for i, record in enumerate(log.records)]

    async def read(self, state: VolumeState) -> AsyncIterator[bytes | memoryview]:
        for record in list(self.pool.log.records):
            await trio.lowlevel.checkpoint()
            yield record


class MemoryLog:
    def __init__(self, pool: PoolState, lease: int) -> None:
        self._pool = pool
        self._lease = lease

    async def append(self, payloads: Sequence[Sequence[bytes | memoryview]]) -> int:
        """A crash may leave any prefix of the records."""
        pool = self._pool
        await trio.lowlevel.checkpoint()
        pool.trouble()
        for payload in payloads:
            if self._lease < pool.log.fence:
                raise Fenced("the log segment is sealed")
            if pool.full:
                raise NoSpace("the pool is full")
            pool.log.records.append(b"".join(payload))
            assert len(pool.log.records[-1]) <= 1 << 20, "a record is at most 1 MiB"
            await trio.lowlevel.checkpoint()
        return pool.log.first_seq + len(pool.log.records) - 1

    async def trim(self, upto: int) -> None:
        await trio.lowlevel.checkpoint()
        log = self._pool.log
        if self._lease < log.fence:
            raise Fenced("the log has another writer")
        drop = upto - log.first_seq + 1
        if drop > 0:
            del log.records[:drop]
            log.first_seq += drop

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def close(self, *, empty: bool) -> list[Any]:
        await trio.lowlevel.checkpoint()
        if empty:
            self._pool.log.first_seq += len(self._pool.log.records)
            self._pool.log.records.clear()
        return []
