"""How full a drive may get, by who writes. Limits bite only when little is free in bytes, too: a large disk that is
86 % full has room. They count once per file system, because they are asked of the file system.
"""

from __future__ import annotations

from trivium.cluster.errors import NoSpace
from trivium.cluster.files import Space

GIB = 1 << 30

CLIENT, VOLUME_LOG, HEALING, METADATA = range(4)  # reserve_class on the wire
LIMITS = {CLIENT: (85, 20 * GIB), VOLUME_LOG: (92, 10 * GIB), HEALING: (95, 5 * GIB)}


def fits(space: Space, length: int, reserve_class: int) -> bool:
    """Whether `length` more bytes of this class may be written; METADATA may use everything there is."""
    free = space.free - length
    limit = LIMITS.get(reserve_class)
    if limit is None:
        return reserve_class == METADATA and free >= 0
    percent, floor = limit
    if free < 0:
        return False
    return free >= floor or (space.total - free) * 100 < percent * space.total


def require(space: Space, length: int, reserve_class: int, drive: str) -> None:
    if not fits(space, length, reserve_class):
        raise NoSpace(
            f"drive {drive} has {space.free >> 20} MiB of {space.total >> 20} MiB free: "
            f"it takes no more data of class {reserve_class}; deletes still work"
        )
