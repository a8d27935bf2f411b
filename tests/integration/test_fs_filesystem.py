"""Filesystem without a kernel: real metadata engine, real chunks on simulated drives, one thread, virtual clock."""

from __future__ import annotations

import errno
import os
import random
import stat
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.fakes.fspool import memory_pool
from trivium.cluster.errors import NoSpace
from trivium.fs.errors import errno_of
from trivium.fs.filesystem import RENAME_EXCHANGE, RENAME_NOREPLACE, Caller, Filesystem
from trivium.metadata.messages import ROOT_INO, MetadataError, Write

ROOT = Caller(0, 0)
USER = Caller(1000, 1000)
MIB = 1 << 20


def run(test: Callable[..., Awaitable[None]], mounts: int = 1) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            pool = await stack.enter_async_context(memory_pool())
            made = [await stack.enter_async_context(pool.filesystem(seed=i + 1)) for i in range(mounts)]
            await test(*made)

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def fails(number: int, awaitable: Awaitable[Any]) -> None:
    with pytest.raises(Exception) as caught:
        await awaitable
    assert errno_of(caught.value) == number, caught.value


async def make(fs: Filesystem, name: bytes, data: bytes = b"", *, parent: int = ROOT_INO, mode: int = 0o644) -> int:
    inode, handle, _ = await fs.create(parent, name, mode, os.O_WRONLY, ROOT)
    if data:
        await fs.contents.write(handle.fh, 0, data)
    await fs.contents.flush(handle.fh)
    await fs.release(handle.fh)
    return inode.ino


async def content(fs: Filesystem, ino: int, size: int = 64 * MIB) -> bytes:
    handle, _ = await fs.open(ino, os.O_RDONLY, ROOT)
    try:
        return bytes(await fs.contents.read(handle.fh, 0, size))
    finally:
        await fs.release(handle.fh)


async def names(fs: Filesystem, ino: int = ROOT_INO) -> list[bytes]:
    fh, found, after = await fs.opendir(ino), [], 0
    while page := await fs.listing.page(fh, after):
        found += [entry.name for entry, _ in page]
        after = page[-1][0].id
    fs.releasedir(fh)
    return found


def test_small_and_large_files_read_back() -> None:
    async def test(fs: Filesystem) -> None:
        for size in (0, 1, 4096, 16 * 1024, 16 * 1024 + 1, 5 * MIB + 3):
            data = random.Random(size).randbytes(size)
            ino = await make(fs, b"f%d" % size, data)
            assert await content(fs, ino) == data
            attr = fs.stat_of(await fs.getattr(ino))
            assert attr.size == size and attr.used >= size

    run(test)


def test_a_small_file_costs_two_calls() -> None:
    async def test(fs: Filesystem) -> None:
        await fs.mkdir(ROOT_INO, b"d", 0o755, ROOT)
        calls: list[tuple[Any, ...]] = []
        client = fs._view.metadata
        call = client.call

        async def counted(*operations: Any, **more: Any) -> tuple[Any, ...]:
            calls.append(operations)
            return await call(*operations, **more)

        client.call = counted  # type: ignore[method-assign]
        await make(fs, b"f", b"x" * 4096)
        assert [[type(op).__name__ for op in ops] for ops in calls] == [["Create", "Stat"], ["Write"]]

    run(test)


def test_what_was_made_here_is_known_here_until_another_changes_it() -> None:
    """Create answers a lease and its directory's attributes: no question follows. A change elsewhere ends both."""

    async def test(a: Filesystem, b: Filesystem) -> None:
        top = (await a.mkdir(ROOT_INO, b"d", 0o755, ROOT)).ino
        with pytest.raises(OSError):
            await a.lookup(top, b"f")
        asked: list[Any] = []
        client = a._view.metadata
        ask = client.ask

        async def counted(query: Any) -> Any:
            asked.append(query)
            return await ask(query)

        client.ask = counted  # type: ignore[method-assign]
        ino = await make(a, b"f", b"x" * 100, parent=top)
        before = a.stat_of(await a.getattr(top))
        assert a.stat_of(await a.getattr(ino)).size == 100 and before.mtime == before.ctime
        await a.unlink(top, b"f")
        assert a.stat_of(await a.getattr(top)).mtime > before.mtime
        ino = await make(a, b"g", parent=top)
        assert (await a.lookup(top, b"g")).ino == ino and asked == []
        await b.setattr((await b.lookup(top, b"g")).ino, ROOT, mode=0o600)
        assert stat.S_IMODE(a.stat_of(await a.getattr(ino)).mode) == 0o600
        seen = a.stat_of(await a.getattr(top)).mtime
        other = await make(b, b"h", parent=top)
        assert a.stat_of(await a.getattr(top)).mtime > seen
        assert (await a.lookup(top, b"h")).ino == other and asked

    run(test, 2)


