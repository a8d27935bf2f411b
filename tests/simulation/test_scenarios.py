"""Named disasters on a whole pool: what docs/attacks.md lists, one by one. Each runs under several seeds' schedules."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import pytest
import trio

from tests.simulation.runner import run_one
from tests.simulation.simclients import BUCKET, read_object
from tests.simulation.world import Client, World
from trivium.admin.drivecommands import replace_drive
from trivium.admin.processes.drives import absolute
from trivium.cluster.chunks import PieceData, Stored
from trivium.cluster.errors import ClusterError, Fenced, NoSpace
from trivium.cluster.model import Ref
from trivium.metadata import collector, inventory
from trivium.metadata.collect_loop import CollectLoop
from trivium.metadata.messages import (
    CHUNK_REFUSED,
    Body,
    CreateBucket,
    DeleteObject,
    Extent,
    GetLayout,
    HeadObject,
    MetadataError,
    ObjectMeta,
    PutObject,
)
from trivium.metadata.tx import Reader, Tx

SEEDS = 3
Scenario = Callable[[World, Client], Awaitable[None]]
LARGE = 200_000


def on_a_pool(scenario: Scenario) -> None:
    async def schedule(seed: int, rng: random.Random) -> None:
        with tempfile.TemporaryDirectory(prefix="sim-") as directory:
            async with World(rng, directory) as world:
                await world.until_up()
                client = await world.client("c")
                await client.metadata.call(CreateBucket(BUCKET, "root"))
                await scenario(world, client)

    for seed in range(SEEDS):
        run_one(schedule, seed)


async def stage(client: Client, data: bytes) -> Stored:
    return await client.chunks.put(1, [PieceData(bytes(16), 0, 0, data)])


async def commit(client: Client, name: bytes, data: bytes, stored: Stored) -> None:
    body = Body(len(data), None, (Extent(0, len(data), stored.refs[0]),))
    await client.metadata.call(PutObject(BUCKET, name, body, "e", ObjectMeta()), chunks=stored.chunks)
    client.chunks.settle(stored)


async def put(client: Client, name: bytes, data: bytes) -> Ref:
    stored = await stage(client, data)
    await commit(client, name, data, stored)
    return stored.refs[0]


async def files_of(world: World, ref: Ref) -> list[str]:
    folder = f"{ref.chunk.session:016x}/"
    leaf = f"/{ref.chunk.counter:x}."
    return [path for path in world.files.paths(absolute(world.data, "drives")) if folder in path and leaf in path]


def test_a_read_of_an_hour_outlives_the_overwrite_of_its_object() -> None:
    """15: what a running read names is not collected; once it has ended, it is."""

    async def scenario(world: World, client: Client) -> None:
        data = world.rng.randbytes(LARGE)
        old = await put(client, b"x", data)
        info = await client.metadata.ask(HeadObject(BUCKET, b"x"))
        with client.metadata.reading():
            layout = await client.metadata.ask(GetLayout(info.ino, 0, info.size, info.version))
            await trio.sleep(5)  # a heartbeat has told of the read
            await put(client, b"x", b"new" * 30_000)
            await trio.sleep(600)
            (extent,) = layout.extents
            reader = await world.client("cold")
            assert bytes(await reader.chunks.get(extent.ref, placed=layout.placed[0])) == data
        await trio.sleep(60)
        assert not await files_of(world, old)

    on_a_pool(scenario)


def test_a_full_pool_refuses_puts_and_deletes_make_room() -> None:
    """16: deletes need log records, trimming needs a dump, and there is no space for anything else."""

    async def scenario(world: World, client: Client) -> None:
        names = [b"%d" % number for number in range(8)]
        for name in names:
            await put(client, name, world.rng.randbytes(LARGE))
        world.files.capacity = int(world.files._used / 0.96)
        leader = await world.until_up()
        await leader.substrate.watch.refresh()
        with pytest.raises(NoSpace):
            await stage(client, bytes(LARGE))
        for name in names:
            assert await client.metadata.call(DeleteObject(BUCKET, name))
        await leader.upkeep.dump_now()
        await trio.sleep(60)
        world.files.capacity = 1 << 40
        await leader.substrate.watch.refresh()
        await put(client, b"again", bytes(LARGE))
        await world.check_rows(drives=True)

    on_a_pool(scenario)


@pytest.mark.parametrize("back", ["after the delete", "after a restart"])
def test_a_drive_that_was_away_brings_nothing_back(back: str) -> None:
    """17: a deleted chunk's shard on a returning drive goes, and is neither healed nor reported."""

    async def scenario(world: World, client: Client) -> None:
        old = await put(client, b"x", world.rng.randbytes(LARGE))
        leader = await world.until_up()
        chunk_drives = {path.split("/chunks/")[0] for path in await files_of(world, old)}
        row = next(row for row in leader.server.map.drives if absolute(world.data, row.path) in chunk_drives)
        path = absolute(world.data, row.path)
        parent, name = world.files._split(path)
        held = parent.entries[name]
        world.files.unmount(path)
        assert await client.metadata.call(DeleteObject(BUCKET, b"x"))
        await trio.sleep(60)
        if back == "after a restart":
            world.die("power")
            await trio.sleep(40)
            await world.until_up()
        parent, name = world.files._split(path)
        parent.entries[name] = held  # mounted again
        parent.durable = dict(parent.entries)
        world.die("kill")
        await world.until_up()
        await trio.sleep(120)
        assert await read_object(client, b"x") is None
        assert not await files_of(world, old)
        await world.check_rows(drives=True)

    on_a_pool(scenario)


