"""Objects: put, head, delete, copy, tags. A key's bytes are an inode; a put always makes a new one.

Invariants:
1. A put repoints the entry in one transaction: readers of the old inode keep it as long as they hold it.
2. An empty put of `dir/` makes the directory explicit; one with a body is the row with the empty name under it.
3. A delete takes the key's row, or for `dir/` that row and the explicit mark; implied directories that it empties go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from trivium.metadata import conditions, content, inodes, namespace
from trivium.metadata.bucketnames import need_bucket
from trivium.metadata.inodes import Inode
from trivium.metadata.messages import (
    Body,
    CopyObject,
    DeleteObject,
    Extent,
    HeadObject,
    MetadataError,
    ObjectInfo,
    ObjectMeta,
    PartInfo,
    PutObject,
    SetObjectAcl,
    SetObjectMeta,
)
from trivium.metadata.objectrows import Stat, info_of, put_row, stat_of

if TYPE_CHECKING:
    from trivium.metadata.tx import Reader, Tx

HEAD_EXTENTS = 64  # of the layout that comes along with a head
KEY_MAX = 1024
_IS_FILE, _IS_DIR, _TYPE = 0o100000, 0o040000, 0o170000


class Key(NamedTuple):
    """Where a key leads: its row is `rest` in `directory`; `stat` is the object there, if there is one."""

    bucket: int
    directory: int
    rest: bytes
    stat: Stat | None

    @property
    def is_directory(self) -> bool:
        """`dir/` without a body."""
        return self.stat is not None and self.stat.ino == self.directory


def seek(reader: Reader, bucket: bytes, key: bytes) -> Key:
    top = need_bucket(reader, bucket)
    directory, rest = namespace.resolve(reader, top, key)
    found = namespace.find_plain(reader, directory, rest)
    if found is not None:
        stat = stat_of(reader, found.ino)
        return Key(top, directory, rest, stat if stat.mode & _TYPE == _IS_FILE else None)
    if not rest and directory != top:
        stat = stat_of(reader, directory)
        return Key(top, directory, rest, stat if stat.explicit else None)
    return Key(top, directory, rest, None)


def need_object(reader: Reader, bucket: bytes, key: bytes) -> Stat:
    stat = seek(reader, bucket, key).stat
    if stat is None:
        raise MetadataError("NoSuchKey", "there is no such object")
    return stat


# ---- put --------------------------------------------------------------------------------------------------------


def put_object(tx: Tx, op: PutObject) -> ObjectInfo:
    target = seek(tx, op.bucket, op.key)
    check_key(op.key)
    conditions.check(op.conditions, target.stat)
    directory, rest = namespace.place(tx, target.bucket, op.key)
    if not rest and not op.body.size:
        return _put_directory(tx, directory, op)
    inode = new_inode(tx, target.bucket)
    put_body(tx, inode, op.body)
    return publish(tx, directory, rest, inode, key=op.key, etag=op.etag, owner=op.owner, meta=op.meta)


def check_key(key: bytes) -> None:
    if not 0 < len(key) <= KEY_MAX:
        raise MetadataError("KeyTooLongError" if key else "InvalidArgument", f"a key has 1 to {KEY_MAX} bytes")


def new_inode(tx: Tx, bucket: int) -> Inode:
    """A file with the bucket's defaults, not named yet."""
    top = inodes.need(tx, bucket)
    return inodes.make(tx, namespace.FILE_MODE, uid=top.uid, gid=top.gid)


def put_body(tx: Tx, inode: Inode, body: Body) -> None:
    """The first contents of a new inode."""
    if not body.size:
        return
    new = body_extents(body)
    if new:
        inode.content = tx.next_id("content")
        content.put_extents(tx, inode, new)
    inode.size = body.size


def body_extents(body: Body) -> tuple[Extent, ...]:
    new = body.extents if body.data is None else (Extent(0, len(body.data), None, body.data),)
    if (body.data is not None and len(body.data) != body.size) or content.reach(new) > body.size:
        raise MetadataError("EINVAL", "a body's extents reach beyond its size")
    return tuple(extent for extent in new if extent.length)


def publish(
    tx: Tx, directory: int, rest: bytes, inode: Inode, *, key: bytes, etag: str, owner: str, meta: ObjectMeta
) -> ObjectInfo:
    """Give the new inode its name; what had it before loses it."""
    tx.touch(directory, rest)
    inodes.save(tx, inode)  # before the old inode goes: a copy onto itself shares its content
    found = namespace.find_plain(tx, directory, rest)
    if found is None:
        namespace.add(tx, directory, rest, inode.ino)
    else:
        namespace.repoint(tx, directory, rest, inode.ino)
        old = inodes.need(tx, found.ino)
        tx.touch(old.ino)
        inodes.drop_link(tx, old)
    put_row(tx, inode, etag, owner, meta)
    _stamp(tx, directory)
    return info_of(key, stat_of(tx, inode.ino))


