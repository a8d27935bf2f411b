"""Seeded schedules: the same seed gives the same interleaving of tasks, the same faults and the same times.

    async def schedule(seed: int, rng: random.Random) -> None: ...       # asserts its invariants
    def test_it() -> None:
        run_schedules(schedule, count=50)

Each schedule runs under a MockClock that jumps when everybody waits, with trio's scheduler seeded. A failure names its
seed; TRIVIUM_SEED=<n> replays that one alone, TRIVIUM_SEEDS=<n> runs that many (from a random first seed when it is
larger than `count`, so that long runs see new ones).
"""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest
import trio
import trio.testing
from trio._core import _run as scheduler

Schedule = Callable[[int, random.Random], Awaitable[None]]
TIMEOUT_S = 100_000.0  # of virtual time: a schedule that waits for ever fails


@contextmanager
def seeded_scheduler(seed: int) -> Iterator[None]:
    """trio runs its batches of runnable tasks in an order that only the seed decides."""
    before, state = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate()
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    scheduler._r.seed(seed)
    try:
        yield
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = before  # type: ignore[misc]
        scheduler._r.setstate(state)


@contextmanager
def _no_collector() -> Iterator[None]:
    """Abandoned generators are finalized through the scheduler, so the collector's moments would be steps."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def run_one(schedule: Schedule, seed: int) -> None:
    async def main() -> None:
        with trio.fail_after(TIMEOUT_S):
            await schedule(seed, random.Random(seed))

    with seeded_scheduler(seed), _no_collector():
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def seeds(count: int) -> list[int]:
    one = os.environ.get("TRIVIUM_SEED")
    if one is not None:
        return [int(one)]
    asked = int(os.environ.get("TRIVIUM_SEEDS", count))
    first = 0 if asked <= count else random.SystemRandom().randrange(1 << 30)
    return list(range(first, first + asked))


def run_schedules(schedule: Schedule, count: int = 20) -> None:
    """Run schedules until one fails; the failure says how to replay it."""
    for seed in seeds(count):
        try:
            run_one(schedule, seed)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            print(f"failing seed: {seed}  (replay: TRIVIUM_SEED={seed})")
            error.add_note(f"failing seed: {seed}  (replay: TRIVIUM_SEED={seed})")
            raise


class Trace:
    """What happened, in order: two runs of one seed must give the same."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def __call__(self, what: str) -> None:
        self.events.append(f"{trio.current_time():.6f} {what}")


def assert_replays(schedule: Callable[[int, random.Random, Trace], Awaitable[None]], seed: int) -> None:
    """The schedule gives the same trace twice."""
    traces = [Trace(), Trace()]
    for trace in traces:
        run_one(lambda number, rng, trace=trace: schedule(number, rng, trace), seed)
    if traces[0].events != traces[1].events:
        pytest.fail(f"seed {seed} gave two schedules")
