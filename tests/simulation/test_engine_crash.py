"""Crashes anywhere between apply, append and COMMIT: what was answered is there, once; the rest whole or absent."""

from __future__ import annotations

import random

import pytest
import trio

from tests.fakes.engineworld import World, run_seeded
from trivium.metadata.client import MetadataClient
from trivium.metadata.messages import ROOT_INO, Create, Lookup, MetadataError, Unlink

SEEDS = range(24)


async def _work(client: MetadataClient, who: int, count: int, seed: int, model: dict[bytes, bool]) -> None:
    """Create and unlink names of its own; each exists or not in `model` once the call has answered."""
    rng = random.Random(seed * 100 + who)
    for i in range(count):
        name = b"%d-%d" % (who, i)
        await client.call(Create(ROOT_INO, name, 0o100644), Create(ROOT_INO, name + b".pair", 0o100644))
        model[name] = model[name + b".pair"] = True
        if rng.random() < 0.3:
            await client.call(Unlink(ROOT_INO, name))
            model[name] = False
        if rng.random() < 0.2:  # refused as a whole: nothing of it stays
            with pytest.raises(MetadataError) as caught:
                await client.call(Create(ROOT_INO, name + b".never", 0o100644), Unlink(ROOT_INO, b"missing"))
            assert (caught.value.code, caught.value.index) == ("ENOENT", 1)
            model[name + b".never"] = False


@pytest.mark.parametrize("seed", SEEDS)
def test_acknowledged_operations_survive_and_run_once(seed: int, tmp_path: str) -> None:
    print("seed", seed)
    rng = random.Random(seed)

    async def main() -> None:
        world = World(str(tmp_path), seed)
        model: dict[bytes, bool] = {}

        async def lives() -> None:
            for _ in range(8):
                await world.life(rng.randrange(2, 32))
            await world.life()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lives)
            clients = [
                MetadataClient(world.connect, client=f"c{i}", random=random.Random(i), clock=world.clock)
                for i in range(3)
            ]
            async with trio.open_nursery() as client_nursery:
                for client in clients:
                    await client_nursery.start(client.run)
                async with trio.open_nursery() as workers:
                    for who, client in enumerate(clients):
                        workers.start_soon(_work, client, who, 12, seed, model)
                for name, exists in model.items():
                    entry = await clients[0].ask(Lookup(ROOT_INO, name))
                    assert (entry.attr is not None) is exists, name
                client_nursery.cancel_scope.cancel()
            nursery.cancel_scope.cancel()
        await world.check_replay(str(tmp_path))
        assert len(world.recovered) > 2, "it never crashed"

    run_seeded(main, seed)


@pytest.mark.parametrize("step", range(1, 13))
def test_one_call_and_a_crash_at_each_step(step: int, tmp_path: str) -> None:
    """Every step of a single call's way: the client's repeat is executed exactly once."""

    async def main() -> None:
        world = World(str(tmp_path), step)
        async with trio.open_nursery() as nursery:

            async def lives() -> None:
                await world.life(step)
                await world.life()

            client = MetadataClient(world.connect, client="c", random=random.Random(1), clock=world.clock)
            nursery.start_soon(lives)
            async with trio.open_nursery() as inner:
                await inner.start(client.run)
                (entry,) = await client.call(Create(ROOT_INO, b"x", 0o100644))
                assert entry.created
                assert (await client.ask(Lookup(ROOT_INO, b"x"))).attr.ino == entry.attr.ino
                inner.cancel_scope.cancel()
            nursery.cancel_scope.cancel()
        async with world.serving():
            pass  # the goodbye may have been what the crash met
        await world.check_replay(str(tmp_path))

    run_seeded(main, step)
