"""The kernel mount over a pool in a server process: what programs do, errors, signals, two views of one name."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK) or shutil.which("fusermount3") is None,
    reason="there is no /dev/fuse (or no fusermount3) to mount with",
)
ROOT = Path(__file__).resolve().parents[2]


class Server:
    def __init__(self, directory: Path) -> None:
        self.mountpoint = directory / "mnt"
        self.mountpoint.mkdir()
        (directory / "data").mkdir()
        self.log = (directory / "log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.system.fsserver", str(self.mountpoint), str(directory / "data")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n", (directory / "log").read_text()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def close(self) -> None:
        subprocess.run(["fusermount3", "-u", "-z", str(self.mountpoint)], capture_output=True, check=False)
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("mount"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def root(server: Server, request: pytest.FixtureRequest) -> Iterator[Path]:
    directory = server.mountpoint / request.node.name[:60]
    directory.mkdir()
    yield directory
    shutil.rmtree(directory)


def test_create_write_read_rename_list(root: Path) -> None:
    data = os.urandom(9 << 20)
    (root / "big").write_bytes(data)
    (root / "small").write_bytes(b"hello")
    assert (root / "big").read_bytes() == data
    os.rename(root / "small", root / "renamed")
    assert sorted(os.listdir(root)) == ["big", "renamed"]
    assert (root / "renamed").stat().st_size == 5
    assert (root / "big").stat().st_blocks >= len(data) // 512
    with pytest.raises(FileNotFoundError):
        (root / "small").stat()


def test_many_names(root: Path) -> None:
    for i in range(700):
        (root / f"file{i:04}").touch()
    assert sorted(os.listdir(root)) == [f"file{i:04}" for i in range(700)]
    for name in os.listdir(root):
        os.unlink(root / name)
    assert os.listdir(root) == []


def test_open_files_outlive_their_names(root: Path) -> None:
    path = root / "f"
    path.write_bytes(b"x" * 100_000)
    with path.open("r+b") as f:
        path.unlink()
        f.write(b"y")
        f.flush()
        os.fsync(f.fileno())
        f.seek(0)
        assert f.read() == b"y" + b"x" * 99_999
        assert os.fstat(f.fileno()).st_nlink == 0


def test_appends_of_two_descriptors(root: Path) -> None:
    a = os.open(root / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    b = os.open(root / "log", os.O_WRONLY | os.O_APPEND)
    for i in range(50):
        os.write(a if i % 2 else b, b"%03d\n" % i)
    os.close(a)
    os.close(b)
    assert (root / "log").read_bytes() == b"".join(b"%03d\n" % i for i in range(50))


def test_mapped_writes(root: Path) -> None:
    import mmap

    with (root / "m").open("w+b") as f:
        f.truncate(1 << 20)
        with mmap.mmap(f.fileno(), 1 << 20) as mapped:
            mapped[5000:5005] = b"hello"
            mapped.flush()
    assert (root / "m").read_bytes()[5000:5005] == b"hello"


def test_links_modes_times_and_attributes(root: Path) -> None:
    path = root / "f"
    path.write_bytes(b"data")
    os.symlink("f", root / "l")
    os.link(path, root / "h")
    assert os.readlink(root / "l") == "f" and path.stat().st_nlink == 2
    os.chmod(path, 0o600)
    os.utime(path, ns=(123_456_789, 987_654_321))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (123_456_789, 987_654_321)
    os.setxattr(path, "user.a", b"value")
    assert os.getxattr(path, "user.a") == b"value" and os.listxattr(path) == ["user.a"]
    assert os.getxattr(path, "trivium.ino") == b"%d" % path.stat().st_ino
    with pytest.raises(OSError) as caught:
        os.getxattr(path, "system.posix_acl_access")
    assert caught.value.errno == errno.EOPNOTSUPP


def test_errors(root: Path) -> None:
    (root / "d").mkdir()
    (root / "d" / "f").touch()
    for number, call in (
        (errno.ENOTEMPTY, lambda: os.rmdir(root / "d")),
        (errno.EEXIST, lambda: os.mkdir(root / "d")),
        (errno.EINVAL, lambda: os.rename(root / "d", root / "d" / "x")),
        (errno.ENOTDIR, lambda: os.listdir(root / "d" / "f")),
        (errno.ENAMETOOLONG, lambda: os.mkdir(root / ("x" * 256))),
        (errno.ENOENT, lambda: os.unlink(root / "none")),
        (errno.EISDIR, lambda: os.unlink(root / "d")),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == number


def test_free_space_is_the_pools(root: Path) -> None:
    info = os.statvfs(root)
    assert info.f_blocks > info.f_bfree > 0 and info.f_namemax == 255


def test_sqlite(root: Path) -> None:
    for mode in ("delete", "wal"):
        with sqlite3.connect(root / f"{mode}.db") as db:
            db.execute(f"pragma journal_mode={mode}")
            db.execute("create table t (a integer primary key, b blob)")
            for i in range(20):
                db.executemany("insert into t (b) values (?)", [(os.urandom(500),) for _ in range(20)])
                db.commit()
                db.execute("delete from t where a % 7 = ?", (i % 7,))
            assert db.execute("pragma integrity_check").fetchone() == ("ok",)
        db.close()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git(root: Path) -> None:
    environment = dict(os.environ, GIT_AUTHOR_NAME="a", GIT_AUTHOR_EMAIL="a@b", HOME=str(root))
    environment |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b", "GIT_CONFIG_GLOBAL": "/dev/null"}

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments], cwd=root, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return run.stdout

    git("init", "-q", ".")
    for i in range(30):
        (root / f"f{i}").write_text(f"{i}\n" * 100)
    git("add", "-A")
    git("commit", "-qm", "one")
    (root / "f3").write_text("changed\n")
    git("commit", "-qam", "two")
    git("gc", "-q")
    git("fsck", "--full")
    assert git("status", "--short") == ""


def test_a_copy_keeps_everything(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for i in range(20):
        (source / f"d{i % 3}").mkdir(parents=True, exist_ok=True)
        (source / f"d{i % 3}" / f"f{i}").write_bytes(os.urandom(i * 3000))
        os.chmod(source / f"d{i % 3}" / f"f{i}", 0o600 + i)
    os.symlink("d0", source / "link")
    subprocess.run(["cp", "-a", str(source), str(root / "copy")], check=True)
    subprocess.run(["diff", "-r", str(source), str(root / "copy")], check=True)
    want = subprocess.run(["tar", "c", "--sort=name", "-C", source, "."], check=True, capture_output=True).stdout
    got = subprocess.run(["tar", "c", "--sort=name", "-C", root / "copy", "."], check=True, capture_output=True).stdout
    assert want == got


def test_a_signal_sends_what_is_unsent_and_unmounts(tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        descriptor = os.open(server.mountpoint / "f", os.O_CREAT | os.O_WRONLY)
        os.write(descriptor, b"unsent")
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 20
        assert not os.path.ismount(server.mountpoint)
        os.close(descriptor)
    except OSError as error:  # closing a descriptor of a mount that went
        assert error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    finally:
        server.close()


def test_umount_ends_the_process(tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        (server.mountpoint / "f").write_bytes(b"x" * 100_000)
        subprocess.run(["fusermount3", "-u", str(server.mountpoint)], check=True)
        assert server.process.wait(20) == 0
    finally:
        server.close()
