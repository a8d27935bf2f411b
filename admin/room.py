"""What `df` says: room for client data, after parity, on the disks that the drives are on.

Drives of one node that share a disk (st_dev) share its room; two hosts may number different disks alike, and a drive
whose node says nothing of its disk (device 0) has one of its own. New client data stops at 85 % of a disk, or when less
than 20 GiB are free, whichever leaves more to be used; that room, times k of k+m, is what can still be written.
"""

from __future__ import annotations

from collections.abc import Iterable

from trivium.cluster.model import ClusterMap, PoolRow
from trivium.cluster.wire import DriveReport

KEPT_SHARE = 0.15
KEPT_MOST = 20 << 30


def room(reports: Iterable[DriveReport], cluster_map: ClusterMap, pool: PoolRow) -> tuple[int, int]:
    """(total, free) bytes of client data on the drives in use."""
    nodes = {row.id: row.node for row in cluster_map.drives if not row.reason}
    disks = {
        (nodes[report.drive], report.device or report.drive): report
        for report in reports
        if report.state in ("ok", "full") and report.drive in nodes
    }
    total = sum(report.bytes_total for report in disks.values())
    free = sum(
        max(0, report.bytes_free - int(min(KEPT_SHARE * report.bytes_total, KEPT_MOST))) for report in disks.values()
    )
    return total * pool.k // (pool.k + pool.m), free * pool.k // (pool.k + pool.m)
