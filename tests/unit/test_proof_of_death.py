"""What proves that the last leader is dead: the lock that it held, not a copy of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from trivium.admin.datadir import DataDir
from trivium.admin.processes import lead
from trivium.admin.processes.coldstart import proved_dead
from trivium.cluster.model import ClusterMap, Leader, Root

LAST = Leader(b"1" * 16, "unix:/a/run/trivium.sock", "boot", holder=b"n" * 16, lock="5:77")
ROOTS = tuple(bytes([n]) * 16 for n in range(3))


def dead(last: Leader, me: Leader, lately_s: float | None = 1.0) -> bool:
    return proved_dead(Root(ClusterMap(), ROOTS, (), (), last), me, ROOTS[:1], lately_s)


def me(address: str = LAST.address, boot_id: str = "boot", lock: str = "5:77", holder: bytes = LAST.holder) -> Leader:
    return Leader(b"2" * 16, address, boot_id, holder=holder, lock=lock)


def test_who_has_the_very_lock_knows() -> None:
    assert dead(LAST, me()) and dead(LAST, me(address="unix:/moved/run/trivium.sock"))
    assert not dead(LAST, me(holder=b"o" * 16))


@pytest.mark.parametrize("address", [LAST.address, "unix:/copy/run/trivium.sock"])
def test_a_copy_of_the_directory_has_another_lock(address: str) -> None:
    copy = me(address, lock="5:78")
    assert not dead(LAST, copy)
    assert dead(LAST, copy, None)  # nobody has been heard of for T
    assert not dead(LAST, me(boot_id="another boot")) and dead(LAST, me(boot_id="another boot"), None)


def test_a_root_of_before_is_proved_by_its_address() -> None:
    old = Leader(LAST.starter, LAST.address, LAST.boot_id, holder=LAST.holder)
    assert dead(old, me()) and not dead(old, me(address="unix:/copy/run/trivium.sock"))


def test_a_copied_lock_is_another_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "metadata").mkdir(parents=True)
    assert lead._lock_of(DataDir(tmp_path / "a")) == ""
    for name in ("a", "b"):
        (tmp_path / name / "metadata" / "lock").touch()
    found = {lead._lock_of(DataDir(tmp_path / name)) for name in ("a", "b", "a")}
    assert len(found) == 2 and "" not in found