def _stamp(tx: Tx, directory: int) -> None:
    tx.run("UPDATE inodes SET mtime = ?2, ctime = ?2 WHERE ino = ?1", directory, tx.now)


def _put_directory(tx: Tx, directory: int, op: PutObject) -> ObjectInfo:
    """The empty body of `dir/`: the directory itself, explicit."""
    _drop_row(tx, directory, b"")
    inode = inodes.need(tx, directory)
    tx.touch(directory)
    inode.explicit = 1
    inode.version += 1
    inode.mtime = inode.ctime = tx.now
    inodes.save(tx, inode)
    put_row(tx, inode, op.etag, op.owner, op.meta)
    return info_of(op.key, stat_of(tx, directory))


# ---- head -------------------------------------------------------------------------------------------------------


def head_object(reader: Reader, query: HeadObject) -> ObjectInfo:
    stat = need_object(reader, query.bucket, query.key)
    info = info_of(query.key, stat)
    if stat.mode & _TYPE == _IS_DIR:
        return info
    inode = inodes.need(reader, stat.ino)
    parts = _parts(reader, inode) if stat.etag is not None else ()
    layout = content.page(reader, inode, 0, inode.size, HEAD_EXTENTS) if query.layout else None
    return msgspec.structs.replace(info, parts=parts, layout=layout)


def _parts(reader: Reader, inode: Inode) -> tuple[PartInfo, ...]:
    rows = reader.all(
        "SELECT number, length, etag, mtime, checksum FROM parts WHERE content = ? ORDER BY start, number",
        inode.content,
    )
    return tuple(PartInfo(*row) for row in rows)


# ---- delete -----------------------------------------------------------------------------------------------------


def delete_object(tx: Tx, op: DeleteObject) -> bool:
    target = seek(tx, op.bucket, op.key)
    conditions.check(op.conditions, target.stat)
    if target.stat is None:
        return False
    if not target.rest and target.directory != target.bucket:
        _unmark(tx, target.directory)
    if not target.is_directory:
        _drop_row(tx, target.directory, target.rest)
        _stamp(tx, target.directory)
        if namespace.is_component(target.rest):
            namespace.rehome(tx, target.directory, target.rest)
    namespace.vanish(tx, target.directory, target.bucket)
    return True


def _unmark(tx: Tx, directory: int) -> None:
    tx.touch(directory)
    tx.run("UPDATE inodes SET explicit = 0, ctime = ?2 WHERE ino = ?1", directory, tx.now)
    tx.run("DELETE FROM objects WHERE ino = ?", directory)


def _drop_row(tx: Tx, directory: int, rest: bytes) -> None:
    """Remove the plain or hidden entry, if there is one, and its link."""
    found = namespace.find_plain(tx, directory, rest)
    if found is None:
        return
    tx.touch(directory, rest)
    tx.touch(found.ino)
    namespace.remove(tx, directory, rest)
    inodes.drop_link(tx, inodes.need(tx, found.ino))


# ---- copy and tags ----------------------------------------------------------------------------------------------


def copy_object(tx: Tx, op: CopyObject) -> ObjectInfo:
    source = need_object(tx, op.source_bucket, op.source_key)
    conditions.check(op.source_conditions, source)
    target = seek(tx, op.bucket, op.key)
    check_key(op.key)
    conditions.check(op.conditions, target.stat)
    was = info_of(op.source_key, source)
    meta = was.meta if op.meta is None else op.meta
    directory, rest = namespace.place(tx, target.bucket, op.key)
    if not rest and not was.size:
        return _put_directory(tx, directory, PutObject(op.bucket, op.key, Body(0), was.etag, meta, owner=op.owner))
    inode = new_inode(tx, target.bucket)
    if was.size:
        share_all(tx, inodes.need(tx, source.ino), inode)
    return publish(tx, directory, rest, inode, key=op.key, etag=was.etag, owner=op.owner, meta=meta)


def share_all(tx: Tx, source: Inode, inode: Inode) -> None:
    """Both name one content from now on; whoever writes first takes a copy of the rows."""
    inode.content, inode.size, inode.used, inode.cut = source.content, source.size, source.used, source.cut


def set_object_meta(tx: Tx, op: SetObjectMeta) -> ObjectInfo:
    stat = need_object(tx, op.bucket, op.key)
    info = info_of(op.key, stat)
    meta = msgspec.structs.replace(info.meta, tags=op.tags)
    put_row(tx, inodes.need(tx, stat.ino), info.etag, info.owner, meta)
    return msgspec.structs.replace(info, meta=meta)


def set_object_acl(tx: Tx, op: SetObjectAcl) -> ObjectInfo:
    stat = need_object(tx, op.bucket, op.key)
    if stat.ino != op.ino:
        raise MetadataError("ESTALE", "the object was replaced meanwhile")
    info = info_of(op.key, stat)
    meta = msgspec.structs.replace(info.meta, grants=op.grants)
    put_row(tx, inodes.need(tx, stat.ino), info.etag, info.owner, meta)
    return msgspec.structs.replace(info, meta=meta)
