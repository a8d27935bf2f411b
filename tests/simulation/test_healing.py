"""A whole pool heals: through crashes, when a second drive goes meanwhile, onto an added drive; narrow chunks widen."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Awaitable, Callable

import trio

from tests.simulation.runner import run_one
from tests.simulation.simclients import BUCKET, read_object
from tests.simulation.test_scenarios import put
from tests.simulation.world import Client, World
from trivium.admin.drivecommands import add_drive
from trivium.metadata import narrow, rebalance, repairqueue, widen
from trivium.metadata.messages import CreateBucket, DeleteObject

Scenario = Callable[[World, Client, random.Random], Awaitable[None]]


def on_a_pool(scenario: Scenario, seeds: int = 2) -> None:
    async def schedule(seed: int, rng: random.Random) -> None:
        with tempfile.TemporaryDirectory(prefix="sim-", dir="/dev/shm") as directory:
            async with World(rng, directory) as world:
                await world.until_up()
                client = await world.client("c")
                await client.metadata.call(CreateBucket(BUCKET, "root"))
                await scenario(world, client, rng)

    for seed in range(seeds):
        run_one(schedule, seed)


async def fill(client: Client, rng: random.Random, count: int, prefix: str = "k") -> dict[bytes, bytes]:
    bodies = {}
    for number in range(count):
        name = f"{prefix}{number}".encode()
        bodies[name] = rng.randbytes(rng.choice((40_000, 200_000)))
        await put(client, name, bodies[name])
    return bodies


async def check(world: World, bodies: dict[bytes, bytes]) -> None:
    reader = await world.client("reader")
    with trio.fail_after(2000):
        for name, body in bodies.items():
            assert await read_object(reader, name) == body, name
    reader.scope.cancel()


def test_healing_goes_on_after_crashes_at_any_step() -> None:
    async def scenario(world: World, client: Client, rng: random.Random) -> None:
        bodies = await fill(client, rng, 12)
        world.lose_drive(world.healthy()[rng.randrange(6)], "wipe")
        leader = await world.until_up()
        await leader.substrate.watch.refresh()
        await world.replace_lost()
        for _ in range(4):
            await world.until_up()
            world.die_in(rng.randrange(1, 400), rng.choice(("kill", "power")))
            await trio.sleep(rng.random() * 5)
        world.steps.arm(0, lambda: None)  # a death that has not come yet would come in the middle of the check
        await world.until_whole()
        await world.check_rows(drives=True)
        for row in rng.sample(world.healthy(), 2):
            world.lose_drive(row, "wipe")
        await check(world, bodies)

    on_a_pool(scenario)


def test_a_second_drive_lost_while_the_first_heals_comes_first_and_nothing_is_lost() -> None:
    async def scenario(world: World, client: Client, rng: random.Random) -> None:
        bodies = await fill(client, rng, 10)
        first, second = rng.sample(world.healthy(), 2)
        world.lose_drive(first, "wipe")
        leader = await world.until_up()
        await leader.substrate.watch.refresh()
        await world.replace_lost()
        world.lose_drive(second, "wipe")
        await leader.substrate.watch.refresh()
        await world.replace_lost()
        found = await leader.read(repairqueue.classes)
        assert [one.redundancy for one in found] == sorted(one.redundancy for one in found)
        await world.until_whole()
        await world.check_rows(drives=True)
        for row in rng.sample(world.healthy(), 2):
            world.lose_drive(row, "wipe")
        await check(world, bodies)

    on_a_pool(scenario)


def test_narrow_chunks_widen_while_they_are_rewritten_and_deleted() -> None:
    async def scenario(world: World, client: Client, rng: random.Random) -> None:
        world.lose_drive(world.healthy()[rng.randrange(6)], "wipe")
        leader = await world.until_up()
        await leader.substrate.watch.refresh()
        await trio.sleep(5)  # clients hear of it
        bodies = await fill(client, rng, 12)
        assert (await leader.read(narrow.tally)).chunks > 0
        status = await leader.status()
        assert status["narrow"]["left"] and not status["whole"]
        await world.until_whole()
        leader = await world.until_up()
        left = (await leader.read(narrow.tally)).chunks
        await trio.sleep(widen.WHOLE_S / 2)
        leader = await world.until_up()
        assert (await leader.read(narrow.tally)).chunks == left > 0, "not before the pool has been whole for a while"
        await trio.sleep(widen.WHOLE_S / 2 - 5)
        for number in range(40):  # meanwhile
            name = f"k{rng.randrange(12)}".encode()
            if rng.random() < 0.3:
                await client.metadata.call(DeleteObject(BUCKET, name))
                bodies.pop(name, None)
            else:
                bodies[name] = rng.randbytes(50_000 + number)
                await put(client, name, bodies[name])
            await trio.sleep(rng.random())
        with trio.fail_after(300):
            while (await leader.read(narrow.tally)).chunks:  # noqa: ASYNC110 (rows are polled)
                await trio.sleep(1)
        assert (await leader.status())["narrow"] is None
        await world.check_rows(drives=True)
        for row in rng.sample(world.healthy(), 2):
            world.lose_drive(row, "wipe")
        await check(world, bodies)

    on_a_pool(scenario)


def test_an_added_drive_gets_its_share_and_what_was_left_is_collected() -> None:
    async def scenario(world: World, client: Client, rng: random.Random) -> None:
        bodies = await fill(client, rng, 24)
        leader = await world.until_up()
        slack, rebalance.SLACK_BYTES = rebalance.SLACK_BYTES, 100_000
        try:
            row = await add_drive(leader, "d6", "drives/d6")
            with trio.fail_after(2000):
                mover = leader.upkeep.rebalancer
                while await mover.look() or mover.progress.waiting:  # noqa: ASYNC110 (its own loop sleeps longer)
                    await trio.sleep(1)
        finally:
            rebalance.SLACK_BYTES = slack
        found = await leader.read(rebalance.loads)
        usable = leader.substrate.watch.usable()
        have, want = rebalance.actual(found), rebalance.wanted(leader.server.map, usable, found)
        assert have[row.id] > 0.7 * want[row.id], (have[row.id], want[row.id])
        await trio.sleep(120)
        assert not (await leader.upkeep._survey()).unnamed, "what the moves left behind has been collected"
        await world.check_rows(drives=True)
        for lost in rng.sample(world.healthy(), 2):
            world.lose_drive(lost, "wipe")
        await check(world, bodies)

    on_a_pool(scenario)
