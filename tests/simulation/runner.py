"""Seeded schedules: the same seed gives the same interleaving of tasks, the same faults and the same times.

    async def schedule(seed: int, rng: random.Random) -> None: ...       # asserts its invariants
    def test_it() -> None:
        run_schedules(schedule, count=50)

Each schedule runs under a MockClock that jumps when everybody waits, with trio's scheduler seeded. A failure names its
seed; TRIVIUM_SEED=<n> replays that one alone, TRIVIUM_SEEDS=<n> runs that many (from a random first seed when it is
larger than `count`, so that long runs see new ones).

A schedule is some ten thousand steps of trio's loop, each of a few lines: `_lean` takes out of the loop what a run in
one thread without any input or output has no use for (a fifth of the time).
"""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

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


class _Instruments(dict[str, trio.abc.Instrument]):
    """One instrument at most, and looking whether there is one costs what it costs in a dict."""

    def add_instrument(self, instrument: trio.abc.Instrument) -> None:
        assert not self
        self["before_task_step"] = instrument

    def remove_instrument(self, instrument: trio.abc.Instrument) -> None:
        del self["before_task_step"]

    def call(self, hook: str, *arguments: Any) -> None:
        getattr(self[hook], hook)(*arguments)


@contextmanager
def _lean() -> Iterator[None]:
    """Inside trio.run: no question to the kernel at each step, a clock that stands still between its jumps."""
    runner = scheduler.GLOBAL_RUN_CONTEXT.runner
    clock: Any = runner.clock
    manager: Any = type(runner.io_manager)
    poll = manager.get_events

    def jump() -> None:
        deadline = runner.deadlines.next_deadline()
        if clock._virtual_base < deadline < float("inf"):
            clock._virtual_base = deadline

    manager.get_events = lambda self, timeout: poll(self, timeout) if timeout > 0 else []
    clock.current_time = lambda: clock._virtual_base
    clock._autojump = jump
    instruments, runner.instruments = runner.instruments, _Instruments()  # type: ignore[assignment]
    try:
        yield
    finally:
        manager.get_events, runner.instruments = poll, instruments
        del clock.current_time, clock._autojump


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
        with _lean(), trio.fail_after(TIMEOUT_S):
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
