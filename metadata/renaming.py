"""Rename, with RENAME_NOREPLACE and RENAME_EXCHANGE.

Invariants:
1. No directory becomes its own ancestor: checked in the same transaction, up to the root (EINVAL, ENOTEMPTY).
2. Hidden rows below a moved directory move with it; those that wait at its new name join it, and if two of them are
   one key then, the rename is refused (ENOTEMPTY).
3. A plain entry hidden by the directory that leaves a name becomes visible there; nothing is overwritten unseen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trivium.metadata import directories, inodes, namespace, uploads
from trivium.metadata.inodes import Inode
from trivium.metadata.messages import ROOT_INO, MetadataError, Rename
from trivium.metadata.namespace import Found

if TYPE_CHECKING:
    from trivium.metadata.tx import Tx

NOREPLACE, EXCHANGE = 1, 2


@dataclass(slots=True)
class End:
    """One of the two names: the directory's row, the name, what is there."""

    parent: Inode
    name: bytes
    found: Found | None = None
    inode: Inode | None = None

    @property
    def is_dir(self) -> bool:
        return self.found is not None and self.found.is_dir


def rename(tx: Tx, op: Rename) -> None:
    if op.flags not in (0, NOREPLACE, EXCHANGE):
        raise MetadataError("EINVAL", f"rename flags {op.flags} are not known")
    old = _end(tx, op.parent, op.name)
    new = End(old.parent, op.new_name) if op.new_parent == op.parent else _open(tx, op.new_parent, op.new_name)
    if new.parent is old.parent:
        namespace.check_component(op.new_name)
        tx.touch(op.parent, op.new_name)
    _look(tx, new)
    if new.found is not None and op.flags & NOREPLACE:
        raise MetadataError("EEXIST", f"{op.new_name!r} is there")
    if new.found is None and op.flags & EXCHANGE:
        raise MetadataError("ENOENT", f"there is no {op.new_name!r}")
    _check_loops(tx, old, new, bool(op.flags & EXCHANGE))
    assert old.found is not None
    if new.found is not None and new.found.ino == old.found.ino:
        return  # two names of one file: nothing to do, says POSIX
    if op.flags & EXCHANGE:
        _exchange(tx, old, new)
    else:
        _replace(tx, old, new, op.hold)


def _open(tx: Tx, parent: int, name: bytes) -> End:
    return End(directories.open_parent(tx, parent, name), name)


def _end(tx: Tx, parent: int, name: bytes) -> End:
    end = _open(tx, parent, name)
    _look(tx, end)
    if end.found is None:
        raise MetadataError("ENOENT", f"there is no {name!r}")
    return end


def _look(tx: Tx, end: End) -> None:
    end.found = namespace.find(tx, end.parent.ino, end.name)
    if end.found is not None:
        end.inode = inodes.need(tx, end.found.ino)
        tx.touch(end.found.ino)


def _check_loops(tx: Tx, old: End, new: End, exchange: bool) -> None:
    above_new = _ancestors(tx, new.parent)
    if old.is_dir and old.found is not None and old.found.ino in above_new:
        raise MetadataError("EINVAL", "a directory cannot move into itself")
    if new.is_dir and new.found is not None and new.found.ino in _ancestors(tx, old.parent):
        raise MetadataError("EINVAL" if exchange else "ENOTEMPTY", "the target holds the source")


def _ancestors(tx: Tx, directory: Inode) -> set[int]:
    """The directory and all above it."""
    found = {directory.ino}
    parent = directory.parent
    while parent not in found:
        found.add(parent)
        row = tx.one("SELECT parent FROM inodes WHERE ino = ?", parent)
        if row is None:
            break
        parent = row[0]
    return found


# ---- moving -----------------------------------------------------------------------------------------------------


def _replace(tx: Tx, old: End, new: End, hold: bool) -> None:
    assert old.found is not None and old.inode is not None
    _leave_top(tx, old, new)
    if new.found is not None:
        _remove_target(tx, old, new, hold)
    _take(tx, old)
    _give(tx, new, old.found, old.inode)
    _finish(tx, (old, new), (old.inode,))


def _remove_target(tx: Tx, old: End, new: End, hold: bool) -> None:
    assert new.found is not None and new.inode is not None
    if old.is_dir and not new.is_dir:
        raise MetadataError("ENOTDIR", f"{new.name!r} is no directory")
    if new.is_dir and not old.is_dir:
        raise MetadataError("EISDIR", f"{new.name!r} is a directory")
    if new.is_dir and not namespace.is_empty(tx, new.found.ino):
        raise MetadataError("ENOTEMPTY", f"{new.name!r} is not empty")
    _take(tx, new)
    if new.is_dir:
        if new.parent.ino == ROOT_INO:
            uploads.abort_all(tx, new.found.ino)
        inodes.drop_dir(tx, new.inode)
    else:
        inodes.drop_link(tx, new.inode, keep=hold)


def _exchange(tx: Tx, old: End, new: End) -> None:
    assert old.found is not None and new.found is not None and old.inode is not None and new.inode is not None
    _leave_top(tx, old, new)
    _leave_top(tx, new, old)
    _take(tx, old)
    _take(tx, new)
    _give(tx, new, old.found, old.inode)
    _give(tx, old, new.found, new.inode)
    _finish(tx, (old, new), (old.inode, new.inode))


def _take(tx: Tx, end: End) -> None:
    """Remove the entry, keep the inode."""
    assert end.found is not None
    namespace.remove(tx, end.parent.ino, end.found.sort_name)
    end.parent.nlink -= end.is_dir


def _give(tx: Tx, end: End, entry: Found, inode: Inode) -> None:
    """Put a moved entry there; it keeps its cookie, so that a running readdir does not meet it twice."""
    if not inode.is_dir and namespace.find_plain(tx, end.parent.ino, end.name) is not None:
        raise MetadataError("ENOTEMPTY", f"an object of the key {end.name!r} is there, hidden by the directory")
    namespace.add(tx, end.parent.ino, end.name, inode.ino, entry.id, directory=inode.is_dir)
    if inode.is_dir:
        inode.parent = end.parent.ino
        end.parent.nlink += 1


def _finish(tx: Tx, ends: tuple[End, End], moved: tuple[Inode, ...]) -> None:
    for inode in moved:
        inode.ctime = tx.now
        inodes.save(tx, inode)
    for parent in {end.parent.ino: end.parent for end in ends}.values():
        directories.changed(tx, parent)
    for end in ends:
        namespace.rehome(tx, end.parent.ino, end.name)


def _leave_top(tx: Tx, old: End, new: End) -> None:
    """A bucket that moves below another directory is a bucket no more."""
    assert old.found is not None
    if not old.is_dir or old.parent.ino != ROOT_INO or new.parent.ino == ROOT_INO:
        return
    if tx.one("SELECT 1 FROM uploads WHERE bucket = ? AND content != 0 LIMIT 1", old.found.ino) is not None:
        raise MetadataError("EBUSY", "uploads to the bucket are under way")
    uploads.abort_all(tx, old.found.ino)
    tx.run("DELETE FROM buckets WHERE ino = ?", old.found.ino)
    tx.run("DELETE FROM bucket_config WHERE ino = ?", old.found.ino)
