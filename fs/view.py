"""Questions to the metadata server, answered from the inode table as long as leases allow."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import msgspec

from trivium.fs.errors import failure
from trivium.fs.inodes import UNKNOWN, Inode, Inodes
from trivium.fs.ports import Metadata
from trivium.metadata.messages import Attr, DirPage, Entry, GetAttr, Lookup, MetadataError, Operation, ReadDir, Stat

NAMES_MAX = 200_000  # cached names of one directory
LIST_MAX = 2000  # a directory of more names is not listed to save look-ups


class View:
    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self.inodes = Inodes()

    def trusts(self, inode: Inode) -> bool:
        """Whether what is cached of the inode may be used now: its lease is held, by the clock too."""
        return inode.leased and self.metadata.leases_usable()

    async def fresh(self, ino: int) -> Inode:
        """The inode with attributes that are the newest. ESTALE when it is gone."""
        inode = self.inodes.get(ino)
        if inode is not None and inode.fresh and self.metadata.leases_usable():
            return inode
        while True:  # a disturbed answer may be older than what this mount has been told of its own changes
            with self.inodes.watch() as seen:
                attr: Attr = await self.metadata.ask(GetAttr(ino, lease=1))
                inode = self.inodes.install(attr, seen)
            if inode.fresh or (ino not in seen and UNKNOWN not in seen):
                return inode

    async def known(self, ino: int) -> Inode:
        """The inode with type, mode and owner right (times and size may be older)."""
        inode = self.inodes.get(ino)
        return inode if inode is not None and self.trusts(inode) else await self.fresh(ino)

    async def lookup(self, parent: int, name: bytes) -> Inode | None:
        """The inode that a name stands for; None when there is none."""
        directory = self.inodes.get(parent)
        if directory is not None and self.trusts(directory):
            if not directory.complete and directory.asked >= directory.list_after:
                await self._list(directory)
            ino = directory.names.get(name)
            if ino == 0 or (ino is None and directory.complete):
                return None
            child = self.inodes.get(ino) if ino else None
            if child is not None and child.fresh:
                return self.inodes.asked_for(child)
        with self.inodes.watch() as seen:
            try:
                entry: Entry = await self.metadata.ask(Lookup(parent, name, lease=1))
            except MetadataError as error:
                if error.code != "ENOENT":
                    raise
                entry = Entry(None)
            child = self.inodes.install(entry.attr, seen) if entry.attr is not None else None
            self.name_answered(parent, name, child, entry.lease, seen)
        if child is not None and not child.fresh and (child.ino in seen or UNKNOWN in seen):
            return await self.fresh(child.ino)
        return child

    async def _list(self, directory: Inode) -> None:
        """Learn all names of a directory that is not large, and what they name: from then on no name that is absent is
        asked for, and none that is there is asked for one by one."""
        with self.inodes.watch() as seen:
            page: DirPage = await self.metadata.ask(ReadDir(directory.ino, 0, LIST_MAX, lease=1))
            for entry in page.entries:
                self.inodes.ahead(entry.attr, seen)
        directory.asked = 0
        if page.more:
            directory.list_after = min(1 << 20, directory.list_after * 64)
        elif page.lease and directory.leased and directory.ino not in seen and UNKNOWN not in seen:
            directory.names = {entry.name: entry.attr.ino for entry in page.entries}
            directory.complete = True

    def name_answered(self, parent: int, name: bytes, child: Inode | None, lease: int, seen: set[int]) -> None:
        directory = self.inodes.get(parent)
        if directory is None or parent in seen or UNKNOWN in seen:
            return
        directory.asked += 1
        if not lease:  # somebody's change waits, and has had its recall of this name answered already
            return
        if self.inodes.keeps_lease(parent):
            directory.leased = True
        if directory.leased:
            if len(directory.names) >= NAMES_MAX:
                directory.names.clear()
                directory.complete = False
                directory.list_after = 1 << 20
            directory.names[name] = child.ino if child is not None else 0

    async def change(
        self, operation: Operation, *, above: Sequence[int], inos: Sequence[int] = ()
    ) -> tuple[Any, set[int]]:
        """Execute an operation on names in the directories `above`, whose attributes come with the answer (the kernel
        asks for them after each such change); `inos` are inodes whose attributes change without being answered.
        Answers the value and what was disturbed meanwhile."""
        above = tuple(dict.fromkeys(above))
        with self.inodes.watch() as seen:
            value, *attrs = await self.metadata.call(operation, *map(Stat, above))
        for ino in (*above, *inos):
            self.inodes.stale(ino)
        for attr in attrs:
            if self.inodes.get(attr.ino) is not None and attr.ino not in seen and UNKNOWN not in seen:
                self.inodes.install(attr, seen, mutation=True)
        return value, seen

    def named(self, parent: int, name: bytes, ino: int, seen: set[int]) -> None:
        """A change of our own made `name` stand for `ino` (0: for nothing)."""
        directory = self.inodes.get(parent)
        if directory is None:
            return
        known = directory.leased and parent not in seen and UNKNOWN not in seen
        directory.names[name] = ino if known else UNKNOWN

    def guess(self, parent: int, name: bytes) -> Inode | None:
        """What the name most probably stands for: what was looked up last."""
        directory = self.inodes.get(parent)
        if directory is None:
            return None
        ino = directory.names.get(name, UNKNOWN)
        return self.inodes.get(ino if ino > 0 else directory.dentries.get(name, 0))

    def count_down(self, inode: Inode, nlink: int) -> None:
        """A name of the inode went; its other attributes are asked for again."""
        inode.attr = msgspec.structs.replace(inode.attr, nlink=nlink)
        self.inodes.stale(inode.ino)


def check_name(name: bytes) -> None:
    if len(name) > 255:
        raise failure(errno.ENAMETOOLONG)
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise failure(errno.EINVAL)
