"""The scrub reads everything that is stored: shards, dumps, closed log segments; it goes on after a crash."""

from __future__ import annotations

import random

import trio

from tests.simulation.test_healing import check, fill, on_a_pool
from tests.simulation.world import Client, World
from trivium.admin.processes.drives import absolute
from trivium.admin.processes.lead import Leader


async def scrubbed(world: World) -> Leader:
    leader = await world.until_up()
    leader.upkeep.scrubbing.now()
    with trio.fail_after(600):
        while (leader := await world.until_up()).upkeep.scrubbing.report()["running"]:  # noqa: ASYNC110
            await trio.sleep(0.5)
    return leader


def flip(world: World, rng: random.Random, path: str, lowest: int = 0) -> None:
    world.files.flip(path, rng.randrange(lowest, len(world.files.contents(path))), 1 << rng.randrange(8))


def test_a_flipped_bit_is_found_wherever_it_is_and_repaired() -> None:
    async def scenario(world: World, client: Client, rng: random.Random) -> None:
        bodies = await fill(client, rng, 6)
        leader = await world.until_up()
        await leader.upkeep.dump_now()
        await fill(client, rng, 2, "more")
        world.die("kill")
        leader = await scrubbed(world)
        assert leader.upkeep.scrubbing.report()["findings"] == []
        dump = leader.root.dumps[-1]
        rows = {row.id: row for row in leader.server.map.drives}

        def shard(placed, index: int) -> str:  # type: ignore[no-untyped-def]
            top = absolute(world.data, rows[placed.group.drives[index]].path) + "/chunks"
            leaf = f"{placed.chunk.session:016x}/", f"/{placed.chunk.counter:x}.{index}"
            (found,) = [path for path in world.files.paths(top) if leaf[0] in path and path.endswith(leaf[1])]
            return found

        flip(world, rng, shard(dump.index, 3))
        entry = leader.log.chain[0]
        assert entry.last_seq is not None, "a closed one"
        segment = f"{absolute(world.data, rows[entry.drives[1]].path)}/log/{entry.segment.hex()}.sealed"
        world.files.flip(segment, 4096 + 60, 1)  # inside of its first record
        leader = await scrubbed(world)
        found = "; ".join(leader.upkeep.scrubbing.report()["findings"])
        assert f"shard 3 of chunk {dump.index.chunk} of a dump is corrupt" in found, found
        assert f"log segment {entry.segment.hex()} on d" in found and "do not verify" in found, found
        await trio.sleep(60)
        await world.until_whole()
        leader = await scrubbed(world)
        assert leader.upkeep.scrubbing.report()["findings"] == [], "all of it was repaired"
        await check(world, bodies)

    on_a_pool(scenario)


def test_a_pass_goes_on_after_crashes() -> None:
    async def scenario(world: World, client: Client, rng: random.Random) -> None:
        await fill(client, rng, 20)
        leader = await world.until_up()
        leader.upkeep.scrubbing.now()
        for _ in range(3):
            await world.until_up()
            world.die_in(rng.randrange(1, 200), "kill")
            await trio.sleep(rng.random() * 3)
        leader = await world.until_up()
        with trio.fail_after(600):
            while (leader := await world.until_up()).upkeep.scrubbing.report()["running"]:  # noqa: ASYNC110
                await trio.sleep(0.5)
        report = leader.upkeep.scrubbing.report()
        world.die("kill")
        leader = await world.until_up()
        await trio.sleep(1)
        assert leader.upkeep.scrubbing.report()["last_ended_ns"] == report["last_ended_ns"]

    on_a_pool(scenario)
