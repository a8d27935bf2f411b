"""Moves what lies badly into new chunks: inline extents, and the live rest of sparse chunks. Planning and swapping.

    candidates (reader) -> rows and bytes (reader, chunks) -> put a chunk -> swap (one transaction) -> collector

Invariants:
1. A swap changes only rows that are still exactly as they were read: same key, same length, same bytes named. What
   was overwritten meanwhile stays as it is, and the bytes put for it are nobody's.
2. Neither sizes, versions nor contents change: a reader sees the same bytes before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from trivium.cluster.model import ChunkId, Ref
from trivium.metadata import extents

if TYPE_CHECKING:
    from trivium.metadata.tx import Reader, Tx

INLINE_EXTENTS = 256  # of one content: then they are moved
INLINE_BYTES = 1 << 20
INLINE_TOTAL = 1 << 30  # of all together: above it the oldest contents are moved
SPARSE = 0.6  # a chunk with less than this of it in use is written anew


class Row(NamedTuple):
    """An extent as it was read, with its bytes when they are inline."""

    content: int
    part: int
    offset: int
    length: int
    session: int
    counter: int
    ref_offset: int
    blob: int
    data: bytes = b""


class Place(NamedTuple):
    row: Row
    ref: Ref


def crowded(reader: Reader, limit: int = 16) -> list[int]:
    """Contents whose inline extents are too many or too large, else the oldest ones while all are above the total."""
    rows = reader.all(
        "SELECT content FROM contents WHERE inline_count >= ? OR inline_bytes >= ? ORDER BY content LIMIT ?",
        *(INLINE_EXTENTS, INLINE_BYTES, limit),
    )
    if not rows and inline_total(reader) > INLINE_TOTAL:
        rows = reader.all("SELECT content FROM contents ORDER BY content LIMIT ?", limit)
    return [row[0] for row in rows]


def inline_total(reader: Reader) -> int:
    row = reader.one("SELECT coalesce(sum(inline_bytes), 0) FROM contents")
    assert row is not None
    return int(row[0])


def inline_rows(reader: Reader, content: int, limit: int) -> list[Row]:
    """Inline extents of a content with their bytes, in order."""
    rows = reader.all(
        "SELECT e.content, e.part, e.offset, e.length, e.session, e.counter, e.ref_offset, e.blob,"
        " substr(b.data, e.ref_offset + 1, e.length) FROM extents e JOIN blobs b ON b.id = e.blob"
        " WHERE e.content = ? AND e.blob != 0 ORDER BY e.part, e.offset LIMIT ?",
        *(content, limit),
    )
    return [Row(*row) for row in rows]


def sparse(reader: Reader, after: ChunkId, limit: int) -> tuple[list[ChunkId], ChunkId | None]:
    """Chunks of files that are mostly dead, among the `limit` rows after one; where to go on, None at the end.

    Bytes that two extents share count twice: a hint, never trusted for collecting.
    """
    rows = reader.all(
        "SELECT c.session, c.counter, c.length,"
        " (SELECT coalesce(sum(e.length), 0) FROM extents e WHERE e.session = c.session AND e.counter = c.counter"
        " AND e.session != 0) FROM chunks c WHERE (c.session, c.counter) > (?, ?) AND c.kind = 1"
        " ORDER BY c.session, c.counter LIMIT ?",
        *(after.session, after.counter, limit),
    )
    found = [ChunkId(row[0], row[1]) for row in rows if 0 < row[3] < SPARSE * row[2]]
    return found, ChunkId(rows[-1][0], rows[-1][1]) if len(rows) == limit else None


def rows_of(reader: Reader, chunk: ChunkId, limit: int) -> list[Row]:
    """Extents that name the chunk."""
    rows = reader.all(
        "SELECT content, part, offset, length, session, counter, ref_offset, blob FROM extents"
        " WHERE session = ? AND counter = ? AND session != 0 LIMIT ?",
        *(chunk.session, chunk.counter, limit),
    )
    return [Row(*row) for row in rows]


def places_of(rows: Sequence[Row], ref: Ref) -> list[Place]:
    """Where each row's bytes are, when they were put one after another from the beginning of `ref`."""
    found, at = [], ref.offset
    for row in rows:
        found.append(Place(row, Ref(ref.chunk, at, row.length)))
        at += row.length
    return found


def swap(tx: Tx, places: Sequence[Place]) -> int:
    """Point the rows that are still what was read at their new places; answers how many were."""
    swapped = 0
    for row, ref in places:
        changed = tx.run(
            "UPDATE extents SET session = ?9, counter = ?10, ref_offset = ?11, blob = 0 WHERE content = ?1"
            " AND part = ?2 AND offset = ?3 AND length = ?4 AND session = ?5 AND counter = ?6 AND ref_offset = ?7"
            " AND blob = ?8",
            *(*row[:8], ref.chunk.session, ref.chunk.counter, ref.offset),
        )
        if not changed:
            continue
        tx.use_chunk(ref)
        swapped += 1
        if row.blob:
            extents.count_inline(tx, row.content, -1, -row.length)
            extents.drop_blob(tx, row.blob)
    return swapped
