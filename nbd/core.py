"""The state of an open volume in memory. Synchronous, shared by nbdkit's threads and the event loop under a short lock.

What a block holds: the overlay (newest accepted write, in a segment) hides the map (what is sealed in chunks).

Invariants
1. A write is accepted whole blocks at a time: it has a number, is in the open segment and in the overlay, or nothing
   happened. Numbers have no gaps.
2. Segments commit in order; when one does, its entries move from overlay to map in one step under the lock, so that
   the map is always the state after write `upto`, the last write of the last committed segment.
3. At most MAX_FULL full segments wait to be sealed (with the open one: 32 MiB of dirty data at most).
4. Bytes at a position of a segment or chunk never change: they are copied outside of the lock.
5. A write of at most WHOLE_BLOCKS is in one segment: after a crash all of it is there or nothing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trivium.cluster.model import VOLUME_CHUNK_SIZE, Ref
from trivium.nbd.buffer import Sealed, Segment
from trivium.nbd.cache import ChunkCache
from trivium.nbd.errors import BadRequest, Full, ReadOnly, VolumeError
from trivium.nbd.journal import DATA, EXTENT_BLOCKS_MAX, Piece, records_of
from trivium.nbd.map import BLOCK, BLOCK_SHIFT, POSITION_MASK, ZEROS, BlockMap, LiveMap, Run, entry_of, lookup

MAX_FULL = 3
WHOLE_BLOCKS = 64
LOG_REST_BLOCKS = 255
"""A segment with at most this much unlogged is logged by a flush; with more it is sealed, and the flush waits for its
chunk: that stores 1.5 bytes a byte (4+2), the log 3 and the chunk later 1.5 more."""

_ZEROS = memoryview(bytes(1 << 20))


@dataclass(frozen=True, slots=True)
class ChunkInfo:
    """A row of the chunk table: where the volume's chunk `number` is, and which writes it holds."""

    number: int
    ref: Ref
    first_write: int
    last_write: int
    blocks: int  # data blocks (or pages) in it


Miss = tuple[int, int, int, int]
"""(offset in the request, chunk number, offset in the chunk, length): bytes that are not in memory."""


@dataclass(slots=True)
class Batch:
    """Writes of one segment on their way to the log: `records` hold its extents up to `upto_extent`."""

    segment: Segment
    upto_extent: int
    upto_write: int
    records: list[tuple[int, list[bytes | memoryview]]]


