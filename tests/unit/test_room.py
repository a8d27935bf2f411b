"""What df says."""

from __future__ import annotations

from trivium.admin.room import room
from trivium.cluster.model import PoolRow
from trivium.cluster.wire import DriveReport

GIB = 1 << 30
POOL = PoolRow(1, "default", 4, 2)


def drive(name: int, device: int, total: int, free: int, state: str = "ok") -> DriveReport:
    return DriveReport(bytes([name]) * 16, state, "", total, free, device)


def test_drives_on_one_disk_share_its_room() -> None:
    assert room([drive(n, 7, 90 * GIB, 60 * GIB) for n in range(6)], POOL) == (
        60 * GIB,
        (60 * GIB - int(13.5 * GIB)) * 2 // 3,
    )


def test_disks_add_up_and_lost_ones_do_not_count() -> None:
    disks = [drive(n, n + 1, 300 * GIB, 100 * GIB) for n in range(3)] + [drive(9, 9, 300 * GIB, 100 * GIB, "failed")]
    assert room(disks, POOL) == (600 * GIB, 3 * 80 * GIB * 2 // 3)


def test_a_full_disk_has_no_room() -> None:
    assert room([drive(1, 1, 10 * GIB, GIB)], POOL)[1] == 0
