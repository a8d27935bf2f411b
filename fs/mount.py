"""A Filesystem at a directory of this machine, by pyfuse3.

    check -> filesystem runs -> mounted -> answers (statvfs) -> on_ready -> ... -> SIGTERM, SIGINT, umount or cancel
          -> no more requests -> what is unsent is sent (FLUSH_S; ABSENT_S when nobody answers) -> unmounted

What could not be sent is said: logged, and given to `on_lost`.
One mount per process (pyfuse3's session is global). The process that mounts needs pyfuse3 (`trivium[fs]`) and fuse3.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
from collections.abc import Callable, Collection

import trio

from trivium.cluster.clock import Clock, SystemClock
from trivium.cluster.errors import ClusterError, Refused
from trivium.fs.filesystem import Filesystem
from trivium.fs.ports import ChunkStore, Metadata
from trivium.metadata.messages import ROOT_INO, Attr, Entry, GetAttr, Lookup, MetadataError

log = logging.getLogger(__name__)

READ_AHEAD_KB = 4096
WORKERS_MIN, WORKERS_MAX = 8, 256
STOP_S = 2.0
FLUSH_S = 60.0  # at unmount what is unsent has this long
ABSENT_S = 6.0  # or this, when the metadata server has not answered for as long
OPTIONS = frozenset({"default_permissions", "fsname=trivium", "subtype=trivium"})


def check(mountpoint: str) -> None:
    """Raise Refused, with a sentence that says what to do, when nothing can be mounted here."""
    try:
        import pyfuse3  # noqa: F401
    except ImportError as error:
        raise Refused(f"pyfuse3 is missing ({error}): install fuse3 and trivium[fs]") from None
    if not os.path.exists("/dev/fuse"):
        raise Refused("/dev/fuse is missing: load the fuse module, or give the container the device")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise Refused("/dev/fuse may not be opened by this user")
    path = os.path.realpath(mountpoint)
    if _is_ours(path):
        raise Refused(f"{mountpoint} is already a trivium mount: trivium umount {path}")
    if not os.path.isdir(path):
        raise Refused(f"{mountpoint} is not a directory")


def _is_ours(path: str) -> bool:
    """By the kernel's table alone: a mount whose process is ending answers no stat."""
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
        return any(f[1] == path and f[2].startswith("fuse.trivium") for f in map(str.split, mounts))


def remove_dead(mountpoint: str) -> None:
    """A mount whose process was killed makes way for the next one. Not for mounts that are served: their pool may be
    away, and this waits for an answer."""
    path = os.path.realpath(mountpoint)
    if _is_ours(path):
        try:
            os.statvfs(path)  # unlike attributes, never answered from the kernel's cache
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                _unmount(path)


def fuse_options(extra: Collection[str] = ()) -> set[str]:
    """Options for the kernel: what we need, `allow_other` for root, and what the user adds (`no…` takes away)."""
    options = set(OPTIONS)
    if os.geteuid() == 0:
        options.add("allow_other")
    for option in extra:
        if option.startswith("no") and option[2:] in options:
            options.discard(option[2:])
        else:
            options.add(option)
    return options


async def find_root(metadata: Metadata, bucket: str | None) -> int:
    """The inode that is mounted: the namespace's root, or a bucket's directory."""
    if not bucket:
        return ROOT_INO
    try:
        entry: Entry = await metadata.ask(Lookup(ROOT_INO, os.fsencode(bucket)))
    except MetadataError as error:
        raise Refused(f"bucket {bucket}: {error}") from None
    if entry.attr is None:
        raise Refused(f"there is no bucket {bucket}")
    return entry.attr.ino