def test_a_put_whose_drives_were_replaced_before_its_commit_is_put_again() -> None:
    """32: no row names a staged chunk; the commit counts what lies on drives that are gone."""

    async def scenario(world: World, client: Client) -> None:
        data = world.rng.randbytes(LARGE)
        stored = await stage(client, data)
        for _ in range(2):
            paths = {path.split("/chunks/")[0] for path in await files_of(world, stored.refs[0])}
            rows = [row for row in world.healthy() if absolute(world.data, row.path) in paths]
            world.lose_drive(world.rng.choice(rows), "wipe")
            await world.until_whole()
        with pytest.raises(MetadataError) as refusal:
            await commit(client, b"x", data, stored)
        assert refusal.value.code == CHUNK_REFUSED
        again = await client.chunks.put_again(stored)
        await commit(client, b"x", data, again)
        assert await read_object(await world.client("cold"), b"x") == data
        await world.until_whole()
        await world.check_rows(drives=True)

    on_a_pool(scenario)


def test_clients_wait_while_the_pool_reboots() -> None:
    """39: no error for an absence of minutes, whatever was under way; a session that was ended meanwhile says so."""

    async def scenario(world: World, client: Client) -> None:
        data = world.rng.randbytes(LARGE)
        await put(client, b"x", data)
        results: list[object] = []

        async def work() -> None:
            results.append(await read_object(client, b"x"))
            await client.metadata.call(DeleteObject(BUCKET, b"x"))
            results.append(await read_object(client, b"x"))

        world.pause_s = 90
        world.die("power")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
        assert results == [data, None] and not client.ended

    on_a_pool(scenario)


def test_a_leader_that_was_deposed_deletes_nothing_that_it_decided_alone() -> None:
    """3: a decision to delete goes to the drives only after its record is durable."""

    async def scenario(world: World, client: Client) -> None:
        data = world.rng.randbytes(LARGE)
        ref = await put(client, b"x", data)
        leader = await world.until_up()
        stale: list[object] = []

        class Deposed:
            async def do(self, execute: object) -> object:
                stale.append(execute)
                raise Fenced("another leader has the log")

        async def read(query: Callable[[Reader], object]) -> object:
            """A state in which the chunk looks unreferenced (the commit of another leader is not seen)."""
            if isinstance(query, partial) and query.func is collector.unreferenced:
                return [ref.chunk], None
            return await leader.read(query)

        loop = CollectLoop(Deposed(), read, leader.substrate.router, oldest_read_seq=lambda: 0)  # type: ignore[arg-type]
        with pytest.raises(Fenced):
            await loop.round()
        assert stale and len(await files_of(world, ref)) == 6
        assert await read_object(await world.client("cold"), b"x") == data

    on_a_pool(scenario)


def test_a_commit_of_unknown_outcome_is_not_tidied_up() -> None:
    """3: the client's session ends while its commit is under way; whichever way it went, nothing is half there."""

    async def scenario(world: World, client: Client) -> None:
        data = world.rng.randbytes(LARGE)
        stored = await stage(client, data)

        async def work() -> None:
            await commit(client, b"x", data, stored)

        world.steps.arm(world.rng.randrange(1, 60), client.crash)
        with trio.move_on_after(1):
            await work()
        client.crash()
        await trio.sleep(60)
        leader = await world.until_up()
        survey = await leader.upkeep._survey()
        await inventory.collect_orphans(leader.server.writer.do, survey)
        await trio.sleep(60)
        found = await read_object(await world.client("cold"), b"x")
        assert found in (None, data)
        assert len(await files_of(world, stored.refs[0])) == (6 if found else 0)
        await world.check_rows(drives=True)

    on_a_pool(scenario)


def test_the_dump_that_only_the_root_names_is_no_orphan() -> None:
    """1: chunks of dumps have no rows; inventories leave them alone, and the pool starts from them."""

    async def scenario(world: World, client: Client) -> None:
        data = world.rng.randbytes(LARGE)
        await put(client, b"x", data)
        leader = await world.until_up()
        await leader.upkeep.dump_now()
        await leader.upkeep.dump_now()
        world.die("power")  # another life knows the dumps from the root alone
        await trio.sleep(60)
        leader = await world.until_up()
        for _ in range(2):
            survey = await leader.upkeep._survey()
            await inventory.collect_orphans(leader.server.writer.do, survey)
            await trio.sleep(30)
        for entry in leader.root.dumps:
            assert len(await files_of(world, Ref(entry.index.chunk, 0, 1))) == 6
        world.forget_database()
        world.die("power")
        await trio.sleep(60)
        assert await read_object(await world.client("cold"), b"x") == data

    on_a_pool(scenario)


def test_a_crash_between_a_maps_record_and_its_copy_in_the_root() -> None:
    """A new drive that only the record names is opened at the next start, and healing ends."""

    async def scenario(world: World, client: Client) -> None:
        data = world.rng.randbytes(LARGE)
        await put(client, b"x", data)
        leader = await world.until_up()
        row = world.rng.choice(world.healthy())
        world.lose_drive(row, "wipe")
        await leader.substrate.watch.refresh()

        async def crash(execute: Callable[[Tx], object]) -> None:
            await leader.server.change_map(execute)
            world.die("power")
            await trio.sleep_forever()

        leader.change_map = crash  # type: ignore[method-assign]
        with trio.move_on_after(5), suppress(ClusterError):
            await replace_drive(leader, row.name, absolute(world.data, "drives/another"))
        world.lost.clear()
        await trio.sleep(40)
        await world.until_whole()
        assert "another" in {one.path.split("/")[-1] for one in world.healthy()}
        await world.check_rows(drives=True)

    on_a_pool(scenario)
