"""Reading directories: pages of entries, by cookies that mean an entry for ever."""

from __future__ import annotations

import contextlib
import errno
from bisect import bisect_right
from dataclasses import dataclass, field

from trivium.fs.errors import failure
from trivium.fs.inodes import UNKNOWN, Inode
from trivium.fs.view import View
from trivium.metadata.messages import DirEntry, DirPage, MetadataError, ReadDir

PAGE = 1000


@dataclass(eq=False, slots=True)
class DirHandle:
    """An open directory: the page read last, and all names since the start while nothing disturbed them."""

    inode: Inode
    ids: list[int] = field(default_factory=list)
    entries: list[tuple[DirEntry, Inode]] = field(default_factory=list)
    after: int = -1  # the page holds the entries after this cookie
    more: bool = True
    changes: int = -1  # the inode's when the listing began; -1 = names are not being gathered
    names: dict[bytes, int] = field(default_factory=dict)


class Listing:
    def __init__(self, view: View) -> None:
        self._view = view
        self._handles: dict[int, DirHandle] = {}
        self._next = 1

    def open(self, inode: Inode) -> int:
        fh = self._next
        self._next += 1
        self._handles[fh] = DirHandle(inode)
        inode.opens += 1
        return fh

    def close(self, fh: int) -> Inode:
        handle = self._handles.pop(fh)
        handle.inode.opens -= 1
        self._evict(handle)
        return handle.inode

    def _evict(self, handle: DirHandle) -> None:
        """Inodes that the kernel did not take need not be remembered."""
        for _, inode in handle.entries:
            self._view.inodes.evict(inode)

    def handle(self, fh: int) -> DirHandle:
        try:
            return self._handles[fh]
        except KeyError:
            raise failure(errno.EBADF) from None

    async def page(self, fh: int, after: int) -> list[tuple[DirEntry, Inode]]:
        """Some entries after the cookie, in order; empty at the end."""
        handle = self.handle(fh)
        if after == 0 or after < handle.after or handle.after < 0:
            await self._fetch(handle, after)
        i = bisect_right(handle.ids, after)
        if i == len(handle.ids) and handle.more:
            await self._fetch(handle, after)
            i = bisect_right(handle.ids, after)
        return handle.entries[i:]

    async def _fetch(self, handle: DirHandle, after: int) -> None:
        directory = handle.inode
        if after == 0:
            handle.changes, handle.names = directory.changes, {}
        elif not handle.ids or after != handle.ids[-1]:
            handle.changes = -1
        self._evict(handle)
        with self._view.inodes.watch() as seen:
            page: DirPage = await self._view.metadata.ask(ReadDir(directory.ino, after, PAGE, lease=1))
            handle.entries = [(entry, self._view.inodes.install(entry.attr, seen)) for entry in page.entries]
        for _, inode in handle.entries:
            if not inode.fresh and (inode.ino in seen or UNKNOWN in seen):
                with contextlib.suppress(MetadataError):  # gone: its look-up will say so
                    await self._view.fresh(inode.ino)
        handle.ids = [entry.id for entry in page.entries]
        handle.after, handle.more = after, page.more
        self._learn(handle, page, directory.ino in seen or UNKNOWN in seen)

    def _learn(self, handle: DirHandle, page: DirPage, disturbed: bool) -> None:
        """Under a lease the names of pages are known names; all pages undisturbed: no others exist."""
        directory = handle.inode
        if disturbed or not page.lease:  # without: somebody's change waits, its recall answered already
            handle.changes = -1
            return
        if self._view.inodes.keeps_lease(directory.ino):
            directory.leased = True
        if not directory.leased:
            return
        names = {entry.name: entry.attr.ino for entry in page.entries}
        directory.names.update(names)
        if handle.changes == directory.changes:
            handle.names.update(names)
            if not page.more:
                directory.names = dict(handle.names)
                directory.complete = True
