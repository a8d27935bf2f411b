"""Proposes the drives of new groups. Pure; a group's row, not this function, is the location of its chunks.

A domain path (rack/host), then the disk (st_dev of a host), then the drive make a tree. A group's shards are dealt
over the children of each node of the tree as evenly as the drives below them allow, from the root downwards; who
gets the odd one is decided by weighted rendezvous hashing (straw2: the smallest -ln(u)/w wins, u from the group's
seed), so that over many groups each drive is used in proportion to its weight. Drives used by existing open groups
count for less, which levels a small number of groups; so do drives that are fuller than the others, which levels in
the long run what hashing and the spread over domains leave uneven. Domains of the highest level (racks) are left out
where none of them may be lost anyway while one of the next level (hosts) may be: evenness among two racks is not
worth two shards of 2+1 on one host.

Invariants
1. Every proposal names each drive once, and only drives that are in use, up and have weight.
2. At each level of the tree no child has two shards more than another that has a drive to spare.
3. Equal arguments give equal proposals.
4. Scores are made only where shards are dealt: a proposal costs a walk over the drives, not a hash of each.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from trivium.cluster.model import ClusterMap, DriveRow, Group, PoolRow, Profile

MAX_OPEN_GROUPS = 8  # of a small pool: few drive sets are shared, and all drives still serve reads
MOST_OPEN_GROUPS = 256  # of any pool: each session is told of all of them
LEVEL_STEP = 0.01  # a drive that is this much fuller than the others is proposed half as often
LEVEL_MOST, LEVEL_LEAST = 2.0, 1 / 4  # an empty drive among full ones must not get all the writes

Path = tuple[str, ...]


def usable(cluster_map: ClusterMap, up: Collection[bytes]) -> tuple[DriveRow, ...]:
    """Drives that may take new shards: in use, with weight, and in `up` (up, and below the space limit)."""
    return tuple(row for row in cluster_map.drives if not row.reason and row.weight > 0 and row.id in up)


def open_groups(drives: int, width: int) -> int:
    """How many groups a pool keeps open: every drive takes part in one, as long as that is not too many."""
    return max(MAX_OPEN_GROUPS, min(MOST_OPEN_GROUPS, -(-drives // max(1, width))))


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


def least(profile: Profile, k: int, m: int) -> int:
    """Shards that must be durable before a chunk counts, in a pool of k+m: one more than it takes to read it; all of a
    narrow one, which has been cut short already."""
    return profile.width if profile.width < k + m else min(profile.k + 1, profile.width)


def propose(
    cluster_map: ClusterMap,
    profile: Profile,
    up: Collection[bytes],
    seed: int | bytes,
    existing: Sequence[Group] = (),
    fill: Mapping[bytes, float] = MappingProxyType({}),
) -> tuple[bytes, ...]:
    """The drives of a new group, in shard order; as many as `narrow` allows, () when there are too few.

    `existing`: the open groups of the pool. The shard order is rotated by how many of them share the drive set, so
    that each drive holds data shards of some group and serves reads. `fill`: how full drives are, 0 to 1, where known.
    """
    candidates = usable(cluster_map, up)
    shape = narrow(profile, len(candidates))
    if shape is None:
        return ()
    used = Counter(drive for group in existing for drive in group.drives)
    root = _tree(candidates, used, _levels(candidates, fill), _unspread(candidates, shape.width, shape.m))
    chosen = _deal(root, shape.width, _key(seed))
    twins = [group for group in existing if set(group.drives) == set(chosen)]
    if twins:  # the same set again: the first one's order, moved on, so that every drive gets its turn at data shards
        chosen = list(twins[0].drives)
    turn = len(twins) % len(chosen)
    return tuple(chosen[turn:] + chosen[:turn])


def propose_group(
    cluster_map: ClusterMap,
    pool: PoolRow,
    up: Collection[bytes],
    number: int,
    existing: Sequence[Group] = (),
    fill: Mapping[bytes, float] = MappingProxyType({}),
) -> Group | None:
    """A new group row number `number` for the pool, narrower when too few drives are up. None: no drive set at all."""
    profile = Profile(pool.k, pool.m, pool.codec)
    drives = propose(cluster_map, profile, up, number, existing, fill)
    if not drives:
        return None
    shape = narrow(profile, len(drives))
    assert shape is not None and shape.width == len(drives)
    return Group(number, pool.id, shape.k, shape.m, drives, pool.codec)


def substitutes(
    cluster_map: ClusterMap, kept: Collection[bytes], count: int, m: int, spare: Collection[bytes], seed: int
) -> tuple[bytes, ...]:
    """`count` drives of `spare` to stand beside those `kept`, spread as if the group of m parity were dealt anew.

    At each level the child with the fewest shards gets the next one. Fewer are answered when there are no more.
    """
    candidates = [row for row in usable(cluster_map, spare) if row.id not in kept]
    rows = {row.id: row for row in cluster_map.drives}
    staying = [row for drive in kept if (row := rows.get(drive))]
    skip = _unspread([*staying, *candidates], len(staying) + count, m)
    root = _tree(candidates, Counter(), {}, skip)
    held = Counter(path for row in staying for path in _prefixes(_path(row, skip)))
    key = _key(seed)
    chosen: list[bytes] = []
    while len(chosen) < count and root.capacity:
        node, way = root, [root]
        while node.drive is None:
            free = [child for child in node.inside() if child.capacity]
            fewest = min(held[child.path] for child in free)
            _, _, node = min((child.score(key), child.path, child) for child in free if held[child.path] == fewest)
            way.append(node)
        chosen.append(node.drive)
        held.update(step.path for step in way[1:])
        for step in way:
            step.capacity -= 1
    return tuple(chosen)


# ---- the tree -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Node:
    """A domain, disk or drive."""

    path: Path
    drive: bytes | None = None
    weight: float = 0.0
    capacity: int = 0  # drives below it
    children: dict[str, _Node] = field(default_factory=dict)
    rows: list[tuple[DriveRow, float]] = field(default_factory=list)  # drives that are no children yet

    def add(self, weight: float, capacity: int) -> None:
        self.weight += weight
        self.capacity += capacity

    def child(self, part: str, path: Path) -> _Node:
        found = self.children.get(part)
        if found is None:
            found = self.children[part] = _Node(path)
        return found

    def inside(self) -> Collection[_Node]:
        """Its children: domains, and the disks and drives that are in it directly."""
        for row, weight in self.rows:
            drive = f"\0drive:{row.id.hex()}"
            path = (*self.path, f"\0disk:{row.device}" if row.device else drive, drive)
            disk = self.child(path[-2], path[:-1])
            disk.add(weight, 1)
            disk.children[path[-1]] = _Node(path, row.id, weight, 1)
        self.rows = []
        return self.children.values()

    def score(self, key: bytes) -> float:
        """Smaller is preferred among siblings."""
        digest = hashlib.blake2b("/".join(self.path).encode(), digest_size=8, key=key[:64]).digest()
        u = (int.from_bytes(digest, "little") + 1) / (2**64 + 1)  # in (0, 1)
        return -math.log(u) / self.weight


def _key(seed: int | bytes) -> bytes:
    return seed if isinstance(seed, bytes) else seed.to_bytes(16, "little", signed=True)


def _domain(domain: str) -> Path:
    return tuple(part for part in domain.split("/") if part)


def _path(row: DriveRow, skip: int) -> Path:
    drive = f"\0drive:{row.id.hex()}"
    return (*_domain(row.domain)[skip:], f"\0disk:{row.device}" if row.device else drive, drive)


def _unspread(drives: Sequence[DriveRow], shards: int, m: int) -> int:
    """How many of the highest levels of domains are left out: up to the first of which one may be lost, or none."""
    homes = [(_domain(domain), count) for domain, count in Counter(row.domain for row in drives).items()]
    for skip in range(min((len(path) for path, _ in homes), default=0)):
        room: Counter[Path] = Counter()
        for path, count in homes:
            room[path[: skip + 1]] += count
        if _dealt_most(sorted(room.values()), shards) <= m:
            return skip
    return 0


def _dealt_most(rooms: Sequence[int], shards: int) -> int:
    """The most that one gets when `shards` are dealt evenly to places with this much room each (ascending)."""
    for position, room in enumerate(rooms):
        share = -(-shards // (len(rooms) - position))
        if room >= share:
            return share
        shards -= room
    return shards + (rooms[-1] if rooms else 0)


def _prefixes(path: Path) -> list[Path]:
    return [path[:depth] for depth in range(1, len(path) + 1)]


def _levels(drives: Sequence[DriveRow], fill: Mapping[bytes, float]) -> dict[bytes, float]:
    """What the weight of each drive counts for, by how full it is beside the others."""
    known = [(row, fill[row.id]) for row in drives if row.id in fill]
    if not known:
        return {}
    usual = sorted(full for _, full in known)[len(known) // 2]  # the median: a new drive does not move it
    most, least = math.log2(LEVEL_MOST), math.log2(LEVEL_LEAST)
    return {row.id: 2 ** max(least, min(most, (usual - full) / LEVEL_STEP)) for row, full in known}


def _tree(drives: Sequence[DriveRow], used: Counter[bytes], levels: Mapping[bytes, float], skip: int) -> _Node:
    """The domains; what is inside one is made when somebody looks into it (`_Node.inside`)."""
    homes: dict[str, list[tuple[DriveRow, float]]] = {}
    for row in drives:
        weight = row.weight / (1 + used.get(row.id, 0)) * levels.get(row.id, 1.0)
        homes.setdefault(row.domain, []).append((row, weight))
    root = _Node(())
    for domain, rows in homes.items():
        node = root
        weight, path = sum(weight for _, weight in rows), _domain(domain)[skip:]
        node.add(weight, len(rows))
        for depth, part in enumerate(path, 1):
            node = node.child(part, path[:depth])
            node.add(weight, len(rows))
        node.rows += rows
    return root


def _deal(node: _Node, shards: int, key: bytes) -> list[bytes]:
    """`shards` drives below `node`, dealt one at a time to its children in the order of their scores."""
    if node.drive is not None:
        return [node.drive]
    children = node.inside()
    if len(children) == 1:  # nothing to choose
        return _deal(next(iter(children)), shards, key)
    order = [child for _, _, child in sorted((child.score(key), child.path, child) for child in children)]
    dealt = [0] * len(order)
    left = shards
    while left:
        for position, child in enumerate(order):
            if left and dealt[position] < child.capacity:
                dealt[position] += 1
                left -= 1
    hands = [_deal(child, count, key) for child, count in zip(order, dealt, strict=True) if count]
    return _interleave(hands)


def _interleave(hands: list[list[bytes]]) -> list[bytes]:
    """One of each in turn, so that data shards are spread over domains, too."""
    longest = max(map(len, hands), default=0)
    return [hand[turn] for turn in range(longest) for hand in hands if turn < len(hand)]
