"""The writer of a log: group commit on all replicas of one open segment, rolling, moving away from lost replicas.

    appended -> (group) -> on all replicas -> answered
                   | segment full: next segment (made beforehand), one chain change
                   | replica lost or silent: next segment begins with the group, then one chain change
                   | sealed by somebody else, chain moved on: Fenced for ever

Invariants
1. A record gets its seq and hash when it is appended and keeps them; it is never rolled back in a living process.
2. One group is in flight. It is answered when all replicas of the segment that the chain names have it.
3. A segment is created, durable, on all its drives before the chain names it; what moves with it is durable there
   before the one chain change that also closes the predecessor at the last seq that all answered.
4. After Fenced nothing is ever answered again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import trio

from trivium.cluster import logplan, logsegment
from trivium.cluster.clock import Random
from trivium.cluster.errors import (
    ClusterError,
    Corrupt,
    DriveFailed,
    Fenced,
    NoSpace,
    NotFound,
    Refused,
    Unavailable,
)
from trivium.cluster.logchain import ChainStore, swap_surely
from trivium.cluster.logfile import HEAD_SIZE, NO_HASH, LogRecord, encode_append
from trivium.cluster.logplan import Chain, LogOwner
from trivium.cluster.logread import read_chain
from trivium.cluster.model import SegmentEntry
from trivium.cluster.nodes import Nodes
from trivium.cluster.wire import LogHead

log = logging.getLogger(__name__)

GROUP_BYTES = 4 << 20
Choose = Callable[[bytes, frozenset[bytes]], tuple[bytes, ...]]
"""(segment id, drives to avoid) -> the drives of a new segment (logplan.choose_drives)."""


@dataclass(frozen=True, slots=True)
class LogOptions:
    capacity: int = logsegment.CAPACITY
    reserve_class: int = 3
    attempt_s: float = 5.0  # silence of a replica for so long puts an append in doubt
    patience_s: float = 2.0  # a replica that is away for so long is left behind
    retry_s: float = 0.1
    waits_for_room: bool | None = None  # False: a full pool ends run() with NoSpace; None: only below class 3
    remove_trimmed: bool = True  # False: somebody else removes what leaves the chain (volume logs: the collector)

    @property
    def waits(self) -> bool:
        return self.reserve_class >= 3 if self.waits_for_room is None else self.waits_for_room


@dataclass(slots=True)
class LogParts:
    """What writers and takeovers are made of."""

    nodes: Nodes
    chain_store: ChainStore
    owner: LogOwner
    choose: Choose
    random: Random
    options: LogOptions = field(default_factory=LogOptions)


@dataclass(slots=True)
class _Group:
    records: list[LogRecord] = field(default_factory=list)
    size: int = 0
    last_hash: bytes = NO_HASH
    done: trio.Event = field(default_factory=trio.Event)


class _Next:
    """The segment that will follow record `seq`, made while that record is still on its way."""

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self.made = trio.Event()
        self.entry: SegmentEntry | None = None


class LogWriter:
    """Made by takeover(). run() must be running for appends to proceed."""

    def __init__(self, parts: LogParts, chain: Chain, last_seq: int, last_hash: bytes, size: int) -> None:
        self._parts = parts
        self._nodes, self._options = parts.nodes, parts.options
        self._chain = chain
        self._size = size  # bytes used in the open segment, head included
        self._next_seq, self._next_hash = last_seq + 1, last_hash  # of the next record appended
        self._durable_seq, self._durable_hash = last_seq, last_hash
        self._groups: deque[_Group] = deque()
        self._tickets: dict[int, tuple[bytes, _Group]] = {}  # records not yet answered: hash, group
        self._work = trio.Event()
        self._stopped: ClusterError | None = None
        self._leave: set[bytes] | None = None  # asked to move away from these drives
        self._moved = trio.Event()
        self._chain_lock = trio.Lock()
        self._nursery: trio.Nursery | None = None
        self._next: _Next | None = None

    # ---- what callers use -----------------------------------------------------------------------------------

    @property
    def last_seq(self) -> int:
        """Of the last record that is durable and answered."""
        return self._durable_seq

    @property
    def last_hash(self) -> bytes:
        return self._durable_hash

    @property
    def chain(self) -> Chain:
        return self._chain

    @property
    def next_seq(self) -> int:
        """What the next appended record will be."""
        return self._next_seq

    async def append(self, records: Sequence[LogRecord]) -> int:
        """Answer the last record's seq when all are durable on all replicas. Fenced: this writer must stop.

        A record of seq 0 is given its seq and previous hash here. One with a seq must be the next, or one that was
        appended before and is repeated, unchanged, by a caller that gave up waiting. A cancelled call's records are
        stored all the same.
        """
        if self._stopped is not None:
            raise self._stopped
        group: _Group | None = None
        last = self._next_seq - 1
        for record in records:
            last, group = self._enqueue(record)
        if group is not None:
            await group.done.wait()
            if last > self._durable_seq:
                raise self._stopped or Unavailable("the log was closed")
        else:
            await trio.lowlevel.checkpoint()
        return last

    async def read(self, from_seq: int) -> AsyncIterator[LogRecord]:
        """Durable records from `from_seq` on (0: from the first that there is), in order, verified. NotFound when they
        were trimmed."""
        from_seq = from_seq or self._chain[0].first_seq
        async for record in read_chain(self._nodes, lambda: self._chain, from_seq, lambda: self._durable_seq):
            yield record

    async def trim(self, upto: int) -> Chain:
        """Records up to `upto` are not needed any more: whole segments of them leave the chain. Answers those."""
        async with self._chain_lock:
            chain = logplan.trimmed(self._chain, upto)
            gone = tuple(entry for entry in self._chain if entry not in chain)
            if gone:
                await self._change(chain)
        if self._options.remove_trimmed:
            for entry in gone:
                await logsegment.remove(self._nodes, entry.drives, entry.segment)
        return gone

    async def replace_closed(self, old: SegmentEntry, new: SegmentEntry) -> bool:
        """The healer has copied a closed segment: name its new drives. False when the entry has left the chain."""
        async with self._chain_lock:
            if old not in self._chain or old.last_seq is None:
                return False
            await self._change(tuple(new if entry == old else entry for entry in self._chain))
            return True

    async def leave(self, drives: Iterable[bytes] = ()) -> None:
        """Go on in a new segment without `drives` (drained, out) or, with none named, on freshly chosen ones."""
        self._leave = (self._leave or set()) | set(drives)
        moved = self._moved
        self._work.set()
        await moved.wait()
        if self._stopped is not None:
            raise self._stopped

    async def close(self, *, change_chain: bool = True) -> Chain:
        """Stop. Answers the closed chain; with change_chain=False the caller records it (with a release, say)."""
        self._stop(Unavailable("the log was closed"))
        async with self._chain_lock:
            chain = logplan.closed(self._chain, self._durable_seq)
            if change_chain:
                await self._change(chain)
        return chain

    # ---- the loop -------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Stores groups until fenced or closed."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await self._pump()
                nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            self._stop(Unavailable("the log's writer is not running"))

    async def _pump(self) -> None:
        try:
            while self._stopped is None:
                if self._leave is not None:
                    await self._leave_now()
                elif self._groups:
                    await self._store(self._groups.popleft())
                else:
                    self._work = trio.Event()
                    await self._work.wait()
        except Fenced as error:
            self._stop(error)
        except NoSpace as error:
            self._stop(error)
            raise

    def _stop(self, why: ClusterError) -> None:
        if self._stopped is None or isinstance(why, Fenced):
            self._stopped = why
        self._moved.set()
        self._work.set()
        for _, group in self._tickets.values():
            group.done.set()

    def _enqueue(self, record: LogRecord) -> tuple[int, _Group | None]:
        if record.seq and record.seq != self._next_seq:
            return self._repeated(record)
        if record.seq and record.previous_hash not in (NO_HASH, self._next_hash):
            raise Refused(f"log record {record.seq} does not follow the one before it")
        linked = replace(record, seq=self._next_seq, previous_hash=self._next_hash)
        if linked.size > self._options.capacity - HEAD_SIZE:
            raise Refused(f"a log record of {linked.size} bytes does not fit into a segment")
        group = self._open_group(linked.size)
        group.records.append(linked)
        group.size += linked.size
        self._next_seq, self._next_hash = linked.seq + 1, linked.hash
        group.last_hash = self._next_hash
        self._tickets[linked.seq] = (self._next_hash, group)
        self._work.set()
        return linked.seq, group

    def _open_group(self, size: int) -> _Group:
        limit = min(GROUP_BYTES, self._options.capacity - HEAD_SIZE)
        if not self._groups or self._groups[-1].size + size > limit:
            self._groups.append(_Group())
        return self._groups[-1]

    def _repeated(self, record: LogRecord) -> tuple[int, _Group | None]:
        if record.seq > self._next_seq:
            raise Refused(f"log record {record.seq} was appended before record {self._next_seq}")
        ticket = self._tickets.get(record.seq)
        if ticket is not None:
            if replace(record, previous_hash=self._before(record.seq)).hash != ticket[0]:
                raise Refused(f"another record {record.seq} is in the log")
            return record.seq, ticket[1]
        if record.seq == self._durable_seq:
            if replace(record, previous_hash=self._last_previous).hash == self._durable_hash:
                return record.seq, None
            raise Refused(f"another record {record.seq} is in the log")
        raise Refused(f"record {record.seq} is in the log for long")

    _last_previous = NO_HASH  # previous hash of the last durable record

    def _before(self, seq: int) -> bytes:
        known = self._tickets.get(seq - 1)
        return known[0] if known is not None else self._durable_hash

    # ---- storing --------------------------------------------------------------------------------------------

    async def _store(self, group: _Group) -> None:
        if self._size + group.size > self._options.capacity:
            await self._move({}, None)
        self._prepare_next(group)
        entry = self._chain[-1]
        data = encode_append(group.records, entry.segment)
        lost = await self._append_all(entry, group.records[0].seq, data)
        if lost:
            log.warning("log segment %s goes on elsewhere: %s", entry.segment.hex(), _first(lost))
            await self._move(lost, group)
        else:
            self._size += len(data)
        self._answer(group)
        if self._next is not None and not self._groups:
            await self._move({}, None)  # nobody waits: roll now

    def _prepare_next(self, group: _Group) -> None:
        """Make the next segment while the (nearly) last group of this one is stored, so that rolling costs nothing."""
        nearly_full = self._options.capacity - self._options.capacity // 16
        if self._nursery is None or self._next is not None or self._size + group.size < nearly_full:
            return
        self._next = following = _Next(group.records[-1].seq)

        async def make() -> None:
            with suppress(ClusterError):
                following.entry = await create_segment(self._parts, following.seq + 1, group.last_hash)
            following.made.set()

        self._nursery.start_soon(make)

    async def _new_segment(self, avoid: set[bytes]) -> SegmentEntry:
        """The prepared segment if it fits here, else a fresh one."""
        following, self._next = self._next, None
        if following is not None:
            await following.made.wait()
            entry = following.entry
            if entry is not None and following.seq == self._durable_seq and not avoid & set(entry.drives):
                return entry
            if entry is not None:
                self._forget(entry)
        return await create_segment(self._parts, self._durable_seq + 1, self._durable_hash, avoid)

    async def _append_all(self, entry: SegmentEntry, first_seq: int, data: bytes) -> dict[bytes, ClusterError]:
        """Send until all replicas have it. Answers those that must be left behind. Fenced."""
        pending = set(entry.drives)
        give_up = trio.current_time() + self._options.patience_s
        while True:
            errors = await self._append_once(entry.segment, first_seq, data, pending)
            if any(isinstance(error, Fenced) for error in errors.values()):
                raise Fenced(f"log segment {entry.segment.hex()} was sealed by another writer")
            if not errors:
                return {}
            silent = all(isinstance(error, Unavailable) for error in errors.values())
            if not silent or trio.current_time() >= give_up or not all(map(self._nodes.is_up, errors)):
                return errors
            pending = set(errors)
            await trio.sleep(self._options.retry_s)

    async def _append_once(
        self, segment: bytes, first_seq: int, data: bytes, drives: Iterable[bytes]
    ) -> dict[bytes, ClusterError]:
        results: logsegment.Results = dict.fromkeys(drives, Unavailable("no answer in time"))
        with trio.move_on_after(self._options.attempt_s):
            results = await logsegment.append(self._nodes, segment, first_seq, data, results)
        return logsegment.failures(results)

    def _answer(self, group: _Group) -> None:
        if isinstance(self._stopped, Fenced):
            return
        last = group.records[-1]
        self._durable_seq, self._durable_hash = last.seq, group.last_hash
        self._last_previous = last.previous_hash
        for record in group.records:
            del self._tickets[record.seq]
        group.done.set()

    # ---- the next segment -----------------------------------------------------------------------------------

    async def _leave_now(self) -> None:
        avoid, self._leave = self._leave or set(), None
        await self._move(dict.fromkeys(avoid), None)
        moved, self._moved = self._moved, trio.Event()
        moved.set()

    async def _move(self, lost: Mapping[bytes, ClusterError | None], group: _Group | None) -> None:
        """Go on in a new segment without `lost`, which begins with `group`, then change the chain once."""
        avoided = set(lost)
        data = b""
        while True:
            entry = await self._new_segment(avoided)
            if group is None:
                break
            data = encode_append(group.records, entry.segment)
            errors = await self._append_once(entry.segment, entry.first_seq, data, entry.drives)
            if not errors:
                break
            avoided |= set(errors)
            self._forget(entry)  # no chain change was tried for it: nobody can have built upon it
        async with self._chain_lock:
            old = self._chain[-1]
            gone = [drive for drive, error in lost.items() if isinstance(error, (NotFound, Corrupt, DriveFailed))]
            await self._change(logplan.successor(self._chain, self._durable_seq, entry, gone))
        self._size = HEAD_SIZE + len(data)
        self._seal_later(old)

    async def _change(self, chain: Chain) -> None:
        try:
            await swap_surely(self._parts.chain_store, self._chain, chain, retry_s=self._options.retry_s)
        except Fenced as error:
            self._stop(error)
            raise
        self._chain = chain

    def _seal_later(self, entry: SegmentEntry) -> None:
        """Not needed for safety (the chain has closed it); it gives back the unused space."""

        async def seal(drive: bytes) -> None:
            with suppress(ClusterError):
                await logsegment.seal(self._nodes, drive, entry.segment)

        if self._nursery is not None:
            for drive in entry.drives:
                self._nursery.start_soon(seal, drive)

    def _forget(self, entry: SegmentEntry) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(logsegment.remove, self._nodes, entry.drives, entry.segment)


async def create_segment(
    parts: LogParts, first_seq: int, previous_hash: bytes, avoid: Iterable[bytes] = ()
) -> SegmentEntry:
    """An empty segment, durable on all its drives; drives that fail are left out. Waits while there are none."""
    avoided, full = set(avoid), False
    while True:
        segment = parts.random.getrandbits(128).to_bytes(16, "little")
        drives = parts.choose(segment, frozenset(avoided))
        if not drives:
            if full and not parts.options.waits:
                raise NoSpace("no drive has room for a log segment")
            log.error("no drive %s for a new log segment, waiting", "has room" if full else "is there")
            await trio.sleep(max(parts.options.retry_s, 0.5))
            avoided = set(avoid)
            continue
        owner = parts.owner
        head = LogHead(segment, owner.kind, owner.owner, owner.session, owner.lease, first_seq, previous_hash)
        results: logsegment.Results = dict.fromkeys(drives, Unavailable("no answer in time"))
        with trio.move_on_after(parts.options.attempt_s):
            results = await logsegment.create(
                parts.nodes, head, drives, parts.options.capacity, parts.options.reserve_class
            )
        failed = logsegment.failures(results)
        if not failed:
            return SegmentEntry(segment, drives, first_seq)
        full = full or any(isinstance(error, NoSpace) for error in failed.values())
        avoided |= set(failed)
        log.warning("log segment %s is not made: %s", segment.hex(), _first(failed))


def _first(errors: Mapping[bytes, ClusterError]) -> str:
    drive, error = next(iter(errors.items()))
    return f"drive {drive.hex()}: {error}"
