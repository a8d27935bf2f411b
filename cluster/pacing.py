"""How fast background work may go: it yields to clients, but never below a floor.

rate *= 0.7 for each observation slower than twice the usual latency, *= 1.05 for each other one (floor..ceiling)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

Pace = Callable[[int], Awaitable[None]]
"""Awaited with the bytes about to be moved; returns when they may."""

FLOOR_BYTES_S = 8e6
CEILING_BYTES_S = 400e6
SLOW = 2.0


async def unpaced(size_bytes: int) -> None:
    """For tests and for work that somebody waits for."""
    await trio.lowlevel.checkpoint()


class Pacer:
    """A Pace whose rate follows the latencies that clients see. Progress and rate are visible."""

    def __init__(self, floor_bytes_s: float = FLOOR_BYTES_S, ceiling_bytes_s: float = CEILING_BYTES_S) -> None:
        self._floor, self._ceiling = floor_bytes_s, ceiling_bytes_s
        self.rate_bytes_s = ceiling_bytes_s
        self.moved_bytes = 0
        self._usual_s = 0.0
        self._free_at = 0.0

    def observe(self, latency_s: float) -> None:
        """A client's call took this long. The usual latency is learnt slowly, and downwards at once."""
        if not self._usual_s or latency_s < self._usual_s:
            self._usual_s = latency_s
        slow = latency_s > SLOW * self._usual_s
        self._usual_s += (latency_s - self._usual_s) * 0.002
        self.rate_bytes_s = min(self._ceiling, max(self._floor, self.rate_bytes_s * (0.7 if slow else 1.05)))

    async def __call__(self, size_bytes: int) -> None:
        now = trio.current_time()
        begin = max(now, self._free_at)
        self._free_at = begin + size_bytes / self.rate_bytes_s
        self.moved_bytes += size_bytes
        await trio.sleep(begin - now)