class VolumeCore:
    """Methods are for any thread unless they say otherwise. Offsets and lengths are in bytes."""

    def __init__(
        self,
        size: int,
        *,
        base: LiveMap,
        table: dict[int, ChunkInfo],
        upto: int,
        next_number: int,
        cache: ChunkCache,
        read_only: bool = False,
        segment_bytes: int = VOLUME_CHUNK_SIZE,
    ) -> None:
        self.size = size
        self.segment_bytes = segment_bytes
        self.read_only = read_only
        self.lock = threading.Lock()
        self.base = base
        self.table = table
        self.upto = upto
        self.cache = cache
        self.overlay = BlockMap()
        self.accepted = upto
        self.next_number = next_number
        self.full: deque[Segment] = deque()
        self.segments: dict[int, Segment] = {}
        self.open: Segment | None = None
        self.failed: VolumeError | None = None  # fenced or broken: nothing is served any more
        self.credit_bytes = 0  # so much may be written before the pool is asked again what room there is
        self.written_bytes = 0
        self.no_space: str = ""  # why the pool takes no writes, while it does not
        self.write_through = True  # until the guest's first flush
        self.on_full: Callable[[], None] = lambda: None  # a segment waits to be sealed
        self.usable: Callable[[], bool] = lambda: True  # whether the lease may still be relied upon

    # ---- reading --------------------------------------------------------------------------------------------

    def check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise BadRequest(f"bytes {offset} to {offset + length} are outside of the volume ({self.size} bytes)")

    def lookup(self, block: int, count: int) -> list[Run]:
        with self.lock:
            return lookup(self.overlay, self.base, block, count)

    def read(self, offset: int, out: memoryview) -> list[Miss]:
        """Copy what is in memory into `out`; the caller fetches the rest."""
        length = len(out)
        self.check_range(offset, length)
        if length == 0:
            return []
        block = offset >> BLOCK_SHIFT
        count = ((offset + length - 1) >> BLOCK_SHIFT) - block + 1
        copies: list[tuple[int, memoryview]] = []
        misses: list[Miss] = []
        with self.lock:
            if self.failed is not None:
                raise self.failed
            for first, blocks, entry in lookup(self.overlay, self.base, block, count):
                start = max(first << BLOCK_SHIFT, offset)
                stop = min((first + blocks) << BLOCK_SHIFT, offset + length)
                if entry == 0 or entry & POSITION_MASK == ZEROS:
                    _add_zeros(copies, start - offset, stop - start)
                    continue
                inner = ((entry & POSITION_MASK) << BLOCK_SHIFT) + start - (first << BLOCK_SHIFT)
                self._find(entry >> 16, inner, stop - start, start - offset, copies, misses)
        for at, source in copies:
            out[at : at + len(source)] = source
        return misses

    def _find(
        self,
        number: int,
        inner: int,
        length: int,
        at: int,
        copies: list[tuple[int, memoryview]],
        misses: list[Miss],
    ) -> None:
        segment = self.segments.get(number)
        if segment is not None:
            copies.append((at, segment.view[inner : inner + length]))
            return
        while length:
            found = self.cache.find(number, inner)
            if found is None:
                step = min(length, (inner & ~0xFFFF) + 0x10000 - inner)
                if misses and misses[-1][1] == number and misses[-1][2] + misses[-1][3] == inner:
                    before = misses[-1]
                    if before[0] + before[3] == at:
                        misses[-1] = (before[0], number, before[2], before[3] + step)
                    else:
                        misses.append((at, number, inner, step))
                else:
                    misses.append((at, number, inner, step))
            else:
                view, begin = found
                part = view[inner - begin : inner - begin + length]
                step = len(part)
                copies.append((at, part))
            at, inner, length = at + step, inner + step, length - step

    # ---- writing --------------------------------------------------------------------------------------------

    def write(self, offset: int, data: memoryview) -> int:
        """Accept a write of whole blocks. Returns how many bytes were accepted: fewer than given when all segments
        are full (wait for room, then go on with the rest). Raises Full when the pool takes no writes."""
        taken = 0
        with self.lock:
            self._check_write(offset, len(data))
            if self.no_space:
                raise Full(self.no_space)
            block = offset >> BLOCK_SHIFT
            left = len(data) >> BLOCK_SHIFT
            while left and self.credit_bytes > 0:
                segment = self.open
                count = self._takes(left)
                if segment is None or not count:
                    if not self._rotate():
                        break
                    continue
                self.accepted += 1
                size = count << BLOCK_SHIFT
                self._spend(size)
                position = segment.append(block, count, data[taken : taken + size], self.accepted)
                self.overlay.put(block, count, entry_of(segment.number, position))
                block, left, taken = block + count, left - count, taken + size
        return taken

    def write_if(self, block: int, entry: int, data: memoryview) -> bool | None:
        """Write one block if it still is at `entry`: for read-modify-write. None = wait for room."""
        with self.lock:
            self._check_write(block << BLOCK_SHIFT, BLOCK)
            if self.no_space:
                raise Full(self.no_space)
            if (self.overlay.get(block) or self.base.get(block)) != entry:
                return False
            segment = self.open
            if self.credit_bytes <= 0:
                return None
            if segment is None or segment.room_blocks() <= 0:
                if not self._rotate():
                    return None
                segment = self.open
                assert segment is not None
            self.accepted += 1
            self._spend(BLOCK)
            position = segment.append(block, 1, data, self.accepted)
            self.overlay.put(block, 1, entry_of(segment.number, position))
            return True

    def zero(self, offset: int, length: int, kind: int) -> bool:
        """Accept a zero or trim of whole blocks. False = wait for room."""
        with self.lock:
            self._check_write(offset, length)
            segment = self.open
            if segment is None or not segment.takes_extent():
                if not self._rotate():
                    return False
                segment = self.open
                assert segment is not None
            self.accepted += 1
            block, count = offset >> BLOCK_SHIFT, length >> BLOCK_SHIFT
            segment.append_zeros(block, count, kind, self.accepted)
            self.overlay.put(block, count, entry_of(segment.number, ZEROS))
            return True

    def _takes(self, blocks: int) -> int:
        """How many of a write's blocks the open segment takes: of a short one all or none (invariant 5)."""
        if self.open is None:
            return 0
        room = max(0, self.open.room_blocks())
        if room < blocks <= WHOLE_BLOCKS and self.open.used:
            return 0
        return min(room, blocks, EXTENT_BLOCKS_MAX)

    def _spend(self, size: int) -> None:
        self.credit_bytes -= size
        self.written_bytes += size

    def takes_writes(self, length: int = BLOCK) -> bool:
        """Whether a write of so many bytes that found no room would find some now."""
        with self.lock:
            has_room = self.open is None or self._takes(length >> BLOCK_SHIFT) > 0 or len(self.full) < MAX_FULL
            return self.credit_bytes > 0 and has_room

    def _check_write(self, offset: int, length: int) -> None:
        if self.failed is not None:
            raise self.failed
        if self.read_only:
            raise ReadOnly("the volume is open for reading only")
        self.check_range(offset, length)
        assert offset % BLOCK == 0 and length % BLOCK == 0, "whole blocks only"

    def _rotate(self) -> bool:
        """Make a new open segment. False when too many full ones wait."""
        if self.open is not None:
            if len(self.full) >= MAX_FULL:
                return False
            self.full.append(self.open)
            self.on_full()
        self.open = Segment(self.next_number, self.accepted + 1, self.segment_bytes)
        self.segments[self.next_number] = self.open
        self.next_number += 1
        return True

    # ---- durability (event loop) ----------------------------------------------------------------------------

    def durable(self) -> int:
        """Every write up to this number is in a committed chunk or in the log."""
        with self.lock:
            return self._durable()

    def _durable(self) -> int:
        segment: Segment
        for segment in (*self.full, *((self.open,) if self.open is not None else ())):
            if segment.logged_write < segment.last_write:
                return segment.logged_write
        return self.accepted

    def must_seal(self) -> bool:
        """Whether the open segment has more to be made durable than the log is meant for."""
        with self.lock:
            return self.open is not None and self.open.unlogged_blocks() > LOG_REST_BLOCKS

    def seal_open(self) -> bool:
        """Let that become a chunk now. False: too many full segments wait already."""
        with self.lock:
            if self.open is None or self.open.unlogged_blocks() <= LOG_REST_BLOCKS:
                return True
            if len(self.full) >= MAX_FULL:
                return False
            self.full.append(self.open)
            self.open = None
            self.on_full()
            return True

    def take_unlogged(self) -> list[Batch]:
        """What a flush has to append to the log now. Until logged() or untake() it is not taken again."""
        batches: list[Batch] = []
        with self.lock:
            for segment in (*self.full, *((self.open,) if self.open is not None else ())):
                if segment.taken == len(segment.extents):
                    continue
                if segment.unlogged_blocks() > LOG_REST_BLOCKS:
                    continue
                first = segment.logged_write + 1
                extents = segment.extents[segment.taken :]
                segment.taken = len(segment.extents)
                records = records_of(first, extents, segment.view)
                batches.append(Batch(segment, segment.taken, extents[-1][3], records))
        return batches

    def logged(self, batches: Sequence[Batch], seq: int) -> None:
        """The batches are durable in the log, the last record of all has number `seq`."""
        with self.lock:
            for batch in reversed(batches):
                batch.segment.logged = batch.upto_extent
                batch.segment.logged_write = batch.upto_write
                batch.segment.log_seq = seq  # not a later segment's: up to here the log goes with this one's chunk
                seq -= len(batch.records)

    def untake(self, batches: Sequence[Batch]) -> None:
        """The log did not take them (or it is not known): they will be given again, which does no harm."""
        with self.lock:
            for batch in batches:
                batch.segment.taken = batch.segment.logged

    # ---- sealing (event loop) -------------------------------------------------------------------------------

    def close_open(self) -> None:
        """The open segment, if it holds anything, is to be sealed though it is not full."""
        with self.lock:
            if self.open is not None and self.open.extents:
                self.full.append(self.open)
                self.open = None

    def adopt(self, segment: Segment) -> None:
        """Recovery: a full segment made of log records."""
        with self.lock:
            self.segments[segment.number] = segment
            self.full.append(segment)
            self.accepted = segment.last_write
            for block, count, kind, _, position in segment.extents:
                self.overlay.put(block, count, entry_of(segment.number, position if kind == DATA else ZEROS))

    def new_number(self) -> int:
        with self.lock:
            number = self.next_number
            self.next_number += 1
            return number

    def has_dead_chunks(self) -> bool:
        """Whether a checkpoint would let chunks go."""
        with self.lock:
            return any(not self.base.live.get(number, 0) for number in self.table)

    def commit(self, segment: Segment, sealed: Sealed, ref: Ref) -> None:
        """The oldest full segment is a chunk whose row has committed."""
        with self.lock:
            assert self.full[0] is segment, "segments commit in order"
            assert segment.first_write == self.upto + 1, "no write may be left out"
            self.full.popleft()
            del self.segments[segment.number]
            number = segment.number
            self.table[number] = ChunkInfo(number, ref, segment.first_write, segment.last_write, sealed.data_blocks)
            self.base.live.setdefault(number, 0)
            apply_pieces(self.base, number, sealed.pieces)
            for block, count, _, _, _ in segment.extents:
                self.overlay.forget(block, count, number)
            self.upto = segment.last_write
            if sealed.data_blocks:
                self.cache.add_whole(number, memoryview(sealed.buffers[0]))

    def commit_copy(self, info: ChunkInfo, pieces: Sequence[Piece]) -> int:
        """A cleaner's chunk has committed: point to it what still points to its sources. Returns blocks moved."""
        with self.lock:
            self.table[info.number] = info
            self.base.live.setdefault(info.number, 0)
            moved: int = apply_copies(self.base, info.number, pieces)
            return moved


def apply_pieces(base: LiveMap, number: int, pieces: Sequence[Piece]) -> None:
    """Replay a chunk's table into the map, in order."""
    for block, count, kind, _, position, _ in pieces:
        base.put(block, count, entry_of(number, position) if kind == DATA else 0)


def apply_copies(base: LiveMap, number: int, pieces: Sequence[Piece]) -> int:
    """Replay a copying chunk: each extent applies only where the map still points to its source."""
    return sum(
        base.move(block, count, source, entry_of(number, position)) for block, count, _, _, position, source in pieces
    )


def _add_zeros(copies: list[tuple[int, memoryview]], at: int, length: int) -> None:
    while length:
        step = min(length, len(_ZEROS))
        copies.append((at, _ZEROS[:step]))
        at, length = at + step, length - step
