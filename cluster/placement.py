"""Proposes the drives of new groups. Pure; a group's row, not this function, is the location of its chunks.

A domain path (rack/host), then the disk (st_dev of a host), then the drive make a tree. A group's shards are dealt
over the children of each node of the tree as evenly as the drives below them allow, from the root downwards; who
gets the odd one is decided by weighted rendezvous hashing (straw2: the smallest -ln(u)/w wins, u from the group's
seed), so that over many groups each drive is used in proportion to its weight. Drives used by existing open groups
count for less, which levels a small number of groups.

Invariants
1. Every proposal names each drive once, and only drives that are in use, up and have weight.
2. At each level of the tree no child has two shards more than another that has a drive to spare.
3. Equal arguments give equal proposals.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from trivium.cluster.model import ClusterMap, DriveRow, Group, PoolRow, Profile

MAX_OPEN_GROUPS = 8  # of a pool: few drive sets are shared, and all drives still serve reads

Path = tuple[str, ...]


def usable(cluster_map: ClusterMap, up: Collection[bytes]) -> tuple[DriveRow, ...]:
    """Drives that may take new shards: in use, with weight, and in `up` (up, and below the space limit)."""
    return tuple(row for row in cluster_map.drives if not row.reason and row.weight > 0 and row.id in up)


def narrow(profile: Profile, drives: int) -> Profile | None:
    """The profile for a group when only `drives` are usable: k' = max(1, L - m), L - k' parity. None: not at all.

    One drive alone holds data only where the pool promises no loss (m = 0).
    """
    if drives >= profile.width:
        return profile
    if drives < 1 or (drives < 2 and profile.m > 0):
        return None
    k = max(1, drives - profile.m)
    return Profile(k, drives - k, profile.codec)


def propose(
    cluster_map: ClusterMap,
    profile: Profile,
    up: Collection[bytes],
    seed: int | bytes,
    existing: Sequence[Group] = (),
) -> tuple[bytes, ...]:
    """The drives of a new group, in shard order; as many as `narrow` allows, () when there are too few.

    `existing`: the open groups of the pool. The shard order is rotated by how many of them share the drive set, so
    that each drive holds data shards of some group and serves reads.
    """
    candidates = usable(cluster_map, up)
    shape = narrow(profile, len(candidates))
    if shape is None:
        return ()
    key = seed if isinstance(seed, bytes) else seed.to_bytes(16, "little", signed=True)
    used = Counter(drive for group in existing for drive in group.drives)
    root = _tree(candidates, key, used)
    chosen = _deal(root, shape.width)
    twins = [group for group in existing if set(group.drives) == set(chosen)]
    if twins:  # the same set again: the first one's order, moved on, so that every drive gets its turn at data shards
        chosen = list(twins[0].drives)
    turn = len(twins) % len(chosen)
    return tuple(chosen[turn:] + chosen[:turn])


def propose_group(
    cluster_map: ClusterMap, pool: PoolRow, up: Collection[bytes], number: int, existing: Sequence[Group] = ()
) -> Group | None:
    """A new group row number `number` for the pool, narrower when too few drives are up. None: no drive set at all."""
    profile = Profile(pool.k, pool.m, pool.codec)
    drives = propose(cluster_map, profile, up, number, existing)
    if not drives:
        return None
    shape = narrow(profile, len(drives))
    assert shape is not None and shape.width == len(drives)
    return Group(number, pool.id, shape.k, shape.m, drives, pool.codec)


# ---- the tree -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Node:
    """A domain, disk or drive. `score`: smaller is preferred among siblings."""

    path: Path
    drive: bytes | None = None
    weight: float = 0.0
    capacity: int = 0  # drives below it
    score: float = 0.0
    children: dict[str, _Node] = field(default_factory=dict)


def _tree(drives: Sequence[DriveRow], key: bytes, used: Counter[bytes]) -> _Node:
    root = _Node(())
    for row in drives:
        disk = f"\0disk:{row.device}" if row.device else f"\0drive:{row.id.hex()}"
        path = (*(part for part in row.domain.split("/") if part), disk, f"\0drive:{row.id.hex()}")
        weight = row.weight / (1 + used[row.id])
        node = root
        for depth, part in enumerate(path, 1):
            node.weight += weight
            node.capacity += 1
            node = node.children.setdefault(part, _Node(path[:depth]))
        node.drive, node.weight, node.capacity = row.id, weight, 1
    _score(root, key)
    return root


def _score(node: _Node, key: bytes) -> None:
    for child in node.children.values():
        digest = hashlib.blake2b("/".join(child.path).encode(), digest_size=8, key=key[:64]).digest()
        u = (int.from_bytes(digest, "little") + 1) / (2**64 + 1)  # in (0, 1)
        child.score = -math.log(u) / child.weight
        _score(child, key)


def _deal(node: _Node, shards: int) -> list[bytes]:
    """`shards` drives below `node`, dealt one at a time to its children in the order of their scores."""
    if node.drive is not None:
        return [node.drive]
    order = sorted(node.children.values(), key=lambda child: (child.score, child.path))
    dealt = [0] * len(order)
    left = shards
    while left:
        for position, child in enumerate(order):
            if left and dealt[position] < child.capacity:
                dealt[position] += 1
                left -= 1
    hands = [_deal(child, count) for child, count in zip(order, dealt, strict=True) if count]
    return _interleave(hands)


def _interleave(hands: list[list[bytes]]) -> list[bytes]:
    """One of each in turn, so that data shards are spread over domains, too."""
    longest = max(map(len, hands), default=0)
    return [hand[turn] for turn in range(longest) for hand in hands if turn < len(hand)]
