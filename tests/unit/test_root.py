"""The root register on drives: claims, swaps, confirmation, changes of the list, corrupt copies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import pytest
import trio
import trio.testing

from tests.fakes.cluster import FakeNodes, sim_nodes
from trivium.cluster.errors import ClusterError, Fenced, Refused, Unavailable
from trivium.cluster.model import ClusterMap, Leader, Root, SegmentEntry
from trivium.cluster.root import DriveRegister, RootChain
from trivium.cluster.rootfile import HEAD_SIZE, SLOT_SIZE
from trivium.cluster.rootplan import choose_root_drives
from trivium.cluster.wire import AcceptRoot, NodeRequest, PromiseRoot


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def register(nodes: FakeNodes, name: bytes) -> DriveRegister:
    return DriveRegister(nodes, nodes.drives, name.ljust(16))


async def formed(nodes: FakeNodes, voters: int = 3, name: bytes = b"first") -> DriveRegister:
    made = register(nodes, name)
    await made.form(Root(nodes.map(), nodes.drives[:voters], (), ()))
    return made


def with_version(root: Root | None, version: int) -> Root:
    assert root is not None
    return msgspec.structs.replace(root, map=ClusterMap(version))


def with_drives(root: Root | None, drives: tuple[bytes, ...]) -> Root:
    assert root is not None
    return msgspec.structs.replace(root, root_drives=drives)


def test_form_swap_read_claim() -> None:
    async def main() -> None:
        async with sim_nodes(4, nodes=4) as nodes:
            first = await formed(nodes)
            slot = await first.swap(1, with_version(first.held and first.held.root, 7))
            assert slot.version == 2
            nodes.crash("none")
            second = register(nodes, b"second")
            assert (await second.read()).root == slot.root
            claimed = await second.claim()
            assert claimed.version == 2 and claimed.root == slot.root and claimed.accepted > slot.accepted
            with pytest.raises(Fenced):
                await first.swap(2, with_version(slot.root, 8))
            assert not await first.confirm() and await second.confirm()

    run(main)


def test_swap_is_a_compare_and_swap() -> None:
    async def main() -> None:
        async with sim_nodes(3, nodes=3) as nodes:
            first = await formed(nodes)
            root = first.held and first.held.root
            await first.swap(1, with_version(root, 2))
            with pytest.raises(Refused):
                await first.swap(1, with_version(root, 3))
            with pytest.raises(Refused, match="claim"):
                await register(nodes, b"other").swap(2, with_version(root, 3))

    run(main)


def test_readers_and_confirmations_write_nothing() -> None:
    async def main() -> None:
        async with sim_nodes(3, nodes=3) as nodes:
            first = await formed(nodes)
            nodes.calls.clear()
            for number in range(5):
                await register(nodes, bytes((number,))).read()
                assert await first.confirm()
            assert not any(isinstance(call, PromiseRoot | AcceptRoot) for call in nodes.calls)

    run(main)


def test_a_minority_is_not_enough() -> None:
    async def main() -> None:
        async with sim_nodes(3, nodes=3) as nodes:
            first = await formed(nodes)
            nodes.down.update(nodes.drives[:2])
            assert not await first.confirm()
            with pytest.raises(Unavailable, match="no majority"):
                await register(nodes, b"second").claim()
            with pytest.raises(Unavailable, match="majority"):
                await first.swap(1, with_version(first.held and first.held.root, 2))
            nodes.down.clear()
            assert await first.confirm()

    run(main)


def test_a_swap_in_doubt_is_finished_before_anything_else_is_written() -> None:
    async def main() -> None:
        async with sim_nodes(3, nodes=3) as nodes:
            first = await formed(nodes)
            root = first.held and first.held.root

            def lose(drive: bytes, request: NodeRequest) -> None:
                if isinstance(request, AcceptRoot):
                    raise Unavailable("the answer is lost")

            nodes.after = lose
            with pytest.raises(Unavailable):
                await first.swap(1, with_version(root, 2))
            nodes.after = None
            with pytest.raises(Refused, match="version 2"):
                await first.swap(1, with_version(root, 3))
            slot = await first.change(lambda root: with_version(root, root.map.version + 1))
            assert slot.version == 3 and slot.root is not None and slot.root.map.version == 3

    run(main)


def test_corrupt_root_files_do_not_vote() -> None:
    async def main() -> None:
        async with sim_nodes(3, nodes=3) as nodes:
            first = await formed(nodes)
            nodes.stop()
            for drive in nodes.drives[:2]:
                for slot in (0, 1):
                    nodes.files.flip(nodes.paths[drive] + "/root", HEAD_SIZE + slot * SLOT_SIZE + 20)  # type: ignore[attr-defined]
            nodes.start()
            with pytest.raises(Unavailable, match="no majority"):
                await register(nodes, b"second").claim()
            assert not await first.confirm()

    run(main)


def test_the_list_changes_one_drive_at_a_time() -> None:
    async def main() -> None:
        async with sim_nodes(6, nodes=6) as nodes:
            a, b, c, d, e, f = nodes.drives
            first = await formed(nodes)
            root = first.held and first.held.root
            with pytest.raises(Refused, match="one drive at a time"):
                await first.swap(1, with_drives(root, (a, d, e)))
            with pytest.raises(Refused):
                await first.swap(1, with_drives(root, ()))
            await first.swap(1, with_drives(root, (a, b, d)))
            await first.swap(2, with_drives(root, (a, e, d)))
            await first.swap(3, with_drives(root, (f, e, d)))
            assert (await first.swap(4, with_version(first.held and first.held.root, 9))).root.former_root_drives == ()  # type: ignore[union-attr]
            nodes.down.update((a, b, c))
            second = register(nodes, b"second")
            assert (await second.claim()).root.root_drives == (f, e, d)  # type: ignore[union-attr]
            # the old list alone starts nothing, in either order (the drives of the old list come up first)
            nodes.down.clear()
            nodes.down.update((d, e, f))
            with pytest.raises(Unavailable):
                await DriveRegister(nodes, (a, b, c), b"third".ljust(16)).claim()

    run(main)


def test_a_half_done_change_of_the_list_needs_both_majorities() -> None:
    async def main() -> None:
        async with sim_nodes(4, nodes=4) as nodes:
            a, b, c, d = nodes.drives
            first = await formed(nodes)
            root = first.held and first.held.root
            nodes.down.update((b, c))
            with pytest.raises(Unavailable):
                await first.swap(1, with_drives(root, (a, b, d)))  # reaches a and d: a majority of the new list only
            nodes.down.clear()
            nodes.down.add(c)
            nodes.down.add(b)
            with pytest.raises(Unavailable):
                await register(nodes, b"second").claim()  # a and d would be a majority of the new list
            nodes.down.clear()
            nodes.down.update((a, d))
            third = register(nodes, b"third")
            assert (await third.claim()).root.root_drives == (a, b, c)  # type: ignore[union-attr]
            nodes.down.clear()
            with pytest.raises(Fenced):
                await first.change(lambda root: with_version(root, 9))
            assert await third.confirm()

    run(main)


def test_hints_lead_to_the_list_in_force() -> None:
    async def main() -> None:
        async with sim_nodes(5, nodes=5) as nodes, trio.open_nursery() as nursery:
            first = await formed(nodes)
            await nursery.start(first.run)
            await first.swap(1, with_version(first.held and first.held.root, 1))
            await first.change(lambda root: msgspec.structs.replace(root, map=nodes.map()))
            await trio.testing.wait_all_tasks_blocked()
            lost = DriveRegister(nodes, nodes.drives[4:], b"lost".ljust(16))
            assert (await lost.read()).version == 3
            nursery.cancel_scope.cancel()

    run(main)


def test_release_closes_the_chain_in_one_write() -> None:
    async def main() -> None:
        async with sim_nodes(3, nodes=3) as nodes:
            first = await formed(nodes)
            chain = RootChain(first)
            entry = SegmentEntry(b"s" * 16, nodes.drives, 1)
            await chain.swap((), (entry,))
            await chain.swap((), (entry,))  # repeating a change that happened is harmless
            with pytest.raises(Fenced):
                await chain.swap((), (msgspec.structs.replace(entry, first_seq=2),))
            await first.change(
                lambda root: msgspec.structs.replace(root, leader=Leader(b"first".ljust(16), "x", "boot"))
            )
            await first.release((msgspec.structs.replace(entry, last_seq=5),))
            root = (await register(nodes, b"second").read()).root
            assert root is not None and root.leader is not None
            assert root.leader.released and root.leader.address == "x" and root.log[0].last_seq == 5

    run(main)


def test_form_refuses_drives_that_have_a_root() -> None:
    async def main() -> None:
        async with sim_nodes(3, nodes=3) as nodes:
            await formed(nodes)
            with pytest.raises(ClusterError, match="already belongs"):
                await formed(nodes, name=b"again")

    run(main)


def test_root_drives_are_spread_and_odd() -> None:
    pairs = [(bytes((n,)), f"host{n // 2}") for n in range(6)]
    assert choose_root_drives(pairs, 5) == (b"\0", b"\2", b"\4", b"\1", b"\3")
    assert len(choose_root_drives(pairs[:4], 5)) == 3
    assert len(choose_root_drives(pairs[:2], 5)) == 2
