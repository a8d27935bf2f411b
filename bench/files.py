"""File work on any directory: the same on the mount and on the local disk."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.pool import drop_caches

LARGE_MIB = 256
SMALL = 500
SMALL_SYNCED = 100


def rate(amount: float, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return round(amount / (time.perf_counter() - began), 1)


def python_library() -> tuple[bytes, int]:
    """A tar of Python's own library: a real tree of small files."""
    root = Path(os.__file__).parent
    skipped = {"__pycache__", "test", "site-packages", "dist-packages"}
    buffer, count = io.BytesIO(), 0
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in sorted(root.rglob("*")):
            if path.is_file() and not path.is_symlink() and not skipped & set(path.parts):
                tar.add(path, arcname=str(path.relative_to(root)))
                count += 1
    return buffer.getvalue(), count


def measure(directory: Path) -> dict[str, float]:
    """MB/s and operations/s of the usual work in `directory`."""
    root = directory / "bench"
    root.mkdir()
    out: dict[str, float] = {}
    block, small = os.urandom(1 << 20), os.urandom(4096)
    large = root / "large"

    def write() -> None:
        with large.open("wb", buffering=0) as file:
            for _ in range(LARGE_MIB):
                file.write(block)
            os.fsync(file.fileno())

    def read() -> None:
        with large.open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass

    out["write_MBs"] = rate(LARGE_MIB * 1.048576, write)
    drop_caches()
    out["read_cold_MBs"] = rate(LARGE_MIB * 1.048576, read)
    names = [root / f"f{number}" for number in range(SMALL)]

    def create(names: list[Path], sync: bool) -> None:
        for name in names:
            fd = os.open(name, os.O_CREAT | os.O_WRONLY | os.O_EXCL)
            os.write(fd, small)
            if sync:
                os.fsync(fd)
            os.close(fd)

    out["create_4k_s"] = rate(SMALL, lambda: create(names, False))
    out["create_4k_fsync_s"] = rate(SMALL_SYNCED, lambda: create([root / f"s{n}" for n in range(SMALL_SYNCED)], True))
    drop_caches()
    out["stat_cold_s"] = rate(SMALL, lambda: [name.stat() for name in names])
    drop_caches()
    out["read_4k_cold_s"] = rate(SMALL, lambda: [name.read_bytes() for name in names])
    data, count = python_library()

    def untar() -> None:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Debian's 3.11 has none
            tar.extractall(root / "tree", **safe)  # type: ignore[arg-type]

    out["untar_files_s"] = rate(count, untar)
    out["rm_tree_files_s"] = rate(count, lambda: shutil.rmtree(root / "tree"))
    shutil.rmtree(root)
    return out
