"""The write logs of volumes keep their copies: whoever writes them, or wrote them last, drives may go one by one."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

from tests.simulation.runner import run_schedules
from tests.simulation.simclients import Disk
from tests.simulation.test_drives import until
from tests.simulation.test_volume import SIZE
from tests.simulation.world import Client, World
from trivium.admin import volumelogs
from trivium.cluster import logheal
from trivium.cluster.model import SegmentEntry
from trivium.metadata.messages import CreateVolume, OpenVolume
from trivium.nbd.volumelog import ClusterLogs

Scenario = Callable[[World, Client], Awaitable[None]]
Chain = tuple[SegmentEntry, ...]


def on_a_volume(scenario: Scenario) -> None:
    async def schedule(seed: int, rng: random.Random) -> None:
        with tempfile.TemporaryDirectory(prefix="sim-", dir="/dev/shm") as directory:
            async with World(rng, directory) as world:
                await world.until_up()
                client = await world.client("c")
                await client.metadata.call(CreateVolume("v", SIZE))
                await scenario(world, client)

    run_schedules(schedule, count=2)


async def chain_of(client: Client) -> Chain:
    (state,) = await client.metadata.call(OpenVolume("v", read_only=True))
    chain: Chain = state.log
    return chain


async def has_all_copies(world: World, client: Client) -> bool:
    """Three of each segment, on drives that are there."""
    alive = {row.id for row in world.healthy()}
    return all(len(entry.drives) == 3 and set(entry.drives) <= alive for entry in await chain_of(client))


async def lose_and_replace(world: World, drive: bytes) -> None:
    world.lose_drive(next(row for row in world.healthy() if row.id == drive), "wipe")
    leader = await world.until_up()
    await leader.substrate.watch.refresh()
    await world.replace_lost()


async def left_behind(world: World, client: Client, disk: Disk) -> Chain:
    """The log of an export that died with records in it."""
    chain: Chain = ()
    while not chain:
        guest = await world.client("guest")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.turn, guest, random.Random(world.rng.random()), 40)
            await trio.sleep(world.rng.random() * 3)
            guest.crash()
            nursery.cancel_scope.cancel()
        await trio.sleep(60)  # its session ends
        chain = await chain_of(client)
    return chain


def test_the_log_of_a_dead_export_outlives_all_drives_that_it_was_on_one_by_one() -> None:
    async def scenario(world: World, client: Client) -> None:
        disk = Disk()
        for drive in (await left_behind(world, client, disk))[-1].drives:
            await lose_and_replace(world, drive)
            await world.until_whole()
            assert await has_all_copies(world, client)
        await disk.turn(await world.client("after"), world.rng, 0, patient=True)
        await world.check_rows(drives=True)

    on_a_volume(scenario)


def test_a_living_export_gives_a_segment_that_lost_a_copy_another_one() -> None:
    """A takeover without one of the drives leaves it out of the closed segment, though the drive is still in use."""

    async def scenario(world: World, client: Client) -> None:
        await left_behind(world, client, Disk())
        (state,) = await client.metadata.call(OpenVolume("v"))
        log, _ = await ClusterLogs(client.metadata, client.nodes, random=client.random).take_over(state)
        async with trio.open_nursery() as nursery:
            await nursery.start(log.run)
            closed = (await chain_of(client))[0]
            assert closed.last_seq is not None
            assert log._writer is not None
            short = SegmentEntry(closed.segment, closed.drives[:1], closed.first_seq, closed.last_seq)
            assert await log._writer.replace_closed(closed, short)
            assert not await has_all_copies(world, client)
            await until(world, "healed", partial(has_all_copies, world, client), 60)
            nursery.cancel_scope.cancel()

    on_a_volume(scenario)


def test_an_export_that_breaks_the_lease_of_a_healing_log_stops_nothing_else() -> None:
    async def scenario(world: World, client: Client) -> None:
        disk = Disk()
        chain = await left_behind(world, client, disk)
        leader = await world.until_up()
        taken = trio.Event()
        heal = logheal.heal

        async def when_taken(*arguments: Any, **options: Any) -> int:
            taken.set()
            await trio.sleep(5)
            return await heal(*arguments, **options)

        lives = world.lives
        volumelogs.logheal.heal = when_taken  # type: ignore[attr-defined]
        try:
            world.lose_drive(next(row for row in world.healthy() if row.id == chain[-1].drives[0]), "wipe")
            await leader.substrate.watch.refresh()
            await world.replace_lost()
            await taken.wait()
            after = await world.client("after")
            await disk.turn(after, world.rng, 3, patient=True)
            await trio.sleep(10)
            after.crash()  # else its session keeps the lease, without anybody who writes
        finally:
            volumelogs.logheal.heal = heal  # type: ignore[attr-defined]
        await world.until_whole()
        assert world.lives == lives

    on_a_volume(scenario)


def test_the_metadata_log_gets_a_copy_back_that_was_left_out_though_no_drive_changes() -> None:
    async def scenario(world: World, client: Client) -> None:
        world.die("kill")
        await trio.sleep(1)
        log = (await world.until_up()).log
        closed = log.chain[0]
        assert closed.last_seq is not None
        short = SegmentEntry(closed.segment, closed.drives[:1], closed.first_seq, closed.last_seq)
        assert await log.replace_closed(closed, short)
        assert await world.whole() == "the log is short"
        await world.until_whole(60)

    on_a_volume(scenario)
