"""Inode rows: load, change, save, and what happens when nothing names or holds one any more.

Invariants:
1. `nlink` is the number of names; of a directory 2 plus its subdirectories. An inode with nlink 0 lives only while a
   session holds it (`held`).
2. `version` grows with each change of contents; `ctime` with every change.
3. Contents go with the inode: its last loss drops the content, unless another inode shares it.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trivium.metadata import extents
from trivium.metadata.messages import Attr, MetadataError

if TYPE_CHECKING:
    from trivium.metadata.tx import Reader, Tx

LINK_MAX = 65_000
PERMISSIONS = 0o7777

_COLUMNS = (
    "ino, mode, nlink, uid, gid, rdev, size, used, atime, mtime, ctime, btime, version, content, cut, parent,"
    " explicit, target"
)
_LOAD = f"SELECT {_COLUMNS} FROM inodes WHERE ino = ?"
_INSERT = f"INSERT INTO inodes ({_COLUMNS}) VALUES ({', '.join('?' * 18)})"
_SAVE = (
    "UPDATE inodes SET mode = ?2, nlink = ?3, uid = ?4, gid = ?5, size = ?6, used = ?7, atime = ?8, mtime = ?9,"
    " ctime = ?10, version = ?11, content = ?12, cut = ?13, parent = ?14, explicit = ?15 WHERE ino = ?1"
)


@dataclass(slots=True)
class Inode:
    """A row of `inodes`, changed in memory and written back with save()."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    used: int
    atime: int
    mtime: int
    ctime: int
    btime: int
    version: int
    content: int
    cut: int
    parent: int
    explicit: int
    target: bytes

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    def attr(self, lease: int = 0) -> Attr:
        return Attr(
            *(self.ino, self.mode, self.nlink, self.uid, self.gid, self.rdev, self.size, self.used),
            *(self.atime, self.mtime, self.ctime, self.btime, self.version, self.target, lease),
        )


def load(reader: Reader, ino: int) -> Inode | None:
    row = reader.one(_LOAD, ino)
    return None if row is None else Inode(*row)


def need(reader: Reader, ino: int) -> Inode:
    inode = load(reader, ino)
    if inode is None:
        raise MetadataError("ESTALE", f"there is no inode {ino}")
    return inode


def need_dir(reader: Reader, ino: int) -> Inode:
    """A directory that names can be added to or looked up in."""
    inode = need(reader, ino)
    if not inode.is_dir:
        raise MetadataError("ENOTDIR", f"inode {ino} is no directory")
    return inode


def need_file(reader: Reader, ino: int) -> Inode:
    inode = need(reader, ino)
    if inode.is_dir:
        raise MetadataError("EISDIR", f"inode {ino} is a directory")
    if not inode.is_file:
        raise MetadataError("EINVAL", f"inode {ino} has no contents")
    return inode


def save(tx: Tx, inode: Inode) -> None:
    tx.run(
        _SAVE,
        *(inode.ino, inode.mode, inode.nlink, inode.uid, inode.gid, inode.size, inode.used, inode.atime),
        *(inode.mtime, inode.ctime, inode.version, inode.content, inode.cut, inode.parent, inode.explicit),
    )


def make(
    tx: Tx,
    mode: int,
    *,
    uid: int = 0,
    gid: int = 0,
    rdev: int = 0,
    at: int = 0,
    target: bytes = b"",
    parent: int = 0,
    explicit: int = 0,
    ino: int = 0,
) -> Inode:
    """Insert a new inode: nlink 1 (a directory: 2). `ino`: a number that was given before and is free again."""
    now = at or tx.now
    is_dir = stat.S_ISDIR(mode)
    ino = ino or tx.next_id("inode")
    inode = Inode(
        *(ino, mode, 2 if is_dir else 1, uid, gid, rdev, len(target), 0, now, now, now, now, 1, 0, -1),
        *(parent if is_dir else 0, explicit if is_dir else 0, target),
    )
    tx.run(_INSERT, *astuple(inode))
    return inode


def astuple(inode: Inode) -> tuple[object, ...]:
    return tuple(getattr(inode, name) for name in Inode.__slots__)


# ---- the end of inodes --------------------------------------------------------------------------------------


def hold(tx: Tx, ino: int, session: int) -> None:
    tx.run("INSERT INTO held (ino, session) VALUES (?, ?) ON CONFLICT DO NOTHING", ino, session)


def hold_if_there(tx: Tx, ino: int, session: int) -> None:
    """An inode that is gone already is passed over: the next use of the handle says so."""
    if load(tx, ino) is not None:
        hold(tx, ino, session)


def is_held(reader: Reader, ino: int) -> bool:
    return reader.one("SELECT 1 FROM held WHERE ino = ? LIMIT 1", ino) is not None


def drop_link(tx: Tx, inode: Inode, *, keep: bool = False, at: int = 0) -> None:
    """A name of a non-directory is gone. `keep`: the calling session has open handles."""
    inode.nlink -= 1
    inode.ctime = at or tx.now
    if inode.nlink > 0:
        save(tx, inode)
        return
    if keep:
        hold(tx, inode.ino, tx.session)
    remove_unless_held(tx, inode)


def drop_dir(tx: Tx, inode: Inode) -> None:
    """An empty directory's name is gone (its parent's nlink is the caller's)."""
    inode.nlink = 0
    inode.ctime = tx.now
    remove_unless_held(tx, inode)


def remove_unless_held(tx: Tx, inode: Inode) -> None:
    if is_held(tx, inode.ino):
        save(tx, inode)
    else:
        remove(tx, inode)


def remove(tx: Tx, inode: Inode) -> None:
    """Delete the inode and all that hangs from it; large contents are doomed and go in steps."""
    ino = inode.ino
    tx.run("DELETE FROM inodes WHERE ino = ?", ino)
    tx.run("DELETE FROM xattrs WHERE ino = ?", ino)
    tx.run("DELETE FROM objects WHERE ino = ?", ino)
    if inode.is_dir:
        tx.run("DELETE FROM buckets WHERE ino = ?", ino)
        tx.run("DELETE FROM bucket_config WHERE ino = ?", ino)
    elif inode.content:
        extents.drop(tx, inode.content)


def release(tx: Tx, ino: int, session: int) -> None:
    """The session's last handle is closed."""
    if tx.run("DELETE FROM held WHERE ino = ? AND session = ?", ino, session):
        inode = load(tx, ino)
        if inode is not None and inode.nlink == 0:
            remove_unless_held(tx, inode)


def release_session(tx: Tx, session: int, limit: int = 500) -> bool:
    """Part of ending a session: its held inodes go. Answers whether more are left (call again)."""
    rows = tx.all("SELECT ino FROM held WHERE session = ? LIMIT ?", session, limit)
    for (ino,) in rows:
        release(tx, ino, session)
    return len(rows) == limit
