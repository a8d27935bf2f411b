"""A pool for measuring: started and stopped through the command line, in a directory of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TRIVIUM = str(Path(sys.executable).parent / "trivium")


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench: {' '.join(map(str, command))}: {done.stderr or done.stdout}")
    return done.stdout


def drop_caches() -> None:
    """Cold reads need it; without root they are warm, and the report says so (`cold` is false)."""
    os.sync()
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3\n")


@dataclass(frozen=True, slots=True)
class BenchPool:
    data: Path
    mountpoint: Path
    nbd_socket: Path
    endpoint: str
    access_key: str
    secret_key: str


@contextlib.contextmanager
def bench_pool(work: Path) -> Iterator[BenchPool]:
    data, mountpoint, socket = work / "pool", work / "mnt", work / "nbd.sock"
    mountpoint.mkdir()
    os.environ["TRIVIUM_CONNECT"] = str(data)
    run(TRIVIUM, "up", "--data", data, "--s3-listen", "127.0.0.1:0", "--detach")
    try:
        words = run(TRIVIUM, "credential", "show", "--env").replace("export ", "").splitlines()
        env = dict(line.split("=", 1) for line in words)
        run(TRIVIUM, "mount", mountpoint)
        run(TRIVIUM, "volume", "create", "bench", "1G")
        run(TRIVIUM, "nbd", "serve", "--socket", socket, "--pid-file", work / "nbd.pid", "--detach")
        yield BenchPool(
            data, mountpoint, socket, env["AWS_ENDPOINT_URL"], env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"]
        )
    finally:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((work / "nbd.pid").read_text()), 15)
        subprocess.run(["fusermount3", "-u", "-z", str(mountpoint)], capture_output=True, check=False)
        subprocess.run([TRIVIUM, "down"], capture_output=True, check=False)
