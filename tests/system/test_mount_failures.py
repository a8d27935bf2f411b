"""Mounts when things go wrong: the pool dies and comes back, it stays away, it is full; and the options of a mount."""

from __future__ import annotations

import ast
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.pool import SystemPool, wait_for
from trivium.admin.processes.mount import servers

pytestmark = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK) or shutil.which("fusermount3") is None,
    reason="there is no /dev/fuse (or no fusermount3) to mount with",
)
MIB = 1 << 20


@contextmanager
def mounted(pool: SystemPool, name: str, *options: str) -> Iterator[Path]:
    mountpoint = pool.work / name
    mountpoint.mkdir()
    watchdog = threading.Timer(90, _kill, (mountpoint,))  # who waits for a mount cannot be killed: its server can
    watchdog.start()
    try:
        pool.trivium("mount", mountpoint, *options)
        yield mountpoint
    finally:
        watchdog.cancel()
        pool.trivium("umount", "--force", mountpoint, check=False)
        subprocess.run(["fusermount3", "-u", "-z", str(mountpoint)], capture_output=True, check=False)


def _kill(mountpoint: Path) -> None:
    for server in servers(mountpoint):
        os.kill(server.pid, signal.SIGKILL)


class Program:
    """Another process that has files open, told what to do line by line. (This one must not have any: who forks closes
    copies of descriptors, and closing waits for a pool that is away.)"""

    LOOP = "import os, sys\nfor line in sys.stdin:\n    print(repr(eval(line)), flush=True)"

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.LOOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def begin(self, expression: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(expression + "\n")
        self._process.stdin.flush()

    def answer(self) -> object:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the program failed"
        return ast.literal_eval(line)

    def __call__(self, expression: str) -> object:
        self.begin(expression)
        return self.answer()

    def end(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


def test_a_pool_that_is_killed_and_restarted_loses_nothing_of_open_files(pool: SystemPool) -> None:
    pool.up()
    program = Program()
    with mounted(pool, "m") as root:
        program(f"os.chdir({str(root)!r})")
        fd = program("os.open('f', os.O_RDWR | os.O_CREAT)")
        nameless = program("os.open('gone', os.O_RDWR | os.O_CREAT)")
        program(f"(os.write({nameless}, b'nameless'), os.unlink('gone'))")
        program(f"(os.pwrite({fd}, b'a' * {3 * MIB}, 0), os.fsync({fd}))")
        program(f"os.pwrite({fd}, b'b' * {2 * MIB}, {3 * MIB})")  # only the mount has it
        pool.kill()
        program.begin(f"(os.pwrite({fd}, b'c' * {MIB}, {5 * MIB}), os.fsync({fd}))")
        pool.up()
        assert program.answer() == (MIB, None)
        assert program(f"os.pread({nameless}, 100, 0)") == b"nameless"
        last = f"(os.write({nameless}, b'!'), os.fsync({nameless}), os.pread({nameless}, 100, 0))"
        assert program(last) == (1, None, b"nameless!")
        program(f"(os.close({fd}), os.close({nameless}), os.chdir('/'))")
        assert (root / "f").read_bytes() == b"a" * (3 * MIB) + b"b" * (2 * MIB) + b"c" * MIB
        assert os.listdir(root) == ["f"]
        program.end()


def test_unmounting_does_not_wait_for_a_pool_that_is_away(pool: SystemPool) -> None:
    pool.up()
    program = Program()
    with mounted(pool, "clean") as clean, mounted(pool, "dirty") as dirty:
        (clean / "kept").write_bytes(b"kept")
        (dirty / "d").mkdir()
        fd = program(f"os.open({str(dirty / 'd' / 'unsent')!r}, os.O_WRONLY | os.O_CREAT)")
        program(f"os.fsync({fd})")
        pool.kill()
        program(f"os.write({fd}, bytes(12_345))")
        pool.trivium("umount", clean)  # nothing was unsent
        busy = pool.trivium("umount", dirty, check=False)
        assert busy.returncode == 1 and "busy" in busy.stderr
        ended = pool.trivium("umount", "--force", dirty, check=False)
        assert ended.returncode == 1
        assert "d/unsent" in ended.stderr and "12345 bytes" in ended.stderr, ended.stderr
        program.end()


def test_a_bucket_is_mounted_alone_and_a_mount_may_be_read_only(running: SystemPool) -> None:
    s3 = running.boto()
    s3.create_bucket(Bucket="one")
    s3.create_bucket(Bucket="two")
    s3.put_object(Bucket="one", Key="dir/key", Body=b"by S3")
    with mounted(running, "b", "--bucket", "one") as bucket, mounted(running, "r", "--read-only") as reading:
        assert sorted(os.listdir(bucket)) == ["dir"] and (bucket / "dir" / "key").read_bytes() == b"by S3"
        (bucket / "dir" / "new").write_bytes(b"by mount")
        assert s3.get_object(Bucket="one", Key="dir/new")["Body"].read() == b"by mount"
        assert (reading / "one" / "dir" / "new").read_bytes() == b"by mount"
        os.rename(bucket / "dir" / "new", bucket / "top")
        assert sorted(os.listdir(reading / "one")) == ["dir", "top"]
        for change in (
            lambda: (reading / "one" / "x").write_bytes(b""),
            lambda: os.unlink(reading / "one" / "top"),
            lambda: os.mkdir(reading / "d"),
            lambda: os.truncate(reading / "one" / "top", 0),
        ):
            with pytest.raises(OSError) as caught:
                change()
            assert caught.value.errno == errno.EROFS
    (running.work / "n").mkdir()
    refused = running.trivium("mount", running.work / "n", "--bucket", "none", check=False)
    assert refused.returncode and "no bucket none" in refused.stderr and "Traceback" not in refused.stderr


# ---- full disks ---------------------------------------------------------------------------------------------


@contextmanager
def small_disk(path: Path, mebibytes: int) -> Iterator[None]:
    """A file system of its own at `path`."""
    path.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=700", "none", str(path)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], capture_output=True, check=False)


def fill(root: Path, step: int = 4 * MIB, most: int = 200) -> int:
    """Write files until the pool refuses; answers how many were taken whole."""
    for number in range(most):
        try:
            fd = os.open(root / f"fill{number}", os.O_WRONLY | os.O_CREAT)
            try:
                os.write(fd, os.urandom(step))
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            return number
    raise AssertionError("it was never full")


def test_a_full_pool_refuses_writes_and_takes_deletes(pool: SystemPool) -> None:
    from botocore.exceptions import ClientError

    with small_disk(pool.data / "drives", 400):
        pool.up("--drives", "3", "--profile", "2+1")
        s3 = pool.boto(retries={"max_attempts": 1})
        s3.create_bucket(Bucket="bucket")
        with mounted(pool, "m") as root:
            (root / "before").write_bytes(b"small and good")
            taken = fill(root)
            assert taken > 5
            with pytest.raises(ClientError) as caught:
                s3.put_object(Bucket="bucket", Key="k", Body=os.urandom(4 * MIB))
            status = caught.value.response["ResponseMetadata"]["HTTPStatusCode"]
            assert (status, caught.value.response["Error"]["Code"]) == (507, "InsufficientStorage")
            assert (root / "before").read_bytes() == b"small and good"
            os.mkdir(root / "names still work")
            for number in range(taken + 1):
                (root / f"fill{number}").unlink(missing_ok=True)

            def room_again() -> bool:
                try:
                    (root / "after").write_bytes(os.urandom(4 * MIB))
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    return False
                return True

            wait_for(room_again, "deletes to make room", 60)
        pool.trivium("down", "--connect", pool.data)


def test_a_full_disk_of_the_metadata_takes_deletes_and_loses_nothing(pool: SystemPool) -> None:
    from botocore.exceptions import ClientError

    with small_disk(pool.data / "metadata", 128):
        pool.up()
        s3 = pool.boto(retries={"max_attempts": 1})
        s3.create_bucket(Bucket="bucket")
        with mounted(pool, "m") as root:
            for number in range(50):
                (root / f"f{number}").write_bytes(b"%d" % number)
            hog = pool.data / "metadata" / "hog"
            left = os.statvfs(hog.parent)
            with hog.open("wb") as file:
                file.write(bytes(left.f_bavail * left.f_frsize - 20 * MIB))
            made: list[str] = []
            with pytest.raises(OSError) as full:  # the room is looked at five times a second: the first may pass
                for number in range(100_000):
                    (root / f"more{number}").mkdir()
                    made.append(f"more{number}")
            assert full.value.errno == errno.ENOSPC
            with pytest.raises(ClientError) as caught:
                s3.put_object(Bucket="bucket", Key="k", Body=b"x")
            assert caught.value.response["Error"]["Code"] == "InsufficientStorage"
            for number in range(40):
                (root / f"f{number}").unlink()
            left = os.statvfs(hog.parent)
            with hog.open("ab") as file:  # nothing is left at all: the ballast must do
                file.write(bytes(left.f_bavail * left.f_frsize))
            for number in range(40, 45):
                (root / f"f{number}").unlink()
            pool.kill()
            pool.up()
            assert sorted(os.listdir(root)) == sorted(["bucket", *made, *(f"f{n}" for n in range(45, 50))])
            hog.unlink()
            wait_for(lambda: _made(root / "more"), "room to be noticed", 30)
            assert [(root / f"f{n}").read_bytes() for n in range(45, 50)] == [b"%d" % n for n in range(45, 50)]
        pool.trivium("down", "--connect", pool.data)


def _made(path: Path) -> bool:
    try:
        path.mkdir()
    except OSError as error:
        assert error.errno == errno.ENOSPC
        return False
    return True


def test_a_mount_that_was_killed_is_replaced_by_the_next_and_a_living_one_is_not(pool: SystemPool) -> None:
    pool.up()
    with mounted(pool, "m") as m:
        run_in = [sys.executable, "-c", "import os, sys; os.stat(sys.argv[1]); print(os.listdir(sys.argv[1]))", str(m)]
        (m / "d").mkdir()
        assert pool.run(*run_in).stdout == "['d']\n"
        again = pool.trivium("mount", m, check=False)
        assert again.returncode == 4 and "already a trivium mount" in again.stderr
        (server,) = servers(m)
        os.kill(server.pid, signal.SIGKILL)
        wait_for(lambda: not servers(m), "the mount's process to be gone")
        pool.trivium("mount", m)
        assert pool.run(*run_in).stdout == "['d']\n"
