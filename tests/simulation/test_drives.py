"""The life of drives on a whole pool: drains under load and crashes, cancelled, two at once; silence and return."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio

from tests.simulation.runner import run_schedules
from tests.simulation.simclients import BUCKET, Disk, Objects, check_listing, read_object
from tests.simulation.simmodel import Model
from tests.simulation.test_scenarios import LARGE, commit, files_of, put, stage
from tests.simulation.test_volume import SIZE
from tests.simulation.world import Client, World
from trivium.admin import drivelife
from trivium.admin.drivecommands import add_drive, replace_drive
from trivium.admin.processes.drives import absolute
from trivium.cluster.model import DriveRow, SegmentEntry
from trivium.metadata import chunkrows, drain, heal, inventory, mapsettings
from trivium.metadata.messages import CreateBucket, CreateVolume, DeleteObject, MetadataError, OpenVolume

SEEDS = 1  # each is minutes of a pool's life; TRIVIUM_SEEDS=20 runs more
Scenario = Callable[[World, Client], Awaitable[None]]


def on_drives(scenario: Scenario, count: int = 8) -> None:
    async def schedule(seed: int, rng: random.Random) -> None:
        with tempfile.TemporaryDirectory(prefix="sim-") as directory:
            async with World(rng, directory, drives=count) as world:
                await world.until_up()
                client = await world.client("c")
                await client.metadata.call(CreateBucket(BUCKET, "root"))
                await scenario(world, client)

    run_schedules(schedule, count=SEEDS)


async def row_of(world: World, name: str) -> DriveRow:
    leader = await world.until_up()
    return next(row for row in leader.server.map.drives if row.name == name and row.reason != "removed")


async def until(world: World, what: str, condition: Callable[[], Awaitable[bool]], limit_s: float = 900) -> None:
    deadline = trio.current_time() + limit_s
    while not await condition():
        assert trio.current_time() < deadline, f"not {what} after {limit_s:.0f} s"
        await trio.sleep(1)


async def is_drained(world: World, name: str) -> bool:
    leader = await world.until_up()
    return bool((await drivelife.drain_report(leader, name))["done"])


async def reason_is(world: World, name: str, reason: str) -> bool:
    return (await row_of(world, name)).reason == reason


async def all_is_there(world: World, model: Model) -> None:
    reader = await world.client("cold")
    for name in list(model.allowed):
        model.check(name, await read_object(reader, name), "at the end")
    await check_listing(reader, model)


def test_a_drain_under_load_goes_on_over_crashes_and_its_drive_is_removed() -> None:
    async def scenario(world: World, client: Client) -> None:
        rng, model = world.rng, Model()
        lane = Objects(client, model, "o", random.Random(rng.random()))
        await lane.run(10)
        name = f"d{rng.randrange(8)}"
        await drivelife.drain_drive(await world.until_up(), name)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lane.run, 15)
            for how in ("kill", "power", "kill"):
                await trio.sleep(rng.random() * 4)
                world.die_in(rng.randrange(1, 400), how)
                await trio.sleep(5)
                await world.until_up()
        await trio.sleep(60)
        await until(world, "drained", partial(is_drained, world, name))
        gone = await row_of(world, name)
        await drivelife.remove_drive(await world.until_up(), name)
        world.files.wipe(absolute(world.data, gone.path))
        await world.until_whole()
        await world.check_rows(drives=True)
        world.die("power")
        await world.until_up()
        await all_is_there(world, model)

    on_drives(scenario)


def test_of_two_drains_at_once_one_is_cancelled() -> None:
    async def scenario(world: World, client: Client) -> None:
        model = Model()
        lane = Objects(client, model, "o", random.Random(world.rng.random()))
        await lane.run(12)
        leader = await world.until_up()
        await drivelife.drain_drive(leader, "d1")
        await drivelife.drain_drive(leader, "d2")
        with pytest.raises(MetadataError) as refused:
            await drivelife.drain_drive(leader, "d3")  # five would be left for chunks of six
        assert "add one first" in refused.value.text
        with pytest.raises(MetadataError):
            await drivelife.remove_drive(leader, "d1")
        await trio.sleep(world.rng.random() * 3)
        await drivelife.cancel_drain(leader, "d2")
        await lane.run(10)
        await until(world, "drained", partial(is_drained, world, "d1"))
        assert not (await row_of(world, "d2")).reason
        await add_drive(leader, "d8", "drives/d8")
        await drivelife.drain_drive(leader, "d2")
        await until(world, "drained", partial(is_drained, world, "d2"))
        for name in ("d1", "d2"):
            await drivelife.remove_drive(leader, name)
        await world.until_whole()
        await world.check_rows(drives=True)
        await all_is_there(world, model)

    on_drives(scenario)


def test_a_drain_is_not_done_while_a_put_from_before_is_unsettled() -> None:
    """32, 50: nothing names a staged chunk yet; its put commits all the same, and only then is the drive empty."""

    async def scenario(world: World, client: Client) -> None:
        leader = await world.until_up()
        data = world.rng.randbytes(LARGE)
        stored = await stage(client, data)
        paths = {path.split("/chunks/")[0] for path in await files_of(world, stored.refs[0])}
        row = next(row for row in leader.server.map.drives if absolute(world.data, row.path) in paths)
        await drivelife.drain_drive(leader, row.name)
        await trio.sleep(120)
        report = await drivelife.drain_report(leader, row.name)
        assert not report["done"] and "unsettled puts of c" in report["text"], report
        await commit(client, b"x", data, stored)  # draining drives count as present: it is not refused
        await until(world, "drained", partial(is_drained, world, row.name))
        await drivelife.remove_drive(leader, row.name)
        world.files.wipe(absolute(world.data, row.path))
        await world.check_rows(drives=True)
        assert await read_object(await world.client("cold"), b"x") == data

    on_drives(scenario)


def test_a_drive_that_stays_away_is_out_and_healed_around_and_comes_back_without_what_was_deleted() -> None:
    async def scenario(world: World, client: Client) -> None:
        leader = await world.until_up()
        values = {b"%d" % number: world.rng.randbytes(LARGE) for number in range(6)}
        refs = {name: await put(client, name, value) for name, value in values.items()}
        on_it = {path.split("/chunks/")[0] for path in await files_of(world, refs[b"0"])}
        row = next(row for row in leader.server.map.drives if absolute(world.data, row.path) in on_it)
        path = absolute(world.data, row.path)
        parent, name = world.files._split(path)
        held = parent.entries[name]
        await drivelife.set_maintenance(leader, mapsettings.FOREVER)
        world.files.unmount(path)
        await trio.sleep(900)
        assert await reason_is(world, row.name, ""), "marked out during maintenance"
        await drivelife.set_maintenance(leader, 0)
        assert await client.metadata.call(DeleteObject(BUCKET, b"0"))
        await trio.sleep(300)
        assert await reason_is(world, row.name, ""), "marked out before its time"
        await until(world, "out", partial(reason_is, world, row.name, "out"))

        async def healed() -> bool:
            return not await leader.read(heal.count_to_repair)

        await until(world, "healed", healed)
        assert not (await leader.read(lambda reader: drain.named(reader, row.id))).chunks
        parent, name = world.files._split(path)
        parent.entries[name] = held  # mounted again, days later, with all that it had
        parent.durable = dict(parent.entries)
        await until(world, "back in", partial(reason_is, world, row.name, ""))

        async def nothing_unnamed() -> bool:
            survey = await leader.upkeep._survey()
            await inventory.collect_orphans(leader.server.writer.do, survey)
            return not survey.unnamed and not await files_of(world, refs[b"0"])

        await until(world, "collected", nothing_unnamed)
        assert await read_object(client, b"0") is None
        await put(client, b"again", bytes(LARGE))
        await world.check_rows(drives=True)
        cold = await world.client("cold")
        for key in set(values) - {b"0"}:
            assert await read_object(cold, key) == values[key]

    on_drives(scenario)


def test_no_more_drives_go_out_than_can_be_healed_and_a_lost_one_is_removed_only_without_loss() -> None:
    async def scenario(world: World, client: Client) -> None:
        leader = await world.until_up()
        value = world.rng.randbytes(LARGE)
        ref = await put(client, b"x", value)
        on_it = {path.split("/chunks/")[0] for path in await files_of(world, ref)}
        rows = [row for row in leader.server.map.drives if absolute(world.data, row.path) in on_it][:3]
        kept = []
        for number, row in enumerate(rows):
            parent, name = world.files._split(absolute(world.data, row.path))
            kept.append((parent, name, parent.entries[name]))
            world.files.unmount(absolute(world.data, row.path))
            if number < 2:  # there is no place to heal to: six drives, chunks of six
                await until(world, "out", partial(reason_is, world, row.name, "out"))
        await trio.sleep(900)
        assert await reason_is(world, rows[2].name, "")
        assert leader.upkeep.auto_out.held_back == {rows[2].name}
        for row in rows:
            with pytest.raises(MetadataError) as refused:
                await drivelife.remove_drive(leader, row.name)
            assert "lost for good" in refused.value.text, refused.value.text
        for parent, name, held in kept:
            parent.entries[name] = held
            parent.durable = dict(parent.entries)
        for row in rows:
            await until(world, "back in", partial(reason_is, world, row.name, ""))
        await world.until_whole()
        assert await read_object(await world.client("cold"), b"x") == value

    on_drives(scenario, count=6)


def test_of_two_that_are_out_the_first_replaced_is_healed_onto_at_once() -> None:
    """Six drives, chunks of six: what is lost with the second cannot be healed yet, what was on the first can."""

    async def scenario(world: World, client: Client) -> None:
        leader = await world.until_up()
        value = world.rng.randbytes(LARGE)
        ref = await put(client, b"x", value)
        on_it = {path.split("/chunks/")[0] for path in await files_of(world, ref)}
        rows = [row for row in leader.server.map.drives if absolute(world.data, row.path) in on_it][:2]
        for row in rows:
            world.files.unmount(absolute(world.data, row.path))
        for row in rows:
            await until(world, "out", partial(reason_is, world, row.name, "out"))
        for at, row in enumerate(rows):
            new = f"drives/{row.name}-new"
            await replace_drive(leader, row.name, absolute(world.data, new))

            async def healed_onto(folder: str = absolute(world.data, new), left: int = 1 - at) -> bool:
                placed = (await leader.read(lambda reader: chunkrows.locate(reader, [ref.chunk])))[0]
                there = any(path.startswith(folder) for path in await files_of(world, ref))
                return there and placed.missing.bit_count() == left

            await until(world, "healed onto the new one", healed_onto)
        await world.until_whole()
        assert await read_object(await world.client("cold"), b"x") == value

    on_drives(scenario, count=6)


def test_the_log_of_a_dead_export_leaves_a_draining_drive_and_what_was_flushed_stays() -> None:
    async def scenario(world: World, client: Client) -> None:
        await client.metadata.call(CreateVolume("v", SIZE))
        disk = Disk()
        chain: tuple[SegmentEntry, ...] = ()
        while not chain:  # an export that dies with records in its log
            guest = await world.client("guest")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(disk.turn, guest, random.Random(world.rng.random()), 40)
                await trio.sleep(world.rng.random() * 3)
                guest.crash()
                nursery.cancel_scope.cancel()
            await trio.sleep(60)  # its session ends
            (state,) = await client.metadata.call(OpenVolume("v", read_only=True))
            chain = state.log
        leader = await world.until_up()
        row = next(row for row in leader.server.map.drives if row.id == chain[-1].drives[0])
        await drivelife.drain_drive(leader, row.name)
        await until(world, "drained", partial(is_drained, world, row.name))
        await drivelife.remove_drive(leader, row.name)
        world.files.wipe(absolute(world.data, row.path))
        await disk.turn(await world.client("after"), world.rng, 0, patient=True)
        await world.check_rows(drives=True)

    on_drives(scenario)