def test_a_listing_answers_for_what_it_named_until_that_is_changed() -> None:
    async def test(a: Filesystem, b: Filesystem) -> None:
        top = (await a.mkdir(ROOT_INO, b"d", 0o755, ROOT)).ino
        made = [await make(a, b"%d" % number, b"x" * number, parent=top) for number in range(30)]
        await b.lookup(ROOT_INO, b"d")
        for number in range(5):
            await b.lookup(top, b"%d" % number)
        asked: list[Any] = []
        client = b._view.metadata
        ask = client.ask

        async def counted(query: Any) -> Any:
            asked.append(query)
            return await ask(query)

        client.ask = counted  # type: ignore[method-assign]
        sizes = [b.stat_of(await b.lookup(top, b"%d" % number)).size for number in range(30)]
        assert sizes == list(range(30)) and asked == []
        await a.setattr(made[20], ROOT, mode=0o600)
        await a.unlink(top, b"21")
        await a.rename(top, b"22", top, b"23")
        assert stat.S_IMODE(b.stat_of(await b.lookup(top, b"20")).mode) == 0o600
        for name in (b"21", b"22"):
            with pytest.raises(OSError):
                await b.lookup(top, name)
        assert (await b.lookup(top, b"23")).ino == made[22]

    run(test, 2)


def test_what_only_a_listing_told_of_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trivium.fs.inodes.AHEAD_MAX", 10)

    async def test(a: Filesystem, b: Filesystem) -> None:
        top = (await a.mkdir(ROOT_INO, b"d", 0o755, ROOT)).ino
        for number in range(40):
            await make(a, b"%d" % number, parent=top)
        await b.lookup(ROOT_INO, b"d")
        for number in range(3):
            await b.lookup(top, b"%d" % number)
        inodes = b._view.inodes
        assert len(inodes) <= 1 + 3 + 10
        kept = [await b.lookup(top, b"%d" % number) for number in range(40)]
        assert len(inodes) == 1 + 40 and all(inodes.get(inode.ino) is inode for inode in kept)
        for inode in kept:
            b.forget(inode.ino, inode.lookups)
        assert len(inodes) == 1
        await b.lookup(top, b"5")
        for number in range(3):
            await b.lookup(top, b"%d" % number)
        b.on_lapsed()
        assert (await b.lookup(top, b"7")).lookups == 1

    run(test, 2)


def test_two_mounts_that_make_and_remove_in_one_directory_agree() -> None:
    async def test(a: Filesystem, b: Filesystem) -> None:
        top = (await a.mkdir(ROOT_INO, b"d", 0o755, ROOT)).ino
        await b.lookup(ROOT_INO, b"d")

        async def work(fs: Filesystem, seed: int) -> None:
            chance = random.Random(seed)
            for number in range(40):
                name = b"%d" % chance.randrange(4)
                try:
                    if chance.random() < 0.5:
                        await make(fs, name, b"%d" % number, parent=top)
                    else:
                        await fs.unlink(top, name)
                    inode = await fs.lookup(top, name)
                    if chance.random() < 0.3:
                        await fs.setattr(inode.ino, ROOT, mode=chance.randrange(0o777))
                    await fs.getattr(top)
                except (MetadataError, OSError) as error:
                    assert errno_of(error) in (errno.ENOENT, errno.ESTALE)

        async with trio.open_nursery() as nursery:
            for seed, fs in enumerate((a, b, a, b)):
                nursery.start_soon(work, fs, seed)
        views = []
        for fs in (a, b):
            attrs = {name: fs.stat_of(await fs.lookup(top, name)) for name in sorted(await names(fs, top))}
            plain = {name: (attr.ino, attr.mode, attr.size, attr.ctime) for name, attr in attrs.items()}
            views.append((plain, fs.stat_of(await fs.getattr(top)).mtime))
        assert views[0] == views[1]

    run(test, 2)


