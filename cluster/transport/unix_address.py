"""Unix socket paths: long ones, stale ones, and who may use them.

A socket address holds 107 bytes; longer paths go through /proc/self/fd/<directory>/<name>. A socket file is removed
only when nobody listens on it; check, removal and bind happen under a lock on the directory, so that two starters
cannot remove each other's.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import trio

from trivium.cluster.errors import InUse, Refused

MAX_ADDRESS_BYTES = 107
LOCK_WAIT_S = 5.0


@contextmanager
def short_path(path: str) -> Iterator[str]:
    """A name of `path` that fits into a socket address, valid inside the block."""
    if len(os.fsencode(path)) <= MAX_ADDRESS_BYTES:
        yield path
        return
    folder, name = os.path.split(os.path.abspath(path))
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{fd}/{name}"
        if len(os.fsencode(short)) > MAX_ADDRESS_BYTES:
            raise Refused(f"the socket's file name {name!r} is too long; choose one of at most 80 bytes")
        yield short
    finally:
        os.close(fd)


def connect_now(path: str) -> socket.socket:
    """A connected blocking-free socket. OSError as connect(2) gives it; EAGAIN when the backlog is full."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with short_path(path) as short:
            sock.connect(short)
    except BaseException:
        sock.close()
        raise
    return sock


def group_id(group: str | int) -> int:
    if isinstance(group, int):
        return group
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise Refused(f"there is no group {group!r} on this host (--socket-group)") from None


async def listen(path: str, *, mode: int, group: str | int | None, backlog: int) -> socket.socket:
    """A listening socket at `path`. InUse when somebody listens there, Refused when another file is in the way."""
    fd = _open_folder(path)
    try:
        await _lock(fd, path)
        _remove_stale(path)
        return _bind(path, mode, None if group is None else group_id(group), backlog)
    finally:
        os.close(fd)


def _open_folder(path: str) -> int:
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


async def _lock(fd: int, path: str) -> None:
    give_up = trio.current_time() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if trio.current_time() > give_up:
                raise InUse(f"another process holds the directory of {path}; is one starting there?") from None
            await trio.sleep(0.02)


def _remove_stale(path: str) -> None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise Refused(f"{path} exists and is not a socket; move it away")
    try:
        connect_now(path).close()
    except OSError as error:
        if error.errno == errno.ECONNREFUSED:
            os.unlink(path)
            return
        if error.errno != errno.EAGAIN:
            raise Refused(f"cannot tell whether somebody listens on {path}: {error.strerror}") from error
    raise InUse(f"another process listens on {path}")


def _bind(path: str, mode: int, gid: int | None, backlog: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        os.fchmod(sock.fileno(), 0o600)  # the file is born with these bits: no moment in which others may connect
        with short_path(path) as short:
            sock.bind(short)
        if gid is not None:
            os.chown(path, -1, gid)
        os.chmod(path, mode)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def remove_own(path: str, identity: tuple[int, int]) -> None:
    """Remove the socket file if it is still the one that was bound (st_dev, st_ino)."""
    with suppress(FileNotFoundError):
        status = os.lstat(path)
        if (status.st_dev, status.st_ino) == identity:
            os.unlink(path)
