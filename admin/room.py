"""What `df` says: room for client data, after parity, on the disks that the drives are on.

Drives that share a disk (st_dev) share its room. New client data stops at 85 % of a disk, or when less than 20 GiB are
free, whichever leaves more to be used; that room, times k of k+m, is what can still be written.
"""

from __future__ import annotations

from collections.abc import Iterable

from trivium.cluster.model import PoolRow
from trivium.cluster.wire import DriveReport

KEPT_SHARE = 0.15
KEPT_MOST = 20 << 30


def room(reports: Iterable[DriveReport], pool: PoolRow) -> tuple[int, int]:
    """(total, free) bytes of client data."""
    disks = {report.device or report.drive: report for report in reports if report.state in ("ok", "full")}
    total = sum(report.bytes_total for report in disks.values())
    free = sum(
        max(0, report.bytes_free - int(min(KEPT_SHARE * report.bytes_total, KEPT_MOST))) for report in disks.values()
    )
    return total * pool.k // (pool.k + pool.m), free * pool.k // (pool.k + pool.m)
