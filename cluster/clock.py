"""Time, randomness and threads, injected everywhere so that whole clusters run in one thread in tests.

Intervals inside a task use trio's own clock (a MockClock in tests). What must survive suspension of the machine or
be stored uses a Clock. Blocking work goes to an Executor.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Protocol, TypeVar, TypeVarTuple, Unpack

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Clock(Protocol):
    def wall_ns(self) -> int:
        """Nanoseconds since the epoch; may step."""
        ...

    def boot_s(self) -> float:
        """Seconds that never step and count while the machine sleeps (CLOCK_BOOTTIME)."""
        ...


class SystemClock:
    def wall_ns(self) -> int:
        return time.time_ns()

    def boot_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)


class TrioClock:
    """For simulations: both times follow trio's (mock) clock."""

    def __init__(self, epoch_ns: int = 1_700_000_000_000_000_000) -> None:
        self._epoch_ns = epoch_ns

    def wall_ns(self) -> int:
        return self._epoch_ns + int(trio.current_time() * 1e9)

    def boot_s(self) -> float:
        return trio.current_time()


class Executor(Protocol):
    async def run(self, fn: Callable[[Unpack[Ts]], T], *args: Unpack[Ts]) -> T:
        """Run blocking `fn(*args)` without blocking the event loop. A cancelled caller waits for it all the same:
        what was begun on a disk is finished before anybody acts on it."""
        ...


class ThreadExecutor:
    """trio's worker threads, at most `limit` at once."""

    def __init__(self, limit: int = 16) -> None:
        self._limiter = trio.CapacityLimiter(limit)

    async def run(self, fn: Callable[[Unpack[Ts]], T], *args: Unpack[Ts]) -> T:
        return await trio.to_thread.run_sync(fn, *args, limiter=self._limiter)


class InlineExecutor:
    """For simulations: runs at once, in the event loop, between two checkpoints (so that schedules interleave)."""

    async def run(self, fn: Callable[[Unpack[Ts]], T], *args: Unpack[Ts]) -> T:
        await trio.lowlevel.checkpoint()
        result = fn(*args)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return result


Random = random.Random
"""Source of randomness: random.SystemRandom in processes, a seeded random.Random in simulations."""
