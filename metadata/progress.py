"""Progress, rate and time left of a long piece of work. Pure: the time comes as an argument (seconds, any origin)."""

from __future__ import annotations

from collections import deque
from typing import Any

WINDOW_S = 20.0  # the rate is that of the last seconds, not of the whole


class Progress:
    """`left` and `bytes_left` are what is still to do, as last counted; `waiting` says in words why nothing moves."""

    def __init__(self) -> None:
        self.done = 0
        self.bytes_done = 0
        self.left = 0
        self.bytes_left = 0
        self.waiting = ""
        self._marks: deque[tuple[float, int]] = deque()

    def advance(self, size_bytes: int, now_s: float) -> None:
        """One more is done."""
        if not self._marks:
            self._marks.append((now_s, self.bytes_done))
        self.done += 1
        self.bytes_done += size_bytes
        self.left = max(0, self.left - 1)
        self.bytes_left = max(0, self.bytes_left - size_bytes)
        self._marks.append((now_s, self.bytes_done))
        while len(self._marks) > 2 and self._marks[1][0] < now_s - WINDOW_S:
            self._marks.popleft()

    def counted(self, chunks: int, size_bytes: int) -> None:
        self.left, self.bytes_left = chunks, size_bytes
        if not chunks:
            self.waiting = ""

    def rate_bytes_s(self, now_s: float) -> float:
        """Of the last seconds; it falls when nothing moves any more."""
        if not self._marks:
            return 0.0
        began, before = self._marks[0]
        return (self.bytes_done - before) / max(now_s - began, 0.05)

    def report(self, now_s: float) -> dict[str, Any]:
        rate = self.rate_bytes_s(now_s)
        left_s = None if self.left and rate <= 0 else self.bytes_left / rate if self.left else 0.0
        return {
            "done": self.done,
            "total": self.done + self.left,
            "bytes_done": self.bytes_done,
            "bytes_total": self.bytes_done + self.bytes_left,
            "rate": rate,
            "seconds_left": left_s,
            "waiting": self.waiting,
        }
