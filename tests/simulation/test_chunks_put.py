"""Puts while drives fail, hang and fill up; gathering; ids that are settled or given up (attacks 5, 12, 50, 55)."""

from __future__ import annotations

import pytest
import trio

from tests.fakes.pool import OWNER, Pool, run
from trivium.cluster.chunks import PieceData, Stored
from trivium.cluster.errors import NoSpace, NotFound, Refused, Unavailable
from trivium.cluster.model import ChunkKind, Ref
from trivium.cluster.shardfile import verify_file
from trivium.cluster.wire import PutShards


def test_all_shards_are_durable_and_describe_themselves() -> None:
    async def main() -> None:
        pool = Pool()
        data = pool.random_bytes(300_000)
        pieces = [PieceData(OWNER, 5, 3, data), PieceData(b"p" * 16, 9, 4, [b"ab", memoryview(b"cd")])]
        stored = await pool.chunks.put(1, pieces, lease=12)
        (new,) = stored.chunks
        assert stored.refs == (Ref(new.chunk, 0, 300_000), Ref(new.chunk, 300_000, 4))
        assert new.missing == 0 and new.length == 300_004 and len(new.nonce) == 16
        group = pool.catalog.groups[new.group]
        for index, drive in enumerate(group.drives):
            header = verify_file(pool.nodes.drives[drive].files[(new.chunk, index)])
            assert (header.spec.nonce, header.index, header.spec.lease) == (new.nonce, index, 12)
            assert [(p.owner, p.owner_offset, p.length, p.version, p.chunk_offset) for p in header.spec.pieces] == [
                (OWNER, 5, 300_000, 3, 0),
                (b"p" * 16, 9, 4, 4, 300_000),
            ]
        assert [bytes(part) for part in await pool.chunks.get_many(stored.refs)] == [data, b"abcd"]

    run(main)


def test_one_message_per_node() -> None:
    async def main() -> None:
        pool = Pool(6, hosts=2)
        await pool.put(b"x")
        puts = [message for message in pool.nodes.messages if isinstance(message, PutShards)]
        assert sorted(len(message.puts) for message in puts) == [3, 3]

    run(main)


def test_a_drive_that_fails_in_the_middle_is_listed_as_missing() -> None:
    """Attack 5: acknowledged at five shards: the commit says which one is missing."""

    async def main() -> None:
        pool = Pool()
        pool.nodes.drives[pool.ids[2]].failed = True
        stored = await pool.put(b"data" * 100)
        (new,) = stored.chunks
        group = pool.catalog.groups[new.group]
        assert new.missing == 1 << group.drives.index(pool.ids[2])
        assert await pool.get(stored) == b"data" * 100

    run(main)


def test_with_two_of_six_gone_puts_go_on_in_a_narrower_group() -> None:
    """Attack 12. Below k+1 the put starts again under a new id; the old id is given up."""

    async def main() -> None:
        pool = Pool()
        for drive in pool.ids[:2]:
            pool.nodes.drives[drive].failed = True
        stored = await pool.put(b"data" * 100)
        (new,) = stored.chunks
        group = pool.catalog.groups[new.group]
        assert (group.k, group.m) == (2, 2) and new.missing == 0
        assert set(group.drives).isdisjoint(pool.ids[:2])
        assert new.chunk.counter == 2 and [c.counter for c in pool.catalog.given_up] == [1]
        assert await pool.get(stored) == b"data" * 100

    run(main)


def test_known_down_drives_are_avoided_at_once() -> None:
    async def main() -> None:
        pool = Pool(8)
        pool.nodes.down = {pool.ids[0], pool.ids[3]}
        for number in range(5):
            stored = await pool.put(b"x" * (number + 1))
            assert stored.chunks[0].missing == 0
        assert pool.catalog.given_up == []

    run(main)


def test_a_hanging_drive_costs_one_bounded_wait_and_is_then_avoided() -> None:
    async def main() -> None:
        pool = Pool(8)
        pool.nodes.drives[pool.ids[1]].hang = True
        began = trio.current_time()
        missing = []
        while not missing or not missing[-1]:
            missing.append((await pool.put(b"x")).chunks[0].missing)
        assert 2.0 <= trio.current_time() - began < 2.1  # fewer than 100 samples: 2 s
        began = trio.current_time()
        for _ in range(5):
            assert (await pool.put(b"y")).chunks[0].missing == 0
        assert trio.current_time() == began

    run(main)


def test_after_a_hundred_samples_the_wait_is_three_times_the_p99() -> None:
    async def main() -> None:
        pool = Pool(6)
        for _ in range(20):
            await pool.put(b"x")
        pool.nodes.drives[pool.ids[1]].hang = True
        began = trio.current_time()
        assert (await pool.put(b"x")).chunks[0].missing
        assert trio.current_time() - began == pytest.approx(0.2)

    run(main)


