"""Bytes of files: open, read, write, truncate, and the questions about holes.

Invariants: (1) one read answers from one layout, with what is unsent laid over it: never a mix of two generations
(a commit in between starts it again); (2) a read or write handler never waits for a lease: the kernel holds pages
locked during it, and a recall may be waiting for those pages; (3) data of an unlinked file stays readable as long as
a handle is open.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from trivium.cluster.errors import ChunkLost, NotFound
from trivium.fs.errors import failure
from trivium.fs.inodes import UNKNOWN, Inode
from trivium.fs.layoutcache import EXTENTS_MAX, LayoutCache
from trivium.fs.ports import ChunkStore
from trivium.fs.ranges import Buffer
from trivium.fs.view import View
from trivium.fs.writeback import WriteBack
from trivium.metadata.messages import Attr, CloneRange, Extent, GetLayout, Layout, Truncate, Zero

LAYOUT_WINDOW = 64 << 20  # bytes of file whose extents are asked for at once
SIZE_MAX = (1 << 63) - 1
SUID = stat.S_ISUID | stat.S_ISGID
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 1, 2, 16


@dataclass(eq=False, slots=True)
class Handle:
    """An open file. `errors` is how many write errors of the inode this handle has seen or was opened after."""

    fh: int
    inode: Inode
    flags: int
    uid: int
    errors: int

    @property
    def writable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY


class Contents:
    def __init__(self, view: View, chunks: ChunkStore, writeback: WriteBack) -> None:
        self._view, self._chunks, self._writeback = view, chunks, writeback
        self._handles: dict[int, Handle] = {}
        self._next = 1

    # ---- handles --------------------------------------------------------------------------------------------

    def handle(self, fh: int) -> Handle:
        try:
            return self._handles[fh]
        except KeyError:
            raise failure(errno.EBADF) from None

    def opened(self, inode: Inode, flags: int, uid: int) -> tuple[Handle, bool]:
        """A new handle, and whether the kernel may keep the pages that it has."""
        handle = Handle(self._next, inode, flags, uid, inode.pending.errors)
        self._next += 1
        self._handles[handle.fh] = handle
        inode.opens += 1
        trusted = self._view.trusts(inode)
        keep = trusted and inode.clean_pages
        inode.clean_pages = trusted
        return handle, keep

    def closed(self, fh: int) -> Inode:
        handle = self._handles.pop(fh)
        handle.inode.opens -= 1
        if handle.inode.opens == 0 and handle.inode.attr.nlink == 0:
            self._writeback.discard(handle.inode, 0)
        return handle.inode

    # ---- reading --------------------------------------------------------------------------------------------

    async def read(self, fh: int, offset: int, size: int) -> Buffer:
        inode = self.handle(fh).inode
        unsent = self._unsent(inode, offset, offset + size)
        if len(unsent) == 1 and len(unsent[0][1]) == size:
            return unsent[0][1]
        with self._view.metadata.reading():
            for _ in range(4):
                commits = inode.pending.commits
                base = await self._base(inode, offset, offset + size)
                if inode.pending.commits == commits:
                    break
        unsent = self._unsent(inode, offset, offset + size)
        end = min(offset + size, max(offset + len(base), inode.pending.end))
        if not unsent and end <= offset + len(base):
            return base
        answer = bytearray(end - offset)
        answer[: len(base)] = base
        for start, data in unsent:
            answer[start - offset : start - offset + len(data)] = data
        return answer

    def _unsent(self, inode: Inode, start: int, stop: int) -> list[tuple[int, memoryview]]:
        if inode.pending.end <= start:
            return []
        return [piece for layer in inode.pending.layers() for piece in layer.ranges.overlay(start, stop)]

    async def _base(self, inode: Inode, start: int, stop: int) -> Buffer:
        """What the metadata server knows of [start, stop), cut at its end of file."""
        for attempt in range(3):
            if self._view.trusts(inode):
                stop = min(stop, inode.attr.size)
                if start >= stop:
                    return b""
            layout, size = await self._layout(inode, start, stop)
            end = min(stop, size)
            if start >= end:
                return b""
            try:
                return await self._assemble(layout, start, end)
            except (NotFound, ChunkLost):  # moved since: its row is asked for again
                inode.layout = None
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")

    async def _layout(self, inode: Inode, start: int, stop: int) -> tuple[LayoutCache, int]:
        """A layout that covers the range, and the file's size that goes with it."""
        cached = inode.layout
        if cached is not None and cached.covers(start, stop) and self._view.trusts(inode):
            return cached, inode.attr.size
        with self._view.inodes.watch() as seen:
            begin = cached.stop if cached is not None and cached.start <= start <= cached.stop < stop else start
            page: Layout = await self._view.metadata.ask(GetLayout(inode.ino, begin, max(LAYOUT_WINDOW, stop - begin)))
            keep = inode.leased and inode.ino not in seen and UNKNOWN not in seen
        if keep and cached is not None and begin == cached.stop and inode.layout is cached and begin != start:
            cached.extend(page)
            layout = cached
        elif begin != start:  # it does not continue what is known after all
            inode.layout = None
            return await self._layout(inode, start, stop)
        else:
            layout = LayoutCache(page, start)
        if not keep:
            inode.unleased_reads = True
        while not layout.covers(start, min(stop, page.size)):
            version = page.version
            page = await self._view.metadata.ask(
                GetLayout(inode.ino, layout.stop, max(LAYOUT_WINDOW, stop - layout.stop), version)
            )
            layout.extend(page)
        inode.layout = layout if keep and len(layout) <= EXTENTS_MAX else None
        return layout, page.size

    async def _assemble(self, layout: LayoutCache, start: int, stop: int) -> Buffer:
        extents = layout.range(start, stop)
        if len(extents) == 1 and extents[0].length == stop - start:
            return await self._bytes(layout, extents[0])
        answer = bytearray(stop - start)
        remote = []
        for extent in extents:
            if extent.ref is not None:
                remote.append(extent)
            elif extent.data is not None:
                at = extent.offset - start
                answer[at : at + extent.length] = extent.data

        if remote:
            refs = [extent.ref for extent in remote if extent.ref is not None]
            placed = {ref.chunk: layout.placed[ref.chunk] for ref in refs if ref.chunk in layout.placed}
            for extent, data in zip(remote, await self._chunks.get_many(refs, placed), strict=True):
                at = extent.offset - start
                answer[at : at + extent.length] = data
        return answer

    async def _bytes(self, layout: LayoutCache, extent: Extent) -> Buffer:
        if extent.ref is not None:
            return await self._chunks.get(extent.ref, placed=layout.placed.get(extent.ref.chunk))
        return extent.data if extent.data is not None else bytes(extent.length)

    # ---- writing --------------------------------------------------------------------------------------------

    async def write(self, fh: int, offset: int, data: Buffer) -> int:
        handle = self.handle(fh)
        inode = handle.inode
        self.report(handle)
        if inode.orphaned:  # it may be such a page: older than what others have written since
            raise failure(errno.EIO)
        append = bool(handle.flags & os.O_APPEND)
        if append:
            offset = inode.size()
        if offset + len(data) > SIZE_MAX:
            raise failure(errno.EFBIG)
        clear = handle.uid != 0 and self.clear_suid(inode)
        self._writeback.write(inode, offset, data, append=append, clear_suid=clear)
        await self._writeback.room(inode)
        return len(data)

    @staticmethod
    def clear_suid(inode: Inode) -> bool:
        """A write by one who is not root takes set-user-id and set-group-id away; seen here at once."""
        mode = inode.attr.mode
        if not mode & SUID:
            return False
        inode.attr = msgspec.structs.replace(inode.attr, mode=without_suid(mode))
        return True

    @staticmethod
    def report(handle: Handle) -> None:
        """Raise a write error that this handle has not been told of."""
        pending = handle.inode.pending
        if handle.errors != pending.errors:
            handle.errors = pending.errors
            raise failure(pending.last_error)

    async def flush(self, fh: int) -> None:
        """close(): what was written is known to the metadata server, or the error is."""
        handle = self.handle(fh)
        if handle.inode.pending.dirty and handle.writable:
            await self._writeback.drain(handle.inode)
        self.report(handle)

    async def sync(self, fh: int) -> None:
        handle = self.handle(fh)
        await self._writeback.drain(handle.inode)
        self.report(handle)

    async def truncate(self, inode: Inode, size: int, *, uid: int, then: Sequence[Any] = ()) -> None:
        """Set the size; `then` are operations of the same call (all of them answer Attr)."""
        if inode.is_dir:
            raise failure(errno.EISDIR)
        if not inode.is_regular:
            raise failure(errno.EINVAL)
        if size > SIZE_MAX:
            raise failure(errno.EFBIG)
        clear = uid != 0 and self.clear_suid(inode)
        self._writeback.discard(inode, size)
        await self.change(inode, Truncate(inode.ino, size, clear_suid=clear), *then)

    async def change(self, inode: Inode, *operations: Any, seal: bool = True) -> None:
        """Operations on one inode, after what was written before them; each answers Attr or None."""
        with self._view.inodes.watch() as seen:
            answers = await self._writeback.drain(inode, *operations, seal=seal)
        contents = any(isinstance(op, Truncate | Zero | CloneRange) for op in operations)
        self.changed(inode, next((a for a in reversed(answers) if a is not None), None), seen, contents=contents)

    def changed(self, inode: Inode, attr: Attr | None, seen: set[int], *, contents: bool) -> None:
        self._view.inodes.disturb(inode.ino)
        if contents:
            inode.layout = None
            inode.pending.commits += 1
        if attr is not None:
            self._view.inodes.install(attr, seen, mutation=True)
        else:
            inode.fresh = False

    # ---- holes, copies --------------------------------------------------------------------------------------

    async def allocate(self, fh: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2). Space is not reserved: a plain call only makes the file long enough."""
        handle = self.handle(fh)
        inode = handle.inode
        if not handle.writable:
            raise failure(errno.EBADF)
        if offset < 0 or length <= 0:
            raise failure(errno.EINVAL)
        keep = bool(mode & FALLOC_KEEP_SIZE)
        if mode & ~(FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE):
            raise failure(errno.EOPNOTSUPP)
        if mode & (FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE):
            if mode & FALLOC_PUNCH_HOLE and not keep:
                raise failure(errno.EOPNOTSUPP)
            await self.change(inode, Zero(inode.ino, offset, length))
        await self._view.fresh(inode.ino)
        if not keep and offset + length > inode.size():
            await self.change(inode, Truncate(inode.ino, offset + length))

    async def seek(self, fh: int, offset: int, whence: int) -> int:
        """lseek(2) with SEEK_DATA or SEEK_HOLE; what is unsent is sent first."""
        inode = self.handle(fh).inode
        await self._writeback.drain(inode)
        await self._view.fresh(inode.ino)
        size = inode.attr.size
        if offset < 0 or offset >= size:
            raise failure(errno.ENXIO)
        while offset < size:
            stop = min(size, offset + LAYOUT_WINDOW)
            layout, _ = await self._layout(inode, offset, stop)
            data = [e for e in layout.range(offset, stop) if e.ref is not None or e.data is not None]
            if whence == os.SEEK_DATA:
                if data:
                    return data[0].offset
                offset = stop
                continue
            for extent in data:
                if extent.offset > offset:
                    return offset
                offset = extent.offset + extent.length
            if offset < stop:
                return offset
        if whence == os.SEEK_DATA:
            raise failure(errno.ENXIO)
        return size

    async def copy_range(self, fh_in: int, offset_in: int, fh_out: int, offset_out: int, length: int) -> int:
        """copy_file_range(2): shares the extents, moves no data. Answers how much was there to copy."""
        source, target = self.handle(fh_in).inode, self.handle(fh_out).inode
        await self._writeback.drain(source)
        await self._view.fresh(source.ino)
        length = min(length, source.attr.size - offset_in)
        if length <= 0:
            return 0
        if source is target and offset_in < offset_out + length and offset_out < offset_in + length:
            raise failure(errno.EINVAL)
        await self.change(target, CloneRange(source.ino, offset_in, target.ino, offset_out, length))
        return length


def without_suid(mode: int) -> int:
    """Mode after a write: set-group-id without group execution means mandatory locking and stays."""
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode
