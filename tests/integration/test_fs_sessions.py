"""A mount whose session ends while data is unsent: it must never reach the pool under another session, and its loss is
told. Real metadata engine, real chunks on simulated drives, virtual clock."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import MockClock

from tests.fakes.fspool import Line, Pool, memory_pool
from tests.integration.test_fs_filesystem import MIB, ROOT, content, fails, make, names
from trivium.cluster.errors import Unavailable
from trivium.fs.filesystem import Filesystem
from trivium.metadata.messages import ROOT_INO, GetAttr, Operation

Test = Callable[[Pool, Line, Filesystem, Filesystem], Awaitable[None]]


def run(test: Test) -> None:
    """`test(pool, line, cut, other)`: two mounts, the first behind a line that can be cut."""

    async def main() -> None:
        async with AsyncExitStack() as stack:
            pool = await stack.enter_async_context(memory_pool())
            line = Line(pool.connect)
            cut = await stack.enter_async_context(pool.filesystem(seed=1, line=line))
            other = await stack.enter_async_context(pool.filesystem(seed=2))
            await test(pool, line, cut, other)

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def over(fs: Filesystem, life: int) -> None:
    """The client has heard that its session of that life has ended, and lives under a new one."""
    while fs._view.metadata.life == life:  # noqa: ASYNC110
        await trio.sleep(0.05)
    await fs.statfs()
    await trio.sleep(1)  # the background has given up its pages


@pytest.mark.parametrize("size", [5000, 100_000, 9 * MIB])
def test_old_data_of_an_ended_session_never_appears(size: int) -> None:
    async def test(pool: Pool, line: Line, cut: Filesystem, other: Filesystem) -> None:
        ino = await make(cut, b"f", b"first")
        first, _ = await cut.open(ino, os.O_RDWR, ROOT)
        second, _ = await cut.open(ino, os.O_RDONLY, ROOT)
        assert bytes(await cut.contents.read(first.fh, 0, 100)) == b"first"
        line.cut = True
        await cut.contents.write(first.fh, 0, b"old!" * (size // 4))
        synced: list[int] = []

        async def sync() -> None:  # waits until the verdict is there
            await fails(errno.EIO, cut.contents.sync(first.fh))
            synced.append(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sync)
            await trio.sleep(1)
            begin = trio.current_time()
            newer, _ = await other.open(ino, os.O_RDWR, ROOT)
            await other.contents.write(newer.fh, 0, b"newer")
            await other.contents.sync(newer.fh)  # a recall of the lease waits until the cut session is ended
            assert trio.current_time() - begin > 5
            await trio.sleep(30)
            assert not synced  # nobody has told it yet: the data is kept
            line.cut = False
        await over(cut, 0)
        await fails(errno.EIO, cut.contents.flush(second.fh))  # told once to every handle
        await cut.contents.sync(first.fh)
        await cut.contents.flush(second.fh)
        assert bytes(await cut.contents.read(first.fh, 0, 100)) == b"newer"
        assert await content(other, ino) == b"newer"
        await cut.contents.write(first.fh, 5, b" and newest")  # handles stay usable
        await cut.contents.sync(first.fh)
        assert await content(other, ino) == b"newer and newest"
        assert not cut._writeback.dirty_inodes() and cut._writeback._bytes == 0

    run(test)


def test_no_operation_on_lost_data_gives_it_a_name() -> None:
    """rename() that waited for unsent data fails with it: the good file under the new name stays."""

    async def test(pool: Pool, line: Line, cut: Filesystem, other: Filesystem) -> None:
        await make(cut, b"good", b"good")
        inode, handle, _ = await cut.create(ROOT_INO, b"tmp", 0o600, os.O_RDWR, ROOT)
        await cut.contents.flush(handle.fh)
        line.cut = True
        await cut.contents.write(handle.fh, 0, b"replacement")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails, errno.EIO, cut.rename(ROOT_INO, b"tmp", ROOT_INO, b"good"))
            await trio.sleep(1)
            await pool.server.end_session(cut._view.metadata.session, "test")
            line.cut = False
        await over(cut, 0)
        assert sorted(await names(other)) == [b"good", b"tmp"]
        assert await content(other, (await other.lookup(ROOT_INO, b"good")).ino) == b"good"
        assert await content(other, inode.ino) == b""

    run(test)


def test_an_appender_and_a_stager_under_way_are_stopped() -> None:
    """Drives are away while the session ends: the put that waits for them is not committed when they are back."""

    async def test(pool: Pool, line: Line, cut: Filesystem, other: Filesystem) -> None:
        ino = await make(cut, b"log", b"0")
        handle, _ = await cut.open(ino, os.O_WRONLY | os.O_APPEND, ROOT)
        pool.nodes.down.update(pool.nodes.drives)
        await cut.contents.write(handle.fh, 0, bytes(5 * MIB))
        await trio.sleep(3)  # the put waits by now
        await pool.server.end_session(cut._view.metadata.session, "test")
        await over(cut, 0)
        pool.nodes.down.clear()
        await trio.sleep(10)
        await fails(errno.EIO, cut.contents.sync(handle.fh))
        assert await content(other, ino) == b"0"
        await cut.contents.write(handle.fh, 0, b"1")
        await cut.contents.sync(handle.fh)
        assert await content(other, ino) == b"01"

    run(test)


def test_nameless_files_go_with_the_session() -> None:
    async def test(pool: Pool, line: Line, cut: Filesystem, other: Filesystem) -> None:
        ino = await make(cut, b"f", b"x" * 100_000)
        handle, _ = await cut.open(ino, os.O_RDWR, ROOT)
        await cut.unlink(ROOT_INO, b"f")
        assert len(await cut.contents.read(handle.fh, 0, 200_000)) == 100_000
        await pool.server.end_session(cut._view.metadata.session, "test")
        await over(cut, 0)
        await fails(errno.ESTALE, cut.contents.read(handle.fh, 0, 200_000))
        await fails(errno.ESTALE, cut.getattr(ino))
        await cut.contents.write(handle.fh, 0, b"y")
        await fails(errno.ESTALE, cut.contents.sync(handle.fh))
        await cut.release(handle.fh)
        assert ino not in [inode.ino for inode in cut._view.inodes.all() if inode.opens]

    run(test)


def test_what_is_cached_is_not_used_once_time_has_run_out() -> None:
    """A machine that slept hears of no lapse: the clock alone must do."""

    async def test(pool: Pool, line: Line, cut: Filesystem, other: Filesystem) -> None:
        ino = await make(cut, b"f", b"first")
        await cut.xattrs.set(ino, b"user.a", b"1")
        handle, _ = await cut.open(ino, os.O_RDONLY, ROOT)
        assert bytes(await cut.contents.read(handle.fh, 0, 10)) == b"first"
        assert await cut.xattrs.get(ino, b"user.a") == b"1"
        client = cut._view.metadata
        usable, client.leases_usable = client.leases_usable, lambda: False  # type: ignore[method-assign]
        asked: list[str] = []
        ask = client.ask

        async def counting(query: object) -> object:
            asked.append(type(query).__name__)
            return await ask(query)

        client.ask = counting  # type: ignore[method-assign]
        await cut.contents.read(handle.fh, 0, 10)
        await cut.xattrs.get(ino, b"user.a")
        await cut.getattr(ino)
        await cut.lookup(ROOT_INO, b"f")
        assert asked[:2] == ["GetLayout", "ListXattrs"] and {"GetAttr", "Lookup"} <= set(asked)
        client.leases_usable = usable  # type: ignore[method-assign]

    run(test)


def test_leases_of_forgotten_inodes_are_given_back() -> None:
    async def test(pool: Pool, line: Line, cut: Filesystem, other: Filesystem) -> None:
        inodes = [await make(cut, b"f%d" % i, b"x") for i in range(50)]
        for ino in inodes:
            assert (await cut._view.fresh(ino)).leased
        session = cut._view.metadata.session
        assert all(pool.server.leases.holds(session, ino) for ino in inodes)
        for ino in inodes[:40]:
            cut.forget(ino, 1)
        back = await cut.lookup(ROOT_INO, b"f0")  # came back before its lease went
        await trio.sleep(3)
        assert [ino for ino in inodes if pool.server.leases.holds(session, ino)] == [back.ino, *inodes[40:]]
        with cut._view.inodes.giving_back([inodes[5]]):  # an answer meanwhile comes without its lease
            again = await cut.lookup(ROOT_INO, b"f5")
            assert not again.leased
        assert (await cut._view.fresh(again.ino)).leased
        await other.contents.truncate(await other._view.fresh(inodes[5]), 0, uid=0)
        assert (await cut.getattr(inodes[5])).attr.size == 0

    run(test)


def test_a_restarted_line_loses_nothing() -> None:
    """Cut off for less than the session's time: the same session goes on and sends what waited."""

    async def test(pool: Pool, line: Line, cut: Filesystem, other: Filesystem) -> None:
        ino = await make(cut, b"f", b"first")
        handle, _ = await cut.open(ino, os.O_RDWR, ROOT)
        line.cut = True
        await cut.contents.write(handle.fh, 0, b"second")
        await trio.sleep(12)
        line.cut = False
        await cut.contents.sync(handle.fh)
        assert cut._view.metadata.life == 0
        assert await content(other, ino) == b"second"

    run(test)


def test_a_call_of_an_earlier_life_is_refused_without_asking() -> None:
    async def test(pool: Pool, line: Line, cut: Filesystem, other: Filesystem) -> None:
        client = cut._view.metadata
        await pool.server.end_session(client.session, "test")
        await over(cut, 0)
        none: tuple[Operation, ...] = ()
        with pytest.raises(Exception, match="SESSION_ENDED"):
            await client.call(*none, life=0)
        await client.call(*none, life=client.life)
        assert (await client.ask(GetAttr(ROOT_INO))).ino == ROOT_INO
        line.cut = True
        with pytest.raises(Unavailable):
            line.check()
        line.cut = False

    run(test)
