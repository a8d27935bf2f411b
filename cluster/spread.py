"""How evenly a set of drives is spread over domains, and drives that may take another's place in it. Pure.

The measure: at each level of the tree (rack, host, disk) the sum of squares of the shards below each child; compared
level by level from the top. Least is most even, as `placement` deals them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from trivium.cluster.model import ClusterMap, DriveRow

Measure = tuple[int, ...]
LEVELS = 4


def path_of(row: DriveRow) -> tuple[str, ...]:
    """Domains from the top, then the disk."""
    disk = f"\0disk:{row.device}" if row.device else f"\0drive:{row.id.hex()}"
    return (*(part for part in row.domain.split("/") if part), disk)


def measure(cluster_map: ClusterMap, drives: Collection[bytes]) -> Measure:
    """Unevenness of the drives of a group; smaller is better."""
    rows = {row.id: row for row in cluster_map.drives}
    counts: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(LEVELS)]
    for drive in drives:
        path = path_of(rows[drive]) if drive in rows else (drive.hex(),)
        for level in range(LEVELS):
            counts[level][path[: level + 1]] += 1
    return tuple(sum(number * number for number in level.values()) for level in counts)


def substitute(
    cluster_map: ClusterMap, drives: Sequence[bytes], places: Sequence[int], spare: Sequence[bytes]
) -> tuple[bytes, ...] | None:
    """The drives with those at `places` replaced by spare ones so that the set is spread best; of equals the first of
    `spare`. None when there are too few."""
    found = list(drives)
    left = list(spare)
    kept = {drive for index, drive in enumerate(drives) if index not in places}
    for place in places:
        if not left:
            return None
        best = min(left, key=lambda drive: measure(cluster_map, kept | {drive}))
        left.remove(best)
        kept.add(best)
        found[place] = best
    return tuple(found)
