"""A byte budget: what may be on its way at once. First come, first served."""

from __future__ import annotations

from collections import deque

import trio


class Budget:
    """Invariant: the bytes taken never pass the total; one claim over the total counts as the whole of it."""

    __slots__ = ("_free", "_queue", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._queue: deque[tuple[int, trio.Event]] = deque()

    @property
    def taken(self) -> int:
        return self.total - self._free

    def take_now(self, size_bytes: int) -> int | None:
        """What was taken (to be given back), or None when there is no room or others wait."""
        size_bytes = min(size_bytes, self.total)
        if self._queue or size_bytes > self._free:
            return None
        self._free -= size_bytes
        return size_bytes

    async def take(self, size_bytes: int) -> int:
        """Wait for room; returns what must be given back."""
        taken = self.take_now(size_bytes)
        if taken is not None:
            return taken
        size_bytes = min(size_bytes, self.total)
        entry = (size_bytes, trio.Event())
        self._queue.append(entry)
        try:
            await entry[1].wait()
        except BaseException:
            if entry[1].is_set():
                self.give(size_bytes)
            else:
                self._queue.remove(entry)
                self._wake()
            raise
        return size_bytes

    def give(self, size_bytes: int) -> None:
        self._free += size_bytes
        self._wake()

    def _wake(self) -> None:
        while self._queue and self._queue[0][0] <= self._free:
            size_bytes, event = self._queue.popleft()
            self._free -= size_bytes
            event.set()