async def run_mount(
    metadata: Metadata,
    chunks: ChunkStore,
    mountpoint: str,
    *,
    bucket: str | None = None,
    options: Collection[str] = (),
    on_ready: Callable[[], None] | None = None,
    on_lost: Callable[[list[str]], None] | None = None,
    pool: int = 1,
    clock: Clock | None = None,
    signals: bool = True,
) -> None:
    """Mount and serve until unmounted, told to stop by SIGTERM or SIGINT, or cancelled; then send what is unsent and
    unmount. Takes the client's on_recall and on_ended. `on_lost` is told what could not be sent, a line each.
    Raises Refused when it cannot be mounted."""
    check(mountpoint)
    mountpoint = os.path.realpath(mountpoint)  # noqa: ASYNC240 (before the mount: local)
    import pyfuse3

    from trivium.fs.fuse import FuseOperations, KernelNotifier

    root = await find_root(metadata, bucket)
    filesystem = Filesystem(
        metadata,
        chunks,
        clock=clock or SystemClock(),
        pool=pool,
        root_ino=root,
        notifier=KernelNotifier(root),
    )
    attr: Attr = await metadata.ask(GetAttr(root))
    log.debug("mounting inode %d (mode %o) at %s", root, attr.mode, mountpoint)
    async with trio.open_nursery() as nursery:
        await nursery.start(filesystem.run)
        try:
            pyfuse3.init(FuseOperations(filesystem), mountpoint, fuse_options(options))
        except RuntimeError as error:
            raise Refused(f"{mountpoint} could not be mounted: {error} (see the message above)") from None
        serving = trio.CancelScope()
        try:
            if signals:
                await nursery.start(_stop_on_signal, serving)
            nursery.start_soon(_when_it_answers, mountpoint, on_ready)
            with serving:
                await pyfuse3.main(min_tasks=WORKERS_MIN, max_tasks=WORKERS_MAX)
        finally:
            await _end(filesystem, metadata, mountpoint, on_lost)
        nursery.cancel_scope.cancel()


async def _end(
    filesystem: Filesystem, metadata: Metadata, mountpoint: str, on_lost: Callable[[list[str]], None] | None
) -> None:
    """Send the rest, unmount. Never hangs on a pool that is away."""
    import pyfuse3

    with trio.CancelScope(shield=True):
        await _flush(filesystem, metadata)
        lost = [f"{path}: {count} bytes" for path, count in filesystem.unsent()]
        for line in lost:
            log.error("lost at unmount: %s", line)
        await trio.to_thread.run_sync(_unmount, mountpoint)
        pyfuse3.close(unmount=False)
        if lost and on_lost is not None:
            on_lost(lost)


async def _flush(filesystem: Filesystem, metadata: Metadata) -> None:
    """Send what is unsent, as long as there is somebody to send it to."""
    with trio.move_on_after(FLUSH_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_absent, metadata, nursery.cancel_scope)
            try:
                await filesystem.sync_all()
            except (MetadataError, ClusterError, OSError) as error:
                log.error("at unmount: %s", error)
            nursery.cancel_scope.cancel()


async def _until_absent(metadata: Metadata, scope: trio.CancelScope) -> None:
    await trio.sleep(ABSENT_S)
    while (silent_s := metadata.silent_s()) < ABSENT_S:  # noqa: ASYNC110 (time itself is waited for)
        await trio.sleep(ABSENT_S - silent_s)
    log.error("the pool has not answered for %.0f s", metadata.silent_s())
    scope.cancel()


def _unmount(mountpoint: str) -> None:
    if _is_ours(mountpoint):
        subprocess.run(["fusermount3", "-u", "-z", mountpoint], check=False, capture_output=True)


async def _stop_on_signal(
    serving: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """No new requests; those under way have STOP_S (their pool may be gone)."""
    import pyfuse3

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("stopping on %s", signal.Signals(number).name)
            pyfuse3.terminate()
            serving.deadline = trio.current_time() + STOP_S
            return


async def _when_it_answers(mountpoint: str, on_ready: Callable[[], None] | None) -> None:
    await trio.to_thread.run_sync(_settle, mountpoint, abandon_on_cancel=True)
    if on_ready is not None:
        on_ready()


def _settle(mountpoint: str) -> None:
    """The first request, and larger read-ahead where that is allowed."""
    device = os.stat(mountpoint).st_dev
    path = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
    try:
        with open(path, "w", encoding="ascii") as setting:
            setting.write(str(READ_AHEAD_KB))
    except OSError as error:
        log.debug("%s: %s", path, error)
