"""A lock held for the life of a process: flock on a file whose text says who holds it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from pathlib import Path

from trivium.cluster.errors import InUse


class LifeLock:
    """Held until the process ends or close() is called. InUse names the holder."""

    def __init__(self, path: Path, what: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = holder_of(path)
            os.close(self._fd)
            raise InUse(f"{what} is in use by process {holder or 'unknown'}; stop it first (trivium down).") from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, json.dumps({"pid": os.getpid(), "since": int(time.time())}).encode(), 0)

    def close(self) -> None:
        os.close(self._fd)


def holder_of(path: Path) -> int | None:
    """The process that holds the lock, None when nobody does."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            with contextlib.suppress(ValueError, KeyError):
                return int(json.loads(os.pread(fd, 4096, 0))["pid"])
            return 0
    finally:
        os.close(fd)