def test_a_hanging_drive_among_many_of_one_node_does_not_stop_writes() -> None:
    """The node answers for all its drives at once: one that hangs hides the others until each is asked alone."""

    async def main() -> None:
        pool = Pool(6, hosts=1)
        pool.nodes.drives[pool.ids[4]].hang = True
        stored = await pool.put(b"data")
        group = pool.catalog.groups[stored.chunks[0].group]
        durable = [d for i, d in enumerate(group.drives) if not stored.chunks[0].missing >> i & 1]
        assert pool.ids[4] not in durable and len(durable) >= group.k + 1
        began = trio.current_time()
        await pool.put(b"more")
        assert trio.current_time() - began < 0.1

    run(main)


def test_full_drives_are_left_out_and_a_full_pool_says_no_space() -> None:
    async def main() -> None:
        pool = Pool(8)
        for drive in pool.ids[:2]:
            pool.nodes.drives[drive].full = True
        stored = await pool.put(b"x" * 10_000)
        stored = await pool.put(b"x" * 10_000)
        assert stored.chunks[0].missing.bit_count() <= 1
        for drive in pool.ids:
            pool.nodes.drives[drive].full = True
        with pytest.raises(NoSpace):
            await pool.put(b"y" * 10_000)
        await trio.sleep(1)
        assert max(pool.catalog.given_up) > max(pool.catalog.settled)

    run(main)


@pytest.mark.parametrize("hosts", [1, 3, 6])
def test_an_overloaded_machine_is_neither_full_nor_narrow(hosts: int) -> None:
    """Every drive is slower than any put waits at first: the put goes on with more patience."""

    async def main() -> None:
        pool = Pool(6, hosts=hosts)
        for _ in range(120):
            await pool.put(b"x")
        for drive in pool.nodes.drives.values():
            drive.delay_s = 1.5
        stored = await pool.put(b"slow")
        assert await pool.get(stored) == b"slow"
        await trio.sleep(5)
        for drive in pool.nodes.drives.values():
            drive.delay_s = 0
        stored = await pool.put(b"fast")  # those that answered late are not suspected any more
        group = pool.catalog.groups[stored.chunks[0].group]
        assert (group.k, group.m, stored.chunks[0].missing) == (4, 2, 0)

    run(main)


@pytest.mark.parametrize("slow", [2, 3, 4])
def test_with_a_host_gone_an_overloaded_machine_is_neither_full_nor_weaker(slow: int) -> None:
    """Two drives are gone and nobody knows yet; of the others some are slower than any put waits at first."""

    async def main() -> None:
        pool = Pool(6, hosts=6)
        for _ in range(120):
            await pool.put(b"x")
        pool.nodes.unreachable = set(pool.ids[:2])
        for drive in pool.ids[2 : 2 + slow]:
            pool.nodes.drives[drive].delay_s = 1.5
        stored = await pool.put(b"slow")
        group = pool.catalog.groups[stored.chunks[0].group]
        assert (group.k, group.m) == (2, 2)
        pool.nodes.unreachable = set()
        assert await pool.get(stored) == b"slow"

    run(main)


def test_a_narrow_chunk_is_answered_with_all_of_its_shards() -> None:
    """Its commit would be refused with fewer."""

    async def main() -> None:
        pool = Pool(6, hosts=6)
        for _ in range(120):
            await pool.put(b"x")
        pool.nodes.down = set(pool.ids[:2])
        pool.nodes.drives[pool.ids[2]].delay_s = 0.5
        for _ in range(3):
            stored = await pool.put(b"narrow")
            group = pool.catalog.groups[stored.chunks[0].group]
            assert group.profile.width < 6 and stored.chunks[0].missing == 0

    run(main)


def test_no_drive_answers() -> None:
    async def main() -> None:
        pool = Pool()
        pool.nodes.unreachable = set(pool.ids)
        with pytest.raises(Unavailable):
            await pool.put(b"x")
        pool.nodes.down = set(pool.ids)  # known by now: still not "full"
        with pytest.raises(Unavailable):
            await pool.put(b"x")
        await trio.sleep(1)
        assert len(pool.catalog.given_up) == pool.catalog.next_counter() - 1

    run(main)


def test_without_metadata_a_put_with_a_drive_down_still_uses_k_plus_1() -> None:
    async def main() -> None:
        pool = Pool()
        pool.nodes.down = {pool.ids[0]}
        pool.catalog.available = False
        stored = await pool.chunks.put(1, [PieceData(OWNER, 0, 1, b"x")])
        assert stored.chunks[0].missing.bit_count() == 1

    run(main)


