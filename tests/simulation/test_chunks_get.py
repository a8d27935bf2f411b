"""Reads from damaged, late, moved and incomplete pools: right bytes or a clear error (attacks 14, 20, 56)."""

from __future__ import annotations

import os
import random

import pytest
import trio

from tests.fakes.pool import Pool, run
from trivium.cluster.chunks import Chunks, Stored
from trivium.cluster.errors import ChunkLost, NotFound, Refused, Unavailable
from trivium.cluster.model import DriveRow, Group, Placed, Ref
from trivium.cluster.placement import propose_group

PROFILES = [(1, 0), (1, 1), (1, 2), (2, 1), (3, 0), (4, 2), (5, 3), (8, 4)]


def place(pool: Pool, stored: Stored, index: int) -> bytes:
    return pool.catalog.groups[stored.chunks[0].group].drives[index]


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("profile", PROFILES)
def test_any_range_with_any_m_shards_gone(profile: tuple[int, int], local: bool) -> None:
    async def main() -> None:
        k, m = profile
        rng = random.Random(repr((profile, local)))
        pool = Pool(k + m, profile, local=local)
        for size in (1, 4096 * k, 333_333, 1_500_001):
            data = pool.random_bytes(size)
            stored = await pool.put(data)
            chunk = stored.chunks[0].chunk
            for index in rng.sample(range(k + m), m):
                files = pool.nodes.drives[place(pool, stored, index)].files
                if rng.random() < 0.5:
                    del files[(chunk, index)]
                else:
                    pool.nodes.flip(place(pool, stored, index), (chunk, index), rng.randrange(len(files[chunk, index])))
            client = pool.client()
            for _ in range(6):
                offset = rng.randrange(size)
                length = rng.randrange(1, size - offset + 1)
                got = await client.get(Ref(chunk, offset, length))
                assert got == data[offset : offset + length]
            assert await client.get(Ref(chunk, 0, size)) == data

    run(main)


@pytest.mark.parametrize("local", [False, True])
def test_only_the_data_shards_that_hold_the_range_are_read(local: bool) -> None:
    async def main() -> None:
        pool = Pool(local=local)
        stored = await pool.put(pool.random_bytes(4 << 20))
        await pool.get(Stored((Ref(stored.chunks[0].chunk, 1 << 20, 5000),), ()))
        readers = [d for d, drive in pool.nodes.drives.items() if drive.reads or (local and drive.opened)]
        assert readers == [place(pool, stored, 1)]

    run(main)


@pytest.mark.parametrize("local", [False, True])
def test_a_late_shard_is_rebuilt_from_others(local: bool) -> None:
    async def main() -> None:
        pool = Pool(local=local)
        data = pool.random_bytes(400_000)
        stored = await pool.put(data)
        pool.nodes.drives[place(pool, stored, 1)].hang = True
        began = trio.current_time()
        assert await pool.get(stored) == data
        assert trio.current_time() - began == pytest.approx(0.1)  # the hedge before it knows better
        assert pool.catalog.reports == []  # late is not bad

    run(main)


def test_two_hanging_drives_and_a_hanging_parity() -> None:
    async def main() -> None:
        pool = Pool(7, (4, 3))
        data = pool.random_bytes(400_000)
        stored = await pool.put(data)
        for index in (0, 2, 4):
            pool.nodes.drives[place(pool, stored, index)].hang = True
        assert await pool.get(stored) == data

    run(main)


@pytest.mark.parametrize("local", [False, True])
def test_corrupt_and_missing_places_are_reported_and_the_corrupt_put_aside(local: bool) -> None:
    async def main() -> None:
        pool = Pool(local=local)
        data = pool.random_bytes(400_000)
        stored = await pool.put(data)
        chunk = stored.chunks[0].chunk
        pool.nodes.flip(place(pool, stored, 0), (chunk, 0), 50_000)
        pool.nodes.drives[place(pool, stored, 3)].files.clear()  # a wiped drive
        assert await pool.get(stored) == data
        await trio.sleep(1)
        assert sorted(pool.catalog.reports) == [
            (chunk, 0, place(pool, stored, 0), "corrupt"),
            (chunk, 3, place(pool, stored, 3), "missing"),
        ]
        assert pool.nodes.drives[place(pool, stored, 0)].quarantine.keys() == {(chunk, 0)}
        assert await pool.get(stored) == data
        await trio.sleep(1)
        assert len(pool.catalog.reports) == 2

    run(main)


