"""What a client's own chunk calls take, for those who must not be in its way. Pure: durations come as arguments.

Kinds: put and get, each small or large, so that a change of what clients do is not taken for slowness.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

LARGE_BYTES = 256 * 1024
WINDOW = 512

Sample = tuple[str, int, float]  # kind, calls since the last sample, their p99 in seconds


class ClientLatency:
    """`also` hears every duration at once (of this process's own background work)."""

    def __init__(self) -> None:
        self._recent: dict[str, deque[float]] = {}
        self._calls: dict[str, int] = {}
        self.also: Callable[[float, str], None] | None = None

    def add(self, what: str, size_bytes: int, seconds: float) -> None:
        kind = what if size_bytes < LARGE_BYTES else what + "-large"
        found = self._recent.get(kind)
        if found is None:
            found = self._recent[kind] = deque(maxlen=WINDOW)
            self._calls[kind] = 0
        found.append(seconds)
        self._calls[kind] += 1
        if self.also is not None:
            self.also(seconds, kind)

    def take(self) -> tuple[Sample, ...]:
        """What was seen since the last time, and forget it."""
        samples = []
        for kind, found in self._recent.items():
            if found:
                ordered = sorted(found)
                samples.append((kind, self._calls[kind], ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]))
                found.clear()
                self._calls[kind] = 0
        return tuple(samples)