def test_what_is_unsent_is_seen_here_and_after_close_elsewhere() -> None:
    async def test(a: Filesystem, b: Filesystem) -> None:
        inode, handle, _ = await a.create(ROOT_INO, b"f", 0o644, os.O_RDWR, ROOT)
        await a.contents.write(handle.fh, 10, b"hello")
        assert bytes(await a.contents.read(handle.fh, 0, 100)) == bytes(10) + b"hello"
        assert a.stat_of(await a.getattr(inode.ino)).size == 15
        there = await b.lookup(ROOT_INO, b"f")
        await a.contents.flush(handle.fh)
        assert b.stat_of(await b.getattr(there.ino)).size == 15
        assert await content(b, there.ino) == bytes(10) + b"hello"

    run(test, 2)


def test_old_data_is_sent_by_itself() -> None:
    async def test(a: Filesystem, b: Filesystem) -> None:
        inode, handle, _ = await a.create(ROOT_INO, b"f", 0o644, os.O_RDWR, ROOT)
        await a.contents.write(handle.fh, 0, b"hello")
        await trio.sleep(3)
        assert not inode.pending.dirty
        assert await content(b, (await b.lookup(ROOT_INO, b"f")).ino) == b"hello"

    run(test, 2)


def test_an_unlinked_open_file_stays_readable_here_and_elsewhere() -> None:
    async def test(a: Filesystem, b: Filesystem) -> None:
        data = b"z" * 70_000
        ino = await make(a, b"f", data)
        here, _ = await a.open(ino, os.O_RDWR, ROOT)
        there, _ = await b.open((await b.lookup(ROOT_INO, b"f")).ino, os.O_RDONLY, ROOT)
        await a.unlink(ROOT_INO, b"f")
        await fails(errno.ENOENT, b.lookup(ROOT_INO, b"f"))
        assert bytes(await a.contents.read(here.fh, 0, MIB)) == data
        await a.contents.write(here.fh, 0, b"y")
        await a.contents.sync(here.fh)
        assert a.stat_of(await a.getattr(ino)).nlink == 0
        await a.release(here.fh)
        assert bytes(await b.contents.read(there.fh, 0, MIB)) == b"y" + data[1:]
        await b.release(there.fh)
        a.forget(ino, 1)
        await trio.sleep(1)  # the last close is told in the background
        await fails(errno.ESTALE, a.getattr(ino))

    run(test, 2)


def test_a_file_opened_while_its_removal_waits_stays_readable() -> None:
    """The removal waits for others (a grace, a recall): no lease is granted meanwhile, so nobody would be asked."""

    async def main() -> None:
        async with memory_pool() as pool, pool.filesystem(seed=1) as a, pool.filesystem(seed=2) as b:
            ino = await make(a, b"f", b"x" * 100_000)
            await b.lookup(ROOT_INO, b"f")
            await pool.server.recalls.recall(pool.server.leases.to_recall(0, [(ino, b"")]))
            pool.server.leases.hold_back([(ino, b"")])
            handle, _ = await b.open(ino, os.O_RDONLY, ROOT)
            assert not handle.inode.leased
            pool.server.leases.let_go([(ino, b"")])
            await a.unlink(ROOT_INO, b"f")
            assert bytes(await b.contents.read(handle.fh, 0, 200_000)) == b"x" * 100_000
            await b.release(handle.fh)
            await trio.testing.wait_all_tasks_blocked()
            await fails(errno.ESTALE, b.getattr(ino))

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_what_is_looked_up_between_a_recall_and_its_change_is_not_kept() -> None:
    """A change may wait for others after this mount has answered its recall: what is answered meanwhile is the past."""

    async def main() -> None:
        async with memory_pool() as pool, pool.filesystem(seed=1) as a, pool.filesystem(seed=2) as b:
            folder = (await a.mkdir(ROOT_INO, b"d", 0o755, ROOT)).ino
            old = await make(a, b"f", b"old", parent=folder)
            await b.lookup(ROOT_INO, b"d")
            assert (await b.lookup(folder, b"f")).ino == old
            assert (await b.getattr(folder)).leased
            nlink = (await b.getattr(folder)).attr.nlink
            waiting = [(folder, b"f"), (folder, b"e"), (folder, b"sub")]
            await pool.server.recalls.recall(pool.server.leases.to_recall(0, waiting))
            pool.server.leases.hold_back(waiting)
            assert (await b.lookup(folder, b"f")).ino == old
            await fails(errno.ENOENT, b.lookup(folder, b"e"))
            assert await names(b, folder) == [b"f"]
            assert (await b.getattr(folder)).attr.nlink == nlink
            new = await make(a, b"g", b"new", parent=folder)
            await a.rename(folder, b"g", folder, b"f")
            await make(a, b"e", b"e", parent=folder)
            await a.mkdir(folder, b"sub", 0o755, ROOT)
            pool.server.leases.let_go(waiting)
            assert (await b.lookup(folder, b"f")).ino == new
            await b.lookup(folder, b"e")
            assert sorted(await names(b, folder)) == [b"e", b"f", b"sub"]
            assert (await b.getattr(folder)).attr.nlink == nlink + 1
            assert await content(b, new) == b"new"

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_name_that_still_stands_for_a_replaced_file_is_looked_up_again() -> None:
    """Handles keep its contents, but nobody opens it anew: the kernel repeats a look-up after ESTALE."""

    async def test(a: Filesystem, b: Filesystem) -> None:
        old = await make(a, b"f", b"old")
        await b.lookup(ROOT_INO, b"f")
        handle, _ = await b.open(old, os.O_RDONLY, ROOT)
        await a.rename(ROOT_INO, (await _named(a, b"g", b"new")), ROOT_INO, b"f")
        await fails(errno.ESTALE, b.open(old, os.O_RDONLY, ROOT))
        assert (await b.getattr(old)).attr.nlink == 0
        assert bytes(await b.contents.read(handle.fh, 0, 100)) == b"old"
        await b.release(handle.fh)
        await fails(errno.ESTALE, b.getattr(old))

    async def _named(fs: Filesystem, name: bytes, data: bytes) -> bytes:
        await make(fs, name, data)
        return name

    run(test, 2)


def test_a_name_that_the_kernel_moved_without_a_lease_is_given_up() -> None:
    """It believes the new name for as long as it believed the old one."""

    async def main() -> None:
        kernel = RecordingKernel()
        async with memory_pool() as pool, pool.filesystem(seed=1, notifier=kernel) as fs:
            folder = (await fs.mkdir(ROOT_INO, b"d", 0o755, ROOT)).ino
            await make(fs, b"f", b"data", parent=folder)
            waiting = [(folder, b"")]
            await pool.server.recalls.recall(pool.server.leases.to_recall(0, waiting))
            pool.server.leases.hold_back(waiting)
            await fs.lookup(folder, b"f")
            await fs.rename(folder, b"f", folder, b"g")
            assert await trio.to_thread.run_sync(kernel.given_up[folder, b"g"].wait, 10)
            pool.server.leases.let_go(waiting)

    trio.run(main)


def test_a_file_replaced_by_rename_stays_readable() -> None:
    async def test(a: Filesystem, b: Filesystem) -> None:
        old, new = await make(a, b"f", b"old"), await make(a, b"g", b"new")
        await b.lookup(ROOT_INO, b"f")
        handle, _ = await b.open(old, os.O_RDONLY, ROOT)
        mine, _ = await a.open(old, os.O_RDONLY, ROOT)
        await a.rename(ROOT_INO, b"g", ROOT_INO, b"f")
        assert (await b.lookup(ROOT_INO, b"f")).ino == new
        assert bytes(await b.contents.read(handle.fh, 0, 10)) == b"old"
        await b.release(handle.fh)
        assert bytes(await a.contents.read(mine.fh, 0, 10)) == b"old"
        await a.release(mine.fh)
        assert await names(b) == [b"f"]

    run(test, 2)


def test_rename_sends_data_first() -> None:
    async def test(a: Filesystem, b: Filesystem) -> None:
        await make(a, b"f", b"old")
        _inode, handle, _ = await a.create(ROOT_INO, b"tmp", 0o644, os.O_WRONLY, ROOT)
        await a.contents.write(handle.fh, 0, b"new")
        await a.rename(ROOT_INO, b"tmp", ROOT_INO, b"f")
        assert await content(b, (await b.lookup(ROOT_INO, b"f")).ino) == b"new"

    run(test, 2)


def test_rename_flags() -> None:
    async def test(fs: Filesystem) -> None:
        f, g = await make(fs, b"f"), await make(fs, b"g")
        await fails(errno.EEXIST, fs.rename(ROOT_INO, b"f", ROOT_INO, b"g", RENAME_NOREPLACE))
        await fs.rename(ROOT_INO, b"f", ROOT_INO, b"g", RENAME_EXCHANGE)
        assert ((await fs.lookup(ROOT_INO, b"f")).ino, (await fs.lookup(ROOT_INO, b"g")).ino) == (g, f)
        await fs.rename(ROOT_INO, b"f", ROOT_INO, b"h", RENAME_NOREPLACE)
        await fails(errno.ENOENT, fs.lookup(ROOT_INO, b"f"))
        assert (await fs.lookup(ROOT_INO, b"h")).ino == g
        d = (await fs.mkdir(ROOT_INO, b"d", 0o755, ROOT)).ino
        await fails(errno.EINVAL, fs.rename(ROOT_INO, b"d", d, b"x"))
        await make(fs, b"x", parent=d)
        e = (await fs.mkdir(ROOT_INO, b"e", 0o755, ROOT)).ino
        await fails(errno.ENOTEMPTY, fs.rename(ROOT_INO, b"e", ROOT_INO, b"d"))
        await fs.rename(ROOT_INO, b"d", e, b"d")
        assert await names(fs, e) == [b"d"] and sorted(await names(fs)) == [b"e", b"g", b"h"]

    run(test)


def test_names_of_another_mount_are_seen_at_once() -> None:
    async def test(a: Filesystem, b: Filesystem) -> None:
        await fails(errno.ENOENT, b.lookup(ROOT_INO, b"f"))
        assert await names(b) == []
        await make(a, b"f")
        await b.lookup(ROOT_INO, b"f")
        assert await names(b) == [b"f"]
        await a.unlink(ROOT_INO, b"f")
        await fails(errno.ENOENT, b.lookup(ROOT_INO, b"f"))
        d = (await a.mkdir(ROOT_INO, b"d", 0o755, ROOT)).ino
        await b.lookup(ROOT_INO, b"d")
        await make(a, b"x", parent=d)
        assert await names(b, d) == [b"x"]
        await fails(errno.ENOTEMPTY, b.rmdir(ROOT_INO, b"d"))

    run(test, 2)


def test_a_listing_answers_lookups_without_asking() -> None:
    async def test(fs: Filesystem) -> None:
        d = (await fs.mkdir(ROOT_INO, b"d", 0o755, ROOT)).ino
        for i in range(5):
            await make(fs, b"f%d" % i, parent=d)
        await names(fs, d)
        asked: list[Any] = []
        ask = fs._view.metadata.ask

        async def counted(query: Any) -> Any:
            asked.append(query)
            return await ask(query)

        fs._view.metadata.ask = counted  # type: ignore[method-assign]
        for i in range(5):
            await fs.lookup(d, b"f%d" % i)
        await fails(errno.ENOENT, fs.lookup(d, b"none"))
        assert asked == []

    run(test)


def test_cookies_survive_unlinks() -> None:
    async def test(fs: Filesystem) -> None:
        for i in range(30):
            await make(fs, b"f%02d" % i)
        fh, after, found = await fs.opendir(ROOT_INO), 0, []
        while page := await fs.listing.page(fh, after):
            for entry, _ in page[:7]:  # as much as the kernel's buffer takes
                found.append(entry.name)
                await fs.unlink(ROOT_INO, entry.name)
                after = entry.id
        assert found == [b"f%02d" % i for i in range(30)]
        assert await names(fs) == []

    run(test)


