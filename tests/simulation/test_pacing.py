"""Background work yields to clients, never below its floor, and learns what is usual for them. Simulated clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from trivium.cluster.clientlatency import ClientLatency
from trivium.cluster.pacing import Pacer

FLOOR, CEILING = 8e6, 400e6
MIB = 1 << 20


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def clients(pacer: Pacer, latency: Callable[[], float], seconds: float) -> None:
    """One client, one call after another, with a pause of 10 ms."""
    until = trio.current_time() + seconds
    while trio.current_time() < until:
        took = latency()
        await trio.sleep(took + 0.01)
        pacer.observe(took, "put")


async def mover(pacer: Pacer) -> None:
    while True:
        await pacer(MIB)


def crowded(pacer: Pacer, harm: float) -> Callable[[], float]:
    """A disk on which `harm` of a client's time is lost per 100 MB/s of background work."""

    def latency() -> float:
        return 0.005 * (1 + harm * pacer.rate_bytes_s / 100e6)

    return latency


def test_alone_it_runs_at_the_ceiling() -> None:
    async def main() -> None:
        pacer = Pacer(FLOOR, CEILING)
        began = trio.current_time()
        for _ in range(401):
            await pacer(1_000_000)
        assert trio.current_time() - began == pytest.approx(1.0) and pacer.moved_bytes == 401_000_000

    run(main)


def test_clients_that_suffer_slow_it_to_where_they_suffer_less_than_twice() -> None:
    async def main() -> None:
        pacer = Pacer(FLOOR, CEILING)
        await clients(pacer, lambda: 0.005, 20)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mover, pacer)
            await clients(pacer, crowded(pacer, 2.0), 60)
            before = pacer.moved_bytes
            seen: list[float] = []

            def latency() -> float:
                seen.append(crowded(pacer, 2.0)())
                return seen[-1]

            await clients(pacer, latency, 60)
            assert FLOOR <= pacer.rate_bytes_s < 100e6
            seen.sort()
            assert seen[len(seen) // 2] < 2.2 * 0.005, "most calls are within twice of what is usual"
            assert pacer.moved_bytes - before > 60 * FLOOR * 2, "and it takes what they leave"
            nursery.cancel_scope.cancel()

    run(main)


def test_the_floor_holds_however_clients_suffer_and_is_kept_exactly() -> None:
    async def main() -> None:
        pacer = Pacer(FLOOR, CEILING)
        await clients(pacer, lambda: 0.005, 20)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mover, pacer)
            await clients(pacer, lambda: 0.005 if not pacer.moved_bytes else 0.5, 30)
            assert pacer.rate_bytes_s == FLOOR and pacer.slowed_by == "put"
            before, began = pacer.moved_bytes, trio.current_time()
            await clients(pacer, lambda: 0.5, 30)
            moved = (pacer.moved_bytes - before) / (trio.current_time() - began)
            assert moved == pytest.approx(FLOOR, rel=0.05)
            nursery.cancel_scope.cancel()

    run(main)


def test_when_clients_have_gone_it_speeds_up_again() -> None:
    async def main() -> None:
        pacer = Pacer(FLOOR, CEILING)
        await clients(pacer, lambda: 0.005, 20)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mover, pacer)
            await clients(pacer, lambda: 0.05, 20)
            assert pacer.rate_bytes_s == FLOOR
            await trio.sleep(20)
            assert pacer.report()["limit"] == CEILING and not pacer.slowed_by
            nursery.cancel_scope.cancel()

    run(main)


def test_what_was_never_seen_in_quiet_is_measured_at_the_floor() -> None:
    async def main() -> None:
        pacer = Pacer(FLOOR, CEILING)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mover, pacer)
            await trio.sleep(5)
            await clients(pacer, crowded(pacer, 2.0), 60)
            usual = pacer.report()["latencies"]["put"]["usual_s"]
            assert 0.005 <= usual < 0.008, "not what they saw at full speed, 45 ms"
            nursery.cancel_scope.cancel()

    run(main)


def test_percentiles_of_other_processes_count_like_own_calls() -> None:
    async def main() -> None:
        pacer = Pacer(FLOOR, CEILING)
        for _ in range(10):
            pacer.observe_p99("put of 7", 100, 0.004)
            await trio.sleep(2.5)
        assert pacer.report()["latencies"]["put of 7"]["usual_s"] == pytest.approx(0.004)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mover, pacer)
            for _ in range(20):
                pacer.observe_p99("put of 7", 100, 0.1)
                await trio.sleep(0.5)
            assert pacer.rate_bytes_s == FLOOR and pacer.slowed_by == "put of 7"
            nursery.cancel_scope.cancel()
        await trio.sleep(700)
        assert not pacer.report()["latencies"], "a client that has gone is forgotten"

    run(main)


def test_a_few_calls_say_nothing_and_microseconds_are_no_harm() -> None:
    async def main() -> None:
        pacer = Pacer(FLOOR, CEILING)
        await clients(pacer, lambda: 0.0001, 10)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mover, pacer)
            await clients(pacer, lambda: 0.0009, 10)
            assert pacer.rate_bytes_s == CEILING
            for _ in range(3):
                pacer.observe(5.0, "get")
            await trio.sleep(1)
            assert pacer.report()["limit"] == CEILING
            nursery.cancel_scope.cancel()

    run(main)


def test_samples_of_a_client() -> None:
    latency = ClientLatency()
    heard: list[tuple[float, str]] = []
    latency.also = lambda seconds, kind: heard.append((seconds, kind))
    for number in range(100):
        latency.add("put", 4096, 0.001 * number)
    latency.add("get", 1 << 20, 0.5)
    assert latency.take() == (("put", 100, 0.099), ("get-large", 1, 0.5))
    assert latency.take() == () and len(heard) == 101
