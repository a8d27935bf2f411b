"""How fast background work (healing, rebalancing, scrub) may go: it yields to clients, but never below a floor.

    each PERIOD_S, per kind of client call: p99 of what was seen > 2 x its usual p99 ? rate *= 0.5 : rate *= 1.25

Invariants
1. floor <= rate <= ceiling: clients slow background work down to the floor and never stop it.
2. "Usual" is what clients saw while nothing was moved. A kind that was never seen in quiet is measured at the floor
   first. At the floor the usual latency drifts towards what is seen: what the floor costs is no reason to blame it.
3. Without clients the rate rises to the ceiling. Reservations are served in order; time is trio's.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import trio

Pace = Callable[[int], Awaitable[None]]
"""Awaited with the bytes about to be moved; returns when they may."""

FLOOR_BYTES_S = 8e6
CEILING_BYTES_S = 1e9
SLOW = 2.0  # times the usual p99
SLACK_S = 0.001  # and at least so much more: nobody feels a tenth of a millisecond
PERIOD_S = 0.5
ENOUGH = 5  # calls before their p99 says anything
FORGET_S = 600.0  # a kind that nobody calls any more
HOLD_S = 5.0  # how long fewer keep the rate where it is
DOWN, UP = 0.5, 1.25


async def unpaced(size_bytes: int) -> None:
    """For tests and for work that somebody waits for."""
    await trio.lowlevel.checkpoint()


@dataclass(slots=True)
class _Kind:
    """One kind of client call, as seen lately. `usual_s` is None until it is known."""

    usual_s: float | None = None
    seen: list[float] = field(default_factory=list)
    calls: int = 0
    worst_p99_s: float = 0.0  # reported by other processes as percentiles
    shown_s: float = 0.0
    last_s: float = 0.0

    def close(self, *, quiet: bool, at_floor: bool) -> bool | None:
        """End a period: was it slow? None: too few calls to say."""
        if self.calls < ENOUGH:
            return None
        self.seen.sort()
        own = self.seen[min(len(self.seen) - 1, int(0.99 * len(self.seen)))] if self.seen else 0.0
        p99_s = self.shown_s = max(own, self.worst_p99_s)
        self.seen, self.calls, self.worst_p99_s = [], 0, 0.0
        if self.usual_s is None:
            if not (quiet or at_floor):
                return True
            self.usual_s = p99_s
        elif quiet:
            self.usual_s += (p99_s - self.usual_s) * 0.3
        elif p99_s < self.usual_s:
            self.usual_s += (p99_s - self.usual_s) * 0.1
        elif at_floor:
            self.usual_s += (p99_s - self.usual_s) * 0.002
        return p99_s > max(SLOW * self.usual_s, self.usual_s + SLACK_S)


class Pacer:
    """A Pace whose rate follows the latencies that clients see. Rate and reason are visible (`report`)."""

    def __init__(self, floor_bytes_s: float = FLOOR_BYTES_S, ceiling_bytes_s: float = CEILING_BYTES_S) -> None:
        self.floor_bytes_s = floor_bytes_s
        self._ceiling = max(floor_bytes_s, ceiling_bytes_s)
        self.rate_bytes_s = self._ceiling
        self.moved_bytes = 0
        self._kinds: dict[str, _Kind] = {}
        self._moved_then = 0
        self._closed_at = -math.inf
        self._free_at = 0.0
        self.slowed_by = ""  # the kind of call that made it slow, "" when none does

    def observe(self, latency_s: float, kind: str = "call") -> None:
        """A client's call took this long."""
        found = self._of(kind)
        found.seen.append(latency_s)
        found.calls += 1

    def observe_p99(self, kind: str, calls: int, p99_s: float) -> None:
        """What another process has measured over its last seconds."""
        found = self._of(kind)
        found.calls += calls
        found.worst_p99_s = max(found.worst_p99_s, p99_s)

    async def __call__(self, size_bytes: int) -> None:
        self._turn()
        now = trio.current_time()
        begin = max(now, self._free_at)
        self._free_at = begin + size_bytes / self.rate_bytes_s
        self.moved_bytes += size_bytes
        await trio.sleep(begin - now)

    def report(self) -> dict[str, Any]:
        self._turn()
        return {
            "limit": self.rate_bytes_s,
            "floor": self.floor_bytes_s,
            "slowed_by": self.slowed_by,
            "latencies": {
                kind: {"usual_s": found.usual_s, "p99_s": found.shown_s} for kind, found in sorted(self._kinds.items())
            },
        }

    def _of(self, kind: str) -> _Kind:
        self._turn()
        found = self._kinds.setdefault(kind, _Kind())
        found.last_s = trio.current_time()
        return found

    def _turn(self) -> None:
        """Close the periods that have passed."""
        now = trio.current_time()
        if now - self._closed_at < PERIOD_S:
            return
        periods = min(40, int((now - self._closed_at) / PERIOD_S)) if self._closed_at > -math.inf else 1
        self._closed_at = now
        quiet = self.moved_bytes == self._moved_then and self._free_at <= now
        self._moved_then = self.moved_bytes
        at_floor = self.rate_bytes_s <= self.floor_bytes_s
        self._kinds = {name: kind for name, kind in self._kinds.items() if now - kind.last_s < FORGET_S}
        slow, unsure = "", False
        for name, kind in self._kinds.items():
            verdict = kind.close(quiet=quiet, at_floor=at_floor)
            slow = name if verdict else slow
            unsure = unsure or (verdict is None and kind.calls > 0 and now - kind.last_s < HOLD_S)
        if unsure and not slow:
            return  # calls are few, perhaps because they are slow: wait for enough of them
        self.slowed_by = slow
        factor = DOWN if slow else UP ** max(1, periods)
        self.rate_bytes_s = min(self._ceiling, max(self.floor_bytes_s, self.rate_bytes_s * factor))
