"""Rows of extents: laying, punching, copying and dropping them. Knows contents and parts, not inodes.

Invariants:
1. Extents of a (content, part) never overlap; what no extent covers reads as zeros.
2. Inline bytes are rows of `blobs`; splitting an extent rewrites none, a blob goes with its last extent.
3. `contents` has a row exactly for contents with inline extents.
4. A content that several inodes name is immutable (content.py copies before it writes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from trivium.cluster.model import ChunkId, Ref
from trivium.metadata.messages import INLINE_MAX, Extent, MetadataError

if TYPE_CHECKING:
    from trivium.metadata.tx import Reader, Tx

DROP_AT_ONCE = 256  # extents; more of them are doomed and go in steps


class Row(NamedTuple):
    """An extent as it is stored, without its key's content and part."""

    offset: int
    length: int
    session: int
    counter: int
    ref_offset: int
    blob: int

    @property
    def end(self) -> int:
        return self.offset + self.length


_OVERLAPPING = (
    "SELECT offset, length, session, counter, ref_offset, blob FROM extents"
    " WHERE content = ?1 AND part = ?2 AND offset < ?4 AND offset >= coalesce("
    "(SELECT max(offset) FROM extents WHERE content = ?1 AND part = ?2 AND offset <= ?3), ?3)"
    " AND offset + length > ?3 ORDER BY offset LIMIT ?5"
)
_INSERT = (
    "INSERT INTO extents (content, part, offset, length, session, counter, ref_offset, blob)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)


def overlapping(reader: Reader, content: int, part: int, start: int, end: int, limit: int = -1) -> list[Row]:
    """Extents that touch [start, end), in order."""
    return [Row(*row) for row in reader.all(_OVERLAPPING, content, part, start, end, limit)]


def insert(tx: Tx, content: int, part: int, row: Row) -> None:
    tx.run(_INSERT, content, part, *row)
    if row.blob:
        count_inline(tx, content, 1, row.length)


def punch(tx: Tx, content: int, part: int, start: int, end: int) -> int:
    """Uncover [start, end); extents that reach beyond are cut. Answers how many bytes were covered."""
    freed = inline = inline_bytes = 0
    for row in overlapping(tx, content, part, start, end):
        left, right = max(0, start - row.offset), max(0, row.end - end)
        freed += row.length - left - right
        _cut(tx, content, part, row, left, right)
        if row.blob:
            pieces = (left > 0) + (right > 0)
            inline += pieces - 1
            inline_bytes -= row.length - left - right
            if not pieces:
                drop_blob(tx, row.blob)
    if inline_bytes:
        count_inline(tx, content, inline, inline_bytes)
    return freed


def _cut(tx: Tx, content: int, part: int, row: Row, left: int, right: int) -> None:
    key = (content, part, row.offset)
    if left:
        tx.run("UPDATE extents SET length = ?4 WHERE content = ?1 AND part = ?2 AND offset = ?3", *key, left)
    else:
        tx.run("DELETE FROM extents WHERE content = ? AND part = ? AND offset = ?", *key)
    if right:
        skip = row.length - right
        rest = row._replace(offset=row.offset + skip, length=right, ref_offset=row.ref_offset + skip)
        tx.run(_INSERT, content, part, *rest)


def lay(tx: Tx, content: int, part: int, offset: int, extent: Extent) -> int:
    """Put an extent over an uncovered range at `offset` of the part; a hole lays nothing. Answers bytes covered."""
    if extent.ref is not None:
        if extent.ref.length != extent.length:
            raise MetadataError("EINVAL", "an extent and its reference differ in length")
        tx.use_chunk(extent.ref)
        chunk = extent.ref.chunk
        insert(tx, content, part, Row(offset, extent.length, chunk.session, chunk.counter, extent.ref.offset, 0))
        return extent.length
    if extent.data is None:
        return 0
    if len(extent.data) != extent.length or extent.length > INLINE_MAX:
        raise MetadataError("EINVAL", f"inline data is {extent.length} bytes and at most {INLINE_MAX}")
    blob = tx.next_id("blob")
    tx.run("INSERT INTO blobs (id, data) VALUES (?, ?)", blob, extent.data)
    insert(tx, content, part, Row(offset, extent.length, 0, 0, 0, blob))
    return extent.length


def count_inline(tx: Tx, content: int, extents: int, size: int) -> None:
    """Keep the compactor's hint; the row goes with the last inline extent."""
    tx.run(
        "INSERT INTO contents (content, inline_count, inline_bytes) VALUES (?, ?, ?) ON CONFLICT (content) DO UPDATE"
        " SET inline_count = inline_count + excluded.inline_count,"
        " inline_bytes = inline_bytes + excluded.inline_bytes",
        *(content, extents, size),
    )
    if extents < 0:
        tx.run("DELETE FROM contents WHERE content = ? AND inline_count <= 0", content)


def drop_blob(tx: Tx, blob: int) -> None:
    tx.run("DELETE FROM blobs WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM extents WHERE blob = ?1 AND blob != 0)", blob)


# ---- dropping -----------------------------------------------------------------------------------------------


def is_named(reader: Reader, content: int) -> bool:
    """Whether an inode or an upload still names the content."""
    sql = (
        "SELECT EXISTS (SELECT 1 FROM inodes WHERE content = ?1 AND content != 0)"
        " OR EXISTS (SELECT 1 FROM uploads WHERE content = ?1 AND content != 0)"
    )
    row = reader.one(sql, content)
    return row is not None and bool(row[0])


def drop(tx: Tx, content: int) -> None:
    """Whoever named the content does so no more: it goes, at once when it is small, unless somebody else names it."""
    if is_named(tx, content):
        return
    if drop_step(tx, content, -1, DROP_AT_ONCE):
        return
    tx.run("INSERT INTO doomed (content, part) VALUES (?, -1) ON CONFLICT DO NOTHING", content)


def drop_part(tx: Tx, content: int, part: int) -> None:
    """A part was replaced or left out: its row goes now, its extents at once when they are few."""
    tx.run("DELETE FROM parts WHERE content = ? AND part = ?", content, part)
    if not drop_step(tx, content, part, DROP_AT_ONCE):
        tx.run("INSERT INTO doomed (content, part) VALUES (?, ?) ON CONFLICT DO NOTHING", content, part)


def drop_step(tx: Tx, content: int, part: int, limit: int) -> bool:
    """Delete up to `limit` extents (and parts) of what nothing names; True when nothing is left of it."""
    sql = "SELECT part, offset, length, blob FROM extents WHERE content = ?1 AND (?2 = -1 OR part = ?2) LIMIT ?3"
    rows = tx.all(sql, content, part, limit + 1)
    inline = inline_bytes = 0
    for owner, offset, length, blob in rows[:limit]:
        tx.run("DELETE FROM extents WHERE content = ? AND part = ? AND offset = ?", content, owner, offset)
        if blob:
            drop_blob(tx, blob)
            inline, inline_bytes = inline + 1, inline_bytes + length
    if inline:
        count_inline(tx, content, -inline, -inline_bytes)
    if len(rows) > limit:
        return False
    return part != -1 or _drop_parts(tx, content, limit)


def _drop_parts(tx: Tx, content: int, limit: int) -> bool:
    sql = "DELETE FROM parts WHERE content = ?1 AND part IN (SELECT part FROM parts WHERE content = ?1 LIMIT ?2)"
    return tx.run(sql, content, limit) < limit


# ---- copying ------------------------------------------------------------------------------------------------


def copy_range(tx: Tx, source: tuple[int, int, int], target: tuple[int, int, int], length: int) -> int:
    """Share `length` bytes at source (content, part, offset) with the uncovered target; answers bytes covered."""
    start = source[2]
    covered = 0
    for row in overlapping(tx, source[0], source[1], start, start + length):
        skip = max(0, start - row.offset)
        size = min(row.end, start + length) - row.offset - skip
        at = target[2] + row.offset + skip - start
        insert(tx, target[0], target[1], row._replace(offset=at, length=size, ref_offset=row.ref_offset + skip))
        covered += size
    return covered


def ref_of(row: Row) -> Ref:
    return Ref(ChunkId(row.session, row.counter), row.ref_offset, row.length)


def covered(reader: Reader, content: int, part: int) -> int:
    row = reader.one("SELECT coalesce(sum(length), 0) FROM extents WHERE content = ? AND part = ?", content, part)
    assert row is not None
    return int(row[0])