def test_a_shard_of_another_put_never_verifies() -> None:
    """Attack 20: a file of the same name from an aborted put (another nonce) is a corrupt place, not a source."""

    async def main() -> None:
        pool = Pool()
        stored = await pool.put(b"right" * 1000)
        chunk = stored.chunks[0].chunk
        other = Pool(seed=2)
        wrong = await other.put(b"wrong" * 1000)
        assert wrong.chunks[0].chunk == chunk  # the same id, every checksum valid
        for index in (0, 4):
            pool.nodes.drives[place(pool, stored, index)].files[chunk, index] = other.nodes.drives[
                place(other, wrong, index)
            ].files[chunk, index]
        assert await pool.get(stored) == b"right" * 1000
        pool.nodes.drives[place(pool, stored, 1)].files.clear()  # three bad places: four wrong bytes never help out
        with pytest.raises(ChunkLost):
            await pool.get(stored)

    run(main)


def test_shards_on_handoffs_are_found_before_the_chunk_is_called_lost() -> None:
    """Attack 14: the shards are on drives that the row does not name."""

    async def main() -> None:
        pool = Pool(10)
        data = pool.random_bytes(200_000)
        stored = await pool.put(data)
        chunk = stored.chunks[0].chunk
        drives = pool.catalog.groups[stored.chunks[0].group].drives
        spare = [drive for drive in pool.ids if drive not in drives]
        for index in range(4):
            files = pool.nodes.drives[drives[index]].files
            pool.nodes.drives[spare[index]].files[chunk, index] = files.pop((chunk, index))
        assert await pool.get(stored) == data
        client = pool.client()
        assert await client.get(Ref(chunk, 70_000, 10)) == data[70_000:70_010]

    run(main)


def test_lost_is_said_only_when_nobody_is_away() -> None:
    async def main() -> None:
        pool = Pool(8)
        stored = await pool.put(b"x" * 100_000)
        for index in range(3):
            pool.nodes.drives[place(pool, stored, index)].files.clear()
        spare = next(drive for drive in pool.ids if drive not in pool.catalog.groups[stored.chunks[0].group].drives)
        pool.nodes.down.add(spare)
        name = next(row.name for row in pool.map.drives if row.id == spare)
        with pytest.raises(Unavailable, match=f"{name}$"):
            await pool.get(stored)
        pool.nodes.down.clear()
        with pytest.raises(ChunkLost, match=str(stored.chunks[0].chunk)):
            await pool.get(stored)
        pool.nodes.down.add(spare)
        rows = tuple(_out(row) if row.id == spare else row for row in pool.map.drives)
        pool.catalog.set_map(type(pool.map)(2, rows, pool.map.nodes, pool.map.pools))
        with pytest.raises(ChunkLost):
            await pool.get(stored)

    run(main)


def test_more_than_m_drives_away_is_unavailable_and_passes() -> None:
    async def main() -> None:
        pool = Pool()
        stored = await pool.put(b"x" * 100_000)
        pool.nodes.unreachable = set(pool.ids[:3])
        with pytest.raises(Unavailable):
            await pool.get(stored)
        pool.nodes.unreachable.clear()
        assert await pool.get(stored) == b"x" * 100_000

    run(main)


def test_more_than_m_drives_hang() -> None:
    async def main() -> None:
        pool = Pool()
        stored = await pool.put(b"x" * 100_000)
        for drive in pool.ids[:3]:
            pool.nodes.drives[drive].hang = True
        with pytest.raises(Unavailable):
            await pool.get(stored)
        assert trio.current_time() < 120

    run(main)