def test_truncate_up_and_down_and_times() -> None:
    async def test(fs: Filesystem) -> None:
        ino = await make(fs, b"f", b"0123456789")
        await fs.setattr(ino, ROOT, size=4)
        await fs.setattr(ino, ROOT, size=8)
        assert await content(fs, ino) == b"0123" + bytes(4)
        handle, _ = await fs.open(ino, os.O_RDWR, ROOT)
        await fs.contents.write(handle.fh, 0, b"ab")
        await fs.setattr(ino, ROOT, mtime=5, atime=6)
        await fs.contents.flush(handle.fh)
        attr = fs.stat_of(await fs.getattr(ino))
        assert (attr.mtime, attr.atime) == (5, 6), "data that was written before does not come after"
        await fs.contents.write(handle.fh, 100, b"gone")
        await fs.setattr(ino, ROOT, size=3)
        assert bytes(await fs.contents.read(handle.fh, 0, 1000)) == b"ab2"
        _reopened, _ = await fs.open(ino, os.O_WRONLY | os.O_TRUNC, ROOT)
        assert fs.stat_of(await fs.getattr(ino)).size == 0

    run(test)


def test_set_user_id_goes_with_writes_of_others() -> None:
    async def test(fs: Filesystem) -> None:
        ino = await make(fs, b"f", b"x", mode=0o6755)
        for caller, want in ((ROOT, 0o6755), (USER, 0o755)):
            handle, _ = await fs.open(ino, os.O_WRONLY, caller)
            await fs.contents.write(handle.fh, 0, b"y")
            assert stat.S_IMODE(fs.stat_of(await fs.getattr(ino)).mode) == want
            await fs.contents.flush(handle.fh)
            assert stat.S_IMODE(fs.stat_of(await fs.getattr(ino)).mode) == want
        await fs.setattr(ino, ROOT, mode=0o6755)
        await fs.setattr(ino, USER, size=0)
        assert stat.S_IMODE(fs.stat_of(await fs.getattr(ino)).mode) == 0o755
        await fs.setattr(ino, ROOT, mode=0o6755)
        await fs.setattr(ino, ROOT, uid=5)
        assert stat.S_IMODE(fs.stat_of(await fs.getattr(ino)).mode) == 0o755

    run(test)


def test_set_group_id_directories() -> None:
    async def test(fs: Filesystem) -> None:
        d = await fs.mkdir(ROOT_INO, b"d", 0o2777, Caller(0, 77))
        f, _handle, _ = await fs.create(d.ino, b"f", 0o644, os.O_WRONLY, USER)
        sub = await fs.mkdir(d.ino, b"s", 0o755, USER)
        assert (f.attr.gid, sub.attr.gid, stat.S_IMODE(sub.attr.mode)) == (77, 77, 0o2755)

    run(test)


def test_extended_attributes() -> None:
    async def test(a: Filesystem, b: Filesystem) -> None:
        ino = await make(a, b"f", b"data")
        await fails(errno.ENODATA, a.xattrs.get(ino, b"security.capability"))
        await a.xattrs.set(ino, b"user.a", b"1")
        assert await b.xattrs.get(ino, b"user.a") == b"1"
        await fails(errno.EEXIST, a.xattrs.set(ino, b"user.a", b"2", 1))
        await fails(errno.ENODATA, a.xattrs.set(ino, b"user.b", b"2", 2))
        await fails(errno.EOPNOTSUPP, a.xattrs.set(ino, b"system.posix_acl_access", b"x"))
        await fails(errno.EOPNOTSUPP, a.xattrs.get(ino, b"system.posix_acl_access"))
        await fails(errno.E2BIG, a.xattrs.set(ino, b"user.b", bytes(70_000)))
        assert await b.xattrs.names(ino) == [b"user.a"]
        assert await b.xattrs.get(ino, b"trivium.ino") == b"%d" % ino
        await a.xattrs.remove(ino, b"user.a")
        await fails(errno.ENODATA, b.xattrs.get(ino, b"user.a"))

    run(test, 2)


