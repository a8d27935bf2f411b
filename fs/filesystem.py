"""POSIX semantics over the metadata server and the chunks, independent of how requests arrive.

Every error is an OSError, a MetadataError or a ClusterError (fs.errors has the table). Names are bytes. Permissions are
the caller's to check (the kernel does, by `default_permissions`); what depends on who asks takes a `Caller`.

Invariants:
1. `lookups` of an inode counts what was answered with it (lookup, make, link, listing) and not yet forgotten.
2. A name is never given before the data that its inode had when the call began is committed (rename, link).
3. An inode with open handles keeps its contents: unlink, rename over and recalls say so to the server (hold), the last
   release gives it back.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import trio

from trivium.cluster.clock import Clock
from trivium.cluster.errors import ClusterError
from trivium.fs.contents import Contents, Handle, without_suid
from trivium.fs.errors import failure
from trivium.fs.inodes import Inode
from trivium.fs.listing import Listing
from trivium.fs.ports import ChunkStore, Metadata
from trivium.fs.recalls import NoKernel, Notifier, Recalls
from trivium.fs.view import View, check_name
from trivium.fs.writeback import WriteBack
from trivium.fs.xattrs import Xattrs
from trivium.metadata.messages import (
    ROOT_INO,
    SYMLINK_MAX,
    Attr,
    Create,
    Entry,
    Extent,
    FsInfo,
    Link,
    MetadataError,
    Release,
    Rename,
    Rmdir,
    SetAttr,
    StatFs,
    Unlink,
)

log = logging.getLogger(__name__)

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
GIVE_BACK_S = 1.0
GIVE_BACK_MOST = 1000


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks."""

    uid: int = 0
    gid: int = 0
    pid: int = 0


