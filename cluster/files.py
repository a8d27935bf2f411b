"""File operations as the cluster needs them, over held directory descriptors, so that tests can inject a disk.

Names are relative to a directory descriptor and may contain "/". A descriptor that outlives its directory's name makes
every call on it fail with ENOENT: that is how a wiped drive is noticed, and why nothing is ever addressed by absolute
path after a drive has been opened. Calls block and raise OSError.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Buffer = bytes | bytearray | memoryview

FULL = frozenset((errno.ENOSPC, errno.EDQUOT))  # the write fails, the drive does not
UNSUPPORTED = frozenset((errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS))


@dataclass(frozen=True, slots=True)
class FileStat:
    device: int
    inode: int
    size: int
    links: int
    is_folder: bool = False


@dataclass(frozen=True, slots=True)
class Space:
    """Of a whole file system, in bytes; `free` is what an unprivileged writer may take."""

    total: int
    free: int


class FileOps(Protocol):
    def make_path(self, path: str) -> None:
        """Make a directory and its missing parents."""
        ...

    def open_path(self, path: str) -> int:
        """Open a directory by its path (only when a drive is opened or formatted)."""
        ...

    def stat_path(self, path: str) -> FileStat: ...

    def open_folder(self, folder: int, name: str) -> int: ...

    def make_folder(self, folder: int, name: str) -> None: ...

    def open(self, folder: int, name: str, *, write: bool = False) -> int: ...

    def create(self, folder: int, name: str) -> int:
        """A new file, readable and writable, mode 0600; FileExistsError when the name is there."""
        ...

    def create_unnamed(self, folder: int, near: str = ".") -> int:
        """A new file without a name on the folder's file system (O_TMPFILE); EOPNOTSUPP where it cannot."""
        ...

    def link_unnamed(self, fd: int, folder: int, name: str) -> None:
        """Give an unnamed file its name; FileExistsError when the name is there."""
        ...

    def link(self, folder: int, name: str, new_folder: int, new_name: str) -> None: ...

    def rename(self, folder: int, name: str, new_folder: int, new_name: str) -> None: ...

    def unlink(self, folder: int, name: str) -> None: ...

    def remove_folder(self, folder: int, name: str) -> None: ...

    def list(self, folder: int) -> list[str]: ...

    def stat(self, folder: int, name: str) -> FileStat: ...

    def fstat(self, fd: int) -> FileStat: ...

    def read(self, fd: int, length: int, offset: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file."""
        ...

    def write(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        """All of the buffers, one after another."""
        ...

    def allocate(self, fd: int, size: int) -> None:
        """Reserve the blocks of [0, size) and make the file at least that long. A file system that cannot: no-op."""
        ...

    def truncate(self, fd: int, size: int) -> None: ...

    def sync_data(self, fd: int) -> None:
        """fdatasync. Never call it again for a file for which it has failed."""
        ...

    def sync_folder(self, folder: int) -> None: ...

    def space(self, fd: int) -> Space: ...

    def lock(self, fd: int) -> bool:
        """Take the file's exclusive lock until it is closed (or the process ends); False when somebody has it."""
        ...

    def export(self, fd: int) -> int:
        """A descriptor of the operating system that can be sent to another process; `fd` is consumed."""
        ...

    def close(self, fd: int) -> None: ...


class RealFiles:
    """The operating system's."""

    def make_path(self, path: str) -> None:
        os.makedirs(path, mode=0o700, exist_ok=True)

    def open_path(self, path: str) -> int:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def stat_path(self, path: str) -> FileStat:
        return _stat(os.stat(path))

    def open_folder(self, folder: int, name: str) -> int:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)

    def make_folder(self, folder: int, name: str) -> None:
        os.mkdir(name, 0o700, dir_fd=folder)

    def open(self, folder: int, name: str, *, write: bool = False) -> int:
        mode = os.O_RDWR if write else os.O_RDONLY
        return os.open(name, mode | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)

    def create(self, folder: int, name: str) -> int:
        return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)

    def create_unnamed(self, folder: int, near: str = ".") -> int:
        return os.open(near, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=folder)

    def link_unnamed(self, fd: int, folder: int, name: str) -> None:
        os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=folder, follow_symlinks=True)

    def link(self, folder: int, name: str, new_folder: int, new_name: str) -> None:
        os.link(name, new_name, src_dir_fd=folder, dst_dir_fd=new_folder)

    def rename(self, folder: int, name: str, new_folder: int, new_name: str) -> None:
        os.rename(name, new_name, src_dir_fd=folder, dst_dir_fd=new_folder)

    def unlink(self, folder: int, name: str) -> None:
        os.unlink(name, dir_fd=folder)

    def remove_folder(self, folder: int, name: str) -> None:
        os.rmdir(name, dir_fd=folder)

    def list(self, folder: int) -> list[str]:
        return os.listdir(folder)

    def stat(self, folder: int, name: str) -> FileStat:
        return _stat(os.stat(name, dir_fd=folder, follow_symlinks=False))

    def fstat(self, fd: int) -> FileStat:
        return _stat(os.fstat(fd))

    def read(self, fd: int, length: int, offset: int) -> bytes:
        data = os.pread(fd, length, offset)
        if len(data) == length or not data:
            return data
        parts = [data]  # short: the end of the file, or a signal
        got = len(data)
        while got < length and (data := os.pread(fd, length - got, offset + got)):
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def write(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        length = sum(len(b) for b in buffers)
        done = os.pwritev(fd, buffers, offset)
        while done < length:
            rest = memoryview(b"".join(buffers))[done:]
            length, offset, buffers = len(rest), offset + done, (rest,)
            done = os.pwritev(fd, buffers, offset)

    def allocate(self, fd: int, size: int) -> None:
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def sync_data(self, fd: int) -> None:
        os.fdatasync(fd)

    def sync_folder(self, folder: int) -> None:
        os.fsync(folder)

    def space(self, fd: int) -> Space:
        s = os.fstatvfs(fd)
        used = (s.f_blocks - s.f_bfree) * s.f_frsize
        free = s.f_bavail * s.f_frsize
        return Space(used + free, free)

    def lock(self, fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def export(self, fd: int) -> int:
        return fd

    def close(self, fd: int) -> None:
        os.close(fd)


def _stat(s: os.stat_result) -> FileStat:
    return FileStat(s.st_dev, s.st_ino, s.st_size, s.st_nlink, stat.S_ISDIR(s.st_mode))
