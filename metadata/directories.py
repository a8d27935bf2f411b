"""Operations on names by path: create, link, unlink, rmdir, rename, look-up, readdir.

Invariants:
1. A change of a directory by path makes it explicit and sets its mtime and ctime.
2. Every name at which a directory appeared, or from which an entry went, is given to namespace.rehome().
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from trivium.metadata import inodes, namespace, uploads
from trivium.metadata.inodes import Inode
from trivium.metadata.messages import (
    ROOT_INO,
    SYMLINK_MAX,
    Attr,
    Create,
    DirEntry,
    DirPage,
    Entry,
    Link,
    Lookup,
    MetadataError,
    ReadDir,
    Rmdir,
    Unlink,
)
from trivium.metadata.namespace import Found

if TYPE_CHECKING:
    from trivium.metadata.tx import Reader, Tx

READDIR_MAX = 4096


def open_parent(tx: Tx, ino: int, name: bytes) -> Inode:
    """The directory whose entry `name` an operation changes."""
    namespace.check_component(name)
    parent = inodes.need_dir(tx, ino)
    if parent.nlink == 0:
        raise MetadataError("ENOENT", "the directory was removed")
    tx.touch(ino, name)
    return parent


def changed(tx: Tx, parent: Inode, at: int = 0) -> None:
    """A path changed something in the directory."""
    parent.mtime = parent.ctime = at or tx.now
    parent.explicit = 1
    inodes.save(tx, parent)


def need_entry(reader: Reader, parent: int, name: bytes) -> Found:
    found = namespace.find(reader, parent, name)
    if found is None:
        raise MetadataError("ENOENT", f"there is no {name!r}")
    return found


# ---- making and removing --------------------------------------------------------------------------------------


def create(tx: Tx, op: Create) -> Entry:
    parent = open_parent(tx, op.parent, op.name)
    found = namespace.find(tx, op.parent, op.name)
    if found is not None:
        return _existing(tx, op, found)
    _check_mode(op)
    is_dir = stat.S_ISDIR(op.mode)
    mode, gid = op.mode, op.gid
    if parent.mode & stat.S_ISGID:
        gid = parent.gid
        mode |= stat.S_ISGID if is_dir else 0
    inode = inodes.make(
        tx,
        mode,
        uid=op.uid,
        gid=gid,
        rdev=op.rdev,
        at=op.at,
        target=op.target,
        parent=op.parent,
        explicit=1,
    )
    if is_dir:
        namespace.make_dir(tx, parent, op.name, inode)
        inode = inodes.need(tx, inode.ino)  # rows that waited for it may have made directories below
    else:
        namespace.add(tx, op.parent, op.name, inode.ino)
    changed(tx, parent, op.at)
    if op.hold:
        inodes.hold(tx, inode.ino, tx.session)
    tx.created = inode.ino
    return Entry(inode.attr(), created=True, empty=is_dir and namespace.is_empty(tx, inode.ino))


def _existing(tx: Tx, op: Create, found: Found) -> Entry:
    old = inodes.need(tx, found.ino)
    if op.exclusive or not stat.S_ISREG(op.mode) or not old.is_file:
        raise MetadataError("EEXIST", f"{op.name!r} is there")
    if op.hold:
        inodes.hold(tx, old.ino, tx.session)
    tx.created = old.ino
    return Entry(old.attr())


def _check_mode(op: Create) -> None:
    kind = stat.S_IFMT(op.mode)
    known = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFBLK, stat.S_IFCHR)
    if kind not in known:
        raise MetadataError("EINVAL", f"mode {op.mode:o} has no known type")
    if len(op.target) > SYMLINK_MAX:
        raise MetadataError("ENAMETOOLONG", f"a link's target has at most {SYMLINK_MAX} bytes")
    if (kind == stat.S_IFLNK) != bool(op.target):
        raise MetadataError("ENOENT" if kind == stat.S_IFLNK else "EINVAL", "a link, and only a link, has a target")


def link(tx: Tx, op: Link) -> Entry:
    parent = open_parent(tx, op.parent, op.name)
    inode = inodes.need(tx, op.ino)
    if inode.is_dir:
        raise MetadataError("EPERM", "a directory has one name")
    if inode.nlink == 0:
        raise MetadataError("ENOENT", "the file was removed")
    if namespace.find(tx, op.parent, op.name) is not None:
        raise MetadataError("EEXIST", f"{op.name!r} is there")
    if inode.nlink >= inodes.LINK_MAX:
        raise MetadataError("EMLINK", f"a file has at most {inodes.LINK_MAX} names")
    tx.touch(inode.ino)
    inode.nlink += 1
    inode.ctime = tx.now
    inodes.save(tx, inode)
    namespace.add(tx, op.parent, op.name, inode.ino)
    changed(tx, parent)
    return Entry(inode.attr())


def unlink(tx: Tx, op: Unlink) -> Attr:
    parent = open_parent(tx, op.parent, op.name)
    found = need_entry(tx, op.parent, op.name)
    if found.is_dir:
        raise MetadataError("EISDIR", f"{op.name!r} is a directory")
    inode = inodes.need(tx, found.ino)
    tx.touch(inode.ino)
    namespace.remove(tx, op.parent, found.sort_name)
    inodes.drop_link(tx, inode, keep=op.hold)
    changed(tx, parent)
    namespace.rehome(tx, op.parent, op.name)
    return inode.attr()


def rmdir(tx: Tx, op: Rmdir) -> None:
    if op.name == b".":
        raise MetadataError("EINVAL", "a directory cannot be removed as `.`")
    if op.name == b"..":
        raise MetadataError("ENOTEMPTY", "`..` is not empty")
    parent = open_parent(tx, op.parent, op.name)
    found = need_entry(tx, op.parent, op.name)
    if not found.is_dir:
        raise MetadataError("ENOTDIR", f"{op.name!r} is no directory")
    if not namespace.is_empty(tx, found.ino):
        raise MetadataError("ENOTEMPTY", f"{op.name!r} is not empty")
    inode = inodes.need(tx, found.ino)
    tx.touch(inode.ino)
    if op.parent == ROOT_INO:
        uploads.abort_all(tx, inode.ino)
    namespace.remove(tx, op.parent, found.sort_name)
    inodes.drop_dir(tx, inode)
    parent.nlink -= 1
    changed(tx, parent)


# ---- looking --------------------------------------------------------------------------------------------------


def lookup(reader: Reader, query: Lookup) -> Entry:
    """Also of `.` and `..`, which NFS exports and the kernel may ask for."""
    parent = inodes.need_dir(reader, query.parent)
    if query.name in (b".", b".."):
        ino = parent.ino if query.name == b"." or parent.ino == ROOT_INO else parent.parent
        return Entry(inodes.need(reader, ino).attr())
    if len(query.name) > 255:
        raise MetadataError("ENAMETOOLONG", "a name has at most 255 bytes")
    found = namespace.find(reader, query.parent, query.name)
    return Entry(None if found is None else inodes.need(reader, found.ino).attr())


_READDIR = (
    "SELECT d.id, d.sort_name, i.ino, i.mode, i.nlink, i.uid, i.gid, i.rdev, i.size, i.used, i.atime, i.mtime,"
    " i.ctime, i.btime, i.version, i.target FROM dirents d JOIN inodes i ON i.ino = d.ino"
    " WHERE d.parent = ?1 AND d.id > ?2 AND d.hidden = 0 AND NOT EXISTS (SELECT 1 FROM dirents e WHERE"
    " e.parent = ?1 AND e.sort_name = CAST(d.sort_name || X'2F' AS BLOB) AND e.hidden = 0) ORDER BY d.id LIMIT ?3"
)


def readdir(reader: Reader, query: ReadDir) -> DirPage:
    inodes.need_dir(reader, query.ino)
    limit = max(1, min(query.limit, READDIR_MAX))
    rows = reader.all(_READDIR, query.ino, query.after, limit + 1)
    entries = tuple(DirEntry(row[0], row[1].removesuffix(b"/"), Attr(*row[2:])) for row in rows[:limit])
    return DirPage(entries, len(rows) > limit)
