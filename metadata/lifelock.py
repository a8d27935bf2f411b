"""Proof of death on one host: a session's process holds the lock of `run/sessions/<id>` for as long as it lives.

Invariants:
1. The file appears under its name only after it is locked (made beside it, locked, renamed): who finds it unlocked
   knows that its process is dead. No file proves nothing.
2. The lock is the open file's (flock), so a thread or child that closes its own descriptors does not release it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress


def take(path: str) -> int:
    """Hold the life lock `path` until the returned descriptor is closed."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    making = f"{path}.{os.getpid()}"
    fd = os.open(making, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(fd, f"{os.getpid()}\n".encode())
        os.rename(making, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def release(path: str, fd: int) -> None:
    """The session has ended in order."""
    with suppress(FileNotFoundError):
        os.unlink(path)
    os.close(fd)


def is_dead(path: str) -> bool:
    """Whether the process that held the lock has died. The file stays: it is the proof until the end is a record."""
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def path_of(session: int) -> str:
    """Relative to the data directory."""
    return f"run/sessions/{session:016x}"


def prover(directory: str) -> Callable[[int], bool]:
    """The server's `proof_of_death` for a data directory."""
    return lambda session: is_dead(os.path.join(directory, path_of(session)))


def burier(directory: str) -> Callable[[int], None]:
    """The server's `bury`: the end of a dead session is durable, nobody needs the proof any more."""

    def bury(session: int) -> None:
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, path_of(session)))

    return bury
