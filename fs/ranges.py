"""Bytes that were written and not yet sent: non-overlapping segments in order of offset. Pure.

Invariants: (1) segments are sorted, non-empty and do not overlap; (2) a later write hides an earlier one, byte by
byte; (3) nothing is copied but small sequential writes, which are joined into one growing buffer.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

Buffer = bytes | bytearray | memoryview

JOIN_MAX = 64 * 1024  # writes smaller than this are joined with the buffer that ends where they begin
GROW_MAX = 1 << 20  # until that buffer is this large


class Ranges:
    """A sparse byte string."""

    __slots__ = ("_data", "_starts", "total")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._data: list[Buffer] = []
        self.total = 0  # bytes held

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def start(self) -> int:
        return self._starts[0]

    @property
    def end(self) -> int:
        """One past the last byte; 0 when empty."""
        return self._starts[-1] + len(self._data[-1]) if self._starts else 0

    def write(self, offset: int, data: Buffer) -> int:
        """Put `data` at `offset`. Answers how many bytes were not held before. `data` must not change later."""
        if not data:
            return 0
        before = self.total
        i = bisect_left(self._starts, offset)
        if self._join(i, offset, data):
            return self.total - before
        self.cut(offset, offset + len(data))
        i = bisect_left(self._starts, offset)
        self._starts.insert(i, offset)
        self._data.insert(i, data)
        self.total += len(data)
        return self.total - before

    def _join(self, i: int, offset: int, data: Buffer) -> bool:
        """Sequential small writes: extend the buffer before, when nothing lies in the way."""
        if i == 0 or len(data) >= JOIN_MAX:
            return False
        last = self._data[i - 1]
        if self._starts[i - 1] + len(last) != offset or len(last) >= GROW_MAX:
            return False
        if i < len(self._starts) and self._starts[i] < offset + len(data):
            return False
        if not isinstance(last, bytearray):
            last = self._data[i - 1] = bytearray(last)
        try:
            last += data
        except BufferError:  # somebody holds a view of it
            return False
        self.total += len(data)
        return True

    def cut(self, start: int, stop: int) -> list[tuple[int, Buffer]]:
        """Take what lies in [start, stop) out and answer it."""
        taken: list[tuple[int, Buffer]] = []
        i = max(0, bisect_right(self._starts, start) - 1)
        while i < len(self._starts) and self._starts[i] < stop:
            begin, data = self._starts[i], self._data[i]
            end = begin + len(data)
            if end <= start:
                i += 1
                continue
            if start <= begin and end <= stop:
                taken.append((begin, data))
                del self._starts[i], self._data[i]
                self.total -= end - begin
                continue
            view = memoryview(data).toreadonly()
            a, b = max(begin, start), min(end, stop)
            taken.append((a, view[a - begin : b - begin]))
            self.total -= b - a
            rest = [(s, d) for s, d in ((begin, view[: a - begin]), (b, view[b - begin :])) if len(d)]
            self._starts[i : i + 1] = [s for s, _ in rest]
            self._data[i : i + 1] = [d for _, d in rest]
            i += len(rest)
        return taken

    def overlay(self, start: int, stop: int) -> Iterator[tuple[int, memoryview]]:
        """What is held of [start, stop), in order."""
        i = max(0, bisect_right(self._starts, start) - 1)
        while i < len(self._starts) and self._starts[i] < stop:
            begin, data = self._starts[i], self._data[i]
            a, b = max(begin, start), min(begin + len(data), stop)
            if a < b:
                yield a, memoryview(data).toreadonly()[a - begin : b - begin]
            i += 1

    def runs(self) -> Iterator[tuple[int, int, list[Buffer]]]:
        """(offset, length, buffers) of each maximal run of adjacent bytes."""
        i = 0
        while i < len(self._starts):
            offset = end = self._starts[i]
            buffers: list[Buffer] = []
            while i < len(self._starts) and self._starts[i] == end:
                buffers.append(self._data[i])
                end += len(self._data[i])
                i += 1
            yield offset, end - offset, buffers

    def shift(self, delta: int) -> None:
        self._starts = [s + delta for s in self._starts]
