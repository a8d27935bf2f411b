"""pyfuse3's handlers over a Filesystem: conversions and nothing else.

Everything that a handler raises is caught in one place (`answered`): an OSError, MetadataError or ClusterError becomes
its errno, anything else is logged and becomes EIO. The kernel's inode 1 is the mount's root, whatever its number is.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar, cast

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

from trivium.cluster.errors import ClusterError
from trivium.fs.errors import errno_of
from trivium.fs.filesystem import Caller, Filesystem
from trivium.fs.inodes import Inode
from trivium.metadata.messages import NAME_MAX, MetadataError

log = logging.getLogger(__name__)

KEEP_S = 86_400.0  # under a lease the kernel keeps what it was told until it is invalidated
FUSE_ROOT = 1
BLOCK = 4096

P = ParamSpec("P")
T = TypeVar("T")


def answered(handler: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """The translation boundary."""

    @functools.wraps(handler)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(*args, **kwargs)
        except FUSEError:
            raise
        except (OSError, MetadataError, ClusterError) as error:
            number = errno_of(error)
            if number == errno.EIO:
                log.error("%s: %s", handler.__name__, error)
            raise FUSEError(number) from None
        except Exception:
            log.exception("%s failed", handler.__name__)
            raise FUSEError(errno.EIO) from None

    return call


class KernelNotifier:
    """Invalidations, called from threads."""

    def __init__(self, root_ino: int) -> None:
        self._root = root_ino

    def _number(self, ino: int) -> int:
        return FUSE_ROOT if ino == self._root else ino

    def inode(self, ino: int) -> None:
        pyfuse3.invalidate_inode(self._number(ino))

    def entry(self, parent: int, name: bytes) -> None:
        pyfuse3.invalidate_entry(self._number(parent), name)


class FuseOperations(pyfuse3.Operations):
    """One instance per mount."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, filesystem: Filesystem) -> None:
        super().__init__()
        self._fs = filesystem
        self._root = filesystem.root_ino

    # ---- conversions ----------------------------------------------------------------------------------------

    def _ino(self, number: int) -> int:
        return self._root if number == FUSE_ROOT else number

    def _attributes(self, inode: Inode, *, name_s: float = 0.0) -> EntryAttributes:
        attr = self._fs.stat_of(inode)
        entry = EntryAttributes()
        entry.st_ino = FUSE_ROOT if attr.ino == self._root else attr.ino
        entry.st_mode = attr.mode
        entry.st_nlink = attr.nlink
        entry.st_uid = attr.uid
        entry.st_gid = attr.gid
        entry.st_rdev = attr.rdev
        entry.st_size = attr.size
        entry.st_blocks = (attr.used + 511) // 512
        entry.st_blksize = BLOCK
        entry.st_atime_ns = attr.atime
        entry.st_mtime_ns = attr.mtime
        entry.st_ctime_ns = attr.ctime
        entry.generation = 0
        entry.entry_timeout = name_s
        entry.attr_timeout = KEEP_S if self._fs.cacheable(inode) else 0.0
        return entry

    def _entry(self, parent: int, name: bytes, inode: Inode) -> EntryAttributes:
        keep = self._fs.name_cacheable(parent, name, inode)
        return self._attributes(inode, name_s=KEEP_S if keep else 0.0)

    @staticmethod
    def _caller(ctx: RequestContext) -> Caller:
        return Caller(ctx.uid, ctx.gid, ctx.pid)

    # ---- names ----------------------------------------------------------------------------------------------

    @answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        parent = self._ino(parent_inode)
        return self._entry(parent, name, await self._fs.lookup(parent, name))

    def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:  # type: ignore[override] # called, not awaited
        for number, count in inode_list:
            self._fs.forget(self._ino(number), count)

    @answered
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        parent = self._ino(parent_inode)
        return self._entry(parent, name, await self._fs.mkdir(parent, name, mode, self._caller(ctx)))

    @answered
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        parent = self._ino(parent_inode)
        return self._entry(parent, name, await self._fs.mknod(parent, name, mode, rdev, self._caller(ctx)))

    @answered
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        parent = self._ino(parent_inode)
        return self._entry(parent, name, await self._fs.symlink(parent, name, target, self._caller(ctx)))

    @answered
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        parent = self._ino(new_parent_inode)
        return self._entry(parent, new_name, await self._fs.link(self._ino(inode), parent, new_name))

    @answered
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._fs.unlink(self._ino(parent_inode), name)

    @answered
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._fs.rmdir(self._ino(parent_inode), name)

    @answered
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        await self._fs.rename(self._ino(parent_inode_old), name_old, self._ino(parent_inode_new), name_new, flags)

    @answered
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return await self._fs.readlink(self._ino(inode))

    # ---- attributes -----------------------------------------------------------------------------------------

    @answered
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(await self._fs.getattr(self._ino(inode)))

    @answered
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: Any, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        changed = await self._fs.setattr(
            self._ino(inode),
            self._caller(ctx),
            size=attr.st_size if fields.update_size else None,
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime=attr.st_atime_ns if fields.update_atime else None,
            mtime=attr.st_mtime_ns if fields.update_mtime else None,
        )
        return self._attributes(changed)

    @answered
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        return True  # default_permissions: the kernel has checked

    @answered
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        info = await self._fs.statfs()
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = BLOCK
        answer.f_blocks = info.bytes_total // BLOCK
        answer.f_bfree = answer.f_bavail = info.bytes_free // BLOCK
        free = max(0, info.bytes_free // BLOCK)
        answer.f_files = info.inodes_used + free
        answer.f_ffree = answer.f_favail = free
        answer.f_namemax = NAME_MAX
        return answer

    @answered
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        return await self._fs.xattrs.get(self._ino(inode), name)

    @answered
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return await self._fs.xattrs.names(self._ino(inode))

    @answered
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        await self._fs.xattrs.set(self._ino(inode), name, value)

    @answered
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._fs.xattrs.remove(self._ino(inode), name)

    # ---- files ----------------------------------------------------------------------------------------------

    @answered
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        parent = self._ino(parent_inode)
        inode, handle, keep = await self._fs.create(parent, name, mode, flags, self._caller(ctx))
        return FileInfo(fh=handle.fh, keep_cache=keep), self._entry(parent, name, inode)

    @answered
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        handle, keep = await self._fs.open(self._ino(inode), flags, self._caller(ctx))
        return FileInfo(fh=handle.fh, keep_cache=keep)

    @answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return cast(bytes, await self._fs.contents.read(fh, off, size))  # any buffer will do

    @answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._fs.contents.write(fh, off, buf)

    @answered
    async def flush(self, fh: int) -> None:
        await self._fs.contents.flush(fh)

    @answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._fs.contents.sync(fh)

    @answered
    async def release(self, fh: int) -> None:
        await self._fs.release(fh)

    # ---- directories ----------------------------------------------------------------------------------------

    @answered
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return await self._fs.opendir(self._ino(inode))

    @answered
    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        parent = self._fs.listing.handle(fh).inode.ino
        for entry, inode in await self._fs.listing.page(fh, start_id):
            attributes = self._entry(parent, entry.name, inode)
            if not pyfuse3.readdir_reply(token, entry.name, attributes, entry.id):
                return
            self._fs.listed(parent, entry.name, inode)

    @answered
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Names are durable when they are answered."""

    @answered
    async def releasedir(self, fh: int) -> None:
        self._fs.releasedir(fh)