def test_special_files_and_links() -> None:
    async def test(fs: Filesystem) -> None:
        link = await fs.symlink(ROOT_INO, b"l", b"target", ROOT)
        assert await fs.readlink(link.ino) == b"target" and link.attr.size == 6
        fifo = await fs.mknod(ROOT_INO, b"p", stat.S_IFIFO | 0o600, 0, ROOT)
        assert stat.S_ISFIFO(fifo.attr.mode)
        device = await fs.mknod(ROOT_INO, b"c", stat.S_IFCHR | 0o600, os.makedev(1, 3), ROOT)
        assert device.attr.rdev == os.makedev(1, 3)
        ino = await make(fs, b"f")
        assert (await fs.link(ino, ROOT_INO, b"g")).attr.nlink == 2
        await fs.unlink(ROOT_INO, b"f")
        assert fs.stat_of(await fs.getattr(ino)).nlink == 1
        await fails(errno.ENAMETOOLONG, fs.symlink(ROOT_INO, b"long", b"x" * 4096, ROOT))
        await fails(errno.ENAMETOOLONG, fs.mkdir(ROOT_INO, b"x" * 256, 0o755, ROOT))

    run(test)


def test_forgotten_inodes_leave_the_table() -> None:
    async def test(fs: Filesystem) -> None:
        for i in range(20):
            ino = await make(fs, b"f%d" % i, b"x")
            await fs.lookup(ROOT_INO, b"f%d" % i)
            fs.forget(ino, 1)
            assert fs._view.inodes.get(ino) is not None
            fs.forget(ino, 1)
            assert fs._view.inodes.get(ino) is None

    run(test)


def test_appends_of_two_mounts_land_whole() -> None:
    async def test(a: Filesystem, b: Filesystem) -> None:
        ino = await make(a, b"log")
        await b.lookup(ROOT_INO, b"log")
        rng = random.Random(4)
        lines: dict[bytes, int] = {}

        async def writer(fs: Filesystem, tag: bytes) -> None:
            handle, _ = await fs.open(ino, os.O_WRONLY | os.O_APPEND, ROOT)
            for i in range(40):
                line = b"%s%d:%s\n" % (tag, i, tag * rng.choice((3, 300, 30_000)))
                lines[line] = i
                await fs.contents.write(handle.fh, 0, line)
                if rng.random() < 0.5:
                    await fs.contents.sync(handle.fh)
                await trio.sleep(rng.random() / 10)
            await fs.contents.flush(handle.fh)
            await fs.release(handle.fh)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer, a, b"A")
            nursery.start_soon(writer, b, b"B")
        data = await content(a, ino)
        assert data == await content(b, ino)
        found = [line + b"\n" for line in data.split(b"\n")[:-1]]
        assert sorted(found) == sorted(lines)
        for tag in (b"A", b"B"):
            assert [lines[x] for x in found if x.startswith(tag)] == list(range(40))

    run(test, 2)


def test_failures_are_told_once_to_each_handle() -> None:
    async def test(fs: Filesystem) -> None:
        ino = await make(fs, b"f", b"before")
        first, _ = await fs.open(ino, os.O_RDWR, ROOT)
        second, _ = await fs.open(ino, os.O_RDWR, ROOT)
        chunks = fs._writeback._staging._chunks
        put = chunks.put

        async def full(*args: Any, **more: Any) -> Any:
            raise NoSpace("the pool is full")

        chunks.put = full  # type: ignore[method-assign]
        await fs.contents.write(first.fh, 0, bytes(100_000))
        await fails(errno.ENOSPC, fs.contents.sync(first.fh))
        await fs.contents.sync(first.fh)
        await fails(errno.ENOSPC, fs.contents.flush(second.fh))
        chunks.put = put  # type: ignore[method-assign]
        third, _ = await fs.open(ino, os.O_RDWR, ROOT)
        await fs.contents.flush(third.fh)
        assert await content(fs, ino) == b"before"

    run(test)


def test_a_refused_commit_puts_the_data_again() -> None:
    async def test(fs: Filesystem) -> None:
        client, left = fs._view.metadata, [2]
        call = client.call

        async def refusing(*operations: Any, **more: Any) -> tuple[Any, ...]:
            if left[0] and isinstance(operations[0], Write):
                left[0] -= 1
                raise MetadataError("CHUNK_REFUSED")
            return await call(*operations, **more)

        client.call = refusing  # type: ignore[method-assign]
        data = random.Random(1).randbytes(300_000)
        assert await content(fs, await make(fs, b"f", data)) == data
        assert left == [0]

    run(test)


