"""Time, randomness and threads, injected everywhere so that whole clusters run in one thread in tests.

Intervals inside a task use trio's own clock (a MockClock in tests). What must survive suspension of the machine or
be stored uses a Clock. Blocking work goes to an Executor.
"""

from __future__ import annotations

import queue
import random
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeVar, TypeVarTuple, Unpack

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
    async def run(self, fn: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        """Run blocking `fn(*args)` without blocking the event loop. A cancelled caller waits for it all the same:
        what was begun on a disk is finished before anybody acts on it."""
        ...

    async def run_all(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Run the calls side by side and wait for all of them; then the first error, if any, is raised."""
        ...


class ThreadExecutor:
    """Worker threads, at most `limit`, started when they are needed and ended with the executor.

    Not trio's own: one wake-up of the event loop for a whole list, and threads that wait in a C queue, make a list of
    six calls about three times cheaper than six hops of trio.to_thread.
    """

    def __init__(self, limit: int = 16) -> None:
        self._limit = limit
        self._threads = 0
        self._pending = 0  # touched by the event loop only
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        weakref.finalize(self, _stop, self._queue, limit)

    async def run(self, fn: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        return (await self._submit((partial(fn, *args),)))[0]

    async def run_all(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        return await self._submit(calls)

    async def _submit(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        await trio.lowlevel.checkpoint_if_cancelled()
        if not calls:
            return []
        batch = _Batch(len(calls))
        self._pending += len(calls)
        while self._threads < min(self._pending, self._limit):
            self._threads += 1
            threading.Thread(target=_serve, args=(self._queue,), name=f"worker-{self._threads}", daemon=True).start()
        for place, call in enumerate(calls):
            self._queue.put((batch, place, call))
        try:
            await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        finally:
            self._pending -= len(calls)
        if batch.error is not None:
            raise batch.error
        return batch.results


_Job = tuple["_Batch", int, Callable[[], Any]]


class _Batch:
    """A list of calls that one task waits for; the thread that finishes the last one wakes it."""

    def __init__(self, size: int) -> None:
        self.results: list[Any] = [None] * size
        self.error: BaseException | None = None
        self._left = size
        self._lock = threading.Lock()
        self._task = trio.lowlevel.current_task()
        self._token = trio.lowlevel.current_trio_token()

    def done(self, place: int, result: Any, error: BaseException | None) -> None:
        with self._lock:
            self.results[place] = result
            self.error = self.error or error
            self._left -= 1
            last = not self._left
        if last:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(trio.lowlevel.reschedule, self._task)


def _serve(jobs: queue.SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        batch, place, call = job
        try:
            result, error = call(), None
        except BaseException as caught:
            result, error = None, caught
        batch.done(place, result, error)
        del batch, call, job, result, error  # hold nothing while waiting


def _stop(jobs: queue.SimpleQueue[_Job | None], threads: int) -> None:
    for _ in range(threads):
        jobs.put(None)


class InlineExecutor:
    """For simulations: runs at once, in the event loop, between two checkpoints (so that schedules interleave)."""

    async def run(self, fn: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        await trio.lowlevel.checkpoint()
        result = fn(*args)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return result

    async def run_all(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        results = []
        for call in calls:
            results.append(await self.run(call))
        return results


Random = random.Random
"""Source of randomness: random.SystemRandom in processes, a seeded random.Random in simulations."""
