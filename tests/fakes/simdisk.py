"""SimFiles: an in-memory disk behind FileOps that loses what was not synced.

`crash()` keeps what was synced and a random choice of the rest: of file contents per sector of 512 B to 4 KiB, of
names a random prefix of each folder's changes (renames included). Every descriptor of before is dead afterwards.
Files are sparse: what was preallocated and never written costs nothing (log segments are megabytes, appends small).
Faults: `crash_at` (machine stops before the n-th operation), `fail_sync`, `fail_write`, `capacity`, `flip`, `wipe`,
`unmount`.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Sequence

from trivium.cluster.files import Buffer, FileStat, Space

SECTORS = (512, 1024, 2048, 4096)


class Crashed(BaseException):
    """The machine has stopped: nothing after this happens. Not an Exception, so that no handler outlives it."""


class _Contents:
    """Bytes of a file; behind those that are held there are zeros, up to `size`."""

    __slots__ = ("held", "size")

    def __init__(self, held: bytes | bytearray = b"", size: int = 0) -> None:
        self.held = bytearray(held)
        self.size = size

    def copy(self) -> _Contents:
        return _Contents(self.held, self.size)

    def read(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size - offset))
        found = bytes(self.held[offset : offset + length])
        return found if len(found) == length else found + bytes(length - len(found))

    def write(self, offset: int, data: bytes) -> None:
        if offset > len(self.held):
            if not any(data):
                self.size = max(self.size, offset + len(data))
                return
            self.held.extend(bytes(offset - len(self.held)))
        self.held[offset : offset + len(data)] = data
        self.size = max(self.size, offset + len(data))

    def resize(self, size: int) -> None:
        del self.held[size:]
        self.size = size


class _File:
    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.data = _Contents()
        self.durable = _Contents()
        self.dirty: list[tuple[int, int]] = []  # changed (offset, length) since the last sync
        self.links = 0
        self.bad = False  # reading gives EIO


class _Folder:
    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.entries: dict[str, _File | _Folder] = {}
        self.history: list[dict[str, _File | _Folder]] = []  # states since the last sync, oldest first
        self.durable: dict[str, _File | _Folder] = {}
        self.removed = False
        self.links = 1

    def change(self) -> None:
        """Call after each change of the entries."""
        self.history.append(dict(self.entries))


class SimFiles:
    """One machine's disks. `device` is the same for all paths unless `devices` maps a path's prefix to another."""

    def __init__(self, seed: int = 0, capacity: int = 1 << 40) -> None:
        self.random = random.Random(seed)
        self.capacity = capacity
        self.devices: dict[str, int] = {}
        self.operations = 0
        self.crash_at = -1
        self.fail_sync: Callable[[int], bool] = lambda inode: False
        self.fail_write: Callable[[int], int] = lambda inode: 0  # an errno
        self.trace: list[str] = []
        self._down = False
        self._inodes = 0
        self._fds: dict[int, _File | _Folder] = {}
        self._next_fd = 1_000_000
        self._locks: dict[int, int] = {}  # inode -> fd
        self._top = self._new_folder()
        self._used = 0

    # ---- faults ---------------------------------------------------------------------------------------------

    def crash(self, keep: str = "random") -> None:
        """Power loss and restart. `keep`: "random", "nothing" or "everything" of what was not synced."""
        self._down = False
        self.crash_at = -1
        self._fds.clear()
        self._locks.clear()
        self._settle(self._top, keep, set())
        self._recount()

    def flip(self, path: str, offset: int, mask: int = 1) -> None:
        """Rot: change bits of a file, on the disk and in the cache."""
        file = self._file(path)
        for contents in (file.data, file.durable):
            if offset < contents.size:
                contents.write(offset, bytes((contents.read(offset, 1)[0] ^ mask,)))

    def replace(self, path: str, contents: bytes) -> None:
        """Damage: the file holds something else, in the cache; what was synced stays."""
        self._file(path).data = _Contents(contents, len(contents))

    def make_unreadable(self, path: str, bad: bool = True) -> None:
        self._file(path).bad = bad

    def wipe(self, path: str) -> None:
        """rm -rf of a drive's contents and a new empty folder in its place; descriptors stay open."""
        parent, name = self._split(path)
        self._unlink_all(parent.entries[name])
        parent.entries[name] = self._new_folder()
        parent.durable = dict(parent.entries)
        parent.history.clear()

    def unmount(self, path: str) -> None:
        """The path is an empty folder from now on; descriptors go on working on the detached file system."""
        parent, name = self._split(path)
        parent.entries[name] = self._new_folder()
        parent.durable = dict(parent.entries)
        parent.history.clear()

    def contents(self, path: str) -> bytes:
        data = self._file(path).data
        return data.read(0, data.size)

    def size(self, path: str) -> int:
        return self._file(path).data.size

    def paths(self, path: str = "") -> list[str]:
        """Every file below `path`."""
        found: list[str] = []
        self._collect(self._walk(path), path.rstrip("/"), found)
        return sorted(found)

    # ---- FileOps --------------------------------------------------------------------------------------------

    def make_path(self, path: str) -> None:
        self._step("make_path", path)
        folder = self._top
        for part in _parts(path):
            inner = folder.entries.get(part)
            if inner is None:
                inner = folder.entries[part] = self._new_folder()
                folder.durable[part] = inner
                for state in folder.history:
                    state[part] = inner
            if not isinstance(inner, _Folder):
                raise _error(errno.ENOTDIR)
            folder = inner

    def open_path(self, path: str) -> int:
        self._step("open_path", path)
        found = self._walk(path)
        if not isinstance(found, _Folder):
            raise _error(errno.ENOTDIR)
        return self._fd(found)

    def stat_path(self, path: str) -> FileStat:
        self._step("stat_path", path)
        return self._stat(self._walk(path), path)

    def open_folder(self, folder: int, name: str) -> int:
        self._step("open_folder", name)
        found = self._lookup(folder, name)
        if not isinstance(found, _Folder):
            raise _error(errno.ENOTDIR)
        return self._fd(found)

    def make_folder(self, folder: int, name: str) -> None:
        self._step("make_folder", name)
        parent = self._dir(folder)
        if parent.removed:
            raise _error(errno.ENOENT)
        if name in parent.entries:
            raise _error(errno.EEXIST)
        parent.entries[name] = self._new_folder()
        parent.change()

    def open(self, folder: int, name: str, *, write: bool = False) -> int:
        self._step("open", name)
        found = self._lookup(folder, name)
        if not isinstance(found, _File):
            raise _error(errno.EISDIR)
        return self._fd(found)

    def create(self, folder: int, name: str) -> int:
        self._step("create", name)
        parent = self._dir(folder)
        if parent.removed:
            raise _error(errno.ENOENT)
        if name in parent.entries:
            raise _error(errno.EEXIST)
        file = self._new_file()
        file.links = 1
        parent.entries[name] = file
        parent.change()
        return self._fd(file)

    def create_unnamed(self, folder: int, near: str = ".") -> int:
        self._step("create_unnamed", near)
        if self._dir(folder).removed:
            raise _error(errno.ENOENT)
        return self._fd(self._new_file())

    def link_unnamed(self, fd: int, folder: int, name: str) -> None:
        self._step("link_unnamed", name)
        self._add_link(self._open_file(fd), folder, name)

    def link(self, folder: int, name: str, new_folder: int, new_name: str) -> None:
        self._step("link", new_name)
        found = self._lookup(folder, name)
        assert isinstance(found, _File)
        self._add_link(found, new_folder, new_name)

    def rename(self, folder: int, name: str, new_folder: int, new_name: str) -> None:
        self._step("rename", f"{name} {new_name}")
        source, target = self._dir(folder), self._dir(new_folder)
        if name not in source.entries or target.removed:
            raise _error(errno.ENOENT)
        moved = source.entries.pop(name)
        old = target.entries.get(new_name)
        if isinstance(old, _File):
            old.links -= 1
        target.entries[new_name] = moved
        source.change()
        if target is not source:
            target.change()

    def unlink(self, folder: int, name: str) -> None:
        self._step("unlink", name)
        parent = self._dir(folder)
        file = parent.entries.get(name)
        if file is None:
            raise _error(errno.ENOENT)
        if isinstance(file, _Folder):
            raise _error(errno.EISDIR)
        file.links -= 1
        if not file.links:
            self._used -= file.data.size
        del parent.entries[name]
        parent.change()

    def remove_folder(self, folder: int, name: str) -> None:
        self._step("remove_folder", name)
        parent = self._dir(folder)
        inner = parent.entries.get(name)
        if inner is None:
            raise _error(errno.ENOENT)
        if not isinstance(inner, _Folder):
            raise _error(errno.ENOTDIR)
        if inner.entries:
            raise _error(errno.ENOTEMPTY)
        inner.removed = True
        del parent.entries[name]
        parent.change()

    def list(self, folder: int) -> list[str]:
        self._step("list", "")
        names = list(self._dir(folder).entries)
        self.random.shuffle(names)
        return names

    def stat(self, folder: int, name: str) -> FileStat:
        self._step("stat", name)
        return self._stat(self._lookup(folder, name), "")

    def fstat(self, fd: int) -> FileStat:
        self._step("fstat", "")
        return self._stat(self._object(fd), "")

    def read(self, fd: int, length: int, offset: int) -> bytes:
        self._step("read", "")
        file = self._open_file(fd)
        if file.bad:
            raise _error(errno.EIO)
        return file.data.read(offset, length)

    def write(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        file = self._open_file(fd)
        data = b"".join(buffers)
        self._step("write", f"{len(data)} at {offset}", lambda: self._put(file, data, offset))
        self._put(file, data, offset)

    def allocate(self, fd: int, size: int) -> None:
        self._step("allocate", str(size))
        file = self._open_file(fd)
        if size > file.data.size:
            self._take(size - file.data.size, file)
            file.dirty.append((file.data.size, size - file.data.size))
            file.data.resize(size)

    def truncate(self, fd: int, size: int) -> None:
        self._step("truncate", str(size))
        file = self._open_file(fd)
        old = file.data.size
        if size != old:
            file.dirty.append((min(size, old), abs(size - old)))
            file.data.resize(size)
            if size < old:
                self._recount()

    def sync_data(self, fd: int) -> None:
        self._step("sync_data", "")
        file = self._open_file(fd)
        if self.fail_sync(file.inode):
            file.dirty.clear()  # the kernel forgets what it could not write, and would say "fine" next time
            raise _error(errno.EIO)
        _apply(file)
        file.dirty.clear()

    def sync_folder(self, folder: int) -> None:
        self._step("sync_folder", "")
        found = self._dir(folder)
        if self.fail_sync(found.inode):
            raise _error(errno.EIO)
        found.durable = dict(found.entries)
        found.history.clear()

    def space(self, fd: int) -> Space:
        self._step("space", "")
        return Space(self.capacity, self.capacity - self._used)

    def lock(self, fd: int) -> bool:
        self._step("lock", "")
        inode = self._open_file(fd).inode
        if self._locks.get(inode, fd) != fd:
            return False
        self._locks[inode] = fd
        return True

    def export(self, fd: int) -> int:
        """A memfd with the file's contents."""
        file = self._open_file(fd)
        real = os.memfd_create("shard")
        os.write(real, file.data.read(0, file.data.size))
        self.close(fd)
        return real

    def close(self, fd: int) -> None:
        found = self._fds.pop(fd, None)
        if found is not None and self._locks.get(found.inode) == fd:
            del self._locks[found.inode]

    # ---- inside ---------------------------------------------------------------------------------------------

    def _step(self, name: str, detail: str, torn: Callable[[], None] | None = None) -> None:
        """Count an operation; the machine stops before (or, for a write, in the middle of) the chosen one."""
        if self._down:
            raise Crashed
        if self.operations == self.crash_at:
            self._down = True
            if torn is not None and self.random.random() < 0.5:
                torn()
            raise Crashed
        self.operations += 1
        self.trace.append(f"{name} {detail}".strip())
        if len(self.trace) > 200:
            del self.trace[:100]

    def _put(self, file: _File, data: bytes, offset: int) -> None:
        if number := self.fail_write(file.inode):
            raise _error(number)
        grow = offset + len(data) - file.data.size
        if grow > 0:
            self._take(grow, file)
        file.data.write(offset, data)
        file.dirty.append((offset, len(data)))

    def _take(self, size: int, file: _File) -> None:
        if self._used + size > self.capacity:
            raise _error(errno.ENOSPC)
        self._used += size

    def _settle(self, folder: _Folder, keep: str, seen: set[int]) -> None:
        """Choose what of the unsynced state survives, here and below."""
        states = [folder.durable, *folder.history]
        chosen = {"nothing": 0, "everything": len(states) - 1}.get(keep)
        folder.entries = dict(states[self.random.randrange(len(states)) if chosen is None else chosen])
        folder.durable = dict(folder.entries)
        folder.history.clear()
        for found in folder.entries.values():
            if isinstance(found, _Folder):
                self._settle(found, keep, seen)
            elif found.inode not in seen:
                seen.add(found.inode)
                self._settle_file(found, keep)

    def _settle_file(self, file: _File, keep: str) -> None:
        if keep == "everything":
            after = file.data.copy()
        else:
            after = file.durable.copy()
            if keep == "random":
                for offset, length in file.dirty:
                    self._tear(file, after, offset, length)
        file.data, file.durable = after, after.copy()
        file.dirty.clear()

    def _tear(self, file: _File, after: _Contents, offset: int, length: int) -> None:
        sector = self.random.choice(SECTORS)
        odds = self.random.choice((0.0, 0.3, 0.7, 1.0))
        at, end = offset, min(offset + length, file.data.size)
        written = min(end, max(len(file.data.held), len(after.held)))
        while at < written:
            stop = min((at // sector + 1) * sector, end)
            if self.random.random() < odds:
                after.write(at, file.data.read(at, stop - at))
            at = stop
        if at < end and self.random.random() < odds:  # zeros upon zeros: only how long the file is
            after.size = max(after.size, self.random.choice((end, self.random.randrange(at, end + 1))))

    def _recount(self) -> None:
        total, seen = 0, set()
        stack: list[_Folder] = [self._top]
        while stack:
            for found in stack.pop().entries.values():
                if isinstance(found, _Folder):
                    stack.append(found)
                elif found.inode not in seen:
                    seen.add(found.inode)
                    total += found.data.size
        self._used = total

    def _new_file(self) -> _File:
        self._inodes += 1
        return _File(self._inodes)

    def _new_folder(self) -> _Folder:
        self._inodes += 1
        return _Folder(self._inodes)

    def _fd(self, found: _File | _Folder) -> int:
        self._next_fd += 1
        self._fds[self._next_fd] = found
        return self._next_fd

    def _object(self, fd: int) -> _File | _Folder:
        try:
            return self._fds[fd]
        except KeyError:
            raise Crashed if self._down else _error(errno.EBADF) from None

    def _dir(self, fd: int) -> _Folder:
        found = self._object(fd)
        if not isinstance(found, _Folder):
            raise _error(errno.ENOTDIR)
        return found

    def _open_file(self, fd: int) -> _File:
        found = self._object(fd)
        if not isinstance(found, _File):
            raise _error(errno.EISDIR)
        return found

    def _lookup(self, folder: int, name: str) -> _File | _Folder:
        return self._descend(self._dir(folder), name)

    def _walk(self, path: str) -> _File | _Folder:
        return self._descend(self._top, path)

    def _descend(self, found: _File | _Folder, path: str) -> _File | _Folder:
        for part in _parts(path):
            if not isinstance(found, _Folder):
                raise _error(errno.ENOTDIR)
            inner = found.entries.get(part)
            if inner is None:
                raise _error(errno.ENOENT)
            found = inner
        return found

    def _file(self, path: str) -> _File:
        found = self._walk(path)
        assert isinstance(found, _File), path
        return found

    def _split(self, path: str) -> tuple[_Folder, str]:
        parts = _parts(path)
        parent = self._walk("/".join(parts[:-1]))
        assert isinstance(parent, _Folder)
        return parent, parts[-1]

    def _add_link(self, file: _File, folder: int, name: str) -> None:
        parent = self._dir(folder)
        if parent.removed:
            raise _error(errno.ENOENT)
        if name in parent.entries:
            raise _error(errno.EEXIST)
        file.links += 1
        parent.entries[name] = file
        parent.change()

    def _unlink_all(self, found: _File | _Folder) -> None:
        if isinstance(found, _File):
            found.links = 0
            return
        for inner in found.entries.values():
            self._unlink_all(inner)
        found.entries.clear()
        found.durable.clear()
        found.history.clear()
        found.removed = True

    def _stat(self, found: _File | _Folder, path: str) -> FileStat:
        device = next((d for prefix, d in self.devices.items() if path.startswith(prefix)), 1)
        size = found.data.size if isinstance(found, _File) else 0
        return FileStat(device, found.inode, size, found.links, isinstance(found, _Folder))

    def _collect(self, found: _File | _Folder, path: str, into: list[str]) -> None:
        if isinstance(found, _File):
            into.append(path)
            return
        for name, inner in found.entries.items():
            self._collect(inner, f"{path}/{name}", into)


def _apply(file: _File) -> None:
    """Bring the durable contents up to date, touching only what changed (log files are large, appends small)."""
    durable, data = file.durable, file.data
    if durable.size > data.size:
        durable.resize(data.size)
    for offset, length in file.dirty:
        stop = min(offset + length, len(data.held))
        if offset < stop:
            durable.write(offset, bytes(data.held[offset:stop]))
        held = durable.held
        if max(offset, stop) < len(held):  # held zeros no more: cut and grown again
            rest = min(offset + length, len(held))
            start = max(offset, stop)
            held[start:rest] = bytes(max(0, rest - start))
    durable.size = data.size


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part and part != "."]


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
