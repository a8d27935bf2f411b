"""The first start formats empty disks and what it has made itself, nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trivium.admin.datadir import ClusterFile, DataDir
from trivium.admin.errors import CommandError
from trivium.admin.processes import drives
from trivium.cluster.files import RealFiles
from trivium.cluster.store import Store

CLUSTER = b"\xcc" * 16
FILES = RealFiles()


def begun(path: Path) -> DataDir:
    data = DataDir(path)
    data.drives.mkdir(parents=True, exist_ok=True)
    data.write(ClusterFile(CLUSTER.hex(), "ab" * 16, "", forming=True))
    return data


def make(data: DataDir, count: int | None = None) -> dict[str, bytes]:
    """Format; answers drives by name."""
    stores = drives.format_drives(data, FILES, CLUSTER, count, default=2)
    for store in stores:
        store.close()
    return {Path(store.path).name: store.drive for store in stores}


@pytest.mark.parametrize("file", ["chunks/00/00/1.0", "log/1.open", ""])
def test_a_drive_that_was_mounted_after_an_interrupted_start_is_not_touched(tmp_path: Path, file: str) -> None:
    data = begun(tmp_path)
    assert set(make(data)) == {"d0", "d1"}
    (data.drives / "d0").rename(tmp_path / "aside")
    path = data.drives / "d0"
    Store.format(FILES, str(path), cluster=CLUSTER, drive=b"D" * 16, ballast=0)
    if file:
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_bytes(b"acknowledged")
    with pytest.raises(CommandError, match=r"has drive 44444444 of a pool already"):
        make(data)
    assert not file or (path / file).read_bytes() == b"acknowledged"
    if file:
        (path / "root").unlink()
        with pytest.raises(CommandError, match="has data of a drive"):
            make(data)
        assert (path / file).exists()


def test_an_interrupted_start_starts_over_with_what_it_has_made(tmp_path: Path) -> None:
    data = begun(tmp_path)
    first = make(data, 3)
    (data.drives / "d2" / "root").unlink()  # it was interrupted there
    (data.drives / "d0" / "log" / "1.open").write_bytes(b"of a pool that was never formed")
    assert make(data) == first
    assert not list((data.drives / "d0" / "log").iterdir())


def test_empty_disks_that_are_mounted_are_the_drives(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    for name in ("sda", "sdb"):
        (data.drives / name / "lost+found").mkdir(parents=True)
    (data.drives / "lost+found").mkdir(mode=0)
    data.refuse_foreign()
    assert set(make(begun(tmp_path))) == {"sda", "sdb"}
    assert set(json.loads((tmp_path / "cluster").read_text())["made"]) == {"sda", "sdb"}


def test_a_disk_with_something_on_it_is_foreign(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    (data.drives / "d0").mkdir(parents=True)
    (data.drives / "d0" / "letters").touch()
    with pytest.raises(CommandError, match="drives/d0"):
        data.refuse_foreign()
