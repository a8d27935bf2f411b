"""Checkpoints: the map as of write N in chunks of kind MAP, written incrementally.

Only pages that changed since the last checkpoint are written; the others stay where they are. A page's place is an
entry like a block's (chunk number, 4 KiB page in the chunk), held in directory pages of 512 entries, whose places are
in the index, which is one chunk (or several) named by the volume's row. Every MAP chunk but the index has a row of
its own until a checkpoint lists it as died.

    index = msgpack of Index; page and directory page = 512 x u64 little-endian

Invariants
1. A checkpoint names committed chunks only.
2. A chunk without live blocks or pages dies with the first checkpoint that maps it no more, not before.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from trivium.cluster.model import ChunkId, Ref
from trivium.nbd.core import ChunkInfo
from trivium.nbd.errors import Damaged
from trivium.nbd.map import PAGE_BYTES, PAGE_ENTRIES, PAGE_MASK, PAGE_SHIFT, POSITION_MASK, LiveMap, entry_of

PAGES_PER_CHUNK = 1023  # just below 4 MiB
FORMAT = 2
FORMATS = (1, 2)  # 1: without parts

ChunkRow = tuple[int, ChunkId, int, int, int, int, int, int]
"""number, chunk, ref offset, ref length, first write, last write, blocks, live blocks"""

class Index(msgspec.Struct, array_like=True):
    """The root of a checkpoint."""

    format: int
    upto: int
    size: int
    next_number: int
    used_blocks: int
    chunks: list[ChunkRow]
    map_chunks: list[tuple[int, ChunkId, int, int, int, int]]  # number, chunk, ref offset, ref length, pages, live
    directory: list[tuple[int, int]]  # (directory page, its entry)
    parts: list[tuple[ChunkId, int, int]] = []  # chunk, ref offset, ref length of more of `chunks`


encode_index = msgspec.msgpack.Encoder().encode
_decode_index = msgspec.msgpack.Decoder(Index).decode
encode_part = msgspec.msgpack.Encoder().encode
_decode_part = msgspec.msgpack.Decoder(list[ChunkRow]).decode


def decode_index(data: bytes | memoryview) -> Index:
    try:
        index = _decode_index(data)
    except msgspec.MsgspecError as error:
        raise Damaged(f"the volume's checkpoint does not decode: {error}") from error
    if index.format not in FORMATS:
        raise Damaged(f"the volume's checkpoint has format {index.format}; this version knows {FORMAT}")
    return index


def decode_part(data: bytes | memoryview) -> list[ChunkRow]:
    try:
        return _decode_part(data)
    except msgspec.MsgspecError as error:
        raise Damaged(f"a part of the volume's checkpoint does not decode: {error}") from error


def page_bytes(page: array[int] | int) -> bytes:
    values = array("Q", (page,)) * PAGE_ENTRIES if isinstance(page, int) else page
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return values.tobytes()


def page_values(data: bytes | memoryview) -> array[int]:
    values = array("Q")
    values.frombytes(bytes(data))
    if sys.byteorder == "big":
        values.byteswap()
    return values


@dataclass(slots=True)
class MapInfo:
    """A chunk of pages."""

    ref: Ref
    pages: int
    live: int


@dataclass(slots=True)
class PageTable:
    """Where the pages of the last durable checkpoint are."""

    maps: dict[int, MapInfo] = field(default_factory=dict)
    pages: dict[int, array[int]] = field(default_factory=dict)  # directory page number -> entries of pages
    places: dict[int, int] = field(default_factory=dict)  # directory page number -> its own entry
    parts: set[ChunkId] = field(default_factory=set)  # of the index: they die with the next checkpoint


@dataclass(slots=True)
class Snapshot:
    """What the lock is held for: the dirty pages and the tables, copied."""

    upto: int
    next_number: int
    used_blocks: int
    pages: dict[int, bytes]  # b"" = a page of holes
    table: dict[int, ChunkInfo]
    live: dict[int, int]


def snapshot(base: LiveMap, table: dict[int, ChunkInfo], upto: int, next_number: int) -> Snapshot:
    """Take the dirty pages; put_back() returns them when the checkpoint fails. Under the lock."""
    pages = {number: page_bytes(base.pages[number]) if number in base.pages else b"" for number in base.dirty}
    base.dirty = set()
    return Snapshot(upto, next_number, base.used_blocks, pages, dict(table), dict(base.live))


@dataclass(slots=True)
class Draft:
    """A checkpoint's pages laid out in new MAP chunks, and the page table as it will be."""

    chunks: list[tuple[int, list[bytes]]]  # (number, pages)
    pages: dict[int, array[int]]  # changed directory pages
    places: dict[int, int]  # all of them
    live: dict[int, int]  # MAP chunk number -> live pages, old ones and new ones


