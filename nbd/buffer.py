"""Writes that are not in a committed chunk yet: segments of at most one volume chunk, filled in order of write numbers.

A segment holds every write of its range [first_write, last_write], each block at the position where it was appended;
a position is written once, so readers and the log may use it without a lock. What a later write of the same segment
has replaced is left out when it is sealed; what a later segment replaced is not, because that one may never be durable.

    open (takes writes) -> full (waits to be sealed) -> committed (a chunk; forgotten here)

Invariants
1. first_write of a segment is last_write + 1 of the one before.
2. logged_write <= last_write: everything up to it is durable in the volume's log.
3. Extents before `taken` are never changed again (a record of the log may hold them already).
"""

from __future__ import annotations

from dataclasses import dataclass

from trivium.cluster.model import VOLUME_CHUNK_SIZE
from trivium.nbd.journal import DATA, EXTENT_BLOCKS_MAX, Extent, Piece, Record, encode_table, table_bytes
from trivium.nbd.map import BLOCK_SHIFT, ZEROS, BlockMap, entry_of

EXTENTS_MAX = 4096
"""Extents of one segment at most, so that trims (which take no room) seal it too."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A segment in the form of a chunk: its buffers in order, and what they hold."""

    buffers: list[memoryview | bytes]
    pieces: tuple[Piece, ...]
    data_blocks: int

    @property
    def length(self) -> int:
        return sum(len(buffer) for buffer in self.buffers)


class Segment:
    """Not locked: the owner does."""

    __slots__ = (
        "data",
        "extents",
        "first_write",
        "last_write",
        "log_seq",
        "logged",
        "logged_write",
        "number",
        "sealing",
        "taken",
        "used",
        "view",
    )

    def __init__(self, number: int, first_write: int, size: int = VOLUME_CHUNK_SIZE) -> None:
        self.number = number
        self.first_write = first_write
        self.last_write = first_write - 1
        self.data = bytearray(size)
        self.view = memoryview(self.data)
        self.used = 0  # blocks
        self.extents: list[Extent] = []
        self.taken = 0  # extents handed to the log
        self.logged = 0  # extents durable in the log
        self.logged_write = first_write - 1
        self.log_seq = 0  # the last log record that holds writes of this segment
        self.sealing = False

    def room_blocks(self) -> int:
        """How many blocks one more extent may have; 0 = the segment is full."""
        extents = len(self.extents) + 1
        if extents > EXTENTS_MAX:
            return 0
        return ((len(self.data) - table_bytes(extents)) >> BLOCK_SHIFT) - self.used

    def takes_extent(self) -> bool:
        """Whether one more zero or trim fits."""
        extents = len(self.extents) + 1
        return extents <= EXTENTS_MAX and (self.used << BLOCK_SHIFT) + table_bytes(extents) <= len(self.data)

    def append(self, block: int, count: int, data: memoryview, write: int) -> int:
        """Add the bytes of `count` blocks as write number `write`. Returns their position."""
        position = self.used
        start = position << BLOCK_SHIFT
        self.view[start : start + (count << BLOCK_SHIFT)] = data
        self.used = position + count
        self.last_write = write
        extents = self.extents
        if len(extents) > self.taken:
            first, length, kind, _, at = extents[-1]
            joined = length + count
            if first + length == block and kind == DATA and at + length == position and joined <= EXTENT_BLOCKS_MAX:
                extents[-1] = (first, joined, DATA, write, at)
                return position
        extents.append((block, count, DATA, write, position))
        return position

    def append_zeros(self, block: int, count: int, kind: int, write: int) -> None:
        self.extents.append((block, count, kind, write, 0))
        self.last_write = write

    def take_record(self, record: Record) -> None:
        """Recovery: add a whole log record, which is durable already. The caller has made sure that it fits."""
        size = len(record.data)
        start = self.used << BLOCK_SHIFT
        self.view[start : start + size] = record.data
        for block, count, kind, write, position in record.extents:
            self.extents.append((block, count, kind, write, position + self.used if kind == DATA else 0))
        self.used += size >> BLOCK_SHIFT
        self.last_write = self.logged_write = record.last
        self.taken = self.logged = len(self.extents)

    def fits(self, record: Record) -> bool:
        extents = len(self.extents) + len(record.extents)
        return (self.used << BLOCK_SHIFT) + len(record.data) + table_bytes(extents) <= len(self.data)

    def unlogged_blocks(self) -> int:
        return sum(extent[1] for extent in self.extents[self.logged :] if extent[2] == DATA)

    def seal(self, volume: bytes) -> Sealed:
        """The chunk that this segment becomes. It takes no more writes."""
        pieces, live = self._live_pieces()
        if live == self.used:
            buffers: list[memoryview | bytes] = [self.view[: self.used << BLOCK_SHIFT]]
        else:
            pieces, compacted = self._compact(pieces, live)
            buffers = [compacted]
        table = encode_table(volume, self.number, self.first_write, self.last_write, live, pieces)
        return Sealed([*(b for b in buffers if len(b)), table], tuple(pieces), live)

    def _live_pieces(self) -> tuple[list[Piece], int]:
        """Extents less what later writes of this segment replaced, in order; and the number of live blocks."""
        final = BlockMap()
        for block, count, kind, _, position in self.extents:
            final.put(block, count, entry_of(self.number, position if kind == DATA else ZEROS))
        pieces: list[Piece] = []
        live = 0
        for block, count, kind, write, position in self.extents:
            if kind != DATA:
                pieces.append((block, count, kind, write, 0, 0))
                continue
            shift = entry_of(self.number, position) - block
            # a run counts up just as the extent's positions do: if its first block is elsewhere, all are
            for first, length, entry in final.runs(block, count):
                if entry == shift + first:
                    pieces.append((first, length, DATA, write, position + first - block, 0))
                    live += length
        return pieces, live

    def _compact(self, pieces: list[Piece], live: int) -> tuple[list[Piece], memoryview]:
        target = memoryview(bytearray(live << BLOCK_SHIFT))
        moved: list[Piece] = []
        at = 0
        for block, count, kind, write, position, source in pieces:
            if kind != DATA:
                moved.append((block, count, kind, write, 0, source))
                continue
            start = position << BLOCK_SHIFT
            size = count << BLOCK_SHIFT
            target[at << BLOCK_SHIFT : (at << BLOCK_SHIFT) + size] = self.view[start : start + size]
            moved.append((block, count, kind, write, at, source))
            at += count
        return moved, target
