"""A drive directory without a pool: read-only, through the same code that the pool reads it with.

    files on the disk -> ReadOnlyFiles -> store.Shards, logfile, rootfile -> inspect, verify, salvage

Invariants:
1. Nothing here changes a byte, a name or a time-stamp that counts: every writing file operation is EROFS.
2. A drive that a living process holds is refused (InUse names it) unless the caller says that looking is enough.
3. A drive is opened as far as it goes: a damaged root file or a missing folder is a fact to report, not a reason to
   give up on the shards.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from trivium.cluster import logfile, rootfile, shardfile
from trivium.cluster.errors import ClusterError, Corrupt, InUse, NotFound
from trivium.cluster.files import Buffer, FileOps
from trivium.cluster.model import ChunkId
from trivium.cluster.rootfile import Slot
from trivium.cluster.store.health import Health
from trivium.cluster.store.shards import Shards
from trivium.cluster.wire import LogHead

FOLDERS = ("chunks", "log", "quarantine")
NOBODY = bytes(16)


class ReadOnlyFiles:
    """FileOps that cannot change anything. Syncs are no-ops: nothing was written."""

    def __init__(self, inner: FileOps) -> None:
        self._inner = inner
        self.open_path, self.stat_path, self.open_folder = inner.open_path, inner.stat_path, inner.open_folder
        self.list, self.stat, self.fstat, self.read = inner.list, inner.stat, inner.fstat, inner.read
        self.space, self.lock, self.export, self.close = inner.space, inner.lock, inner.export, inner.close

    def open(self, folder: int, name: str, *, write: bool = False) -> int:
        return self._inner.open(folder, name)

    def sync_data(self, fd: int) -> None:
        pass

    def sync_folder(self, folder: int) -> None:
        pass

    def make_path(self, path: str) -> None:
        raise _read_only()

    def make_folder(self, folder: int, name: str) -> None:
        raise _read_only()

    def create(self, folder: int, name: str) -> int:
        raise _read_only()

    def create_unnamed(self, folder: int, near: str = ".") -> int:
        raise _read_only()

    def link_unnamed(self, fd: int, folder: int, name: str) -> None:
        raise _read_only()

    def link(self, folder: int, name: str, new_folder: int, new_name: str) -> None:
        raise _read_only()

    def rename(self, folder: int, name: str, new_folder: int, new_name: str) -> None:
        raise _read_only()

    def unlink(self, folder: int, name: str) -> None:
        raise _read_only()

    def remove_folder(self, folder: int, name: str) -> None:
        raise _read_only()

    def write(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        raise _read_only()

    def allocate(self, fd: int, size: int) -> None:
        raise _read_only()

    def truncate(self, fd: int, size: int) -> None:
        raise _read_only()


def _read_only() -> OSError:
    return OSError(errno.EROFS, os.strerror(errno.EROFS))


@dataclass(frozen=True, slots=True)
class SlotFound:
    """One of the two slots of a root file: what it holds, or why it does not count."""

    offset: int
    slot: Slot | None
    text: str  # "" when it verifies; "blank" when nothing was ever written there

    @property
    def bad(self) -> bool:
        return self.slot is None and self.text != "blank"


@dataclass(frozen=True, slots=True)
class LogFound:
    """One file of log/: its head and what was found behind it."""

    name: str
    head: LogHead | None
    scan: logfile.Scan | None
    size: int
    text: str  # "" when every byte of it is accounted for


class DriveDir:
    """An opened drive directory. `problems`: what could not even be opened, in words."""

    def __init__(self, files: ReadOnlyFiles, path: str, folders: dict[str, int]) -> None:
        """Use `open`."""
        self.files, self.path, self._folders = files, path, folders
        self.name = os.path.basename(path.rstrip("/")) or path
        self.problems: list[str] = []
        self.holder = ""  # the process that has it locked
        self.cluster = self.drive = NOBODY
        self.root_data = b""
        self.shards: Shards | None = None

    @classmethod
    def open(cls, files: FileOps, path: str, *, live: bool = False) -> DriveDir:
        """NotFound: there is no drive there. InUse: a process has it locked and `live` was not given."""
        view = ReadOnlyFiles(files)
        try:
            folders = {"": view.open_path(path)}
        except OSError as error:
            raise NotFound(f"there is no drive at {path}: {error.strerror or error}") from None
        found = cls(view, path, folders)
        try:
            found._open_folders()
            found._open_root(live)
            found._start()
        except BaseException:
            found.close()
            raise
        return found

    def _open_folders(self) -> None:
        for name in FOLDERS:
            try:
                self._folders[name] = self.files.open_folder(self._folders[""], name)
            except OSError as error:
                self.problems.append(f"{name}/: {error.strerror or error}")
        if "chunks" not in self._folders and "log" not in self._folders:
            raise NotFound(f"there is no drive at {self.path}: it has neither chunks/ nor log/")

    def _open_root(self, live: bool) -> None:
        try:
            fd = self._folders["root"] = self.files.open(self._folders[""], "root")
        except OSError as error:
            self.problems.append(f"root: {error.strerror or error}")
            return
        if not self.files.lock(fd):
            self.holder = self._read_holder()
            if not live:
                raise InUse(
                    f"the drive at {self.path} is in use by {self.holder}: stop that process first "
                    "(or look at it as it is now, with --live)"
                )
        self.root_data = self.files.read(fd, rootfile.FILE_SIZE, 0)
        try:
            head = rootfile.parse_head(self.root_data)
            self.cluster, self.drive = head.cluster, head.drive
        except ClusterError as error:
            self.problems.append(f"root: {error}")

    def _read_holder(self) -> str:
        try:
            fd = self.files.open(self._folders[""], "holder")
        except OSError:
            return "another process"
        try:
            return self.files.read(fd, 256, 0).decode("utf-8", "replace").strip() or "another process"
        finally:
            self.files.close(fd)

    def _start(self) -> None:
        health = Health(self.files, self.name)
        chunks = self._folders.get("chunks")
        if self.cluster == NOBODY:
            self.cluster = self._guess_cluster(health)
        if chunks is not None:
            self.shards = Shards(
                self.files, health, chunks=chunks, tmp=-1, quarantine=-1, cluster=self.cluster, reserve=_nothing
            )

    def _guess_cluster(self, health: Health) -> bytes:
        """Without a root file: what the first shard that verifies says."""
        if "chunks" not in self._folders:
            return NOBODY
        shards = Shards(
            self.files, health, chunks=self._folders["chunks"], tmp=-1, quarantine=-1, cluster=NOBODY,
            reserve=_nothing,
        )  # fmt: skip
        for chunk, index in shards.walk():
            with suppress(ClusterError):
                return shards.header(chunk, index).spec.cluster
        return NOBODY

    def close(self) -> None:
        if self.shards is not None:
            self.shards.close()
        for fd in self._folders.values():
            self.files.close(fd)
        self._folders = {}

    # ---- the root -------------------------------------------------------------------------------------------

    def slots(self) -> list[SlotFound]:
        """Both slots of the root file, in file order."""
        if self.drive == NOBODY:
            return []
        found = []
        for offset in (rootfile.slot_offset(0), rootfile.slot_offset(1)):
            data = memoryview(self.root_data)[offset : offset + rootfile.SLOT_SIZE]
            try:
                slot = rootfile.parse_slot(self.drive, data)
                if rootfile.slot_offset(slot.generation) != offset:
                    raise Corrupt("a root slot lies in the other one's place")
                found.append(SlotFound(offset, slot, ""))
            except ClusterError as error:
                found.append(SlotFound(offset, None, str(error) if any(data) or not data else "blank"))
        return found

    def newest(self) -> Slot | None:
        slots = [found.slot for found in self.slots() if found.slot is not None]
        return max(slots, key=lambda slot: slot.generation, default=None)

    # ---- shards and logs --------------------------------------------------------------------------------------

    def shard_places(self) -> Iterator[tuple[ChunkId, int]]:
        """Every shard file's name, in order."""
        return iter(()) if self.shards is None else self.shards.walk()

    def shard_size(self, chunk: ChunkId, index: int) -> int:
        """Bytes of the file. OSError."""
        return self.files.stat(self._folders["chunks"], shardfile.shard_name(chunk, index)).size

    def foreign(self) -> list[str]:
        """Files below chunks/ and log/ that no drive makes: their names are no shard's and no segment's."""
        found = [f"log/{name}" for name in self._list("log") or () if not is_segment_name(name)]
        for session in self._list("chunks") or ():
            groups = self._list(f"chunks/{session}")
            if groups is None:
                found.append(f"chunks/{session}")
            for group in groups or ():
                leaves = self._list(f"chunks/{session}/{group}")
                if leaves is None:
                    found.append(f"chunks/{session}/{group}")
                for leaf in leaves or ():
                    if not _is_shard_name(session, group, leaf):
                        found.append(f"chunks/{session}/{group}/{leaf}")
        return found

    def _list(self, path: str) -> list[str] | None:
        """Sorted names; None when it is no folder."""
        top, _, rest = path.partition("/")
        folder = self._folders.get(top)
        if folder is None:
            return None
        if not rest:
            return sorted(self.files.list(folder))
        try:
            fd = self.files.open_folder(folder, rest)
        except OSError:
            return None
        try:
            return sorted(self.files.list(fd))
        finally:
            self.files.close(fd)

    def segments(self) -> list[str]:
        """Names of the log segment files."""
        return [name for name in self._list("log") or () if is_segment_name(name)]

    def quarantined(self) -> list[str]:
        return self._list("quarantine") or []

    def segment_size(self, name: str) -> int:
        return self.files.stat(self._folders["log"], name).size

    def read_segment(self, name: str) -> LogFound:
        """Read one segment file whole and account for every byte of it. Payloads stay views of what was read."""
        try:
            fd = self.files.open(self._folders["log"], name)
            try:
                data = self.files.read(fd, self.files.fstat(fd).size, 0)
            finally:
                self.files.close(fd)
        except OSError as error:
            return LogFound(name, None, None, 0, error.strerror or str(error))
        try:
            cluster, head = logfile.parse_head(data)
        except ClusterError as error:
            return LogFound(name, None, None, len(data), str(error))
        if head.segment.hex() != name.partition(".")[0] or (self.cluster != NOBODY and cluster != self.cluster):
            return LogFound(name, head, None, len(data), "the file holds another segment than its name says")
        view = memoryview(data)[logfile.HEAD_SIZE :]
        scan = logfile.scan(view, head.segment, head.first_seq, head.previous_hash)
        return LogFound(name, head, scan, len(data), _tail_in_words(name, scan, view.nbytes))


def is_segment_name(name: str) -> bool:
    stem, _, suffix = name.partition(".")
    return suffix in ("open", "sealed") and len(stem) == 32 and set(stem) <= set("0123456789abcdef")


def _tail_in_words(name: str, scan: logfile.Scan, size: int) -> str:
    behind = f"{scan.tail_end - scan.end} bytes behind record {scan.last_seq} do not verify"
    if scan.tail is logfile.Tail.HOLE:
        return f"{behind}, and later records follow: damage; the segment's other drives have them"
    if name.endswith(".sealed"):
        return "" if scan.end == size else f"{size - scan.end} bytes follow record {scan.last_seq} of a sealed segment"
    if scan.tail is logfile.Tail.TORN:
        return f"{behind}: an append that a loss of power tore (it is cut at the next start), or damage of the last one"
    return ""


def _is_shard_name(session: str, group: str, leaf: str) -> bool:
    counter, _, index = leaf.partition(".")
    try:
        chunk = ChunkId(int(session, 16), int(counter, 16))
        return shardfile.shard_name(chunk, int(index, 16)) == f"{session}/{group}/{leaf}"
    except ValueError:
        return False


def _nothing() -> bool:
    return False
