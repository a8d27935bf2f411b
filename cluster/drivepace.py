"""Drives that are slow or err beside their peers, noticed by whoever reads from them. Pure: time is an argument.

    good --p99 of its last reads over SLOW x the median of its peers' (and FLOOR_S), or ERRORS in a window--> slow
      ^                                                                                                        |
      `--after REST_S (doubled each time, up to MOST_REST_S) it is tried again, with nothing remembered--------'

Slow is advice: such a drive is read last, never left out; at most a quarter of the drives (and one) are slow at a time,
so that a slow moment of the whole machine demotes nobody.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

from trivium.cluster.latency import Latencies

WINDOW = 128
ENOUGH = 24  # samples of a drive before it is judged
PEERS = 3  # drives that must have enough samples
SLOW = 5.0
FLOOR_S = 0.05
ERRORS, ERRORS_S = 3, 60.0
REST_S, MOST_REST_S = 30.0, 600.0


@dataclass(slots=True)
class _Drive:
    samples: Latencies = field(default_factory=lambda: Latencies(WINDOW))
    errors: deque[float] = field(default_factory=lambda: deque(maxlen=ERRORS))
    until_s: float = 0.0  # slow until then
    rest_s: float = REST_S
    why: str = ""


class DrivePaces:
    def __init__(self) -> None:
        self._drives: dict[bytes, _Drive] = {}

    def add(self, drive: bytes, seconds: float, now_s: float) -> None:
        """A read from the drive took so long."""
        found = self._drives.setdefault(drive, _Drive())
        found.samples.add(seconds)
        if seconds > FLOOR_S and len(found.samples) >= ENOUGH and now_s >= found.until_s:
            self._judge(drive, found, now_s)

    def error(self, drive: bytes, now_s: float) -> None:
        """A read from the drive failed in the drive (not for want of the file)."""
        found = self._drives.setdefault(drive, _Drive())
        found.errors.append(now_s)
        if len(found.errors) == ERRORS and now_s - found.errors[0] <= ERRORS_S:
            self._demote(found, now_s, f"{ERRORS} read errors within {ERRORS_S:.0f} s")

    def is_slow(self, drive: bytes, now_s: float) -> bool:
        found = self._drives.get(drive)
        return found is not None and now_s < found.until_s

    def slow(self, now_s: float) -> dict[bytes, str]:
        """The slow drives, each with the reason."""
        return {drive: found.why for drive, found in self._drives.items() if now_s < found.until_s}

    def _judge(self, drive: bytes, found: _Drive, now_s: float) -> None:
        peers = [
            other.samples.quantile(0.99)
            for id, other in self._drives.items()
            if id != drive and len(other.samples) >= ENOUGH and now_s >= other.until_s
        ]
        p99 = found.samples.quantile(0.99)
        if len(peers) >= PEERS and p99 > max(FLOOR_S, SLOW * median(peers)):
            self._demote(
                found, now_s, f"slow: p99 of its reads is {p99 * 1000:.0f} ms, its peers' {median(peers) * 1000:.0f} ms"
            )

    def _demote(self, found: _Drive, now_s: float, why: str) -> None:
        if len(self.slow(now_s)) >= max(1, len(self._drives) // 4):
            return
        found.why = why
        found.until_s = now_s + found.rest_s
        found.rest_s = min(2 * found.rest_s, MOST_REST_S)
        found.samples = Latencies(WINDOW)  # what it is like afterwards is seen afterwards
        found.errors.clear()
