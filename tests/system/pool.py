"""Real pools for system tests: real processes started through the command line, always cleaned up."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TRIVIUM = str(Path(sys.executable).parent / "trivium")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wipe(drive: Path) -> None:
    """Remove a drive's directory while it is written to."""
    while drive.exists():
        shutil.rmtree(drive, ignore_errors=True)


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    """Wait for another process's doing: its state is polled, nothing is assumed about how long it takes."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(0.01)


class SystemPool:
    """One data directory and the processes that serve it."""

    def __init__(self, work: Path) -> None:
        self.work, self.data = work, work / "pool"
        self.listen = "127.0.0.1:0"
        self.env = {
            name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "TRIVIUM_", "RCLONE_"))
        }
        self.env |= {
            "TRIVIUM_CONNECT": str(self.data),
            "HOME": str(work),
            "PATH": f"{Path(TRIVIUM).parent}:{os.environ['PATH']}",
        }

    def run(
        self, *command: str | Path, check: bool = True, timeout_s: float = 120, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            env=self.env,
            timeout=timeout_s,
            check=False,
            input=stdin,
        )
        text = subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )
        assert not check or text.returncode == 0, (
            f"{' '.join(map(str, command))} -> {text.returncode}\n{text.stdout}\n{text.stderr}\n{self.log()}"
        )
        return text

    def trivium(
        self, *arguments: str | Path, check: bool = True, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        return self.run(TRIVIUM, *arguments, check=check, stdin=stdin)

    def up(self, *arguments: str) -> None:
        self.trivium("up", "--data", self.data, "--s3-listen", self.listen, "--detach", *arguments)
        for line in self.trivium("credential", "show", "--env").stdout.splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            self.env[name] = value
        self.listen = self.endpoint.removeprefix("http://")

    def up_again(self) -> None:
        """After a kill: the same address, the same credentials."""
        self.trivium("up", "--data", self.data, "--s3-listen", self.listen, "--detach")

    @property
    def endpoint(self) -> str:
        return self.env["AWS_ENDPOINT_URL"]

    @property
    def pid(self) -> int:
        from trivium.admin.lock import holder_of

        return holder_of(self.data / "metadata" / "lock") or 0

    def log(self) -> str:
        with contextlib.suppress(OSError):
            return (self.data / "run" / "up.log").read_text()[-3000:]
        return ""

    def kill(self) -> None:
        """kill -9 of the pool's process."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not alive(pid), "the killed process to be gone")

    def boto(self, **config: object):  # type: ignore[no-untyped-def]
        import boto3
        from botocore.client import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.env["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
            config=Config(**config) if config else None,
        )

    def pids(self) -> list[int]:
        """Every process whose command line names this data directory."""
        mine, found = str(self.data).encode(), []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mine in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                    found.append(int(entry.name))
        return found

    def mounts(self) -> list[str]:
        lines = Path("/proc/self/mounts").read_text().splitlines()
        return [line.split()[1] for line in lines if line.split()[1].startswith(str(self.work))]

    def clean_up(self) -> None:
        for mount in self.mounts():
            subprocess.run(["fusermount3", "-u", "-z", mount], capture_output=True, check=False)
            subprocess.run(["umount", "-l", mount], capture_output=True, check=False)
        pids = self.pids()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(alive(pid) for pid in pids), "processes to be gone")
