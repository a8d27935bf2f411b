"""Room on the disk that the metadata database is on, and what is accepted when it gets short.

    enough --less than LEAST free--> short: only operations that free something --LEAST free again--> enough
    a COMMIT or a checkpoint meets a full disk --> the ballast is removed --> it is repeated

Invariants: (1) a record that is in the log always finds room in the database: LEAST is kept by refusing calls, and when
somebody else fills the disk there is the ballast; (2) deletes are accepted to the end, or nobody could make room; (3)
the ballast is laid again only when there is room for it beyond LEAST.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable
from typing import Any

from trivium.cluster.clock import Clock
from trivium.metadata import messages

log = logging.getLogger(__name__)

LEAST = 64 << 20
BALLAST = 16 << 20
CHECK_S = 0.2

FREEING: frozenset[type] = frozenset(
    {
        messages.Unlink,
        messages.Stat,
        messages.Rmdir,
        messages.Truncate,
        messages.Zero,
        messages.Hold,
        messages.Release,
        messages.RemoveXattr,
        messages.DeleteObject,
        messages.DeleteBucket,
        messages.AbortUpload,
        messages.RemoveVolume,
        messages.CloseVolume,
        messages.SetVolumeLog,
        messages.Checkpoint,
    }
)
"""What is executed all the same: it frees something, now or soon (a volume's checkpoint lets its log be trimmed)."""


class DiskRoom:
    """`directory` holds the database; its file `ballast` is made here."""

    def __init__(self, directory: str, *, clock: Clock, least: int = LEAST, ballast: int = BALLAST) -> None:
        self._directory, self._ballast_path = directory, os.path.join(directory, "ballast")
        self._clock = clock
        self._least, self._ballast = least, ballast
        self._checked_s = float("-inf")
        self._short = False

    @property
    def short(self) -> bool:
        """Whether less than LEAST is free; looked up now and then."""
        now_s = self._clock.boot_s()
        if now_s - self._checked_s >= CHECK_S:
            self._checked_s = now_s
            free = self._free()
            if (free < self._least) != self._short:
                self._short = not self._short
                log.warning("%d MiB are free in %s: %s", free >> 20, self._directory, self._meaning())
            if free >= self._least + 2 * self._ballast:
                self._lay_ballast()
        return self._short

    def _meaning(self) -> str:
        return "only deletes are accepted" if self._short else "everything is accepted again"

    def _free(self) -> int:
        try:
            found = os.statvfs(self._directory)
        except OSError:
            return self._least
        return found.f_bavail * found.f_frsize

    def refusal(self, operations: Iterable[Any]) -> messages.MetadataError | None:
        """Why these operations are not executed now; None: they are."""
        for index, operation in enumerate(operations):
            if type(operation) not in FREEING and self.short:
                text = "the metadata server's disk is nearly full: only deletes are accepted"
                return messages.MetadataError("ENOSPC", text, index)
        return None

    def prepare(self) -> None:
        """Before the database is recovered, which must not fail for want of room."""
        if self._free() < self._ballast:
            self.free_ballast()

    def free_ballast(self) -> bool:
        """A write met a full disk. False when the ballast is gone already."""
        try:
            os.unlink(self._ballast_path)
        except OSError:
            return False
        log.warning("the disk of %s is full: its ballast was removed", self._directory)
        return True

    def _lay_ballast(self) -> None:
        if os.path.exists(self._ballast_path):
            return
        with contextlib.suppress(OSError):
            fd = os.open(self._ballast_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, self._ballast)
            finally:
                os.close(fd)
