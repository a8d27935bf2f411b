"""Attributes and extended attributes of inodes; handles on inodes whose names may go."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from trivium.metadata import inodes
from trivium.metadata.messages import (
    NAME_MAX,
    XATTR_MAX,
    Attr,
    GetAttr,
    Hold,
    ListXattrs,
    MetadataError,
    Release,
    RemoveXattr,
    SetAttr,
    SetXattr,
    Stat,
)

if TYPE_CHECKING:
    from trivium.metadata.tx import Reader, Tx

XATTR_CREATE, XATTR_REPLACE = 1, 2
XATTR_LIST_MAX = 64 * 1024  # bytes of all names of one inode, as Linux can list them


def get_attr(reader: Reader, query: GetAttr | Stat) -> Attr:
    return inodes.need(reader, query.ino).attr()


def set_attr(tx: Tx, op: SetAttr) -> Attr:
    """Whether the caller may is the face's question; the set-id bits are what it sends in `mode`."""
    inode = inodes.need(tx, op.ino)
    tx.touch(op.ino)
    if op.mode is not None:
        inode.mode = stat.S_IFMT(inode.mode) | (op.mode & inodes.PERMISSIONS)
    inode.uid = inode.uid if op.uid is None else op.uid
    inode.gid = inode.gid if op.gid is None else op.gid
    inode.atime = inode.atime if op.atime is None else op.atime
    inode.mtime = inode.mtime if op.mtime is None else op.mtime
    inode.ctime = op.at or tx.now
    if inode.is_dir and (op.mode is not None or op.uid is not None or op.gid is not None):
        inode.explicit = 1
    inodes.save(tx, inode)
    return inode.attr()


# ---- extended attributes ------------------------------------------------------------------------------------


def set_xattr(tx: Tx, op: SetXattr) -> None:
    if not 0 < len(op.name) <= NAME_MAX or b"\0" in op.name:
        raise MetadataError("ERANGE", f"an attribute's name has 1 to {NAME_MAX} bytes")
    if len(op.value) > XATTR_MAX:
        raise MetadataError("E2BIG", f"an attribute has at most {XATTR_MAX} bytes")
    inode = inodes.need(tx, op.ino)
    there = tx.one("SELECT 1 FROM xattrs WHERE ino = ? AND name = ?", op.ino, op.name) is not None
    if op.flags & XATTR_CREATE and there:
        raise MetadataError("EEXIST", f"{op.name!r} is set")
    if op.flags & XATTR_REPLACE and not there:
        raise MetadataError("ENODATA", f"{op.name!r} is not set")
    if not there:
        _check_room(tx, op)
    tx.touch(op.ino)
    tx.run(
        "INSERT INTO xattrs (ino, name, value) VALUES (?, ?, ?)"
        " ON CONFLICT (ino, name) DO UPDATE SET value = excluded.value",
        *(op.ino, op.name, op.value),
    )
    inode.ctime = tx.now
    inodes.save(tx, inode)


def _check_room(tx: Tx, op: SetXattr) -> None:
    row = tx.one("SELECT coalesce(sum(length(name) + 1), 0) FROM xattrs WHERE ino = ?", op.ino)
    if row is not None and row[0] + len(op.name) + 1 > XATTR_LIST_MAX:
        raise MetadataError("ENOSPC", "the inode has too many attributes to list")


def remove_xattr(tx: Tx, op: RemoveXattr) -> None:
    inode = inodes.need(tx, op.ino)
    tx.touch(op.ino)
    if not tx.run("DELETE FROM xattrs WHERE ino = ? AND name = ?", op.ino, op.name):
        raise MetadataError("ENODATA", f"{op.name!r} is not set")
    inode.ctime = tx.now
    inodes.save(tx, inode)


def list_xattrs(reader: Reader, query: ListXattrs) -> dict[bytes, bytes]:
    inodes.need(reader, query.ino)
    return dict(reader.all("SELECT name, value FROM xattrs WHERE ino = ? ORDER BY name", query.ino))


# ---- handles ------------------------------------------------------------------------------------------------


def hold(tx: Tx, op: Hold) -> None:
    for ino in op.inos:
        inodes.hold_if_there(tx, ino, tx.session)


def release(tx: Tx, op: Release) -> None:
    for ino in op.inos:
        inodes.release(tx, ino, tx.session)
