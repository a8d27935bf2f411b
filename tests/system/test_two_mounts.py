"""Two kernel mounts of one real pool: what one did is what the other sees, at once and byte for byte."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.pool import SystemPool

pytestmark = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK) or shutil.which("fusermount3") is None,
    reason="there is no /dev/fuse (or no fusermount3) to mount with",
)


@pytest.fixture(scope="module")
def mounts(running: SystemPool) -> Iterator[tuple[Path, Path]]:
    a, b = running.work / "a", running.work / "b"
    try:
        for mountpoint in (a, b):
            mountpoint.mkdir()
            running.trivium("mount", mountpoint)
        yield a, b
    finally:
        for mountpoint in (a, b):
            running.trivium("umount", mountpoint, check=False)
            subprocess.run(["fusermount3", "-u", "-z", str(mountpoint)], capture_output=True, check=False)


def together(*work: threading.Thread) -> None:
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()


def test_names_and_contents_agree(mounts: tuple[Path, Path]) -> None:
    rng = random.Random(11)
    for mount in mounts[:1]:
        (mount / "d").mkdir()
    names = [f"d/f{i}" for i in range(8)]
    model: dict[str, bytes] = {}
    for step in range(80):
        here, there = rng.sample(mounts, 2)
        name, other = rng.sample(names, 2)
        what = rng.choice(("write", "append", "unlink", "rename"))
        if what == "write":
            model[name] = rng.randbytes(rng.choice((10, 5_000, 100_000)))
            (here / name).write_bytes(model[name])
        elif what == "append":
            model[name] = model.get(name, b"") + (more := rng.randbytes(50))
            with (here / name).open("ab") as file:
                file.write(more)
        elif name in model and what == "unlink":
            del model[name]
            (here / name).unlink()
        elif name in model:
            model[other] = model.pop(name)
            os.rename(here / name, here / other)
        for mount in (there, here):
            assert sorted(os.listdir(mount / "d")) == sorted(n[2:] for n in model), (step, what)
            for n in names:
                assert (mount / n).exists() == (n in model), (step, what, n)
                assert n not in model or (mount / n).read_bytes() == model[n], (step, what, n)


def test_appends_land_whole(mounts: tuple[Path, Path]) -> None:
    (mounts[0] / "log").touch()

    def lines(tag: str) -> list[str]:
        return [f"{tag}{i} " + tag * (i % 150) for i in range(150)]

    def append(path: Path, tag: str) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        for i, line in enumerate(lines(tag)):
            os.write(descriptor, f"{line}\n".encode())
            if i % 7 == 0:
                os.fsync(descriptor)
        os.close(descriptor)

    together(*(threading.Thread(target=append, args=(m / "log", t)) for m, t in zip(mounts, "AB", strict=True)))
    found = (mounts[0] / "log").read_text()
    assert found == (mounts[1] / "log").read_text()
    assert [line for line in found.splitlines() if line[0] == "A"] == lines("A")
    assert [line for line in found.splitlines() if line[0] == "B"] == lines("B")


def test_one_of_two_exclusive_creates_wins(mounts: tuple[Path, Path]) -> None:
    for i in range(20):
        won: list[int] = []

        def create(path: Path, won: list[int] = won) -> None:
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                won.append(1)
            except FileExistsError:
                won.append(0)

        together(*(threading.Thread(target=create, args=(m / f"once{i}",)) for m in mounts))
        assert sorted(won) == [0, 1]


def test_a_file_open_here_survives_its_unlink_there(mounts: tuple[Path, Path]) -> None:
    a, b = mounts
    (a / "f").write_bytes(b"x" * 200_000)
    with (b / "f").open("rb") as file:
        assert file.read(5) == b"xxxxx"
        (a / "f").unlink()
        assert not (b / "f").exists()
        assert file.read() == b"x" * 199_995
