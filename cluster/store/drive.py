"""Store: one opened drive directory."""

from __future__ import annotations

import os
from contextlib import suppress

from trivium.cluster import rootfile
from trivium.cluster.errors import ClusterError, InUse, NotFound, Refused
from trivium.cluster.files import FileOps
from trivium.cluster.model import RootSlot
from trivium.cluster.rootfile import RootHead, Slot
from trivium.cluster.store.health import Health
from trivium.cluster.store.logs import Logs
from trivium.cluster.store.roots import RootCell
from trivium.cluster.store.shards import Shards
from trivium.cluster.wire import DriveReport

FOLDERS = ("chunks", "log", "quarantine", "tmp")
BALLAST = 16 << 20
ROOT_SCRUB_REPORTS = 16  # every so many reports (32 s) the root file is read back


class Store:
    """Blocking; the node runs its calls through an executor. Use `shards`, `logs` and `root`."""

    def __init__(self, files: FileOps, path: str, drive: bytes, folders: dict[str, int], root: int) -> None:
        """Use `open`."""
        self._files, self.path, self.drive = files, path, drive
        self._folders, self._root_fd = folders, root
        self._identity = files.fstat(root)
        self._inodes = {name: files.fstat(fd).inode for name, fd in folders.items() if name}
        self.health = Health(files, os.path.basename(path) or drive.hex())
        self.health.probe = self.check
        self._ballast_freed = False
        self._reports = 0

    shards: Shards
    logs: Logs
    root: RootCell

    @classmethod
    def format(cls, files: FileOps, path: str, *, cluster: bytes, drive: bytes, ballast: int = BALLAST) -> None:
        """Make an empty directory a drive. Refused when there is anything in it; a format that was interrupted
        (everything but the root file, and all of it empty) is begun again."""
        files.make_path(path)
        with_errors = Health(files, path)
        with with_errors.writing("formatting"):
            top = files.open_path(path)
            try:
                _require_empty(files, top, path)
                for name in FOLDERS:
                    if name not in files.list(top):
                        files.make_folder(top, name)
                tmp = files.open_folder(top, "tmp")
                try:
                    _preallocate(files, with_errors, top, ballast)
                    _write_root(files, with_errors, tmp, RootHead(cluster, drive))
                    files.rename(tmp, "root", top, "root")
                    with_errors.sync_folder(top, path)
                finally:
                    files.close(tmp)
            finally:
                files.close(top)
            parent = files.open_path(os.path.dirname(path.rstrip("/")) or ".")
            try:
                with_errors.sync_folder(parent, "the folder above")
            finally:
                files.close(parent)

    @classmethod
    def open(cls, files: FileOps, path: str, *, cluster: bytes, holder: str = "") -> Store:
        """Lock and open a drive. NotFound (no drive there), InUse (names the holder), Refused (another cluster or
        format), Corrupt (the root file's head)."""
        try:
            top = files.open_path(path)
        except OSError as error:
            raise NotFound(f"there is no drive at {path}: {error.strerror or error}") from None
        held: dict[str, int] = {"": top}
        try:
            root = held["root"] = files.open(top, "root", write=True)
            if not files.lock(root):
                raise InUse(f"the drive at {path} is in use by {_holder(files, top)}")
            head = rootfile.parse_head(data := files.read(root, rootfile.FILE_SIZE, 0))
            if head.cluster != cluster:
                raise Refused(f"the drive at {path} belongs to cluster {head.cluster.hex()}, not {cluster.hex()}")
            for name in FOLDERS:
                held[name] = files.open_folder(top, name)
            del held["root"]
            store = cls(files, path, head.drive, held, root)
            store._start(cluster, data, holder or f"process {os.getpid()}")
            return store
        except OSError as error:
            _close_all(files, held)
            raise NotFound(f"there is no whole drive at {path}: {error.strerror or error}") from None
        except BaseException:
            _close_all(files, held)
            raise

    def _start(self, cluster: bytes, root: bytes, holder: str) -> None:
        files, health, held = self._files, self.health, self._folders
        self.root = RootCell(files, health, self._root_fd, self.drive, root)
        self.shards = Shards(
            files, health, chunks=held["chunks"], tmp=held["tmp"], quarantine=held["quarantine"], cluster=cluster,
            reserve=self.free_ballast,
        )  # fmt: skip
        self.logs = Logs(
            files, health, folder=held["log"], tmp=held["tmp"], cluster=cluster, reserve=self.free_ballast
        )
        for name in files.list(held["tmp"]):
            files.unlink(held["tmp"], name)
        with suppress(OSError):  # a full disk: the lock holds all the same
            _write_holder(files, held[""], holder)

    def check(self) -> None:
        """Raise DriveFailed unless the drive's path still leads to the root file that this process holds."""
        self.health.check()
        try:
            now = self._files.stat_path(f"{self.path}/root")
        except FileNotFoundError:
            raise self.health.fail("missing", f"{self.path} has lost its root file: wiped or unmounted") from None
        except OSError as error:
            raise self.health.fail("failed", f"{self.path}: {error.strerror or error}") from None
        if (now.device, now.inode) != (self._identity.device, self._identity.inode):
            raise self.health.fail("wiped", f"{self.path} is not the drive that was opened")
        for name, inode in self._inodes.items():
            self._check_folder(name, inode)

    def _check_folder(self, name: str, inode: int) -> None:
        try:
            same = self._files.stat(self._folders[""], name).inode == inode
        except FileNotFoundError:
            same = False
        except OSError as error:
            raise self.health.fail("failed", f"{self.path}/{name}: {error.strerror or error}") from None
        if not same:
            raise self.health.fail("wiped", f"{self.path}/{name} is not the folder that was opened")

    def read_root(self) -> RootSlot:
        """The drive's copy of the root, after a look whether this is still the drive."""
        self.check()
        return self.root.read()

    def report(self) -> DriveReport:
        """Check the drive and say how it is. Never raises."""
        total = free = 0
        try:
            self.check()
            self._reports += 1
            if self._reports % ROOT_SCRUB_REPORTS == 0:
                self.root.scrub()
            space = self._files.space(self._folders[""])
            total, free = space.total, space.free
            if free > 4 * BALLAST:
                self.health.full = False
                self._restore_ballast()
        except (ClusterError, OSError):
            pass
        health = self.health
        state = "full" if health.state == "ok" and health.full else health.state
        text = health.text or ("the disk is full" if health.full else "")
        return DriveReport(
            self.drive, state, text, total, free, self._identity.device, self.path, self.shards.shards_put,
            self.shards.bytes_put, health.read_errors,
        )  # fmt: skip

    def free_ballast(self) -> bool:
        """Give the reserved space back (a metadata write met a full disk). False when it is gone already."""
        try:
            self._files.unlink(self._folders[""], "ballast")
        except OSError:
            return False
        self._ballast_freed = True
        return True

    def _restore_ballast(self) -> None:
        if self._ballast_freed:
            _preallocate(self._files, self.health, self._folders[""], BALLAST)
            self._ballast_freed = False

    def close(self) -> None:
        """Release everything. Nobody may be inside a call: a descriptor's number is soon somebody else's."""
        if not self._folders:
            return
        self.shards.close()
        self.logs.close()
        if self.health.state == "ok":
            self.health.fail("closed", "closed")
        _close_all(self._files, self._folders | {"root": self._root_fd})
        self._folders = {}


