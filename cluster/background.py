"""Work that outlives the call that began it: late answers, reports, tidying up.

A put that has enough durable shards answers while a hanging drive's answer is still awaited, and a cancelled read
must not wait for a disk. Such work is started here: in the nursery of `run()` while that is running, else as a system
task of trio's. It must not raise; what it raises is logged and dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple, Unpack

import trio

from trivium.cluster.errors import ClusterError, Unavailable

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

log = logging.getLogger(__name__)


class Background:
    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Own the background tasks until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery  # until the last task has ended: what starts while it is cancelled is, too
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def start(self, fn: Callable[[Unpack[Ts]], Awaitable[object]], *args: *Ts) -> None:
        if self._nursery is not None:
            try:
                self._nursery.start_soon(_quietly, fn, args)
                return
            except RuntimeError:  # its last task has ended, and run() has not had its turn since
                self._nursery = None
        trio.lowlevel.spawn_system_task(_quietly, fn, args)

    async def within(self, seconds: float, fn: Callable[[Unpack[Ts]], Awaitable[T]], *args: *Ts) -> T:
        """`await fn(*args)`, but not for longer than `seconds`: then it goes on alone and Unavailable is raised.

        A cancel scope would not do: a call into a thread that hangs on its disk cannot be cancelled.
        """
        done = trio.Event()
        results: list[T] = []
        errors: list[ClusterError] = []

        async def work() -> None:
            try:
                results.append(await fn(*args))
            except ClusterError as error:
                errors.append(error)
            finally:
                done.set()

        self.start(work)
        with trio.move_on_after(seconds):
            await done.wait()
        if results:
            return results[0]
        raise errors[0] if errors else Unavailable(f"no answer within {seconds:g} s")


async def _quietly(fn: Callable[..., Awaitable[object]], args: tuple[object, ...]) -> None:
    try:
        await fn(*args)
    except Exception:
        log.exception("background work failed: %s", getattr(fn, "__qualname__", fn))
