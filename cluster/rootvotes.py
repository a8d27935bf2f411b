"""Which drives should vote on the root, one change at a time. Pure; root.DriveRegister carries each change out.

    a voter that is out, removed or draining -> replaced by a drive in use, or dropped where there is none
    fewer than 2m+1, and drives to spare     -> one more (by twos: an even list survives no more than the odd one below)

Invariant: no step leaves a list without a drive in use, and each differs from the one before in one drive (in, out or
both), which is what rootplan.changed allows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from trivium.cluster.model import ClusterMap, DriveRow

LEAVING = frozenset({"out", "removed", "draining"})


def next_voters(voters: Sequence[bytes], cluster_map: ClusterMap, up: Collection[bytes]) -> tuple[bytes, ...] | None:
    """The list after the next step, None when nothing is to change. `up`: drives that answer."""
    rows = {row.id: row for row in cluster_map.drives}
    bad = [drive for drive in voters if drive not in rows or rows[drive].reason in LEAVING]
    bad.sort(key=lambda drive: (drive in rows and rows[drive].reason == "draining", drive))  # the lost ones first
    kept = [drive for drive in voters if drive not in bad]
    spare = [row for row in cluster_map.drives if not row.reason and row.id in up and row.id not in voters]
    if bad:
        best = _best(spare, [rows[drive].domain for drive in kept])
        if best is not None:
            return tuple(best if drive == bad[0] else drive for drive in voters)
        return tuple(drive for drive in voters if drive != bad[0]) if kept else None
    wanted = 2 * max((pool.m for pool in cluster_map.pools), default=0) + 1
    odd = len(kept) % 2
    if len(kept) >= wanted or len(spare) < 1 + odd:
        return None
    best = _best(spare, [rows[drive].domain for drive in kept])
    return None if best is None else (*voters, best)


def _best(spare: Sequence[DriveRow], domains: Sequence[str]) -> bytes | None:
    """The spare drive in the domain that has the fewest votes."""
    row = min(spare, key=lambda row: (domains.count(row.domain), row.name, row.id), default=None)
    return None if row is None else row.id
