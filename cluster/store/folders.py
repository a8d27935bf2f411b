"""Open folders of shards, and the fsync of a folder that concurrent puts share.

Invariants:
1. A folder is handed out only after its own name and its parent's are durable in this life of the process (an earlier
   life may have died between mkdir and fsync).
2. `sync` returns only after an fsync that began after the call: one in flight does not count.
3. A descriptor is closed only when nobody uses it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import suppress

from trivium.cluster.files import FileOps
from trivium.cluster.store.health import Health


class Folder:
    def __init__(self, health: Health, fd: int, name: str) -> None:
        self._health = health
        self._turn = threading.Condition()
        self._begun = self._done = 0
        self._running = False
        self.fd = fd
        self.name = name
        self.users = 0
        self.gone = False  # removed while in use: closed by its last user

    def sync(self) -> None:
        """Make the names that were changed before this call durable, with one fsync for all who wait."""
        with self._turn:
            wanted = self._begun + 1
            while self._running:
                self._turn.wait()
                if self._done >= wanted:
                    return
            self._health.check()
            self._running = True
            self._begun += 1
            mine = self._begun
        try:
            self._health.sync_folder(self.fd, f"folder {self.name}")
            with self._turn:
                self._done = mine
        finally:
            with self._turn:
                self._running = False
                self._turn.notify_all()


class FolderCache:
    """chunks/<session>/<group>: the most recently used ones stay open."""

    def __init__(self, files: FileOps, health: Health, top: int, capacity: int = 64) -> None:
        self._files, self._health, self._top, self._capacity = files, health, top, capacity
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[int, int], Folder] = OrderedDict()
        self._durable: set[int] = set()  # sessions whose folder's name is known to be durable

    def acquire(self, session: int, group: int, *, create: bool) -> Folder:
        """The folder, made if need be and allowed. Raises OSError (ENOENT). Give it back with `release`."""
        key = (session, group)
        with self._lock:
            folder = self._open.get(key)
            if folder is None:
                folder = self._open[key] = self._load(session, group, create)
                self._evict()
            else:
                self._open.move_to_end(key)
            folder.users += 1
            return folder

    def release(self, folder: Folder) -> None:
        with self._lock:
            folder.users -= 1
            if folder.gone and not folder.users:
                self._files.close(folder.fd)

    def drop(self, session: int, group: int) -> None:
        """Forget a folder that turned out to be removed."""
        with self._lock:
            folder = self._open.pop((session, group), None)
            self._durable.discard(session)
            if folder is not None:
                self._retire(folder)

    def remove_empty(self, session: int, group: int) -> None:
        """Remove a folder that nobody uses and that holds nothing, and its session's when that was the last one."""
        name = f"{session:016x}"
        with self._lock:
            folder = self._open.get((session, group))
            if folder is not None and folder.users:
                return
            with suppress(OSError):
                self._files.remove_folder(self._top, f"{name}/{group:x}")
                if folder is not None:
                    self._retire(self._open.pop((session, group)))
                if not any(key[0] == session for key in self._open):
                    self._durable.discard(session)
                    self._files.remove_folder(self._top, name)

    def close(self) -> None:
        with self._lock:
            while self._open:
                self._retire(self._open.popitem()[1])

    def _retire(self, folder: Folder) -> None:
        folder.gone = True
        if not folder.users:
            self._files.close(folder.fd)

    def _evict(self) -> None:
        if len(self._open) > self._capacity:
            for key, folder in list(self._open.items())[: len(self._open) - self._capacity]:
                if not folder.users:
                    del self._open[key]
                    self._files.close(folder.fd)

    def _load(self, session: int, group: int, create: bool) -> Folder:
        name, inner = f"{session:016x}", f"{group:x}"
        fd = self._enter(self._top, name, create)
        try:
            if session not in self._durable:
                self._health.sync_folder(self._top, "folder chunks")
                self._durable.add(session)
            folder = self._enter(fd, inner, create)
            try:
                self._health.sync_folder(fd, f"folder {name}")
            except BaseException:
                self._files.close(folder)
                raise
            return Folder(self._health, folder, f"{name}/{inner}")
        finally:
            self._files.close(fd)

    def _enter(self, parent: int, name: str, create: bool) -> int:
        try:
            return self._files.open_folder(parent, name)
        except FileNotFoundError:
            if not create:
                raise
        with suppress(FileExistsError):
            self._files.make_folder(parent, name)
        return self._files.open_folder(parent, name)
