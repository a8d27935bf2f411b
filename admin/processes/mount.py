"""The process behind a mount point."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivium.admin.cli.connect import run
from trivium.admin.datadir import default_data_dir
from trivium.admin.errors import CommandError
from trivium.admin.logs import configure
from trivium.admin.processes.detach import announce, start_detached
from trivium.metadata.reach import Reach

CONNECT_S = 20.0


@dataclass(frozen=True, slots=True)
class MountOptions:
    reach: Reach
    mountpoint: Path
    bucket: str = ""
    read_only: bool = False
    allow_other: bool | None = None
    io_timeout: float | None = None
    log_file: Path | None = None

    @property
    def data(self) -> Path:
        """Where its own files are: log, what was lost."""
        return self.reach.directory


def mount_in_background(options: MountOptions) -> None:
    """Start the process and return once the mount answers."""
    from trivium.fs.mount import check

    check_or_explain(check, options.mountpoint)
    log = options.log_file or _beside_log(options.data, options.mountpoint, "log")
    arguments = ["mount", str(options.mountpoint), "--foreground", *options.reach.arguments]
    if options.bucket:
        arguments += ["--bucket", options.bucket]
    if options.read_only:
        arguments.append("--read-only")
    if options.allow_other is not None:
        arguments.append("--allow-other" if options.allow_other else "--no-allow-other")
    if options.io_timeout is not None:
        arguments += ["--io-timeout", str(options.io_timeout)]
    start_detached(arguments, log)


def mount_in_foreground(options: MountOptions) -> None:
    """Serve until unmounted."""
    from trivium.fs.mount import check

    check_or_explain(check, options.mountpoint)
    configure("text", "info")
    run(_serve, options)


def check_or_explain(check: Any, mountpoint: Path) -> None:
    from trivium.cluster.errors import Refused

    try:
        check(str(mountpoint))
    except Refused as error:
        raise CommandError(f"{error} (trivium doctor says more)", 4) from None


async def _serve(options: MountOptions) -> None:
    from trivium.fs.mount import run_mount
    from trivium.metadata.pool import connect_pool

    kernel = ["ro"] if options.read_only else []
    if options.allow_other is not None:
        kernel.append("allow_other" if options.allow_other else "noallow_other")
    client = f"mount {options.mountpoint}"

    def ready() -> None:
        announce({"mountpoint": str(options.mountpoint)})

    def lost(lines: list[str]) -> None:
        with contextlib.suppress(OSError):  # it is in the log, too
            _beside_log(options.data, options.mountpoint, "lost").write_text("\n".join(lines) + "\n")

    _beside_log(options.data, options.mountpoint, "lost").unlink(missing_ok=True)
    async with connect_pool(
        options.reach, client=client, io_timeout=options.io_timeout, connect_timeout=CONNECT_S
    ) as pool:
        await run_mount(
            pool.metadata,
            pool.chunks,
            str(options.mountpoint),
            bucket=options.bucket or None,
            options=kernel,
            on_ready=ready,
            on_lost=lost,
        )


def _beside_log(data: Path, mountpoint: Path, what: str) -> Path:
    name = hashlib.blake2b(str(mountpoint).encode(), digest_size=4).hexdigest()
    return data / "run" / f"mount-{name}.{what}"


# ---- from outside -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Server:
    """The process behind a mount point."""

    pid: int
    data: Path
    mountpoint: Path

    @property
    def alive(self) -> bool:
        return _served(self.pid, self.mountpoint) is not None

    def stop(self) -> None:
        """End it whoever uses it: what it can send it sends, the rest is lost."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def lost(self) -> list[str]:
        """What it could not send; said once."""
        path = _beside_log(self.data, self.mountpoint, "lost")
        try:
            lines = path.read_text().splitlines()
            path.unlink()
        except OSError:
            return []
        return lines


def servers(mountpoint: Path) -> list[Server]:
    found = []
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        data = _served(pid, mountpoint)
        if data is not None:
            found.append(Server(pid, data, mountpoint))
    return found


def _served(pid: int, mountpoint: Path) -> Path | None:
    """The data directory of a process that serves this mount point."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    for i in _places(words, [b"mount", os.fsencode(mountpoint), b"--foreground", b"--connect"]):
        return Reach.parse(os.fsdecode(words[i + 4]), "", default_data_dir()).directory
    return None


def _places(words: Sequence[bytes], needle: Sequence[bytes]) -> Iterator[int]:
    return (i for i in range(len(words) - len(needle)) if list(words[i : i + len(needle)]) == list(needle))


def wait_until_gone(gone: Sequence[Server], timeout_s: float = 90) -> None:
    """After fusermount3: wait for the process behind the mount to have sent what was unsent."""
    deadline = time.monotonic() + timeout_s
    while any(server.alive for server in gone):
        if time.monotonic() > deadline:
            raise CommandError(f"the mount's process still runs after {timeout_s:.0f} s; its log says why.")
        time.sleep(0.02)
