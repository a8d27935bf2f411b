#!/usr/bin/env python3
"""The main job end to end, on an embedded pool in a temporary directory, with real clients.

A real tree goes in by S3 and comes out on the mount, files written on the mount come out by S3, a volume carries a file
system through NBD; then two of six drives are wiped, replaced and healed, and every process is killed with -9. After
each step the data is compared byte by byte. Exits 0 only if everything was identical. Everything that it starts it
ends, and the temporary directory goes with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

BIN = Path(sys.executable).parent
TRIVIUM = str(BIN / "trivium")
FILES = 1200
STARTED = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:5.1f} s] {text}", flush=True)


def run(*command: str | Path, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if check and done.returncode:
        raise SystemExit(
            f"demo: {' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
    return done  # type: ignore[no-any-return]


def trivium(*arguments: str | Path) -> str:
    return run(TRIVIUM, *arguments).stdout


def real_tree(target: Path) -> int:
    """A copy of real files of this machine: Python's own library, all sizes, nested."""
    source = Path(os.__file__).parent
    skipped = {"__pycache__", "site-packages", "dist-packages"}
    files = [
        path
        for path in sorted(source.rglob("*"))
        if path.is_file() and not path.is_symlink() and not skipped & set(path.parts)
    ]
    extra = [path for path in sorted(Path("/usr/share/doc").rglob("*")) if path.is_file() and not path.is_symlink()]
    chosen = [(path, path.relative_to("/")) for path in (files + extra)[:FILES]]
    for path, name in chosen:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)
    random.seed(6)
    (target / "large.bin").write_bytes(random.randbytes(24 << 20))  # several chunks, and not compressible
    (target / "empty").touch()
    return sum(1 for path in target.rglob("*") if path.is_file())


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same(left: Path, right: Path, what: str) -> None:
    done = run("diff", "-r", left, right, check=False)
    if done.returncode:
        raise SystemExit(f"demo: {what} differ:\n{done.stdout[:2000]}{done.stderr[:2000]}")
    say(f"identical: {what}")