def test_holes_copies_and_allocation() -> None:
    async def test(fs: Filesystem) -> None:
        data = random.Random(2).randbytes(200_000)
        inode, handle, _ = await fs.create(ROOT_INO, b"f", 0o644, os.O_RDWR, ROOT)
        fh = handle.fh
        await fs.contents.write(fh, MIB, data)
        assert await fs.contents.seek(fh, 0, os.SEEK_DATA) == MIB
        assert await fs.contents.seek(fh, 0, os.SEEK_HOLE) == 0
        assert await fs.contents.seek(fh, MIB, os.SEEK_HOLE) == MIB + 200_000
        await fails(errno.ENXIO, fs.contents.seek(fh, 2 * MIB, os.SEEK_DATA))
        await fs.contents.allocate(fh, 3, MIB + 1000, 1000)
        want = bytearray(bytes(MIB) + data)
        want[MIB + 1000 : MIB + 2000] = bytes(1000)
        assert await content(fs, inode.ino) == want
        _, copy, _ = await fs.create(ROOT_INO, b"g", 0o644, os.O_RDWR, ROOT)
        assert await fs.contents.copy_range(fh, MIB, copy.fh, 5, 1 << 30) == 200_000
        assert bytes(await fs.contents.read(copy.fh, 0, MIB)) == bytes(5) + want[MIB:]
        await fs.contents.allocate(fh, 0, 0, 2 * MIB)
        assert fs.stat_of(await fs.getattr(inode.ino)).size == 2 * MIB

    run(test)


def test_create_of_an_existing_name() -> None:
    async def test(a: Filesystem, b: Filesystem) -> None:
        ino = await make(a, b"f", b"data")
        await fails(errno.EEXIST, b.create(ROOT_INO, b"f", 0o644, os.O_WRONLY | os.O_EXCL, ROOT))
        inode, handle, _ = await b.create(ROOT_INO, b"f", 0o644, os.O_RDWR, ROOT)
        assert inode.ino == ino and bytes(await b.contents.read(handle.fh, 0, 9)) == b"data"
        inode, handle, _ = await b.create(ROOT_INO, b"f", 0o644, os.O_RDWR | os.O_TRUNC, ROOT)
        assert await content(a, ino) == b""

    run(test, 2)


class RecordingKernel:
    """Which names were to be given up."""

    def __init__(self) -> None:
        self.given_up: defaultdict[tuple[int, bytes], threading.Event] = defaultdict(threading.Event)

    def inode(self, ino: int) -> None:
        pass

    def entry(self, parent: int, name: bytes) -> None:
        self.given_up[parent, name].set()


class SlowKernel:
    """Invalidations of names wait until they are let go, as behind a directory that is locked."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def inode(self, ino: int) -> None:
        pass

    def entry(self, parent: int, name: bytes) -> None:
        assert self.go.wait(60)


def test_a_name_that_is_being_invalidated_is_good_once_it_was_looked_up_again() -> None:
    """The kernel repeats after ESTALE, once: while an invalidation took its time (all names at once, when the pool was
    restarted) the second ESTALE went to the program."""

    async def main() -> None:
        kernel = SlowKernel()
        async with memory_pool() as pool, pool.filesystem(seed=1, notifier=kernel) as fs:
            try:
                folder = (await fs.mkdir(ROOT_INO, b"d", 0o755, ROOT)).ino
                ino = await make(fs, b"f", b"data", parent=folder)
                await fs.link(ino, folder, b"other")
                await fs.lookup(folder, b"other")
                fs.on_lapsed()
                await trio.testing.wait_all_tasks_blocked()
                await fails(errno.ESTALE, fs.open(ino, os.O_RDONLY, ROOT))
                await fails(errno.ESTALE, fs.lookup(folder, b"f"))
                assert (await fs.lookup(ROOT_INO, b"d")).ino == folder  # what the kernel does then
                assert (await fs.lookup(folder, b"f")).ino == ino
                await fails(errno.ESTALE, fs.getattr(ino))  # it may have come by the other name
                assert (await fs.lookup(folder, b"other")).ino == ino
                assert await content(fs, ino) == b"data"
            finally:
                kernel.go.set()

    trio.run(main, clock=MockClock(autojump_threshold=0))
