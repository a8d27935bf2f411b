"""Pools of 10 to 10,000 drives, filled by the real placement: balance, spread, movement, drive sets, repair load.

Racks, hosts and drives are of unequal number and size. The pool is filled as it is in life: a bounded number of open
groups take new chunks alike; each makes place for another one when it has had its share; what is placed counts for
the next proposals (`fill`). A step stands for many chunks, so that the pool is half full at the end.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from trivium.cluster import placement
from trivium.cluster.model import ClusterMap, DriveRow, Group, PoolRow, Profile

SHAPES = {10: (2, 5), 100: (5, 5), 1_000: (10, 10), 10_000: (20, 20)}  # drives of a host, hosts of a rack
SIZES_TB = (4.0, 8.0, 8.0, 16.0)
HALF = 0.5


def make_pool(drives: int, rng: random.Random) -> ClusterMap:
    per_host, per_rack = SHAPES[drives]
    rows = []
    host = 0
    while len(rows) < drives:
        here = max(1, per_host + rng.choice((-1, 0, 0, 1)))  # hosts are not all alike
        size = rng.choice(SIZES_TB)
        for _ in range(min(here, drives - len(rows))):
            number = len(rows)
            weight = size if rng.random() < 0.8 else rng.choice(SIZES_TB)
            domain = f"rack{host // per_rack}/host{host}"
            rows.append(DriveRow(number.to_bytes(16, "big"), f"d{number}", domain.encode(), domain, weight))
        host += 1
    return ClusterMap(1, tuple(rows))


@dataclass(slots=True)
class Filled:
    """`used`: TB of shards by drive. `groups`: every group and the TB of one of its shards."""

    cluster_map: ClusterMap
    profile: Profile
    used: dict[bytes, float]
    groups: list[tuple[Group, float]] = field(default_factory=list)
    open: int = 0
    proposal_ms: float = 0.0

    def fills(self) -> list[float]:
        return [self.used[row.id] / row.weight for row in self.cluster_map.drives]

    def balance(self) -> tuple[float, float, float]:
        """Least, most, and standard deviation of the drives' fill, as shares of the mean."""
        fills = self.fills()
        mean = sum(self.used.values()) / sum(row.weight for row in self.cluster_map.drives)
        return min(fills) / mean, max(fills) / mean, statistics.pstdev(fills) / mean

    def sets(self) -> set[frozenset[bytes]]:
        return {frozenset(group.drives) for group, _ in self.groups}


def fill_pool(cluster_map: ClusterMap, profile: Profile, proposals: int) -> Filled:
    """Half of the pool's bytes in `proposals` groups of equal size, the oldest open one making place for the next."""
    pool = PoolRow(1, "pool", profile.k, profile.m)
    up = {row.id for row in cluster_map.drives}
    sizes = {row.id: row.weight for row in cluster_map.drives}
    share = HALF * sum(sizes.values()) / (proposals * profile.width)
    result = Filled(cluster_map, profile, dict.fromkeys(up, 0.0))
    result.open = placement.open_groups(len(up), profile.width)
    waiting: deque[Group] = deque()
    fill = dict.fromkeys(up, 0.0)
    spent = 0.0
    for number in range(proposals):
        if len(waiting) >= result.open:
            waiting.popleft()
        began = time.process_time()
        group = placement.propose_group(cluster_map, pool, up, number, waiting, fill)
        spent += time.process_time() - began
        assert group is not None and group.profile == profile
        waiting.append(group)
        result.groups.append((group, share))
        for drive in group.drives:
            result.used[drive] += share
            fill[drive] = result.used[drive] / sizes[drive]
    result.proposal_ms = spent / proposals * 1000
    return result


def spread(filled: Filled) -> tuple[float, float]:
    """The share of groups that outlive the loss of any one host, and of any one rack."""
    homes = {row.id: row.domain for row in filled.cluster_map.drives}
    m, survive = filled.profile.m, [0, 0]
    for group, _ in filled.groups:
        hosts = Counter(homes[drive] for drive in group.drives)
        racks = Counter(homes[drive].split("/")[0] for drive in group.drives)
        survive[0] += max(hosts.values()) <= m
        survive[1] += max(racks.values()) <= m
    return survive[0] / len(filled.groups), survive[1] / len(filled.groups)


def hash_movement(cluster_map: ClusterMap, profile: Profile, trials: int) -> tuple[float, float]:
    """What a pool whose placement were the function alone would move when a host comes, beside what it must.

    Rows hold the places here, so nothing moves by itself: this is what a full rebalance would copy.
    """
    last = cluster_map.drives[-1].domain
    fewer = ClusterMap(1, tuple(row for row in cluster_map.drives if row.domain != last))
    moved = 0
    for seed in range(trials):
        now = set(placement.propose(cluster_map, profile, {row.id for row in cluster_map.drives}, seed))
        moved += len(now - set(placement.propose(fewer, profile, {row.id for row in fewer.drives}, seed)))
    new = sum(row.weight for row in cluster_map.drives if row.domain == last)
    return moved / (trials * profile.width), new / sum(row.weight for row in cluster_map.drives)


@dataclass(frozen=True, slots=True)
class Repair:
    moved_tb: float  # written: exactly what the drive held
    peers: int  # drives that are read
    targets: int
    hours: float
    doubled: int  # substitutes that stand on a host with another shard although a host without one was there


def repair(filled: Filled, lost: DriveRow, drive_mb_s: float, wait_hours: float, most: int = 60) -> Repair:
    """Rebuild what one drive held: k shards read, one written, by the drive with the most to do; then the wait for out.

    Of many groups a sample of `most` stands for all.
    """
    every = [(group, share) for group, share in filled.groups if lost.id in group.drives]
    sample = random.Random(1).sample(every, min(most, len(every)))
    scale = len(every) / max(1, len(sample))
    spare = {row.id for row in filled.cluster_map.drives} - {lost.id}
    homes = {row.id: row.domain for row in filled.cluster_map.drives}
    hosts = set(homes.values())
    load: dict[bytes, float] = defaultdict(float)
    sources: set[bytes] = set()
    targets: set[bytes] = set()
    doubled = 0
    for group, share in sample:
        kept = [drive for drive in group.drives if drive != lost.id]
        found = placement.substitutes(filled.cluster_map, kept, 1, group.m, spare, group.id)
        busy = sorted(kept, key=lambda drive: load[drive])[: group.k]
        for drive in (*busy, *found):
            load[drive] += share * scale
        sources.update(busy)
        targets.update(found)
        used = {homes[drive] for drive in kept}
        doubled += sum(homes[drive] in used for drive in found) if len(used) < len(hosts) - 1 else 0
    hours = max(load.values(), default=0.0) * 1e6 / drive_mb_s / 3600 + wait_hours
    return Repair(sum(share for _, share in every), len(sources), len(targets), hours, doubled)


def index_sets(filled: Filled, sets: Sequence[frozenset[bytes]]) -> list[list[int]]:
    order = {row.id: number for number, row in enumerate(filled.cluster_map.drives)}
    return [[order[drive] for drive in members] for members in sets]