def test_a_stale_row_is_looked_up_once_more_and_nothing_is_reported() -> None:
    """Attack 56: the chunk moved while a layout was cached."""

    async def main() -> None:
        pool = Pool(12)
        data = pool.random_bytes(300_000)
        stored = await pool.put(data)
        chunk = stored.chunks[0].chunk
        old = pool.catalog.rows[chunk]
        target = _other_group(pool, old)
        assert await pool.mover.rebuild(old, target, 50) == 0
        pool.catalog.relocate(chunk, target, 0, 50)
        for index, drive in enumerate(old.group.drives):  # collected
            pool.nodes.drives[drive].files.pop((chunk, index), None)
        before = len(pool.nodes.messages)
        assert await pool.chunks.get(stored.refs[0]) == data  # its own cache is stale
        assert await pool.client().get(stored.refs[0], placed=old) == data
        await trio.sleep(1)
        assert pool.catalog.reports == []
        assert len(pool.nodes.messages) - before < 60

    run(main)


def test_a_chunk_without_a_row_is_not_found() -> None:
    async def main() -> None:
        pool = Pool()
        stored = await pool.put(b"x")
        row = pool.catalog.rows.pop(stored.chunks[0].chunk)
        with pytest.raises(NotFound):
            await pool.get(stored)
        for drive in pool.nodes.drives.values():
            drive.files.clear()
        with pytest.raises(NotFound):  # deleted meanwhile, though the caller has a row
            await pool.client().get(stored.refs[0], placed=row)

    run(main)


def test_ranges_outside_the_chunk_are_refused_and_empty_ones_are_empty() -> None:
    async def main() -> None:
        pool = Pool()
        stored = await pool.put(b"x" * 10)
        chunk = stored.chunks[0].chunk
        assert await pool.chunks.get(Ref(chunk, 10, 0)) == b""
        for offset, length in ((0, 11), (-1, 2), (5, -1), (1 << 40, 1)):
            with pytest.raises(Refused):
                await pool.chunks.get(Ref(chunk, offset, length))

    run(main)


def test_a_shard_placed_anew_is_read_with_its_new_header() -> None:
    """Healing replaces a shard under a later plan: block CRCs are other ones; a cached header must not condemn it."""

    async def main() -> None:
        pool = Pool()
        data = pool.random_bytes(200_000)
        stored = await pool.put(data)
        assert await pool.chunks.get(stored.refs[0]) == data  # headers are cached now
        row = pool.catalog.rows[stored.chunks[0].chunk]
        healed = Placed(row.chunk, row.nonce, row.length, 0b000011, row.plan_seq, row.group)
        assert await pool.mover.rebuild(healed, row.group, 9) == 0
        assert await pool.chunks.get(stored.refs[0]) == data
        await trio.sleep(1)
        assert pool.catalog.reports == []

    run(main)


def test_one_of_many_reads_fails_with_its_own_error() -> None:
    async def main() -> None:
        pool = Pool()
        good = [await pool.put(pool.random_bytes(1000)) for _ in range(3)]
        bad = await pool.put(b"x" * 1000)
        for drive in pool.nodes.drives.values():
            for index in range(6):
                drive.files.pop((bad.chunks[0].chunk, index), None)
        refs = [stored.refs[0] for stored in (*good, bad)]
        assert len(await pool.client().get_many(refs[:3], pool.catalog.rows)) == 3
        with pytest.raises(ChunkLost):
            await pool.client().get_many(refs)

    run(main)


def test_cached_descriptors_are_let_go() -> None:
    async def main() -> None:
        pool = Pool(local=True)
        before = len(os.listdir("/proc/self/fd"))
        stored = [await pool.put(pool.random_bytes(100_000)) for _ in range(10)]
        client: Chunks = pool.client()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            for one in stored:
                await client.get(one.refs[0])
                await client.get(one.refs[0])
            assert len(os.listdir("/proc/self/fd")) >= before + 40
            await trio.sleep(60)
            assert len(os.listdir("/proc/self/fd")) <= before + 2
            nursery.cancel_scope.cancel()

    run(main)


def _other_group(pool: Pool, row: Placed) -> Group:
    up = {drive for drive in pool.ids if drive not in row.group.drives}
    group = propose_group(pool.map, pool.map.pools[0], up, 99)
    assert group is not None
    return group


def _out(row: DriveRow) -> DriveRow:
    return DriveRow(row.id, row.name, row.node, row.domain, row.weight, "out")