def _close_all(files: FileOps, held: dict[str, int]) -> None:
    for fd in held.values():
        files.close(fd)


def _require_empty(files: FileOps, top: int, path: str) -> None:
    for name in files.list(top):
        if name in ("ballast", "lost+found"):
            continue
        if name not in FOLDERS:
            raise Refused(f"{path} is not empty (it has {name}): a drive is made in an empty directory only")
        fd = files.open_folder(top, name)
        try:
            inside = files.list(fd)
            if name == "tmp" and inside == ["root"]:
                files.unlink(fd, "root")
            elif inside:
                raise Refused(f"{path}/{name} is not empty: a drive is made in an empty directory only")
        finally:
            files.close(fd)


def _preallocate(files: FileOps, health: Health, top: int, size: int) -> None:
    if not size or "ballast" in files.list(top):
        return
    fd = files.create(top, "ballast")
    try:
        files.allocate(fd, size)
        health.sync_data(fd, "ballast")
    finally:
        files.close(fd)


def _write_root(files: FileOps, health: Health, tmp: int, head: RootHead) -> None:
    fd = files.create(tmp, "root")
    try:
        files.allocate(fd, rootfile.FILE_SIZE)
        first = Slot(1, RootSlot())
        files.write(fd, (rootfile.build_head(head),), 0)
        files.write(fd, (rootfile.build_slot(head.drive, first),), rootfile.slot_offset(1))
        health.sync_data(fd, "the root file")
    finally:
        files.close(fd)


def _holder(files: FileOps, top: int) -> str:
    try:
        fd = files.open(top, "holder")
    except OSError:
        return "another process"
    try:
        return files.read(fd, 256, 0).decode("utf-8", "replace").strip() or "another process"
    finally:
        files.close(fd)


def _write_holder(files: FileOps, top: int, text: str) -> None:
    """For people (a second process names the first): not synced."""
    with suppress(FileNotFoundError):
        files.unlink(top, "holder")
    fd = files.create(top, "holder")
    try:
        files.write(fd, (f"{text}\n".encode(),), 0)
    finally:
        files.close(fd)


