"""What happens when the metadata server takes a lease back, or ends the session.

    recall -> caches dropped -> the kernel's pages, attributes and names invalidated -> (open here: Hold) -> answered
           -> (open here: asked for again in the background; pages that were read meanwhile are invalidated once more)

Invariants: (1) a recall is answered in bounded time whatever the kernel does (`KERNEL_S`): a locked page may belong to
a write that waits for another mount's answer to a recall of ours; (2) names are invalidated beside it: until that is
done, or the name was looked up again, requests that come by it get ESTALE, upon which the kernel looks the name up,
once: a second ESTALE would be the program's; (3) contents that are open here survive an unlink elsewhere: the server is
told (`Hold`) before a recall is answered and at an open without a lease, and one that has restarted before anybody's
change goes on (the heartbeat); (4) pages that were dirtied through a mapping under a session that has ended are refused
(EIO) while the kernel gives them up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import trio

from trivium.cluster.errors import ClusterError
from trivium.fs.inodes import UNKNOWN, Inode
from trivium.fs.view import View
from trivium.metadata.messages import Hold, MetadataError

log = logging.getLogger(__name__)

KERNEL_S = 4.0
NAMES_S = 0.05
AGAIN_S = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5)


class Notifier(Protocol):
    """The kernel's side. Both may block and are called from threads."""

    def inode(self, ino: int) -> None:
        """Drop attributes and pages."""
        ...

    def entry(self, parent: int, name: bytes) -> None:
        """Drop a name."""
        ...


class NoKernel:
    """For a Filesystem without a mount."""

    def inode(self, ino: int) -> None:
        pass

    def entry(self, parent: int, name: bytes) -> None:
        pass


class Recalls:
    def __init__(self, view: View, notifier: Notifier, spawn: Callable[..., None]) -> None:
        self._view = view
        self.notifier = notifier
        self._spawn = spawn
        self._threads = trio.CapacityLimiter(8)

    async def recall(self, ino: int, name: bytes) -> bool:
        """Answers whether handles are open on the inode here."""
        self._view.inodes.disturb(ino)
        inode = self._view.inodes.get(ino)
        if inode is None:
            return False
        inode.recalling += 1
        try:
            if name:
                inode.names[name] = UNKNOWN
                inode.fresh = False
                await self._names(inode, [name])
            else:
                inode.drop()
                await self._names(inode, list(inode.dentries))
            await self.invalidate(inode)
            return await self._hold(inode)
        finally:
            inode.recalling -= 1
            if inode.opens and inode.is_regular and not inode.leased:
                self._spawn(self._lease_again, inode)

    def forget_name(self, parent: int, name: bytes) -> None:
        """The kernel is made to look a name up again, in the background: it may be holding the directory for us."""
        directory = self._view.inodes.get(parent)
        if directory is None:
            return
        child = self._view.inodes.get(self._view.inodes.no_dentry(parent, name))
        if child is not None:
            children = [(child, self._view.inodes.name_is_stale(parent, name, child))]
            self._spawn(self._name_thread, parent, [name], children, trio.Event())

    async def _names(self, directory: Inode, names: list[bytes]) -> None:
        """Invalidate names, in threads; wait for them a little, then go on without."""
        inodes = self._view.inodes
        children: list[tuple[Inode, int]] = []
        for name in names:
            child = inodes.get(inodes.no_dentry(directory.ino, name))
            if child is not None:
                children.append((child, inodes.name_is_stale(directory.ino, name, child)))
        if not names:
            return
        done = trio.Event()
        self._spawn(self._name_thread, directory.ino, names, children, done)
        with trio.move_on_after(NAMES_S) as scope:
            await done.wait()
        if scope.cancelled_caught:
            for child, _ in children:
                await self.invalidate(child)

    async def _name_thread(
        self, ino: int, names: list[bytes], children: list[tuple[Inode, int]], done: trio.Event
    ) -> None:
        def work() -> None:
            for name in names:
                try:
                    self.notifier.entry(ino, name)
                except OSError as error:
                    log.debug("name %r of %d: %s", name, ino, error)

        try:
            await self._on_thread(work)
        finally:
            for child, mark in children:
                child.stale_names.pop(mark, None)
            done.set()

    async def invalidate(self, inode: Inode) -> None:
        """Drop the kernel's attributes and pages of an inode."""

        def work() -> None:
            try:
                self.notifier.inode(inode.ino)
            except OSError as error:
                log.debug("inode %d: %s", inode.ino, error)

        with trio.move_on_after(KERNEL_S) as scope:
            await self._on_thread(work, self._threads)
        if scope.cancelled_caught:
            log.warning("the kernel did not give up inode %d within %s s", inode.ino, KERNEL_S)

    async def _on_thread(self, work: Callable[[], None], limiter: trio.CapacityLimiter | None = None) -> None:
        """The kernel may block; where there is none (simulations), no thread is needed either."""
        if isinstance(self.notifier, NoKernel):
            await trio.lowlevel.checkpoint()
            work()
        else:
            await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter)

    async def _hold(self, inode: Inode) -> bool:
        if not inode.opens or inode.held or not inode.is_regular:
            return inode.opens > 0
        try:
            await self._view.metadata.call(Hold((inode.ino,)))
            inode.held = True
        except (MetadataError, ClusterError) as error:
            log.warning("inode %d may go while it is open: %s", inode.ino, error)
        return True

    def hold_open(self) -> list[int]:
        """For a server that has restarted: what is open here, which it is asked to keep, as by Hold."""
        held = [inode for inode in self._view.inodes.all() if inode.opens and inode.is_regular]
        for inode in held:
            inode.held = True
        return [inode.ino for inode in held]

    async def keep_unleased(self, inode: Inode) -> None:
        """Opened while there is no lease (a restarted server, a recall under way): nobody would ask before it goes.
        ESTALE when it has gone."""
        if not inode.held:
            await self._view.metadata.call(Hold((inode.ino,)))
            inode.held = True
        if inode.attr.nlink:
            await self._view.fresh(inode.ino)

    async def _lease_again(self, inode: Inode) -> None:
        """An open file needs a lease; what was read without one is read again."""
        for attempt in range(1000):
            await trio.sleep(AGAIN_S[min(attempt, len(AGAIN_S) - 1)])
            if not inode.opens or inode.leased:
                break
            try:
                await self._view.fresh(inode.ino)
            except (MetadataError, ClusterError):
                break
        if inode.unleased_reads:
            inode.unleased_reads = False
            await self.invalidate(inode)

    def drop_all(self, *, ended: bool) -> None:
        """Every lease is gone; with `ended` what the server kept for us too."""
        self._view.inodes.disturb_all()
        self._view.inodes.forget_ahead()
        self._view.inodes.forget_leases()
        for inode in self._view.inodes.all():
            inode.drop()
            orphans = ended and inode.opens > 0 and inode.is_regular
            if ended:
                inode.held = False
            if orphans:
                inode.orphaned += 1
            self._spawn(self._drop_kernel, inode, orphans)

    async def _drop_kernel(self, inode: Inode, orphans: bool) -> None:
        try:
            await self._names(inode, list(inode.dentries))
            await self.invalidate(inode)  # mapped pages that are dirty come as writes first
        finally:
            if orphans:
                inode.orphaned -= 1
        if inode.opens and inode.is_regular:
            await self._lease_again(inode)
