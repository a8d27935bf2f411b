"""The block export: this process becomes nbdkit (or starts it and waits until it listens)."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from pathlib import Path

from trivium.admin.errors import CommandError
from trivium.metadata.reach import Reach

MAX_SOCKET_PATH = 107  # bytes: sun_path without its zero


def serve_nbd(
    reach: Reach,
    socket_path: Path,
    *,
    detach: bool,
    pid_file: Path | None,
    read_only: bool,
    takeover: str,
    threads: int,
) -> None:
    """Serve all volumes at `socket_path`. Without `detach` does not return."""
    from trivium.nbd.errors import VolumeError
    from trivium.nbd.serve import command, remove_stale

    if len(os.fsencode(socket_path)) > MAX_SOCKET_PATH:
        raise CommandError(f"{socket_path}: a socket's path has at most {MAX_SOCKET_PATH} bytes; choose a shorter one.")
    try:
        remove_stale(str(socket_path))
    except VolumeError as error:
        raise CommandError(f"{error}; choose another --socket, or stop that process first.", 5) from None
    data = reach.directory
    (data / "run").mkdir(mode=0o700, parents=True, exist_ok=True)
    if detach and pid_file is None:
        pid_file = data / "run" / f"nbd-{hashlib.blake2b(str(socket_path).encode(), digest_size=4).hexdigest()}.pid"
    if pid_file is not None:
        pid_file.unlink(missing_ok=True)
    try:
        argv, env = command(
            reach, socket_path, read_only=read_only, takeover=takeover, threads=threads, pid_file=pid_file
        )
    except VolumeError as error:
        raise CommandError(str(error), 4) from None
    os.umask(0o177)
    if not detach:
        os.execve(argv[0], argv, env)
    log = data / "run" / "nbd.log"
    with log.open("ab") as output:
        child = subprocess.Popen(
            argv, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/"
        )
    _wait_until_it_listens(child, pid_file, log)


def _wait_until_it_listens(child: subprocess.Popen[bytes], pid_file: Path | None, log: Path) -> None:
    """nbdkit writes its process id once it listens."""
    assert pid_file is not None
    deadline = time.monotonic() + 60
    while not (pid_file.exists() and pid_file.read_text().endswith("\n")):
        if (status := child.poll()) is not None or time.monotonic() > deadline:
            lines = log.read_text(errors="replace").strip().splitlines()
            words = lines[-1] if lines else f"nbdkit ended with status {status}"
            raise CommandError(f"{words} (log: {log})")
        time.sleep(0.02)
