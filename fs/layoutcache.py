"""Where a file's bytes are, as far as it is known: the extents of one contiguous range of one inode. Pure.

Valid while the inode's lease is held (the holder drops it at a recall). Gaps between extents are zeros. A commit of
our own is laid over what is known, so that a file that is written and read by turns needs no new layout each time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import msgspec

from trivium.cluster.model import ChunkId, Placed, Ref
from trivium.metadata.messages import Extent, Layout

EXTENTS_MAX = 16_384  # more than this are forgotten, not kept


def part(extent: Extent, start: int, stop: int) -> Extent:
    """The piece of `extent` that lies in [start, stop) of the file."""
    skip = start - extent.offset
    length = stop - start
    ref, data = extent.ref, extent.data
    if ref is not None:
        ref = Ref(ref.chunk, ref.offset + skip, length)
    elif data is not None:
        data = data[skip : skip + length]
    return Extent(start, length, ref, data)


class LayoutCache:
    """Extents of [start, stop); `placed` are the rows of the chunks that they name, as far as they were answered."""

    __slots__ = ("_extents", "_offsets", "placed", "start", "stop")

    def __init__(self, layout: Layout, start: int) -> None:
        self.start, self.stop = start, max(layout.upto, start)
        self._extents: list[Extent] = list(layout.extents)
        self._offsets = [e.offset for e in self._extents]
        self.placed: dict[ChunkId, Placed] = {p.chunk: p for p in layout.placed}

    def covers(self, start: int, stop: int) -> bool:
        return self.start <= start and stop <= self.stop

    def extend(self, layout: Layout) -> None:
        """Append the page that begins where this one stops."""
        fresh = [part(e, self.stop, e.offset + e.length) if e.offset < self.stop else e for e in layout.extents]
        self._extents += fresh
        self._offsets += [e.offset for e in fresh]
        self.placed.update({p.chunk: p for p in layout.placed})
        self.stop = max(self.stop, layout.upto)

    def range(self, start: int, stop: int) -> list[Extent]:
        """The extents of [start, stop), cut to it, in order."""
        i = max(0, bisect_right(self._offsets, start) - 1)
        found = []
        while i < len(self._extents) and self._extents[i].offset < stop:
            e = self._extents[i]
            a, b = max(e.offset, start), min(e.offset + e.length, stop)
            if a < b:
                found.append(e if b - a == e.length else part(e, a, b))
            i += 1
        return found

    def replace(self, extents: Sequence[Extent]) -> None:
        """Lay what was committed over what is known."""
        for extent in extents:
            end = extent.offset + extent.length
            if extent.offset > self.stop or end <= self.start:
                continue  # not in what is known
            self._punch(extent.offset, end)
            known = extent if extent.offset >= self.start else part(extent, self.start, end)
            i = bisect_right(self._offsets, known.offset)
            self._extents.insert(i, known)
            self._offsets.insert(i, known.offset)
            self.stop = max(self.stop, end)

    def _punch(self, start: int, stop: int) -> None:
        i = max(0, bisect_right(self._offsets, start) - 1)
        while i < len(self._extents) and self._extents[i].offset < stop:
            e = self._extents[i]
            end = e.offset + e.length
            if end <= start:
                i += 1
                continue
            rest = [part(e, a, b) for a, b in ((e.offset, min(start, end)), (max(stop, e.offset), end)) if a < b]
            self._extents[i : i + 1] = rest
            self._offsets[i : i + 1] = [r.offset for r in rest]
            i += len(rest)

    def __len__(self) -> int:
        return len(self._extents)


def shifted(extents: Sequence[Extent], delta: int) -> list[Extent]:
    return [msgspec.structs.replace(e, offset=e.offset + delta) for e in extents]
