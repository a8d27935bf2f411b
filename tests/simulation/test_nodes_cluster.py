"""Pools over several machines under everything at once, nodes that die and are cut off among it. See nodesworld.py."""

from __future__ import annotations

import random
import tempfile

from tests.simulation.nodesworld import NodesWorld, schedule
from tests.simulation.runner import assert_replays, run_schedules


def test_what_was_answered_is_there_whatever_node_dies() -> None:
    run_schedules(schedule, count=2)


def test_a_seed_of_several_nodes_replays() -> None:
    assert_replays(schedule, 1)


def test_a_pool_whose_forming_is_interrupted_is_formed_with_all_of_its_drives() -> None:
    """The nodes' drives may have the root already: it names the metadata server's own ones, which are not made anew."""

    async def interrupted(seed: int, rng: random.Random) -> None:
        with tempfile.TemporaryDirectory(prefix="sim-", dir="/dev/shm") as directory:
            async with NodesWorld(rng, directory) as world:
                world.die_in(40 + 50 * seed, rng.choice(("kill", "power")))
                await world.until_up()
                world.steps.arm(0, lambda: None)
                await world.until_whole(60)
                assert len(world.healthy()) == 6

    run_schedules(interrupted, count=6)
