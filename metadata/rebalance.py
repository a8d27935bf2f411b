"""Rebalancing, planned: what each drive should hold, what it holds, and which chunks move. Queries and arithmetic only.

Wanted shares are those that placement deals to new groups: shards go down the tree of domains evenly, the odd ones by
weight. A move takes one shard of a chunk from a drive that has too much to one that has too little.

Invariants:
1. A move never makes a group less evenly spread over domains, nor puts two of its shards on one drive.
2. Moves are planned only while some drive is off by more than TOLERANCE of what it should have, from a drive above
   that to one below: they end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from trivium.cluster import placement, spread
from trivium.cluster.erasure import shard_size
from trivium.cluster.model import ChunkId, ClusterMap, DriveRow, Group, Placed
from trivium.metadata import chunkrows
from trivium.metadata.tx import Reader

TOLERANCE = 0.03
SLACK_BYTES = 32 << 20  # and at least so much: a nearly empty pool is not stirred


class Load(NamedTuple):
    """Chunks of one group: how many, and the bytes of one place."""

    group: Group
    chunks: int
    place_bytes: int


class Move(NamedTuple):
    placed: Placed
    drives: tuple[bytes, ...]


def loads(reader: Reader) -> list[Load]:
    """What lies in each group that has chunks (one walk over the chunks)."""
    found = []
    for number, count, length in reader.all("SELECT group_id, count(*), sum(length) FROM chunks GROUP BY group_id"):
        group = chunkrows.group_of(reader, number)
        assert group is not None, "a chunk's group has a row"
        found.append(Load(group, count, shard_size(length // count, group.k) * count))
    return found


def actual(found: Sequence[Load]) -> dict[bytes, int]:
    """Bytes of shards on each drive."""
    held: dict[bytes, int] = {}
    for load in found:
        for drive in load.group.drives:
            held[drive] = held.get(drive, 0) + load.place_bytes
    return held


def wanted(cluster_map: ClusterMap, usable: frozenset[bytes], found: Sequence[Load]) -> dict[bytes, float]:
    """Bytes of shards that each usable drive should have."""
    rows = placement.usable(cluster_map, usable)
    total: dict[bytes, float] = dict.fromkeys((row.id for row in rows), 0.0)
    by_width: dict[int, int] = {}
    for load in found:
        width = load.group.profile.width
        by_width[width] = by_width.get(width, 0) + load.place_bytes
    for width, size in by_width.items():
        for drive, share in shares(rows, min(width, len(rows))).items():
            total[drive] += share * size
    return total


def shares(rows: Sequence[DriveRow], width: int) -> dict[bytes, float]:
    """Of how many groups (0 to 1) of `width` each drive is a member, as placement deals them."""
    return _deal([(spread.path_of(row), row) for row in rows], 0, float(width))


def _deal(rows: Sequence[tuple[tuple[str, ...], DriveRow]], depth: int, count: float) -> dict[bytes, float]:
    if len(rows) == 1:
        return {rows[0][1].id: min(1.0, count)}
    children: dict[str, list[tuple[tuple[str, ...], DriveRow]]] = {}
    for path, row in rows:
        part = path[depth] if depth < len(path) else row.id.hex()
        children.setdefault(part, []).append((path, row))
    found: dict[bytes, float] = {}
    hands = _hands([(len(c), sum(row.weight for _, row in c)) for c in children.values()], count)
    for members, hand in zip(children.values(), hands, strict=True):
        found |= _deal(members, depth + 1, hand)
    return found


def _hands(children: Sequence[tuple[int, float]], count: float) -> list[float]:
    """Shards (expected) of each child (drives below it, weight): whole rounds first, the rest by weight."""
    dealt = [0.0] * len(children)
    left = count
    while left > 1e-9:
        room = [i for i, (drives, _) in enumerate(children) if dealt[i] < drives - 1e-9]
        if not room:
            break
        most = min(1.0, *(children[i][0] - dealt[i] for i in room))
        if left >= most * len(room):  # a round for everybody who has room
            for i in room:
                dealt[i] += most
            left -= most * len(room)
            continue
        odd = dict.fromkeys(room, 0.0)
        while left > 1e-9 and room:  # by weight, nobody more than one
            weight = sum(children[i][1] for i in room)
            step = min(left, *((most - odd[i]) * weight / children[i][1] for i in room))
            for i in room:
                odd[i] += step * children[i][1] / weight
            left -= step
            room = [i for i in room if odd[i] < most - 1e-9]
        for i, share in odd.items():
            dealt[i] += share
        break
    return dealt


def imbalance(have: Mapping[bytes, int], want: Mapping[bytes, float]) -> float:
    """Bytes that lie on drives that should not have them, once the tolerance is taken off; 0: balanced."""
    if not any(abs(have.get(d, 0) - w) > max(TOLERANCE * w, SLACK_BYTES) for d, w in want.items()):
        return 0.0
    return sum(max(0.0, have.get(drive, 0) - share) for drive, share in want.items())


def plan(
    reader: Reader, cluster_map: ClusterMap, found: Sequence[Load], have: dict[bytes, int],
    want: Mapping[bytes, float], limit: int,
) -> list[Move]:  # fmt: skip
    """At most `limit` chunks to move now; `have` is brought up to date with them."""
    moves: list[Move] = []
    taken: set[ChunkId] = set()
    failed: set[tuple[int, bytes]] = set()
    while len(moves) < limit and imbalance(have, want):
        move = _next(reader, cluster_map, found, have, want, taken, failed)
        if move is None:
            break
        size = shard_size(move.placed.length, move.placed.group.k)
        for old, new in zip(move.placed.group.drives, move.drives, strict=True):
            if old != new:
                have[old] -= size
                have[new] = have.get(new, 0) + size
        taken.add(move.placed.chunk)
        moves.append(move)
    return moves


def _next(
    reader: Reader, cluster_map: ClusterMap, found: Sequence[Load], have: Mapping[bytes, int],
    want: Mapping[bytes, float], taken: set[ChunkId], failed: set[tuple[int, bytes]],
) -> Move | None:  # fmt: skip
    """One shard from the fullest drive that has one to give to the emptiest that may take it."""
    givers = sorted((d for d in want if have.get(d, 0) > want[d]), key=lambda d: want[d] - have.get(d, 0))
    takers = sorted((d for d in want if have.get(d, 0) < want[d]), key=lambda d: have.get(d, 0) - want[d])
    for giver in givers:
        for load in found:
            group = load.group
            if giver not in group.drives or (group.id, giver) in failed:
                continue
            drives = _exchanged(cluster_map, group, giver, takers)
            placed = None if drives is None else _one_of(reader, group, taken)
            if drives is None or placed is None:
                failed.add((group.id, giver))
                continue
            size = shard_size(placed.length, group.k)
            taker = next(new for new in drives if new not in group.drives)
            if have.get(giver, 0) - size < want[giver] - size / 2 or have.get(taker, 0) + size > want[taker] + size / 2:
                failed.add((group.id, giver))  # it would overshoot
                continue
            return Move(placed, drives)
    return None


def _exchanged(
    cluster_map: ClusterMap, group: Group, giver: bytes, takers: Sequence[bytes]
) -> tuple[bytes, ...] | None:
    before = spread.measure(cluster_map, group.drives)
    for taker in takers:
        if taker in group.drives:
            continue
        drives = tuple(taker if drive == giver else drive for drive in group.drives)
        if spread.measure(cluster_map, drives) <= before:
            return drives
    return None


def _one_of(reader: Reader, group: Group, taken: set[ChunkId]) -> Placed | None:
    """A chunk of the group that is whole and not taken yet, by a walk in key order from after the last one."""
    last = max((chunk for chunk in taken), default=ChunkId(0, 0))
    for after in (last, ChunkId(0, 0)):
        rows = reader.all(
            "SELECT session, counter FROM chunks WHERE group_id = ? AND missing = 0 AND (session, counter) > (?, ?)"
            " ORDER BY session, counter LIMIT ?",
            *(group.id, after.session, after.counter, 1 if after is last else len(taken) + 1),
        )
        for row in rows:
            if (chunk := ChunkId(*row)) not in taken:
                return chunkrows.placed_of(reader, chunk)
    return None
