"""Recent latencies of one kind of call, and the bounds derived from them. Pure: durations come as arguments."""

from __future__ import annotations

from bisect import insort
from collections import deque

WINDOW = 512
ENOUGH = 100  # samples before the percentiles are trusted

PUT_FLOOR_S = 0.2
PUT_UNKNOWN_S = 2.0
HEDGE_FLOOR_S = 0.005
HEDGE_UNKNOWN_S = 0.1


class Latencies:
    """A sliding window of the newest samples, kept sorted."""

    def __init__(self, window: int = WINDOW) -> None:
        self._recent: deque[float] = deque(maxlen=window)
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._recent)

    def add(self, seconds: float) -> None:
        if len(self._recent) == self._recent.maxlen:
            self._sorted.remove(self._recent[0])
        self._recent.append(seconds)
        insort(self._sorted, seconds)

    def quantile(self, q: float) -> float:
        """0 when there are no samples."""
        if not self._sorted:
            return 0.0
        return self._sorted[min(len(self._sorted) - 1, int(q * len(self._sorted)))]


def put_wait_s(latencies: Latencies) -> float:
    """How long a put waits for all its shards before it may answer with fewer: max(200 ms, 3 x p99)."""
    if len(latencies) < ENOUGH:
        return PUT_UNKNOWN_S
    return max(PUT_FLOOR_S, 3 * latencies.quantile(0.99))


def hedge_wait_s(latencies: Latencies) -> float:
    """How long a get waits for a shard before it reads others to rebuild it: about the 95th percentile."""
    if len(latencies) < ENOUGH:
        return HEDGE_UNKNOWN_S
    return max(HEDGE_FLOOR_S, 1.5 * latencies.quantile(0.95))