class Filesystem:
    """One mount's view of the namespace below `root_ino`."""

    def __init__(
        self,
        metadata: Metadata,
        chunks: ChunkStore,
        *,
        clock: Clock,
        pool: int = 1,
        root_ino: int = ROOT_INO,
        notifier: Notifier | None = None,
    ) -> None:
        self.root_ino = root_ino
        self._nursery: trio.Nursery | None = None
        self._view = View(metadata)
        self._writeback = WriteBack(
            metadata,
            chunks,
            pool=pool,
            wall_ns=clock.wall_ns,
            committed=self._committed,
            inodes=self._view.inodes,
        )
        self.contents = Contents(self._view, chunks, self._writeback)
        self.listing = Listing(self._view)
        self.xattrs = Xattrs(self._view, self.contents)
        self._recalls = Recalls(self._view, notifier or NoKernel(), self._spawn)
        metadata.attach(
            on_recall=self.on_recall,
            on_ended=self.on_ended,
            on_lapsed=self.on_lapsed,
            open_inodes=self.hold_open,
        )
        self._info: tuple[float, FsInfo] | None = None

    # ---- life -----------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Background work, until cancelled; call sync_all() before that."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self._writeback.run)
            nursery.start_soon(self._give_back)
            task_status.started()
            await trio.sleep_forever()

    async def _give_back(self) -> None:
        """Leases of forgotten inodes go back, so that nobody's change waits for a recall of them."""
        while True:
            await trio.sleep(GIVE_BACK_S)
            while inos := self._view.inodes.take_forgotten(GIVE_BACK_MOST):
                with self._view.inodes.giving_back(inos):
                    await self._guarded(self._view.metadata.give_back, inos)

    def _spawn(self, fn: Callable[..., Any], *args: Any) -> None:
        assert self._nursery is not None, "run() is not running"
        self._nursery.start_soon(self._guarded, fn, *args)

    async def _guarded(self, fn: Callable[..., Any], *args: Any) -> None:
        """Background work fails alone: its errors are kept where handles find them."""
        try:
            await fn(*args)
        except (MetadataError, ClusterError, OSError) as error:
            log.debug("in the background: %s", error)
        except Exception:
            log.exception("in the background")

    async def sync_all(self) -> None:
        """Send all that is unsent (syncfs, unmount)."""
        for inode in self._writeback.dirty_inodes():
            await self._writeback.drain(inode)

    def unsent(self) -> list[tuple[str, int]]:
        """What only this mount has: (path, bytes)."""
        return [(self._view.inodes.path_of(i), i.pending.held()) for i in self._writeback.dirty_inodes()]

    async def on_recall(self, ino: int, name: bytes = b"") -> bool:
        """The metadata client's callback. Answers whether handles are open here."""
        return await self._recalls.recall(ino, name)

    def on_lapsed(self) -> None:
        """Leases must not be used any more: T/2 without an answer, or another server."""
        self._recalls.drop_all(ended=False)

    def hold_open(self) -> list[int]:
        """What a restarted server must keep for the handles here."""
        return self._recalls.hold_open()

    def on_ended(self, why: str = "") -> None:
        """The session has ended: leases and holds are gone, what was not sent is reported as EIO."""
        log.error("the session has ended: %s", why)
        self._writeback.lose_all()
        self._recalls.drop_all(ended=True)

    def _committed(self, inode: Inode, attr: Attr, extents: Any, moved: bool) -> None:
        self._view.inodes.disturb(inode.ino)
        seen = set() if extents is not None else {inode.ino}
        self._view.inodes.install(attr, seen, mutation=True)
        if inode.layout is not None:
            inode.layout.replace([e for e in extents or () if isinstance(e, Extent)])
        if moved:
            inode.layout = None
            self._spawn(self._recalls.invalidate, inode)

    # ---- attributes -----------------------------------------------------------------------------------------

    def stat_of(self, inode: Inode) -> Attr:
        """Attributes as this mount's callers see them: what is unsent included."""
        attr, pending = inode.attr, inode.pending
        if not pending.dirty:
            return attr
        when = pending.last_write()
        return msgspec.structs.replace(
            attr, size=inode.size(), used=attr.used + pending.held(), mtime=when, ctime=max(when, attr.ctime)
        )

    def cacheable(self, inode: Inode) -> bool:
        """Whether the kernel may keep the attributes that are answered now."""
        return inode.fresh and not inode.recalling and not inode.pending.dirty and self._view.metadata.leases_usable()

    def name_cacheable(self, parent: int, name: bytes, inode: Inode) -> bool:
        directory = self._view.inodes.get(parent)
        if directory is None or directory.recalling or not self._view.trusts(directory):
            return False
        return directory.names.get(name) == inode.ino

    def by_name(self, ino: int) -> None:
        """A request that came by a name that is being invalidated: the kernel looks it up again."""
        inode = self._view.inodes.get(ino)
        if inode is not None and inode.stale_names and not inode.opens:
            raise failure(errno.ESTALE)

    async def getattr(self, ino: int) -> Inode:
        self.by_name(ino)
        inode = self._view.inodes.get(ino)
        if inode is not None and inode.held and not inode.leased and inode.attr.nlink == 0:
            return inode  # nameless: nobody else changes it
        inode = await self._view.fresh(ino)
        if not inode.opens:
            self._refuse_replaced(inode)
        return inode

    async def setattr(
        self,
        ino: int,
        caller: Caller,
        *,
        size: int | None = None,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        atime: int | None = None,
        mtime: int | None = None,
    ) -> Inode:
        """What is not None changes; ctime always does."""
        self.by_name(ino)
        inode = await self._view.known(ino)
        if (uid is not None or gid is not None) and mode is None and inode.is_regular:
            stripped = without_suid(inode.attr.mode)
            mode = stripped if stripped != inode.attr.mode else None
        operation = None
        if mode is not None:
            mode &= 0o7777
        if size is None or any(x is not None for x in (mode, uid, gid, atime)):
            operation = SetAttr(ino, mode, uid, gid, atime, mtime)
        if size is not None:
            await self.contents.truncate(inode, size, uid=caller.uid, then=(operation,) if operation else ())
        else:
            assert operation is not None
            await self.contents.change(inode, operation, seal=mtime is not None)
        return inode

    async def readlink(self, ino: int) -> bytes:
        inode = await self._view.known(ino)
        if not stat.S_ISLNK(inode.attr.mode):
            raise failure(errno.EINVAL)
        return inode.attr.target

    async def statfs(self) -> FsInfo:
        now = trio.current_time()
        if self._info is None or now - self._info[0] > 1.0:
            self._info = now, await self._view.metadata.ask(StatFs())
        return self._info[1]

    # ---- names ----------------------------------------------------------------------------------------------

    async def lookup(self, parent: int, name: bytes) -> Inode:
        """Counts a reference, which forget() gives back."""
        check_name(name)
        self.by_name(parent)
        mark = self._view.inodes.mark
        inode = await self._view.lookup(parent, name)
        if inode is None:
            self._view.inodes.no_dentry(parent, name)
            raise failure(errno.ENOENT)
        self._view.inodes.name_was_looked_up(parent, name, inode, mark)
        return self._counted(parent, name, inode)

    def listed(self, parent: int, name: bytes, inode: Inode) -> None:
        """The kernel took this entry of a listing: it counts as looked up."""
        self._counted(parent, name, inode)

    def _counted(self, parent: int, name: bytes, inode: Inode) -> Inode:
        inode.lookups += 1
        self._view.inodes.dentry(parent, name, inode)
        return inode

    def forget(self, ino: int, count: int) -> None:
        self._view.inodes.forget(ino, count)

    async def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Inode:
        return (await self._make(parent, name, stat.S_IFDIR | mode & 0o7777, caller))[0]

    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Inode:
        return (await self._make(parent, name, mode, caller, rdev=rdev))[0]

    async def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Inode:
        if len(target) > SYMLINK_MAX:
            raise failure(errno.ENAMETOOLONG)
        return (await self._make(parent, name, stat.S_IFLNK | 0o777, caller, target=target))[0]

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Inode, Handle, bool]:
        """Make (or, without O_EXCL, find) a file and open it. Answers inode, handle, keep pages."""
        exclusive = bool(flags & os.O_EXCL)
        inode, made = await self._make(parent, name, stat.S_IFREG | mode & 0o7777, caller, exclusive=exclusive)
        if not made and flags & os.O_TRUNC:
            await self.contents.truncate(inode, 0, uid=caller.uid)
        handle, keep = self.contents.opened(inode, flags, caller.uid)
        return inode, handle, keep

    async def _make(
        self,
        parent: int,
        name: bytes,
        mode: int,
        caller: Caller,
        *,
        rdev: int = 0,
        target: bytes = b"",
        exclusive: bool = True,
    ) -> tuple[Inode, bool]:
        check_name(name)
        above = (await self._view.known(parent)).attr
        gid = caller.gid
        if above.mode & stat.S_ISGID:
            gid = above.gid
            mode |= stat.S_ISGID if stat.S_ISDIR(mode) else 0
        operation = Create(parent, name, mode, caller.uid, gid, rdev, target, exclusive, lease=1)
        entry, seen = await self._view.change(operation, above=(parent,))
        assert isinstance(entry, Entry) and entry.attr is not None
        inode = self._view.inodes.install(entry.attr, seen, mutation=True)
        self._view.named(parent, name, inode.ino, seen)
        inode.virgin = entry.created
        if entry.created and inode.leased:
            inode.xattrs = {}
            inode.complete = entry.empty
        return self._counted(parent, name, inode), entry.created

    async def link(self, ino: int, parent: int, name: bytes) -> Inode:
        check_name(name)
        inode = await self._view.known(ino)
        await self._settle(inode)
        entry, seen = await self._view.change(Link(ino, parent, name), above=(parent,), inos=(ino,))
        self._view.named(parent, name, ino, seen)
        self._view.count_down(inode, entry.attr.nlink)
        return self._counted(parent, name, await self._view.fresh(ino))

    async def _settle(self, inode: Inode) -> None:
        """Before a name is given: data that cannot be sent must not take the place of data that was."""
        errors = inode.pending.errors
        if inode.pending.dirty:
            await self._writeback.drain(inode)
        if inode.pending.errors != errors:
            raise failure(inode.pending.last_error)

    async def unlink(self, parent: int, name: bytes) -> None:
        check_name(name)
        inode = self._view.guess(parent, name)
        hold = inode is None or inode.opens > 0
        attr, seen = await self._view.change(Unlink(parent, name, hold), above=(parent,))
        self._view.named(parent, name, 0, seen)
        self._view.inodes.no_dentry(parent, name)
        await self._unlinked(attr.ino, attr.nlink, hold)

    async def rmdir(self, parent: int, name: bytes) -> None:
        check_name(name)
        inode = self._view.guess(parent, name)
        _, seen = await self._view.change(Rmdir(parent, name), above=(parent,))
        self._view.named(parent, name, 0, seen)
        self._view.inodes.no_dentry(parent, name)
        if inode is not None:
            self._view.count_down(inode, 0)

    async def _unlinked(self, ino: int, nlink: int, hold: bool) -> None:
        """The inode lost a name; `hold` was said to the server."""
        inode = self._view.inodes.get(ino)
        opens = inode.opens if inode is not None else 0
        if inode is not None:
            self._view.count_down(inode, nlink)
            inode.unlinked_here = nlink == 0
            if nlink == 0 and not opens:
                self._writeback.discard(inode, 0)
                inode.fresh = False
        if nlink == 0 and hold:
            if inode is not None and opens:
                inode.held = True
            else:
                self._spawn(self._view.metadata.call, Release((ino,)))

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        check_name(name)
        check_name(new_name)
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise failure(errno.EINVAL)
        moved, old = self._view.guess(parent, name), self._view.guess(new_parent, new_name)
        if moved is not None:
            await self._settle(moved)
        if flags == RENAME_EXCHANGE and old is not None:
            await self._settle(old)
        hold = flags == 0 and (old is None or old.opens > 0) and moved is not old
        operation = Rename(parent, name, new_parent, new_name, flags, hold and old is not None)
        _, seen = await self._view.change(
            operation, above=(parent, new_parent), inos=[i.ino for i in (moved, old) if i is not None]
        )
        self._renamed(parent, name, new_parent, new_name, moved, old, flags, seen)
        if old is not None and flags == 0 and moved is not old:
            nlink = 0 if old.is_dir else old.attr.nlink - 1
            await self._unlinked(old.ino, max(0, nlink), hold)

    def _renamed(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        moved: Inode | None,
        old: Inode | None,
        flags: int,
        seen: set[int],
    ) -> None:
        """Names here and in the kernel (which moved its own) after a rename."""
        if moved is not None and moved is old:
            return  # two names of one inode: POSIX says that nothing happens
        inodes = self._view.inodes
        inodes.no_dentry(parent, name)
        inodes.no_dentry(new_parent, new_name)
        if moved is not None:
            inodes.dentry(new_parent, new_name, moved)
        back = old if flags == RENAME_EXCHANGE else None
        if back is not None:
            inodes.dentry(parent, name, back)
        known = moved is not None and (flags != RENAME_EXCHANGE or old is not None)
        if known and moved is not None:
            self._view.named(parent, name, back.ino if back is not None else 0, seen)
            self._view.named(new_parent, new_name, moved.ino, seen)
        else:
            self._view.named(parent, name, 0, {parent})
            self._view.named(new_parent, new_name, 0, {new_parent})
        # What the kernel moved it believes for as long as it believed the name before: ours to end where no lease is.
        if moved is not None and not self.name_cacheable(new_parent, new_name, moved):
            self._recalls.forget_name(new_parent, new_name)
        if back is not None and not self.name_cacheable(parent, name, back):
            self._recalls.forget_name(parent, name)

    # ---- open files -----------------------------------------------------------------------------------------

    async def open(self, ino: int, flags: int, caller: Caller) -> tuple[Handle, bool]:
        """Answers the handle, and whether the kernel may keep the pages that it has."""
        self.by_name(ino)
        inode = await self._view.fresh(ino)
        self._refuse_replaced(inode)
        if flags & os.O_TRUNC and flags & os.O_ACCMODE != os.O_RDONLY:
            await self.contents.truncate(inode, 0, uid=caller.uid)
        opened = self.contents.opened(inode, flags, caller.uid)
        if inode.is_regular and not self._view.trusts(inode):
            try:
                await self._recalls.keep_unleased(inode)
            except BaseException:
                await self.release(opened[0].fh)
                raise
        return opened

    def _refuse_replaced(self, inode: Inode) -> None:
        """A name that the kernel still has for a file that was unlinked elsewhere (its look-up was answered just before
        the recall): it must look the name up again, though handles keep the contents alive."""
        if inode.is_regular and inode.attr.nlink == 0 and not inode.unlinked_here:
            raise failure(errno.ESTALE)

    async def release(self, fh: int) -> None:
        inode = self.contents.closed(fh)
        if inode.opens:
            return
        if inode.attr.nlink == 0:
            inode.drop()  # given back below: what the lease allowed to be cached is no answer any more
        if inode.pending.dirty:
            self._spawn(self._writeback.drain, inode)
        if inode.held:
            inode.held = False  # in the background: a close must not wait for a pool that is away
            self._spawn(self._view.metadata.call, Release((inode.ino,)))
        self._view.inodes.evict(inode)

    async def opendir(self, ino: int) -> int:
        inode = await self._view.known(ino)
        if not inode.is_dir:
            raise failure(errno.ENOTDIR)
        return self.listing.open(inode)

    def releasedir(self, fh: int) -> None:
        self._view.inodes.evict(self.listing.close(fh))

    async def truncate(self, ino: int, size: int, caller: Caller) -> Inode:
        return await self.setattr(ino, caller, size=size)
