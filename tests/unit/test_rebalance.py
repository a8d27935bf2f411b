"""Wanted shares are placement's; moves bring drives to them, keep domains apart, and end."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.fakes.metadb import MetaDb
from trivium.cluster import placement, spread
from trivium.cluster.erasure import shard_size
from trivium.cluster.model import ClusterMap, DriveRow, Group, PoolRow
from trivium.metadata import chunkrows, heal, maprows, queue, rebalance

MIB = 1 << 20


def cluster(hosts: list[list[float]]) -> ClusterMap:
    """Drives with these weights, host by host."""
    rows = []
    for host, weights in enumerate(hosts):
        for weight in weights:
            number = len(rows) + 1
            rows.append(DriveRow(bytes([number]) * 16, f"d{number}", b"n" * 16, f"r/h{host}", weight, device=number))
    return ClusterMap(1, tuple(rows), (), (PoolRow(1, "p", 4, 2),))


@pytest.mark.parametrize(
    "hosts",
    [
        [[1]] * 6,
        [[1]] * 7,
        [[1]] * 20,
        [[1, 1]] * 3,
        [[1, 1, 1]] * 4,
        [[1, 1], [1], [1, 1, 1], [1]],
        [[1, 1, 1, 1]] * 2,
    ],
)
def test_shares_are_what_placement_deals(hosts: list[list[float]]) -> None:
    made = cluster(hosts)
    seen: Counter[bytes] = Counter()
    for seed in range(600):
        seen.update(placement.propose(made, placement.Profile(4, 2), {row.id for row in made.drives}, seed))
    found = rebalance.shares(made.drives, 6)
    assert sum(found.values()) == pytest.approx(6)
    for row in made.drives:
        assert found[row.id] == pytest.approx(seen[row.id] / 600, abs=0.09), row.name


def test_heavier_drives_get_more() -> None:
    found = rebalance.shares(cluster([[1.0]] * 10 + [[2.0]] * 5).drives, 6)
    light, heavy = found[bytes([1]) * 16], found[bytes([11]) * 16]
    assert heavy == pytest.approx(2 * light) and sum(found.values()) == pytest.approx(6)


def fill(db: MetaDb, made: ClusterMap, on: set[bytes], chunks: int, rng: random.Random) -> None:
    groups: list[Group] = []
    db.run(lambda tx: tx.next_id("group"))  # the one that is there already
    for _ in range(8):
        number = db.run(lambda tx: tx.next_id("group"))
        group = placement.propose_group(made, made.pools[0], on, number, groups)
        assert group is not None
        groups.append(group)
        db.run(
            lambda tx, group=group: tx.run(  # type: ignore[misc]
                "INSERT INTO groups (id, pool, k, m, drives, codec, open) VALUES (?, 1, 4, 2, ?, ?, 1)",
                *(group.id, b"".join(group.drives), group.codec),
            )
        )
    for counter in range(chunks):
        group = groups[counter % 8]
        size = rng.choice((MIB, 4 * MIB, 4 * MIB))
        db.run(
            lambda tx, counter=counter, group=group, size=size: tx.run(  # type: ignore[misc]
                "INSERT INTO chunks (session, counter, nonce, group_id, length, missing, plan_seq, kind)"
                " VALUES (3, ?, ?, ?, ?, 0, 1, 1)",
                *(counter + 1, bytes(16), group.id, size),
            )
        )


def held(db: MetaDb) -> dict[bytes, int]:
    """Counted chunk by chunk, not by averages."""
    found: Counter[bytes] = Counter()
    rows = db.db.execute("SELECT c.length, g.k, g.drives FROM chunks c JOIN groups g ON g.id = c.group_id")
    for length, k, drives in rows:
        for drive in chunkrows.split_drives(drives):
            found[drive] += shard_size(length, k)
    return dict(found)


@pytest.mark.parametrize(
    ("hosts", "new"), [([[1.0]] * 8, 1), ([[1.0]] * 7 + [[2.0]], 1), ([[1.0, 1.0]] * 4, 2), ([[1.0, 1.0, 1.0]] * 3, 3)]
)
def test_added_drives_fill_up_to_their_share_and_then_it_stops(hosts: list[list[float]], new: int) -> None:
    db, rng = MetaDb(), random.Random(4)
    made = cluster(hosts)
    ids = {row.id for row in made.drives}
    fill(db, made, {row.id for row in made.drives[:-new]}, 600, rng)
    db.db.execute("DELETE FROM drives")
    for row in made.drives:
        db.run(lambda tx, row=row: maprows.put_drive(tx, row))  # type: ignore[misc]
    moved, chunks = 0, set()
    for _ in range(60):
        found = rebalance.loads(db.reader())
        have, want = rebalance.actual(found), rebalance.wanted(made, frozenset(ids), found)
        moves = rebalance.plan(db.reader(), made, found, have, want, 64)
        assert len(moves) <= 64
        if not moves:
            break
        for move in moves:
            assert len(set(move.drives)) == 6
            assert spread.measure(made, move.drives) <= spread.measure(made, move.placed.group.drives)
            target, seq = db.run(lambda tx, move=move: heal.plan(tx, move.placed, move.drives))  # type: ignore[misc]
            assert db.run(lambda tx, m=move, t=target, s=seq: heal.commit(tx, m.placed, t, s, 0)) == 0  # type: ignore[misc]
            moved += 1
            chunks.add(move.placed.chunk)
    else:
        raise AssertionError("it goes on and on")
    have = held(db)
    want = rebalance.wanted(made, frozenset(ids), rebalance.loads(db.reader()))
    for row in made.drives:
        assert abs(have[row.id] - want[row.id]) <= max(0.06 * want[row.id], rebalance.SLACK_BYTES + 2 * MIB), row.name
    needed = sum(want[row.id] for row in made.drives[-new:])
    share = needed / (sum(have.values()) / (600 * 6))
    assert moved <= 1.25 * share + 20, f"{moved} moves where {share:.0f} would do"
    left = queue.page(db.reader(), db.seq + 1, 10_000)
    assert len(left) == len({entry.chunk for entry in left}) and all(entry.kind == queue.LEFTOVER for entry in left)
    assert {entry.chunk for entry in left} == chunks, "the places that were left are collected"


def test_a_balanced_pool_is_left_alone() -> None:
    db, made = MetaDb(), cluster([[1.0]] * 6)
    fill(db, made, {row.id for row in made.drives}, 200, random.Random(1))
    found = rebalance.loads(db.reader())
    have, want = rebalance.actual(found), rebalance.wanted(made, frozenset(row.id for row in made.drives), found)
    assert rebalance.imbalance(have, want) == 0.0 and not rebalance.plan(db.reader(), made, found, have, want, 64)
