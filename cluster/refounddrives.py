"""What a pool that is made anew from shards writes onto its drives: log segments, root files. What was there is kept.

    stage: new segment files in rebuild-<id>/log, durable       (old files untouched; unstage removes them)
    settle: old files of log/ -> replaced-<id>/log; staged ones -> log/; root -> replaced-<id>/root, the new one in its
            place; rebuild-<id>/ removed

Invariants:
1. Staging changes nothing that an older state reads. Each step of settle may be repeated, after a crash at any of them:
   a file has its new name durably before it loses the old one.
2. The root file is replaced by one rename, the last step that counts: a drive that has the new root has the new log.
3. A drive keeps its id when its root file still says it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress

from trivium.cluster import logfile, rootfile
from trivium.cluster.errors import ClusterError
from trivium.cluster.files import FileOps
from trivium.cluster.logfile import LogRecord
from trivium.cluster.model import RootSlot, SegmentEntry
from trivium.cluster.rootfile import RootHead, Slot
from trivium.cluster.store.drive import FOLDERS
from trivium.cluster.wire import LogHead

STAGED, ASIDE = "rebuild-", "replaced-"


class DriveWriter:
    """One drive's directory. The caller holds the drive's lock, or nobody can (it has no root file)."""

    def __init__(self, files: FileOps, path: str, rebuild: str) -> None:
        self._files, self.path = files, path
        self._staged, self._aside = STAGED + rebuild, ASIDE + rebuild

    # ---- staging --------------------------------------------------------------------------------------------

    def stage(self, name: str, data: Iterable[bytes]) -> None:
        """A complete segment file, durable, that nothing reads yet."""
        with self._folder("") as top, self._folder(f"{self._staged}/log", make=True) as folder:
            fd = self._files.create(folder, name)
            try:
                at = 0
                for part in data:
                    self._files.write(fd, (part,), at)
                    at += len(part)
                self._files.sync_data(fd)
            finally:
                self._files.close(fd)
            self._files.sync_folder(folder)
            self._files.sync_folder(top)

    def unstage(self) -> None:
        """Remove what any rebuild staged here and never decided."""
        with self._folder("") as top:
            for name in self._files.list(top):
                if name.startswith(STAGED):
                    self._remove(top, name)
            self._files.sync_folder(top)

    # ---- settling -------------------------------------------------------------------------------------------

    def settle(self, head: RootHead, value: RootSlot, keep: Collection[str]) -> None:
        """Make the new state this drive's: `keep` are the segments (hex) of log/ that stay, staged ones among them."""
        if not self._has_root(head, value):
            with self._folder("") as top:
                for name in FOLDERS:
                    if name not in self._files.list(top):
                        self._files.make_folder(top, name)
                self._files.sync_folder(top)
            self._move_logs(keep)
            self._replace_root(head, value)
        self.unstage()

    def _has_root(self, head: RootHead, value: RootSlot) -> bool:
        try:
            with self._folder("") as top:
                fd = self._files.open(top, "root")
                try:
                    data = self._files.read(fd, rootfile.FILE_SIZE, 0)
                finally:
                    self._files.close(fd)
            newest = rootfile.newest(head.drive, data).value
            return rootfile.parse_head(data) == head and newest.accepted >= value.accepted
        except (OSError, ClusterError):
            return False

    def _move_logs(self, keep: Collection[str]) -> None:
        with self._folder("log") as logs:
            old = [name for name in self._files.list(logs) if name.partition(".")[0] not in keep]
            if old:
                with self._folder(f"{self._aside}/log", make=True) as aside:
                    self._link_all(logs, old, aside)
                for name in old:
                    self._files.unlink(logs, name)
            with suppress(FileNotFoundError), self._folder(f"{self._staged}/log") as staged:
                self._link_all(staged, self._files.list(staged), logs)
            self._files.sync_folder(logs)

    def _link_all(self, folder: int, names: Iterable[str], target: int) -> None:
        for name in names:
            with suppress(FileExistsError):
                self._files.link(folder, name, target, name)
        self._files.sync_folder(target)

    def _replace_root(self, head: RootHead, value: RootSlot) -> None:
        with self._folder("") as top, self._folder(self._aside, make=True) as aside:
            with suppress(FileNotFoundError, FileExistsError):
                self._files.link(top, "root", aside, "root")
                self._files.sync_folder(aside)
            with self._folder("tmp") as tmp:
                with suppress(FileNotFoundError):
                    self._files.unlink(tmp, "root")
                fd = self._files.create(tmp, "root")
                try:
                    self._files.allocate(fd, rootfile.FILE_SIZE)
                    self._files.write(fd, (rootfile.build_head(head),), 0)
                    slot = Slot(1, value)
                    self._files.write(fd, (rootfile.build_slot(head.drive, slot),), rootfile.slot_offset(1))
                    self._files.sync_data(fd)
                    self._files.rename(tmp, "root", top, "root")
                finally:
                    self._files.close(fd)
            self._files.sync_folder(top)

    # ---- folders --------------------------------------------------------------------------------------------

    @contextmanager
    def _folder(self, name: str, *, make: bool = False) -> Iterator[int]:
        top = self._files.open_path(self.path)
        held = [top]
        try:
            for part in filter(None, name.split("/")):
                if make and part not in self._files.list(held[-1]):
                    self._files.make_folder(held[-1], part)
                    self._files.sync_folder(held[-1])
                held.append(self._files.open_folder(held[-1], part))
            yield held[-1]
        finally:
            for fd in reversed(held):
                self._files.close(fd)

    def _remove(self, folder: int, name: str) -> None:
        try:
            inside = self._files.open_folder(folder, name)
        except NotADirectoryError:
            self._files.unlink(folder, name)
            return
        try:
            for one in self._files.list(inside):
                self._remove(inside, one)
        finally:
            self._files.close(inside)
        self._files.remove_folder(folder, name)


def segment_parts(cluster: bytes, head: LogHead, records: Iterable[LogRecord]) -> Iterator[bytes]:
    """A sealed segment file's bytes: every record an append of its own."""
    yield logfile.build_head(cluster, head)
    for record in records:
        yield logfile.encode_append([record], head.segment)


def sealed_name(entry: SegmentEntry) -> str:
    return f"{entry.segment.hex()}.sealed"
