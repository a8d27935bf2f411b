"""How nbdkit is started: its command line and environment."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from trivium.metadata.reach import Reach
from trivium.nbd.errors import VolumeError

PLUGIN = Path(__file__).resolve().parent / "plugin.py"


def command(
    where: str | os.PathLike[str] | Reach,
    socket_path: str | os.PathLike[str],
    *,
    volume: str = "",
    read_only: bool = False,
    takeover: str = "fail",
    threads: int = 16,
    cache: str = "",
    pid_file: str | os.PathLike[str] | None = None,
    log: str = "info",
    options: Sequence[str] = (),
) -> tuple[list[str], dict[str, str]]:
    """argv and environment of an nbdkit in the foreground that exports the pool's volumes on a Unix socket.

    `options` are more nbdkit options (`--tls=require` …). A stale socket file is removed; the socket is mode 0600.
    """
    nbdkit = shutil.which("nbdkit")
    if nbdkit is None:
        raise VolumeError("nbdkit is not installed: apt install nbdkit nbdkit-plugin-python")
    remove_stale(os.fspath(socket_path))
    argv = [nbdkit, "--foreground", "--unix", os.fspath(socket_path), "--threads", str(threads), *options]
    if read_only:
        argv.append("--readonly")
    if pid_file is not None:
        argv += ["--pidfile", os.fspath(pid_file)]
    reach = where if isinstance(where, Reach) else Reach(Path(os.path.abspath(where)))
    argv += ["python", str(PLUGIN), f"connect={reach}", f"takeover={takeover}", f"log={log}"]
    if reach.key_file is not None and not reach.local:
        argv.append(f"identity={reach.key_file}")
    argv += [f"volume={volume}"] if volume else []
    argv += [f"cache={cache}"] if cache else []
    return argv, environment()


def environment() -> dict[str, str]:
    """nbdkit's embedded interpreter finds this environment's packages by the first `python3` on PATH."""
    env = dict(os.environ)
    folder = os.path.join(sys.prefix, "bin") if sys.prefix != sys.base_prefix else os.path.dirname(sys.executable)
    env["PATH"] = os.pathsep.join([folder, env.get("PATH", os.defpath)])
    env.pop("PYTHONHOME", None)
    return env


def serve(*args: object, **kwargs: object) -> None:
    """Become nbdkit. Does not return."""
    argv, env = command(*args, **kwargs)  # type: ignore[arg-type]
    os.umask(0o177)
    os.execve(argv[0], argv, env)


def remove_stale(path: str) -> None:
    """Remove a socket file that nobody listens on (nbdkit refuses to start over one)."""
    if not os.path.exists(path):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with suppress(FileNotFoundError):
                os.unlink(path)
            return
    raise VolumeError(f"another process listens on {path}")