class Pool:
    """The processes of one data directory, started through the command line only."""

    def __init__(self, work: Path) -> None:
        self.work, self.data = work, work / "pool"
        self.mountpoint, self.socket, self.device = work / "mnt", work / "nbd.sock", work / "device"
        self.mountpoint.mkdir()
        self.s3 = "127.0.0.1:0"
        for name in [name for name in os.environ if name.startswith(("AWS_", "RCLONE_", "TRIVIUM_ROOT_"))]:
            del os.environ[name]  # the caller's own settings are for other endpoints
        os.environ["TRIVIUM_CONNECT"] = str(self.data)

    def up(self) -> None:
        trivium("up", "--data", self.data, "--s3-listen", self.s3, "--detach")
        for line in trivium("credential", "show", "--env").splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            os.environ[name] = value
        self.s3 = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
        os.environ.update(
            RCLONE_CONFIG=str(self.work / "rclone.conf"), RCLONE_CONFIG_T_TYPE="s3", RCLONE_CONFIG_T_PROVIDER="Other",
            RCLONE_CONFIG_T_ENV_AUTH="true", RCLONE_CONFIG_T_ENDPOINT=os.environ["AWS_ENDPOINT_URL"],
            RCLONE_CONFIG_T_REGION="us-east-1",
        )  # fmt: skip
        (self.work / "rclone.conf").touch()

    def attach(self) -> None:
        trivium("mount", self.mountpoint)
        trivium("nbd", "serve", "--socket", self.socket, "--pid-file", self.work / "nbd.pid", "--detach")

    def detach_nbd(self) -> None:
        pid = int((self.work / "nbd.pid").read_text())
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not alive(pid), "nbdkit to end")

    def pids(self) -> list[int]:
        """Every process that serves this data directory (their command lines name it)."""
        mine = str(self.data).encode()
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mine in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                    found.append(int(entry.name))
        return found

    def kill_all(self) -> None:
        pids = self.pids()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(alive(pid) for pid in pids), "killed processes to be gone")
        run("fusermount3", "-u", "-z", self.mountpoint, check=False)
        say(f"killed {len(pids)} processes with -9")

    @contextlib.contextmanager
    def disk(self) -> Iterator[Path]:
        """The volume as a file of this machine (nbdfuse)."""
        self.device.touch()
        command = ["nbdfuse", str(self.device), f"nbd+unix:///disk?socket={self.socket}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            wait_for(lambda: self.device.stat().st_size > 0 or process.poll() is not None, "nbdfuse")
            if process.poll() is not None:
                assert process.stderr
                raise SystemExit(f"demo: nbdfuse: {process.stderr.read().decode()}")
            yield self.device
        finally:
            run("fusermount3", "-u", self.device, check=False)
            process.wait(20)

    @contextlib.contextmanager
    def ext4(self) -> Iterator[Path]:
        """The file system on the volume, mounted through a loop device."""
        target = self.work / "ext4"
        target.mkdir(exist_ok=True)
        with self.disk() as device:
            run("mount", "-o", "loop", device, target)
            try:
                yield target
            finally:
                run("umount", target)

    def clean_up(self) -> None:
        run("umount", self.work / "ext4", check=False)
        for path in (self.device, self.mountpoint):
            run("fusermount3", "-u", "-z", path, check=False)
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def wipe(drive: Path) -> None:
    """Remove a drive's directory while it is written to."""
    while drive.exists():
        shutil.rmtree(drive, ignore_errors=True)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: object, what: str, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise SystemExit(f"demo: waited {timeout_s:.0f} s for {what}")
        time.sleep(0.02)


def rclone(*arguments: str | Path) -> None:
    run("rclone", "--transfers", "16", "--checkers", "16", *arguments)


def job(work: Path) -> None:
    pool, tree, back = Pool(work), work / "tree", work / "back"
    tree.mkdir()
    count = real_tree(tree)

    pool.up()
    say(f"a pool of six drives (4+2) at {pool.data}, S3 at {pool.s3}")
    pool.attach()
    trivium("volume", "create", "disk", "256M")

    rclone("copy", tree, "t:tree")
    say(f"{count} files in by S3 (rclone)")
    same(tree, pool.mountpoint / "tree", "S3 in, mount out")

    shutil.copytree(tree / "usr", pool.mountpoint / "tree2" / "usr")
    (pool.mountpoint / "tree2" / "notes.txt").write_text("written on the mount\n")
    (tree / "notes.txt").write_text("written on the mount\n")
    rclone("copy", "t:tree2", back)
    same(tree / "usr", back / "usr", "mount in, S3 out")
    run("aws", "s3", "cp", "s3://tree2/notes.txt", work / "notes.txt")
    assert (work / "notes.txt").read_text() == (tree / "notes.txt").read_text()

    with pool.disk() as device:
        run("mkfs.ext4", "-q", "-F", device)
    with pool.ext4() as mounted:
        shutil.copyfile(tree / "large.bin", mounted / "large.bin")
        shutil.copytree(tree / "usr", mounted / "usr")
    with pool.disk() as device:
        run("e2fsck", "-fn", device)
    say("ext4 on a volume through NBD: e2fsck finds nothing")
    pool.detach_nbd()
    trivium("nbd", "serve", "--socket", pool.socket, "--pid-file", work / "nbd.pid", "--detach")
    with pool.ext4() as mounted:
        assert checksum(mounted / "large.bin") == checksum(tree / "large.bin")
        same(tree / "usr", mounted / "usr", "the volume after it was attached again")

    for name in ("d1", "d4"):
        wipe(pool.data / "drives" / name)
    say("wiped drives d1 and d4")
    same(tree / "usr", pool.mountpoint / "tree" / "usr", "mount with two drives gone")
    rclone("check", "--download", tree, "t:tree", "--exclude", "notes.txt")
    say("identical: S3 with two drives gone")
    with pool.ext4() as mounted:
        assert checksum(mounted / "large.bin") == checksum(tree / "large.bin")
        (mounted / "late").write_text("with two drives gone\n")
    rclone("copy", tree / "usr", "t:late/usr")
    say("new data goes in with two drives gone (S3 and volume)")
    for name in ("d1", "d4"):
        trivium("drive", "replace", name)
    report = json.loads(trivium("status", "--json"))
    if not report["whole"]:
        raise SystemExit(f"demo: the pool is not whole after replacing both drives: {report}")
    say(f"both drives replaced and healed: {report['summary']}")

    pool.kill_all()
    began = time.monotonic()
    pool.up()
    say(f"up again {time.monotonic() - began:.1f} s after kill -9")
    pool.attach()
    same(tree / "usr", pool.mountpoint / "tree" / "usr", "mount after kill -9")
    same(tree / "usr", pool.mountpoint / "late" / "usr", "late data after kill -9")
    rclone("check", "--download", tree, "t:tree2", "--exclude", "large.bin", "--exclude", "empty")
    with pool.ext4() as mounted:
        assert checksum(mounted / "large.bin") == checksum(tree / "large.bin")
        assert (mounted / "late").read_text() == "with two drives gone\n"
    say("identical: S3 and volume after kill -9")
    trivium("fsck")
    say("fsck finds nothing")
    pool.detach_nbd()
    trivium("umount", pool.mountpoint)
    trivium("down")
    say("demo: everything was identical at every step")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="trivium-demo-", dir=os.environ.get("TRIVIUM_DEMO_DIR")) as directory:
        pool_data = Path(directory)
        try:
            job(pool_data)
        finally:
            cleaner = Pool.__new__(Pool)
            cleaner.work, cleaner.data = pool_data, pool_data / "pool"
            cleaner.mountpoint, cleaner.device = pool_data / "mnt", pool_data / "device"
            cleaner.clean_up()


if __name__ == "__main__":
    main()
