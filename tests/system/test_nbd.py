"""Volumes through the real nbdkit with the tools that people use."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.pool import SystemPool, alive, wait_for

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("nbdkit", "nbdinfo", "nbdcopy"))), reason="needs nbdkit and libnbd-bin"
)

SHELL = """
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
exec(sys.stdin.read())
"""

HOLD = (
    SHELL
    + """
print("open", flush=True)
import time
time.sleep(100)
"""
)


class Export:
    def __init__(self, pool: SystemPool, name: str) -> None:
        self.pool, self.name = pool, name
        self.socket, self.pid_file = pool.work / f"{name}.sock", pool.work / f"{name}.pid"
        self.uri = f"nbd+unix:///{name}?socket={self.socket}"

    def start(self, *options: str) -> None:
        self.pool.trivium("nbd", "serve", "--socket", self.socket, "--detach", "--pid-file", self.pid_file, *options)

    @property
    def pid(self) -> int:
        return int(self.pid_file.read_text())

    def stop(self, how: int = signal.SIGTERM) -> None:
        pid = self.pid
        os.kill(pid, how)
        wait_for(lambda: not alive(pid), "nbdkit to be gone")

    def shell(self, script: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run libnbd statements (`h` is connected) under the system's Python, away from this folder's `nbd`."""
        done = subprocess.run(
            ["/usr/bin/python3", "-c", SHELL, self.uri],
            input=script, text=True, capture_output=True, cwd=self.pool.work, timeout=100, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr + self.pool.log()
        return done


@pytest.fixture(scope="module")
def export(running: SystemPool) -> Iterator[Export]:
    running.trivium("volume", "create", "disk", "64M")
    disk = Export(running, "disk")
    disk.start()
    try:
        yield disk
    finally:
        disk.stop()


def test_nbdinfo_sees_an_honest_device(export: Export) -> None:
    info = json.loads(export.pool.run("nbdinfo", "--json", export.uri).stdout)["exports"][0]
    assert info["export-size"] == 64 << 20
    for ability in ("can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"):
        assert info[ability], ability
    assert not info["is_read_only"] and not info["is_rotational"]
    listed = json.loads(export.pool.run("nbdinfo", "--list", "--json", f"nbd+unix:///?socket={export.socket}").stdout)
    assert [entry["export-name"] for entry in listed["exports"]] == ["disk"]


def test_random_requests_agree_with_a_bytearray(export: Export) -> None:
    export.shell(
        """
import random
r, size = random.Random(7), 8 << 20
model = bytearray(size)
h.zero(size, 0)
for i in range(600):
    offset, dice = r.randrange(size), r.random()
    length = min(size - offset, r.choice([1, 100, 512, 4096, 5000, 70000, 700000]))
    if dice < .5:
        data = r.randbytes(length)
        h.pwrite(data, offset)
        model[offset:offset + length] = data
    elif dice < .65:
        h.zero(length, offset)
        model[offset:offset + length] = bytes(length)
    elif dice < .75:
        offset = offset // 4096 * 4096
        h.trim(4096, offset)
        model[offset:offset + 4096] = bytes(4096)
    elif dice < .8:
        h.flush()
    else:
        assert h.pread(length, offset) == model[offset:offset + length], (i, offset, length)
assert h.pread(size, 0) == model
h.shutdown()
h = nbd.NBD()
h.connect_uri(sys.argv[1])
assert h.pread(size, 0) == model, "after the lease was given back and taken again"
"""
    )


def test_nbdcopy_and_holes(export: Export, tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.write(random.Random(1).randbytes(5 << 20))
        file.truncate(64 << 20)
    export.pool.run("nbdcopy", image, export.uri)
    back = tmp_path / "back"
    export.pool.run("nbdcopy", export.uri, back)
    assert back.read_bytes() == image.read_bytes()
    extents = json.loads(export.pool.run("nbdinfo", "--map", "--json", export.uri).stdout)
    assert sum(extent["length"] for extent in extents if extent["type"] == 0) == 5 << 20
    if shutil.which("qemu-img"):
        export.pool.run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, export.uri)


def test_errors_have_the_right_errno(export: Export) -> None:
    export.shell(
        """
import errno
h.set_strict_mode(0)
beyond = (
    (lambda: h.pread(4096, 64 << 20), errno.EINVAL),
    (lambda: h.pwrite(b"x" * 8192, (64 << 20) - 4096), errno.ENOSPC),
)
for request, code in beyond:
    try:
        request()
    except nbd.Error as error:
        assert error.errnum == code, error
    else:
        raise SystemExit("it was not refused")
assert len(h.pread(4096, 0)) == 4096
"""
    )


def test_an_unknown_export_is_refused(export: Export) -> None:
    done = export.pool.run("nbdinfo", f"nbd+unix:///nosuch?socket={export.socket}", check=False)
    assert done.returncode != 0
    assert "there is no volume nosuch" in (export.pool.data / "run" / "nbd.log").read_text()


@pytest.mark.skipif(shutil.which("fio") is None, reason="needs fio")
def test_fio_verifies_what_it_wrote(export: Export) -> None:
    done = export.pool.run(
        *("fio", "--name=verify", "--ioengine=nbd", "--rw=randwrite", "--bs=4k-64k", "--size=16M", "--iodepth=8"),
        *("--fsync=32", "--verify=crc32c", "--do_verify=1", "--verify_state_save=0", f"--uri={export.uri}"),
    )
    assert "err= 0" in done.stdout


def test_a_second_server_is_refused_clearly_and_may_take_over(running: SystemPool, export: Export) -> None:
    running.trivium("volume", "create", "shared", "16M")
    one, two = Export(running, "shared"), Export(running, "other")
    two.uri = f"nbd+unix:///shared?socket={two.socket}"
    one.start()
    holder = subprocess.Popen(
        ["/usr/bin/python3", "-c", HOLD,
         one.uri],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=running.work,
    )  # fmt: skip
    try:
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdin.write("h.pwrite(b'a' * 4096, 0); h.flush()")
        holder.stdin.close()
        assert holder.stdout.readline() == "open\n"
        two.start()
        assert two.shell("", check=False).returncode != 0
        assert "volume shared is in use" in (running.data / "run" / "nbd.log").read_text()
        two.stop()
        two.start("--takeover", "break")
        two.shell("assert h.pread(4096, 0) == b'a' * 4096; h.pwrite(b'b' * 4096, 0); h.flush()")
        two.stop()
    finally:
        holder.kill()
        holder.wait()
        one.stop()


def test_what_was_flushed_survives_kill_9(running: SystemPool) -> None:
    running.trivium("volume", "create", "killed", "16M")
    disk = Export(running, "killed")
    for n in range(3):
        disk.start("--takeover", "break")
        if n:
            disk.shell(f"assert h.pread(1 << 20, 0) == b'{n - 1}' * (1 << 20)")
        disk.shell(
            f"""
h.pwrite(b'{n}' * (1 << 20), 0)
h.flush()
h.pwrite(b'x' * 4096, 8 << 20)
import os
os.kill({disk.pid}, 9)
"""
        )
        wait_for(lambda: not alive(disk.pid), "nbdkit to be gone")