@pytest.mark.parametrize("size", [1000, 3_000_000])
def test_a_cancelled_put_gives_its_id_up_once_nothing_is_on_its_way(size: int) -> None:
    async def main() -> None:
        pool = Pool()
        for drive in pool.nodes.drives.values():
            drive.delay_s = 1.0
        with trio.move_on_after(0.5) as scope:
            await pool.put(b"x" * size)
        assert scope.cancelled_caught
        assert pool.catalog.given_up == []  # shards are still arriving: too early
        await trio.sleep(1)
        assert [chunk.counter for chunk in pool.catalog.given_up] == [1]
        assert all(len(drive.files) == 1 for drive in pool.nodes.drives.values())

    run(main)


def test_the_first_put_starts_at_once_and_those_behind_it_share_a_chunk() -> None:
    async def main() -> None:
        pool = Pool()
        for drive in pool.nodes.drives.values():
            drive.delay_s = 0.01
        results: dict[int, Stored] = {}

        async def one(number: int) -> None:
            results[number] = await pool.chunks.put(1, [PieceData(OWNER, number, 1, bytes([number]) * (100 + number))])

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(one, number)
        assert trio.current_time() - began == pytest.approx(0.02)
        assert len({stored.chunks[0].chunk for stored in results.values()}) == 2
        for number, stored in results.items():
            assert await pool.chunks.get(stored.refs[0]) == bytes([number]) * (100 + number)

    run(main)


def test_a_gathered_chunk_is_settled_when_all_its_pieces_are() -> None:
    """Attack 55: a pack's first piece is committed, deleted and collected before the others commit."""

    async def main() -> None:
        pool = Pool()
        stored = await _gathered(pool, 5)
        chunk = stored[1].chunks[0].chunk
        for part in stored[1:-1]:
            pool.chunks.settle(part)
            pool.chunks.settle(part)  # saying it twice counts once
        assert chunk not in pool.catalog.settled
        pool.chunks.give_up(stored[-1])
        assert chunk in pool.catalog.settled and chunk not in pool.catalog.given_up

    run(main)


def test_a_chunk_is_given_up_only_when_no_piece_of_it_was_committed() -> None:
    async def main() -> None:
        pool = Pool()
        stored = await _gathered(pool, 4)
        for part in stored:
            pool.chunks.give_up(part)
        assert len(pool.catalog.given_up) == 2 and pool.catalog.settled == []

    run(main)


def test_cancelling_one_of_several_gathered_puts_leaves_the_others_alone() -> None:
    async def main() -> None:
        pool = Pool()
        for drive in pool.nodes.drives.values():
            drive.delay_s = 1.0
        done: list[Stored] = []

        async def one(number: int, limit_s: float) -> None:
            with trio.move_on_after(limit_s):
                done.append(await pool.chunks.put(1, [PieceData(OWNER, number, 1, bytes([number]) * 50)]))

        async with trio.open_nursery() as nursery:
            for number, limit_s in enumerate((9, 9, 0.5, 1.5, 9)):  # alone; three fly; one queued; one in flight
                nursery.start_soon(one, number, limit_s)
                await trio.lowlevel.checkpoint()
        read = [bytes(await pool.chunks.get(stored.refs[0]))[:1] for stored in done]
        assert sorted(read) == [b"\0", b"\1", b"\4"]
        for stored in done:
            pool.chunks.settle(stored)
        assert len(pool.catalog.settled) == 2 and pool.catalog.given_up == []

    run(main)


def test_orders_are_not_mixed() -> None:
    async def main() -> None:
        pool = Pool()
        for drive in pool.nodes.drives.values():
            drive.delay_s = 0.1
        results: list[Stored] = []

        async def one(lease: int) -> None:
            results.append(await pool.chunks.put(1, [PieceData(OWNER, 0, 1, b"x")], lease=lease, kind=ChunkKind.VOLUME))

        async with trio.open_nursery() as nursery:
            for lease in (1, 1, 2, 2, 2):
                nursery.start_soon(one, lease)
        for stored in results:
            (new,) = stored.chunks
            drive = pool.catalog.groups[new.group].drives[0]
            assert verify_file(pool.nodes.drives[drive].files[(new.chunk, 0)]).spec.kind == ChunkKind.VOLUME
        assert len({stored.chunks[0].chunk for stored in results}) == 4

    run(main)


def test_many_pieces_become_several_chunks_with_refs_in_order() -> None:
    async def main() -> None:
        pool = Pool()
        datas = [pool.random_bytes(1_500_000) for _ in range(7)]
        stored = await pool.chunks.put(1, [PieceData(OWNER, n, 1, d) for n, d in enumerate(datas)])
        assert len(stored.chunks) == 4 and [ref.length for ref in stored.refs] == [1_500_000] * 7
        assert [bytes(part) for part in await pool.chunks.get_many(stored.refs)] == datas

    run(main)


