"""What df says."""

from __future__ import annotations

from collections.abc import Sequence

from trivium.admin.room import room
from trivium.cluster.model import ClusterMap, DriveRow, PoolRow
from trivium.cluster.wire import DriveReport

GIB = 1 << 30
POOL = PoolRow(1, "default", 4, 2)


def drive(name: int, device: int, total: int, free: int, state: str = "ok") -> DriveReport:
    return DriveReport(bytes([name]) * 16, state, "", total, free, device)


def in_map(reports: Sequence[DriveReport], hosts: Sequence[str] = (), reasons: Sequence[str] = ()) -> ClusterMap:
    rows = tuple(
        DriveRow(
            report.drive, f"d{n}", (hosts[n] if hosts else "h").encode().ljust(16), "r/h", 1.0,
            reasons[n] if reasons else "",
        )
        for n, report in enumerate(reports)
    )  # fmt: skip
    return ClusterMap(1, rows)


def room_of(reports: Sequence[DriveReport], hosts: Sequence[str] = (), reasons: Sequence[str] = ()) -> tuple[int, int]:
    return room(reports, in_map(reports, hosts, reasons), POOL)


def test_drives_on_one_disk_share_its_room() -> None:
    disks = [drive(n, 7, 90 * GIB, 60 * GIB) for n in range(6)]
    assert room_of(disks) == (60 * GIB, (60 * GIB - int(13.5 * GIB)) * 2 // 3)


def test_two_hosts_may_number_their_disks_alike() -> None:
    disks = [drive(n, 7, 300 * GIB, 100 * GIB) for n in range(6)]
    assert room_of(disks, hosts="aabbcc") == (3 * 200 * GIB, 3 * 80 * GIB * 2 // 3)


def test_disks_add_up_and_lost_ones_do_not_count() -> None:
    disks = [drive(n, n + 1, 300 * GIB, 100 * GIB) for n in range(3)] + [drive(9, 9, 300 * GIB, 100 * GIB, "failed")]
    assert room_of(disks) == (600 * GIB, 3 * 80 * GIB * 2 // 3)


def test_drives_that_take_no_new_data_do_not_count() -> None:
    disks = [drive(n, n + 1, 300 * GIB, 100 * GIB) for n in range(4)]
    assert room_of(disks, reasons=("", "", "out", "draining")) == (400 * GIB, 2 * 80 * GIB * 2 // 3)
    assert room(disks[:1], ClusterMap(), POOL) == (0, 0), "a drive that the map does not have"


def test_a_full_disk_has_no_room() -> None:
    assert room_of([drive(1, 1, 10 * GIB, GIB)])[1] == 0
