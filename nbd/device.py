"""One NBD connection as nbdkit's threads see it: hits are served here, misses and flushes cross the bridge.

Buffers belong to nbdkit and are used only until a method returns. Every error that leaves is a DeviceError with an
errno that NBD can carry (ENOSPC, EPERM, ESHUTDOWN, EINVAL, else EIO).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, TypeVar

from trivium.cluster.errors import ClusterError, Fenced, NoSpace
from trivium.metadata.messages import MetadataError
from trivium.nbd.bridge import Bridge, Stopped
from trivium.nbd.errors import BadRequest, Displaced, Full, ReadOnly, VolumeError
from trivium.nbd.map import BLOCK, BLOCK_SHIFT, is_flat
from trivium.nbd.volume import Volume

T = TypeVar("T")

ERRNO: tuple[tuple[type[Exception], int], ...] = (
    (ReadOnly, errno.EPERM),
    (BadRequest, errno.EINVAL),
    (Full, errno.ENOSPC),
    (NoSpace, errno.ENOSPC),
    (Displaced, errno.ESHUTDOWN),
    (Fenced, errno.ESHUTDOWN),
    (Stopped, errno.ESHUTDOWN),
)


class DeviceError(Exception):
    """What the client is told."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.errno = errno_of(error)


def errno_of(error: Exception) -> int:
    """The translation table of the block face."""
    if isinstance(error, MetadataError):
        return int(getattr(errno, error.code, errno.EIO))
    return next((code for cls, code in ERRNO if isinstance(error, cls)), errno.EIO)


_CAUGHT = (VolumeError, ClusterError, MetadataError, Stopped)


class Device:
    def __init__(self, volume: Volume, bridge: Bridge) -> None:
        self.volume = volume
        self._core = volume.core
        self._bridge = bridge
        self._direct = volume.reader.direct

    @property
    def size(self) -> int:
        return self._core.size

    @property
    def read_only(self) -> bool:
        return self._core.read_only

    def pread(self, buffer: memoryview, offset: int) -> None:
        try:
            core = self._core
            if not core.usable():
                self._bridge.call(self.volume.until_usable)
            misses = core.read(offset, buffer)
            if misses:
                read = self._direct.read
                misses = [miss for miss in misses if not read(miss, buffer)]
            if misses:
                self._bridge.call(self.volume.finish_read, offset, buffer, misses)
        except _CAUGHT as error:
            raise DeviceError(error) from None

    def pwrite(self, buffer: memoryview, offset: int, fua: bool) -> None:
        try:
            core = self._core
            length = len(buffer)
            if (offset | length) & (BLOCK - 1) or not core.usable():
                self._bridge.call(self._write, buffer, offset, fua)
                return
            done = core.write(offset, buffer)
            while done < length:
                self._bridge.call(self.volume.room, length - done)
                done += core.write(offset + done, buffer[done:])
            if fua or core.write_through:
                self._bridge.call(self.volume.make_durable)
        except _CAUGHT as error:
            raise DeviceError(error) from None

    async def _write(self, buffer: memoryview, offset: int, fua: bool) -> None:
        await self.volume.write(offset, buffer, fua=fua)

    def zero(self, offset: int, length: int, *, trim: bool, fua: bool) -> None:
        """Zeros and trims are few and large: they always cross."""
        self._cross(self._zero, offset, length, trim, fua)

    async def _zero(self, offset: int, length: int, trim: bool, fua: bool) -> None:
        await self.volume.zero(offset, length, trim=trim, fua=fua)

    def flush(self) -> None:
        self._cross(self.volume.flush)

    def extents(self, offset: int, length: int) -> list[tuple[int, int, bool]]:
        """(offset, length, is a hole) of the range, in order."""
        try:
            self._core.check_range(offset, length)
            if not length:
                return []
            first, last = offset >> BLOCK_SHIFT, (offset + length - 1) >> BLOCK_SHIFT
            found: list[tuple[int, int, bool]] = []
            for block, count, entry in self._core.lookup(first, last - first + 1):
                hole = is_flat(entry)
                if found and found[-1][2] == hole:
                    found[-1] = (found[-1][0], found[-1][1] + (count << BLOCK_SHIFT), hole)
                else:
                    found.append((block << BLOCK_SHIFT, count << BLOCK_SHIFT, hole))
            return found
        except _CAUGHT as error:
            raise DeviceError(error) from None

    def _cross(self, fn: Callable[..., Any], *args: Any) -> Any:
        try:
            return self._bridge.call(fn, *args)
        except _CAUGHT as error:
            raise DeviceError(error) from None
