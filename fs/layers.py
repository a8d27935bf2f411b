"""Data that was written here and that the metadata server does not know yet: what is kept of it. Pure.

    write -> open layer -> sealed -> staged -> committed -> gone
                 `-----------`---------`--- refused, or the session ended (lost) -> gone, errors counted

Invariants: (1) layers stand in the order in which they were sealed; (2) the layers of an inode were all taken in
under one life of the session: when it ends they are lost together, before anything is taken in under the next.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field

import trio

from trivium.cluster.model import CHUNK_SIZE
from trivium.cluster.pieces import Stored
from trivium.fs.ranges import Buffer, Ranges
from trivium.metadata.messages import Extent

WINDOW = CHUNK_SIZE
INLINE_TOTAL = 64 * 1024  # a flush of at most this goes inline, when no range is above INLINE_MAX
FRAGMENTS_MAX = 2000  # ranges in one Write operation

Run = tuple[int, int, list[Buffer]]
"""(offset, length, the bytes)"""


@dataclass(eq=False, slots=True)
class Layer:
    """What goes out together. `append`: offsets count from `base`, which the server decides."""

    append: bool = False
    ranges: Ranges = field(default_factory=Ranges)
    windows: dict[int, int] = field(default_factory=dict)  # window number -> bytes held in it
    clear_suid: bool = False
    at: int = 0  # time of the last write
    born_s: float = 0.0
    life: int = 0  # of the session under which it was taken in: under no other may it be sent
    extents: list[Extent] | None = None  # staged
    stored: list[Stored] = field(default_factory=list)
    staging: bool = False
    staged: trio.Event = field(default_factory=trio.Event)
    failed: OSError | None = None
    lost: bool = False  # with its session: counted already

    @property
    def done(self) -> bool:
        return self.extents is not None or self.failed is not None

    @property
    def small(self) -> bool:
        return self.ranges.total <= INLINE_TOTAL

    @property
    def cost(self) -> int:
        """Bytes in a call, about."""
        return 64 * len(self.extents or ()) + (0 if self.stored else self.ranges.total)

    def lose(self) -> None:
        self.lost = True
        self.failed = self.failed or OSError(errno.EIO, os.strerror(errno.EIO))


class Pending:
    """The unsent layers of one inode, oldest first; the last one may be open for more."""

    __slots__ = ("commits", "end", "errors", "last_error", "lock", "open", "sealed")

    def __init__(self) -> None:
        self.open: Layer | None = None
        self.sealed: list[Layer] = []
        self.end = 0  # one past the last unsent byte
        self.commits = 0  # changes of what the server has, by this mount
        self.errors = 0
        self.last_error = 0
        self.lock: trio.Lock | None = None

    @property
    def dirty(self) -> bool:
        return self.open is not None or bool(self.sealed)

    def layers(self) -> list[Layer]:
        return self.sealed if self.open is None else [*self.sealed, self.open]

    def seal(self) -> Layer | None:
        layer = self.open
        if layer is not None:
            self.open = None
            self.sealed.append(layer)
        return layer

    def recount(self) -> None:
        self.end = max((layer.ranges.end for layer in self.layers()), default=0)

    def last_write(self) -> int:
        return max((layer.at for layer in self.layers()), default=0)

    def held(self) -> int:
        return sum(layer.ranges.total for layer in self.layers())

    def failed(self, number: int) -> None:
        """An error that every open handle is told once."""
        self.errors += 1
        self.last_error = number


def batches(runs: list[Run]) -> list[list[Run]]:
    """Cut runs at window borders and gather them into batches of at most one chunk."""
    gathered: list[list[Run]] = [[]]
    room = WINDOW
    for offset, length, buffers in runs:
        for o, n, part in _cut(offset, length, buffers):
            if n > room or len(gathered[-1]) >= FRAGMENTS_MAX:
                gathered.append([])
                room = WINDOW
            gathered[-1].append((o, n, part))
            room -= n
    return [batch for batch in gathered if batch]


def _cut(offset: int, length: int, buffers: list[Buffer]) -> list[Run]:
    if offset // WINDOW == (offset + length - 1) // WINDOW:
        return [(offset, length, buffers)]
    pieces: list[Run] = []
    start = end = offset
    part: list[Buffer] = []
    for buffer in buffers:
        view = memoryview(buffer)
        while len(view):
            border = (start // WINDOW + 1) * WINDOW
            take = min(len(view), border - end)
            part.append(view[:take])
            end += take
            view = view[take:]
            if end == border:
                pieces.append((start, end - start, part))
                start, part = end, []
    if part:
        pieces.append((start, end - start, part))
    return pieces
