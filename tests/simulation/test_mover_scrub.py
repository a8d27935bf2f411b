"""Healing, moving and scrubbing: same bytes, verified sources, only places that differ (attacks 17, 27, 44)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.fakes.pool import Pool, run
from trivium.cluster.errors import ChunkLost, Refused, Unavailable
from trivium.cluster.model import Group, Placed, Ref
from trivium.cluster.mover import places_to_write
from trivium.cluster.scrub import Scrub
from trivium.cluster.shardfile import verify_file
from trivium.cluster.wire import PutShards


async def committed(pool: Pool, size: int = 300_000) -> tuple[bytes, Placed]:
    data = pool.random_bytes(size)
    stored = await pool.put(data)
    return data, pool.catalog.rows[stored.chunks[0].chunk]


def with_missing(row: Placed, missing: int) -> Placed:
    return Placed(row.chunk, row.nonce, row.length, missing, row.plan_seq, row.group, row.kind)


def moved(pool: Pool, row: Placed, changes: dict[int, bytes], number: int = 90) -> Group:
    group = row.group
    drives = tuple(changes.get(index, drive) for index, drive in enumerate(group.drives))
    return Group(number, group.pool, group.k, group.m, drives, group.codec)


def spares(pool: Pool, row: Placed) -> list[bytes]:
    return [drive for drive in pool.ids if drive not in row.group.drives]


def puts(pool: Pool) -> list[tuple[bytes, int]]:
    return [(p.drive, p.index) for m in pool.nodes.messages if isinstance(m, PutShards) for p in m.puts if p.replace]


@pytest.mark.parametrize("profile", [(1, 1), (1, 2), (2, 1), (4, 2), (8, 4)])
def test_missing_shards_are_rebuilt_in_place_under_the_plan(profile: tuple[int, int]) -> None:
    async def main() -> None:
        k, m = profile
        pool = Pool(k + m, profile)
        data, row = await committed(pool)
        originals = {}
        for index in range(m):
            originals[index] = pool.nodes.drives[row.group.drives[index]].files.pop((row.chunk, index))
        assert await pool.mover.rebuild(with_missing(row, (1 << m) - 1), row.group, 77) == 0
        for index, original in originals.items():
            file = pool.nodes.drives[row.group.drives[index]].files[row.chunk, index]
            header, before = verify_file(file), verify_file(original)
            assert header.spec.plan_seq == 77 and header.spec.nonce == row.nonce
            assert header.spec.pieces == before.spec.pieces
            assert file[header.data_offset :] == original[before.data_offset :]
        assert sorted(index for _, index in puts(pool)) == list(range(m))
        pool.nodes.down = set(row.group.drives[-m:])  # the rebuilt ones must do
        assert await pool.client().get_many([_whole(row)]) == [data]

    run(main)


def test_a_move_copies_only_the_places_that_differ() -> None:
    async def main() -> None:
        pool = Pool(10)
        data, row = await committed(pool)
        extra = spares(pool, row)
        target = moved(pool, row, {1: extra[0], 5: extra[1]})
        assert places_to_write(row, target) == [1, 5]
        assert await pool.mover.rebuild(row, target, 5) == 0
        assert sorted(puts(pool)) == sorted([(extra[0], 1), (extra[1], 5)])
        pool.catalog.relocate(row.chunk, target, 0, 5)
        for drive in (row.group.drives[1], row.group.drives[5]):
            pool.nodes.drives[drive].files.clear()
        assert await pool.client().get_many([_whole(row)]) == [data]

    run(main)


def test_the_same_drives_in_another_order() -> None:
    async def main() -> None:
        pool = Pool(6)
        data, row = await committed(pool)
        drives = row.group.drives
        target = moved(pool, row, {i: drives[(i + 1) % 6] for i in range(6)})
        assert await pool.mover.rebuild(row, target, 5) == 0
        pool.catalog.relocate(row.chunk, target, 0, 5)
        pool.nodes.down = set(drives[2:4])
        assert await pool.client().get_many([_whole(row)]) == [data]

    run(main)


def test_another_profile_is_refused() -> None:
    """Attack 44: re-encoding under the same id would overwrite live shards before the row commits."""

    async def main() -> None:
        pool = Pool(6)
        _, row = await committed(pool)
        with pytest.raises(Refused):
            await pool.mover.rebuild(row, Group(9, 1, 2, 2, row.group.drives[:4]), 5)
        assert not puts(pool)

    run(main)


def test_a_source_that_is_corrupt_or_of_another_put_is_rebuilt_instead() -> None:
    async def main() -> None:
        pool, other = Pool(10), Pool(10, seed=2)
        data, row = await committed(pool)
        _, wrong = await committed(other)
        assert wrong.chunk == row.chunk
        pool.nodes.flip(row.group.drives[0], (row.chunk, 0), 9000)
        pool.nodes.drives[row.group.drives[1]].files[row.chunk, 1] = other.nodes.drives[wrong.group.drives[1]].files[
            row.chunk, 1
        ]
        extra = spares(pool, row)
        target = moved(pool, row, {0: extra[0], 1: extra[1]})
        assert await pool.mover.rebuild(row, target, 5) == 0
        pool.catalog.relocate(row.chunk, target, 0, 5)
        assert await pool.client().get_many([_whole(row)]) == [data]

    run(main)


def test_a_file_that_is_in_the_target_place_already_is_never_adopted() -> None:
    """Attack 27: the old copy on a drive that flapped is replaced; then the queued delete of it is refused."""

    async def main() -> None:
        pool = Pool(10)
        _, row = await committed(pool)
        spare = spares(pool, row)[0]
        home = row.group.drives[2]
        assert await pool.mover.rebuild(row, moved(pool, row, {2: spare}), 5) == 0  # a delete with seq 5 is queued
        away = Placed(row.chunk, row.nonce, row.length, 0, 5, moved(pool, row, {2: spare}))
        assert await pool.mover.rebuild(away, row.group, 8) == 0  # and back
        assert verify_file(pool.nodes.drives[home].files[row.chunk, 2]).spec.plan_seq == 8
        assert await pool.mover.rebuild(away, row.group, 8) == 0  # the same plan again: it is there
        assert await pool.mover.rebuild(away, row.group, 7) == 0  # a later plan's file is as good
        pool.nodes.flip(home, (row.chunk, 2), 6000)
        assert await pool.mover.rebuild(away, row.group, 8) == 1 << 2  # there, but rotten

    run(main)


def test_target_drives_that_fail_are_returned_as_missing() -> None:
    async def main() -> None:
        pool = Pool(10)
        _, row = await committed(pool)
        extra = spares(pool, row)
        pool.nodes.drives[extra[0]].failed = True
        pool.nodes.drives[extra[1]].hang = True
        target = moved(pool, row, {0: extra[0], 1: extra[1], 2: extra[2]})
        assert await pool.mover.rebuild(row, target, 5) == 0b011
        assert (row.chunk, 2) in pool.nodes.drives[extra[2]].files

    run(main)


def test_sources_are_found_on_any_drive() -> None:
    async def main() -> None:
        pool = Pool(12)
        _, row = await committed(pool)
        extra = spares(pool, row)
        for index in range(3):
            files = pool.nodes.drives[row.group.drives[index]].files
            if index < 2:
                pool.nodes.drives[extra[index]].files[row.chunk, index] = files.pop((row.chunk, index))
            else:
                files.clear()
        assert await pool.mover.rebuild(with_missing(row, 0b111), row.group, 5) == 0
        verify_file(pool.nodes.drives[row.group.drives[2]].files[row.chunk, 2])

    run(main)


def test_too_few_sources() -> None:
    async def main() -> None:
        pool = Pool(7)
        _, row = await committed(pool)
        for index in range(3):
            pool.nodes.drives[row.group.drives[index]].files.clear()
        with pytest.raises(ChunkLost):
            await pool.mover.rebuild(with_missing(row, 0b111), row.group, 5)
        pool.nodes.down.add(row.group.drives[4])
        with pytest.raises(Unavailable):
            await pool.mover.rebuild(with_missing(row, 0b111), row.group, 5)

    run(main)


def test_scrub_finds_puts_aside_and_reports() -> None:
    async def main() -> None:
        pool = Pool(8)
        rows = [(await committed(pool, 50_000))[1] for _ in range(5)]
        bad = rows[2]
        pool.nodes.flip(bad.group.drives[1], (bad.chunk, 1), 20)  # its header
        pool.nodes.flip(bad.group.drives[4], (bad.chunk, 4), 5000)  # parity, which no read would look at
        del pool.nodes.drives[rows[3].group.drives[0]].files[rows[3].chunk, 0]
        down = rows[4].group.drives[5]
        pool.nodes.unreachable.add(down)
        scrub = Scrub(pool.nodes, pool.catalog.report)

        async def walk() -> AsyncIterator[Placed]:
            for row in rows:
                yield row

        progress = await scrub.run(walk())
        expected = {
            (bad.chunk, 1, bad.group.drives[1], "corrupt"),
            (bad.chunk, 4, bad.group.drives[4], "corrupt"),
            (rows[3].chunk, 0, rows[3].group.drives[0], "missing"),
        }
        expected = {finding for finding in expected if finding[2] != down}
        assert set(pool.catalog.reports) == expected and progress.chunks == 5 and progress.skipped >= 1
        assert sum(len(drive.quarantine) for drive in pool.nodes.drives.values()) == sum(
            what == "corrupt" for _, _, _, what in expected
        )
        pool.nodes.unreachable.clear()
        assert await pool.mover.rebuild(pool.catalog.rows[bad.chunk], bad.group, 9) == 0

    run(main)


def _whole(row: Placed) -> Ref:
    return Ref(row.chunk, 0, row.length)
