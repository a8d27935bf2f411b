"""Questions to the metadata server, answered from the inode table as long as leases allow."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import msgspec

from trivium.fs.errors import failure
from trivium.fs.inodes import Inode, Inodes
from trivium.fs.writeback import Metadata
from trivium.metadata.messages import Attr, Entry, GetAttr, Lookup, MetadataError, Operation

NAMES_MAX = 200_000  # cached names of one directory


class View:
    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self.inodes = Inodes()

    async def fresh(self, ino: int) -> Inode:
        """The inode with attributes that are the newest. ESTALE when it is gone."""
        inode = self.inodes.get(ino)
        if inode is not None and inode.fresh and self.metadata.leases_usable():
            return inode
        while True:  # a disturbed answer may be older than what this mount has been told of its own changes
            with self.inodes.watch() as seen:
                attr: Attr = await self.metadata.ask(GetAttr(ino, lease=1))
                inode = self.inodes.install(attr, seen)
            if ino not in seen or inode.fresh:
                return inode

    async def known(self, ino: int) -> Inode:
        """The inode with type, mode and owner right (times and size may be older)."""
        inode = self.inodes.get(ino)
        return inode if inode is not None and inode.leased and self.metadata.leases_usable() else await self.fresh(ino)

    async def lookup(self, parent: int, name: bytes) -> Inode | None:
        """The inode that a name stands for; None when there is none."""
        directory = self.inodes.get(parent)
        if directory is not None and directory.leased and self.metadata.leases_usable():
            ino = directory.names.get(name)
            if ino == 0 or (ino is None and directory.complete):
                return None
            child = self.inodes.get(ino) if ino else None
            if child is not None and child.fresh:
                return child
        with self.inodes.watch() as seen:
            try:
                entry: Entry = await self.metadata.ask(Lookup(parent, name, lease=1))
            except MetadataError as error:
                if error.code != "ENOENT":
                    raise
                entry = Entry(None)
            child = self.inodes.install(entry.attr, seen) if entry.attr is not None else None
            self.name_answered(parent, name, child, entry.lease, seen)
        if child is not None and child.ino in seen and not child.fresh:
            return await self.fresh(child.ino)
        return child

    def name_answered(self, parent: int, name: bytes, child: Inode | None, lease: int, seen: set[int]) -> None:
        directory = self.inodes.get(parent)
        if directory is None or parent in seen:
            return
        if lease:
            directory.leased = True
        if directory.leased:
            if len(directory.names) >= NAMES_MAX:
                directory.names.clear()
                directory.complete = False
            directory.names[name] = child.ino if child is not None else 0

    async def change(self, *operations: Operation, inos: Sequence[int]) -> tuple[tuple[Any, ...], set[int]]:
        """Execute operations on names; `inos` are the inodes whose attributes change without being answered.
        Answers the values and what was disturbed meanwhile."""
        with self.inodes.watch() as seen:
            values = await self.metadata.call(*operations)
        for ino in inos:
            self.inodes.stale(ino)
        return values, seen

    def named(self, parent: int, name: bytes, ino: int, seen: set[int]) -> None:
        """A change of our own made `name` stand for `ino` (0: for nothing)."""
        directory = self.inodes.get(parent)
        if directory is None:
            return
        if directory.leased and parent not in seen:
            directory.names[name] = ino
        else:
            directory.names.pop(name, None)
            directory.complete = False

    def guess(self, parent: int, name: bytes) -> Inode | None:
        """What the name most probably stands for: what was looked up last."""
        directory = self.inodes.get(parent)
        if directory is None:
            return None
        ino = directory.names.get(name) or directory.dentries.get(name)
        return self.inodes.get(ino) if ino else None

    def count_down(self, inode: Inode, nlink: int) -> None:
        """A name of the inode went; its other attributes are asked for again."""
        inode.attr = msgspec.structs.replace(inode.attr, nlink=nlink)
        self.inodes.stale(inode.ino)


def check_name(name: bytes) -> None:
    if len(name) > 255:
        raise failure(errno.ENAMETOOLONG)
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise failure(errno.EINVAL)
