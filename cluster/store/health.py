"""A drive's verdict about itself, and what its I/O errors mean.

    ok --fsync or write error--> failed          ok --root is another file--> wiped / missing
States other than ok are final for the life of the process: a failed fsync may have dropped dirty pages, and asking
again would answer "fine".
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from types import TracebackType

from trivium.cluster.errors import ClusterError, Corrupt, DriveFailed, NoSpace, NotFound, Unavailable
from trivium.cluster.files import FULL, FileOps

_SHORT = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN))


class Health:
    def __init__(self, files: FileOps, name: str) -> None:
        self._files = files
        self.name = name
        self.state = "ok"
        self.text = ""
        self.full = False
        self.read_errors = 0
        self.probe: Callable[[], None] = lambda: None  # Store.check: asked when something held is gone

    def check(self) -> None:
        if self.state != "ok":
            raise DriveFailed(self.text)

    def fail(self, state: str, text: str) -> DriveFailed:
        """Take the drive out of use (the first verdict stays) and return the error to raise."""
        if self.state == "ok":
            self.state, self.text = state, f"drive {self.name}: {text}"
        return DriveFailed(self.text)

    def sync_data(self, fd: int, what: str) -> None:
        self._sync(self._files.sync_data, fd, what)

    def sync_folder(self, fd: int, what: str) -> None:
        self._sync(self._files.sync_folder, fd, what)

    def _sync(self, sync: Callable[[int], None], fd: int, what: str) -> None:
        self.check()
        try:
            sync(fd)
        except OSError as error:
            if error.errno in FULL:
                self.full = True
                raise NoSpace(f"drive {self.name} is full: {what}") from error
            raise self.fail("failed", f"fsync failed ({what}): {error.strerror or error}") from error

    def writing(self, what: str) -> Doing:
        """Turns OSErrors of a write path into errors of the cluster: full, gone, or the drive has failed."""
        return Doing(self, what, reading=False)

    def reading(self, what: str) -> Doing:
        """The same for a read path: an I/O error is counted and reported, it does not end the drive's use."""
        return Doing(self, what, reading=True)

    def translate(self, error: OSError, what: str, reading: bool) -> ClusterError:
        number = error.errno
        said = error.strerror or str(error)
        if number in FULL:
            self.full = True
            return NoSpace(f"drive {self.name} is full: {what}")
        if number in _SHORT:
            return Unavailable(f"drive {self.name}: {what}: {said}; try again")
        if number in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR):
            self.probe()  # raises DriveFailed when the whole drive is gone
            return NotFound(f"drive {self.name} does not have {what}")
        if reading:
            self.read_errors += 1
            return Corrupt(f"drive {self.name}: reading {what}: {said}")
        return self.fail("failed", f"{what}: {said}")



class Doing:
    """The context manager of Health.writing and reading (a class: half the cost of a generator)."""

    __slots__ = ("_health", "_reading", "_what")

    def __init__(self, health: Health, what: str, *, reading: bool) -> None:
        self._health, self._what, self._reading = health, what, reading

    def __enter__(self) -> None:
        self._health.check()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, OSError):
            raise self._health.translate(error, self._what, self._reading) from error
