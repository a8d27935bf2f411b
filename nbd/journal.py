"""What a volume writes down: records of its log, and the table at the end of each volume chunk. Pure bytes in and out.

Log record (RULES.md): count u32, (offset u64, length u32, kind u32, write number u64) each, data of the DATA entries
in order. The first entry is always of kind RANGE: `offset` is the first and `write number` the last write that the
record holds, so that recovery knows a gap when it sees one.

Volume chunk: data blocks, then the table (count entries of 40 bytes: offset u64, length u32, kind u32, write number
u64, position u32 in blocks, 0 u32, source u64), zeros, and at the very end of the chunk's piece a footer. `source` of
a COPY entry is the map entry that its first block was copied from.

Invariants
1. All offsets and lengths are multiples of 4 KiB.
2. A record and a chunk each hold *every* write of their range, in order of write numbers: applied whole or not at all.
3. A copying chunk (cleaner) has an empty range and only COPY entries.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trivium.cluster.hashing import crc32c
from trivium.cluster.model import VOLUME_CHUNK_SIZE, PieceFlag
from trivium.nbd.errors import Damaged
from trivium.nbd.map import BLOCK, BLOCK_SHIFT

RANGE = 0
DATA = int(PieceFlag.DATA)
ZERO = int(PieceFlag.ZERO)
TRIM = int(PieceFlag.TRIM)
COPY = int(PieceFlag.COPY)

RECORD_DATA_MAX = 768 * 1024
"""Data of one log record at most (a record of a log is at most 1 MiB)."""
EXTENT_BLOCKS_MAX = RECORD_DATA_MAX >> BLOCK_SHIFT

_COUNT = struct.Struct("<I")
_ENTRY = struct.Struct("<QIIQ")
_PIECE = struct.Struct("<QIIQIIQ")
_FOOTER = struct.Struct("<8s16sQQQIIII")  # magic, volume, number, first, last, count, data blocks, table CRC, CRC
_MAGIC = b"trivVOL1"
PIECE_BYTES = _PIECE.size
FOOTER_BYTES = _FOOTER.size

Extent = tuple[int, int, int, int, int]
"""(first block, blocks, kind, write number, position): the position is where the bytes are in their segment."""
Piece = tuple[int, int, int, int, int, int]
"""An Extent and its source (0 unless COPY)."""


@dataclass(frozen=True, slots=True)
class Record:
    """A decoded log record. Positions of its extents count blocks in `data`."""

    first: int
    last: int
    extents: tuple[Extent, ...]
    data: memoryview


@dataclass(frozen=True, slots=True)
class Table:
    """A decoded table of a volume chunk."""

    volume: bytes
    number: int
    first: int
    last: int
    data_blocks: int
    pieces: tuple[Piece, ...]

    @property
    def copies(self) -> bool:
        return self.last < self.first


def encode_record(first: int, last: int, extents: Iterable[Extent], data: memoryview) -> list[bytes | memoryview]:
    """A record's payload as buffers; `data` is the segment that the extents' positions count in."""
    head = [b"", _ENTRY.pack(first, 0, RANGE, last)]
    parts: list[bytes | memoryview] = []
    for block, count, kind, write, position in extents:
        head.append(_ENTRY.pack(block << BLOCK_SHIFT, count << BLOCK_SHIFT, kind, write))
        if kind == DATA:
            parts.append(data[position << BLOCK_SHIFT : (position + count) << BLOCK_SHIFT])
    head[0] = _COUNT.pack(len(head) - 1)
    return [b"".join(head), *parts]


def decode_record(payload: bytes | memoryview) -> Record:
    view = memoryview(payload)
    try:
        (count,) = _COUNT.unpack_from(view, 0)
        table_end = _COUNT.size + count * _ENTRY.size
        if count == 0 or table_end > len(view):
            raise Damaged("a volume log record's table does not fit into it")
        entries = list(_ENTRY.iter_unpack(view[_COUNT.size : table_end]))
    except struct.error as error:
        raise Damaged(f"a volume log record is too short: {error}") from error
    first, length, kind, last = entries[0]
    if kind != RANGE or length or last < first:
        raise Damaged("a volume log record does not begin with its range")
    extents: list[Extent] = []
    position = 0
    for offset, length, kind, write in entries[1:]:
        if offset % BLOCK or length % BLOCK or not length or kind not in (DATA, ZERO, TRIM):
            raise Damaged(f"a volume log record has an entry that makes no sense (offset {offset}, kind {kind})")
        if not first <= write <= last:
            raise Damaged("a volume log record has a write number outside of its range")
        extents.append((offset >> BLOCK_SHIFT, length >> BLOCK_SHIFT, kind, write, position))
        position += length >> BLOCK_SHIFT if kind == DATA else 0
    if table_end + (position << BLOCK_SHIFT) != len(view):
        raise Damaged("a volume log record's data is not as long as its table says")
    return Record(first, last, tuple(extents), view[table_end:])


def records_of(first: int, extents: Sequence[Extent], data: memoryview) -> list[tuple[int, list[bytes | memoryview]]]:
    """Cut extents that begin with write number `first` into records: (last write number, payload buffers) each."""
    records: list[tuple[int, list[bytes | memoryview]]] = []
    batch: list[Extent] = []
    blocks = 0
    for extent in extents:
        size = extent[1] if extent[2] == DATA else 0
        if batch and (blocks + size > EXTENT_BLOCKS_MAX or len(batch) >= 4096):
            last = batch[-1][3]
            records.append((last, encode_record(first, last, batch, data)))
            first, batch, blocks = last + 1, [], 0
        batch.append(extent)
        blocks += size
    if batch:
        last = batch[-1][3]
        records.append((last, encode_record(first, last, batch, data)))
    return records


def table_bytes(pieces: int) -> int:
    """Room that a table takes at the end of a chunk, rounded up to blocks."""
    return -(-(pieces * PIECE_BYTES + FOOTER_BYTES) // BLOCK) * BLOCK


def encode_table(volume: bytes, number: int, first: int, last: int, data_blocks: int, pieces: Sequence[Piece]) -> bytes:
    """The bytes that follow the data blocks of a volume chunk."""
    pack = _PIECE.pack
    table = b"".join(
        [
            pack(block << BLOCK_SHIFT, count << BLOCK_SHIFT, kind, write, position, 0, source)
            for block, count, kind, write, position, source in pieces
        ]
    )
    fields = (_MAGIC, volume, number, first, last, len(pieces), data_blocks, crc32c(table))
    footer = _FOOTER.pack(*fields, 0)
    footer = _FOOTER.pack(*fields, crc32c(footer))
    return table + bytes(table_bytes(len(pieces)) - len(table) - len(footer)) + footer


def table_length(tail: bytes | memoryview) -> int:
    """How many bytes at the end of a chunk its table takes, from (at least) the last block."""
    return table_bytes(_footer(memoryview(tail))[5])


def decode_table(tail: bytes | memoryview) -> Table:
    """Decode from the last `table_length` bytes (or more) of a chunk."""
    view = memoryview(tail)
    _, volume, number, first, last, count, data_blocks, crc, _ = _footer(view)
    start = len(view) - table_bytes(count)
    if start < 0:
        raise Damaged("a volume chunk's table was read too short")
    table = view[start : start + count * PIECE_BYTES]
    if crc32c(table) != crc:
        raise Damaged(f"the table of volume chunk {number} does not verify")
    pieces = tuple(
        (offset >> BLOCK_SHIFT, length >> BLOCK_SHIFT, kind, write, position, source)
        for offset, length, kind, write, position, _, source in _PIECE.iter_unpack(table)
    )
    return Table(volume, number, first, last, data_blocks, pieces)


def _footer(view: memoryview) -> tuple[bytes, bytes, int, int, int, int, int, int, int]:
    if len(view) < FOOTER_BYTES:
        raise Damaged("a volume chunk is too short to have a table")
    fields = _FOOTER.unpack(view[-FOOTER_BYTES:])
    if fields[0] != _MAGIC or crc32c(_FOOTER.pack(*fields[:-1], 0)) != fields[8]:
        raise Damaged("a volume chunk does not end with a table")
    if fields[5] * PIECE_BYTES > VOLUME_CHUNK_SIZE:
        raise Damaged("a volume chunk's table is larger than a chunk")
    return fields
