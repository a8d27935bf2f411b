"""The process behind a mount point."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivium.admin.cli.connect import run
from trivium.admin.errors import CommandError
from trivium.admin.logs import configure
from trivium.admin.processes.detach import announce, start_detached


@dataclass(frozen=True, slots=True)
class MountOptions:
    data: Path
    mountpoint: Path
    bucket: str = ""
    read_only: bool = False
    allow_other: bool | None = None
    io_timeout: float | None = None
    log_file: Path | None = None


def mount_in_background(options: MountOptions) -> None:
    """Start the process and return once the mount answers."""
    from trivium.fs.mount import check

    check_or_explain(check, options.mountpoint)
    name = hashlib.blake2b(str(options.mountpoint).encode(), digest_size=4).hexdigest()
    log = options.log_file or options.data / "run" / f"mount-{name}.log"
    arguments = ["mount", str(options.mountpoint), "--foreground", "--connect", str(options.data)]
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

    async with connect_pool(options.data, client=client, io_timeout=options.io_timeout) as pool:
        await run_mount(
            pool.metadata,
            pool.chunks,
            str(options.mountpoint),
            bucket=options.bucket or None,
            options=kernel,
            on_ready=ready,
        )


def wait_until_gone(mountpoint: Path, timeout_s: float = 90) -> None:
    """After fusermount3: wait for the process behind the mount to have sent what was unsent."""
    needle = [b"mount", str(mountpoint).encode(), b"--foreground"]
    deadline = time.monotonic() + timeout_s
    while any(_serves(entry, needle) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        if time.monotonic() > deadline:
            raise CommandError(f"the mount's process still runs after {timeout_s:.0f} s; its log says why.")
        time.sleep(0.02)


def _serves(process: Path, needle: list[bytes]) -> bool:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(words[i : i + 3] == needle for i in range(len(words)))