def test_a_failed_put_of_several_chunks_gives_all_of_them_up() -> None:
    async def main() -> None:
        pool = Pool()
        pieces = [PieceData(OWNER, n, 1, bytes(4 << 20)) for n in range(6)]

        async def fill_up() -> None:
            while sum(drive.puts for drive in pool.nodes.drives.values()) < 12:
                await trio.lowlevel.checkpoint()
            for drive in pool.nodes.drives.values():
                drive.full = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fill_up)
            with pytest.raises(NoSpace):
                await pool.chunks.put(1, pieces)
        await trio.sleep(1)
        assert len(pool.catalog.given_up) == pool.catalog.next_counter() - 1 and pool.catalog.settled == []

    run(main)


def test_a_piece_larger_than_a_chunk_is_refused_but_volumes_have_larger_chunks() -> None:
    async def main() -> None:
        pool = Pool()
        piece = PieceData(OWNER, 0, 1, bytes(5 << 20))
        with pytest.raises(Refused, match="cut it first"):
            await pool.chunks.put(1, [piece])
        stored = await pool.chunks.put(1, [piece], kind=ChunkKind.VOLUME)
        assert len(await pool.chunks.get(stored.refs[0])) == 5 << 20

    run(main)


def test_zero_and_trim_pieces_have_a_length_and_no_bytes() -> None:
    async def main() -> None:
        pool = Pool()
        pieces = [PieceData(OWNER, 0, 1, b"", 4, length=1 << 30), PieceData(OWNER, 1, 2, b"abc")]
        stored = await pool.chunks.put(1, pieces, kind=ChunkKind.VOLUME)
        chunk = stored.chunks[0].chunk
        assert stored.refs == (Ref(chunk, 0, 0), Ref(chunk, 0, 3))
        assert [bytes(part) for part in await pool.chunks.get_many(stored.refs)] == [b"", b"abc"]
        only_trim = await pool.chunks.put(1, [PieceData(OWNER, 0, 3, b"", 4, length=9)], kind=ChunkKind.VOLUME)
        assert only_trim.chunks[0].length == 0

    run(main)


@pytest.mark.parametrize("gone", [0, 2])
def test_put_again_moves_a_refused_put_into_another_group(gone: int) -> None:
    """Attack 50: the commit is refused, or drives died under the body: it is read back, never asked for twice."""

    async def main() -> None:
        pool = Pool(9)
        data = pool.random_bytes(2_000_000)
        stored = await pool.put(data, commit=False)
        (new,) = stored.chunks
        for drive in pool.catalog.groups[new.group].drives[:gone]:
            pool.nodes.down.add(drive)
        pool.catalog.close_groups()
        again = await pool.chunks.put_again(stored)
        assert again.chunks[0].chunk != new.chunk and again.chunks[0].missing == 0
        given_up = pool.catalog.given_up  # also what a new group that had a dead drive too refused
        assert new.chunk in given_up and again.chunks[0].chunk not in given_up
        pool.catalog.commit(again)
        assert await pool.get(again) == data

    run(main)


def test_put_again_of_one_share_leaves_the_others_pending() -> None:
    async def main() -> None:
        pool = Pool()
        stored = await _gathered(pool, 4)
        again = await pool.chunks.put_again(stored[2])
        assert await pool.chunks.get(again.refs[0]) == bytes([2]) * 50
        chunk = stored[1].chunks[0].chunk
        assert chunk not in pool.catalog.given_up
        pool.chunks.settle(stored[1])
        pool.chunks.settle(stored[3])
        assert chunk in pool.catalog.settled

    run(main)


def test_put_again_after_the_commit_is_refused() -> None:
    async def main() -> None:
        pool = Pool()
        stored = await pool.put(b"x")
        with pytest.raises(Refused, match="settled"):
            await pool.chunks.put_again(stored)

    run(main)


def test_what_was_put_is_read_back_before_its_commit_but_not_by_others() -> None:
    async def main() -> None:
        pool = Pool()
        stored = await pool.put(b"mine", commit=False)
        assert await pool.chunks.get(stored.refs[0]) == b"mine"
        with pytest.raises(NotFound):
            await pool.get(stored)

    run(main)


async def _gathered(pool: Pool, count: int) -> list[Stored]:
    """`count` small puts: the first alone in its chunk, the others together in the next."""
    results: dict[int, Stored] = {}

    async def one(number: int) -> None:
        results[number] = await pool.chunks.put(1, [PieceData(OWNER, number, 1, bytes([number]) * 50)])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, 0)
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        for number in range(1, count):
            nursery.start_soon(one, number)
    assert len({stored.chunks[0].chunk for stored in results.values()}) == 2
    return [results[number] for number in range(count)]