def draft(table: PageTable, dirty: dict[int, bytes], numbers: Iterable[int]) -> Draft:
    """Lay out dirty pages and the directory pages that they change. `numbers` gives fresh chunk numbers."""
    fresh = iter(numbers)
    chunks: list[tuple[int, list[bytes]]] = []
    live = {number: info.live for number, info in table.maps.items()}
    changed: dict[int, array[int]] = {}
    places = dict(table.places)

    def place(page: bytes) -> int:
        if not chunks or len(chunks[-1][1]) >= PAGES_PER_CHUNK:
            chunks.append((next(fresh), []))
            live[chunks[-1][0]] = 0
        number, pages = chunks[-1]
        pages.append(page)
        live[number] += 1
        return entry_of(number, len(pages) - 1)

    for page_number in sorted(dirty):
        which = page_number >> PAGE_SHIFT
        entries = changed.get(which)
        if entries is None:
            old = table.pages.get(which)
            entries = changed[which] = old[:] if old is not None else array("Q", bytes(PAGE_BYTES))
        before = entries[page_number & PAGE_MASK]
        if before:
            live[before >> 16] -= 1
        entries[page_number & PAGE_MASK] = place(dirty[page_number]) if dirty[page_number] else 0
    for which, entries in changed.items():
        before = places.pop(which, 0)
        if before:
            live[before >> 16] -= 1
        if entries.count(0) != PAGE_ENTRIES:
            places[which] = place(page_bytes(entries))
    return Draft(chunks, changed, places, live)


def index_of(taken: Snapshot, made: Draft, maps: dict[int, MapInfo], size: int, dead: set[int]) -> Index:
    """The index; `maps` has the refs of old and new MAP chunks, `dead` the numbers that it leaves out."""
    return Index(
        format=FORMAT,
        upto=taken.upto,
        size=size,
        next_number=taken.next_number,
        used_blocks=taken.used_blocks,
        chunks=[
            (n, i.ref.chunk, i.ref.offset, i.ref.length, i.first_write, i.last_write, i.blocks, taken.live.get(n, 0))
            for n, i in taken.table.items()
            if n not in dead
        ],
        map_chunks=[
            (n, i.ref.chunk, i.ref.offset, i.ref.length, i.pages, made.live[n])
            for n, i in maps.items()
            if n not in dead
        ],
        directory=sorted(made.places.items()),
    )


def split_index(index: Index, rows_max: int) -> list[list[ChunkRow]]:
    """Take the rows of the chunk table out of an index that has too many for one chunk: the parts."""
    rows = index.chunks
    if len(rows) <= rows_max:
        return []
    index.chunks = []
    return [rows[at : at + rows_max] for at in range(0, len(rows), rows_max)]


def sparse_pages(table: PageTable, below: float = 0.25) -> set[int]:
    """Pages to write again because their MAP chunks are mostly dead, when such chunks are many."""
    total = sum(info.pages for info in table.maps.values())
    live = sum(info.live for info in table.maps.values())
    if total < 2 * live + 4 * PAGES_PER_CHUNK:
        return set()
    sparse = {number for number, info in table.maps.items() if info.live < below * info.pages}
    return {
        (which << PAGE_SHIFT) + i
        for which, entries in table.pages.items()
        for i, entry in enumerate(entries)
        if entry and entry >> 16 in sparse
    }


def position_of(entry: int) -> int:
    return entry & POSITION_MASK


def pages_in(table: PageTable, numbers: set[int]) -> set[int]:
    """Pages that lie in these MAP chunks, and one page of each directory page that does."""
    found = set()
    for which, entries in table.pages.items():
        own = table.places.get(which, 0) >> 16 in numbers
        for i, entry in enumerate(entries):
            if entry and (entry >> 16 in numbers or own):
                found.add((which << PAGE_SHIFT) + i)
                own = False
    return found
