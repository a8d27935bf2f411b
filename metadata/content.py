"""Contents of files: write, append, truncate, zero, clone, layout. Plain files and multipart objects alike.

Invariants:
1. A content that another inode names too is copied before it is written (rows only, no bytes).
2. The parts of a multipart content cover [0, size) in order of `start`; the last one takes all growth.
3. `used` is the number of bytes that visible extents cover. Nothing beyond `size` is covered, but for a content that
   is being cut (`cut` >= 0): its extents beyond are invisible, go in steps, and the file does not grow until then.
4. A change of contents makes a new version and removes what S3 knew of the object (its ETag is of other bytes).
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from trivium.cluster.model import ChunkId, Placed, Ref
from trivium.metadata import extents, inodes
from trivium.metadata.chunkrows import placed_of
from trivium.metadata.inodes import Inode
from trivium.metadata.messages import (
    RETRY,
    Append,
    Attr,
    CloneRange,
    Extent,
    GetLayout,
    Layout,
    MetadataError,
    Truncate,
    Write,
    Zero,
)

if TYPE_CHECKING:
    from trivium.metadata.tx import Reader, Tx

SIZE_MAX = (1 << 63) - 1
PAGE_EXTENTS = 512  # extents in one page of a layout
PAGE_INLINE = 512 * 1024  # and inline bytes
CUT_AT_ONCE = 1024  # extents that one truncate or punch deletes


class Span(NamedTuple):
    """A range of a file that lies in one part: `start` of the file is `offset` of the part."""

    part: int
    start: int
    offset: int
    length: int


def spans(reader: Reader, content: int, start: int, length: int) -> Iterator[Span]:
    """The range split at the borders of parts."""
    end = start + length
    rows = reader.all(
        "SELECT part, start FROM parts WHERE content = ?1 AND start < ?3 AND start >= coalesce("
        "(SELECT max(start) FROM parts WHERE content = ?1 AND start <= ?2), 0) ORDER BY start",
        *(content, start, end),
    )
    if not rows:
        yield Span(0, start, start, length)
        return
    for index, (part, begin) in enumerate(rows):
        low = max(start, begin)
        high = min(end, rows[index + 1][1]) if index + 1 < len(rows) else end
        if low < high:
            yield Span(part, low, low - begin, high - low)


# ---- changing ---------------------------------------------------------------------------------------------------


def open_for_change(tx: Tx, ino: int, growing_to: int = 0) -> Inode:
    inode = inodes.need_file(tx, ino)
    if growing_to > SIZE_MAX:
        raise MetadataError("EFBIG", "a file has at most 2^63 - 1 bytes")
    tx.touch(ino)
    if inode.cut >= 0 and growing_to > inode.cut and not cut_step(tx, inode, CUT_AT_ONCE):
        raise MetadataError(RETRY, "the file is still being truncated")
    own_content(tx, inode)
    return inode


def own_content(tx: Tx, inode: Inode) -> None:
    """Give the inode a content that nobody else names, as a copy of the shared one or a new empty one."""
    old = inode.content
    if old and not _is_shared(tx, old):
        return
    inode.content = tx.next_id("content")
    if not old:
        return
    copy_content(tx, old, inode.content)


def _is_shared(tx: Tx, content: int) -> bool:
    return len(tx.all("SELECT 1 FROM inodes WHERE content = ? AND content != 0 LIMIT 2", content)) > 1


def copy_content(tx: Tx, source: int, target: int) -> None:
    tx.run(
        "INSERT INTO extents (content, part, offset, length, session, counter, ref_offset, blob)"
        " SELECT ?2, part, offset, length, session, counter, ref_offset, blob FROM extents WHERE content = ?1",
        *(source, target),
    )
    tx.run(
        "INSERT INTO parts (content, part, number, start, length, used, etag, checksum, mtime)"
        " SELECT ?2, part, number, start, length, used, etag, checksum, mtime FROM parts WHERE content = ?1",
        *(source, target),
    )
    tx.run(
        "INSERT INTO contents (content, inline_count, inline_bytes)"
        " SELECT ?2, inline_count, inline_bytes FROM contents WHERE content = ?1",
        *(source, target),
    )


def finish(tx: Tx, inode: Inode, at: int, clear_suid: bool = False) -> Attr:
    """Contents changed: new version and times; the object of S3 is one no more."""
    inode.version += 1
    inode.mtime = inode.ctime = at or tx.now
    if clear_suid:
        inode.mode = without_suid(inode.mode)
    inodes.save(tx, inode)
    tx.run("DELETE FROM objects WHERE ino = ?", inode.ino)
    return inode.attr()


def without_suid(mode: int) -> int:
    """What a write or chown by an ordinary user leaves: no set-user-id, no set-group-id of an executable."""
    return mode & ~(stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0))


def put_extents(tx: Tx, inode: Inode, new: tuple[Extent, ...], shift: int = 0) -> None:
    """Lay extents over what is there; grows `size`, keeps `used`."""
    for extent in new:
        if extent.offset < 0 or extent.length <= 0:
            raise MetadataError("EINVAL", "an extent has a place and a length")
        start = extent.offset + shift
        for span in spans(tx, inode.content, start, extent.length):
            inode.used -= extents.punch(tx, inode.content, span.part, span.offset, span.offset + span.length)
            inode.used += extents.lay(tx, inode.content, span.part, span.offset, _slice(extent, start, span))
        grow(tx, inode, start + extent.length)


def _slice(extent: Extent, start: int, span: Span) -> Extent:
    if span.length == extent.length:
        return extent
    skip = span.start - start
    ref, data = extent.ref, extent.data
    if ref is not None:
        ref = Ref(ref.chunk, ref.offset + skip, span.length)
    if data is not None:
        data = data[skip : skip + span.length]
    return Extent(span.start, span.length, ref, data)


def grow(tx: Tx, inode: Inode, size: int) -> None:
    if size > inode.size:
        inode.size = size
        _fit_last_part(tx, inode)


def _fit_last_part(tx: Tx, inode: Inode) -> None:
    tx.run(
        "UPDATE parts SET length = ?2 - start WHERE content = ?1 AND part ="
        " (SELECT part FROM parts WHERE content = ?1 ORDER BY start DESC LIMIT 1)",
        *(inode.content, inode.size),
    )


def reach(new: tuple[Extent, ...], shift: int = 0) -> int:
    return max((extent.offset + extent.length + shift for extent in new), default=0)


def write(tx: Tx, op: Write) -> Attr:
    ino = op.ino or tx.created
    if not ino:
        raise MetadataError("EINVAL", "a write names an inode, or follows a create")
    inode = open_for_change(tx, ino, max(op.size, reach(op.extents)))
    put_extents(tx, inode, op.extents)
    grow(tx, inode, op.size)
    return finish(tx, inode, op.at, op.clear_suid)


def append(tx: Tx, op: Append) -> Attr:
    size = inodes.need_file(tx, op.ino).size
    inode = open_for_change(tx, op.ino, reach(op.extents, size))
    put_extents(tx, inode, op.extents, size)
    return finish(tx, inode, op.at)


def zero(tx: Tx, op: Zero) -> Attr:
    if op.offset < 0 or op.length <= 0:
        raise MetadataError("EINVAL", "a hole has a place and a length")
    inode = open_for_change(tx, op.ino)
    length = min(op.length, inode.size - op.offset)
    if length > 0:
        for span in spans(tx, inode.content, op.offset, length):
            inode.used -= extents.punch(tx, inode.content, span.part, span.offset, span.offset + span.length)
    return finish(tx, inode, 0)


# ---- truncate ---------------------------------------------------------------------------------------------------


def truncate(tx: Tx, op: Truncate) -> Attr:
    if op.size < 0:
        raise MetadataError("EINVAL", "a size is not negative")
    if op.size == 0:
        inode = inodes.need_file(tx, op.ino)
        tx.touch(op.ino)
        _empty(tx, inode)
    else:
        inode = open_for_change(tx, op.ino, op.size)
        if op.size < inode.size:
            _shrink(tx, inode, op.size)
        else:
            grow(tx, inode, op.size)
    return finish(tx, inode, op.at, op.clear_suid)


def _empty(tx: Tx, inode: Inode) -> None:
    """To zero: the inode lets go of its content as a whole."""
    old, inode.content = inode.content, 0
    inode.size = inode.used = 0
    inode.cut = -1
    inodes.save(tx, inode)
    if old:
        extents.drop(tx, old)


def _shrink(tx: Tx, inode: Inode, size: int) -> None:
    inode.used -= _covered_from(tx, inode, size)
    inode.cut = size if inode.cut < 0 else min(inode.cut, size)
    inode.size = size
    cut_step(tx, inode, CUT_AT_ONCE)


def _covered_from(tx: Tx, inode: Inode, size: int) -> int:
    """Bytes that visible extents cover from `size` on."""
    total = 0
    for span in spans(tx, inode.content, size, inode.size - size):
        end = span.offset + span.length
        row = tx.one(
            "SELECT sum(min(offset + length, ?4) - max(offset, ?3)) FROM extents WHERE content = ?1 AND part = ?2"
            " AND offset < ?4 AND offset + length > ?3",
            *(inode.content, span.part, span.offset, end),
        )
        total += (row[0] or 0) if row else 0
    return total


def cut_step(tx: Tx, inode: Inode, limit: int) -> bool:
    """Delete up to `limit` extents beyond the cut; True when none is left. The caller saves the inode."""
    for part, start in tx.all("SELECT part, start FROM parts WHERE content = ? ORDER BY start DESC", inode.content):
        if start < inode.cut or start == 0:
            break
        tx.run("UPDATE parts SET length = 0 WHERE content = ? AND part = ?", inode.content, part)
        extents.drop_part(tx, inode.content, part)
    row = tx.one("SELECT part, start FROM parts WHERE content = ? ORDER BY start DESC LIMIT 1", inode.content)
    part, start = row or (0, 0)
    beyond = extents.overlapping(tx, inode.content, part, inode.cut - start, SIZE_MAX, limit + 1)
    upto = SIZE_MAX if len(beyond) <= limit else beyond[limit].offset
    extents.punch(tx, inode.content, part, inode.cut - start, upto)
    if upto == SIZE_MAX:
        inode.cut = -1
        _fit_last_part(tx, inode)
    return upto == SIZE_MAX


# ---- sharing ----------------------------------------------------------------------------------------------------


def clone_range(tx: Tx, op: CloneRange) -> Attr:
    if min(op.source_offset, op.offset, op.length) < 0 or op.length == 0:
        raise MetadataError("EINVAL", "a range has a place and a length")
    source = inodes.need_file(tx, op.source)
    if op.source_offset + op.length > source.size:
        raise MetadataError("EINVAL", "the range reaches beyond the end of the source")
    if op.source == op.ino and abs(op.source_offset - op.offset) < op.length:
        raise MetadataError("EINVAL", "the ranges overlap")
    inode = open_for_change(tx, op.ino, op.offset + op.length)
    if op.source == op.ino:
        source = inode
    for span in spans(tx, inode.content, op.offset, op.length):
        inode.used -= extents.punch(tx, inode.content, span.part, span.offset, span.offset + span.length)
    inode.used += share(tx, source, op.source_offset, inode.content, op.offset, op.length)
    grow(tx, inode, op.offset + op.length)
    return finish(tx, inode, 0)


def share(tx: Tx, source: Inode, source_offset: int, content: int, offset: int, length: int, part: int = -1) -> int:
    """Share a range of a file with the uncovered range of a content (of one part of it, when it is given)."""
    covered = 0
    for span in spans(tx, source.content, source_offset, length):
        begin = offset + span.start - source_offset
        targets = spans(tx, content, begin, span.length) if part < 0 else iter((Span(part, begin, begin, span.length),))
        for target in targets:
            at = span.offset + target.start - begin
            covered += extents.copy_range(
                tx,
                (source.content, span.part, at),
                (content, target.part, target.offset),
                target.length,
            )
    return covered


# ---- reading ----------------------------------------------------------------------------------------------------


def layout(reader: Reader, query: GetLayout) -> Layout:
    inode = inodes.need_file(reader, query.ino)
    if query.version and query.version != inode.version:
        raise MetadataError("ESTALE", f"the file has version {inode.version} by now")
    return page(reader, inode, query.offset, query.length, PAGE_EXTENTS)


def page(reader: Reader, inode: Inode, offset: int, length: int, limit: int) -> Layout:
    """Up to `limit` extents of a range, clipped to it, with the rows of their chunks: all of one snapshot."""
    end = min(offset + length, inode.size)
    found: list[Extent] = []
    placed: dict[ChunkId, Placed] = {}
    inline = 0
    upto = end
    for start, row in visible(reader, inode, offset, end - offset, limit + 1):
        if len(found) == limit or inline >= PAGE_INLINE:
            upto = start
            break
        if row.blob:
            inline += row.length
            found.append(Extent(start, row.length, None, read_blob(reader, row)))
            continue
        ref = extents.ref_of(row)
        found.append(Extent(start, row.length, ref))
        if ref.chunk not in placed:
            place = placed_of(reader, ref.chunk)
            if place is not None:
                placed[ref.chunk] = place
    return Layout(inode.version, inode.size, tuple(found), tuple(placed.values()), max(upto, offset), inode.content)


def visible(reader: Reader, inode: Inode, offset: int, length: int, limit: int) -> Iterator[tuple[int, extents.Row]]:
    """(offset in the file, extent clipped to the range) in order, at most `limit` of each part."""
    if length <= 0 or not inode.content:
        return
    for span in spans(reader, inode.content, offset, length):
        end = span.offset + span.length
        for row in extents.overlapping(reader, inode.content, span.part, span.offset, end, limit):
            skip = max(0, span.offset - row.offset)
            size = min(row.end, end) - row.offset - skip
            start = span.start + row.offset + skip - span.offset
            yield start, row._replace(offset=row.offset + skip, length=size, ref_offset=row.ref_offset + skip)


def read_blob(reader: Reader, row: extents.Row) -> bytes:
    found = reader.one("SELECT substr(data, ?2, ?3) FROM blobs WHERE id = ?1", row.blob, row.ref_offset + 1, row.length)
    assert found is not None, "an extent names a blob that is not there"
    return bytes(found[0])
