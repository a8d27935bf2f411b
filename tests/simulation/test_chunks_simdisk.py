"""Chunks over real nodes and stores on a simulated disk: power loss, I/O errors, full disks, wiped drives.

The model is a dict of what was acknowledged; after every fault each of it must read back unchanged.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from tests.fakes.catalog import FakeCatalog
from tests.fakes.cluster import CLUSTER, FakeNodes, sim_nodes
from tests.fakes.pool import OWNER, run
from tests.fakes.simdisk import Crashed, SimFiles
from trivium.cluster.chunks import Chunks, PieceData
from trivium.cluster.clock import InlineExecutor
from trivium.cluster.errors import ClusterError
from trivium.cluster.model import ChunkId, Placed, Ref
from trivium.cluster.mover import Mover
from trivium.cluster.scrub import Scrub


class World:
    def __init__(self, seed: int, drives: int = 8, *, hosts: int = 4, local: bool = False) -> None:
        self.random = random.Random(seed)
        self.nodes: FakeNodes = sim_nodes(drives, nodes=hosts, seed=seed, local=local)
        self.catalog = FakeCatalog(self.nodes.map())
        self.acknowledged: dict[Ref, bytes] = {}
        self.chunks = self.client()
        self.seq = 100

    @property
    def files(self) -> SimFiles:
        assert isinstance(self.nodes.files, SimFiles)
        return self.nodes.files

    def client(self) -> Chunks:
        seeded = random.Random(self.random.random())
        return Chunks(self.catalog, self.nodes, cluster=CLUSTER, random=seeded, executor=InlineExecutor())

    async def put(self, size: int) -> None:
        data = self.random.randbytes(size)
        stored = await self.chunks.put(1, [PieceData(OWNER, 0, 1, data)])
        self.catalog.commit(stored)
        self.chunks.settle(stored)
        self.acknowledged[stored.refs[0]] = data

    async def check(self) -> None:
        client = self.client()
        for ref, data in self.acknowledged.items():
            assert await client.get(ref) == data
            at = self.random.randrange(len(data))
            assert await client.get(Ref(ref.chunk, ref.offset + at, 1)) == data[at : at + 1]
        await trio.sleep(1)

    async def scrub(self) -> None:
        scrub = Scrub(self.nodes, self.catalog.report)
        for row in list(self.catalog.rows.values()):
            await scrub.check(row)

    async def heal(self) -> None:
        """What the scheduler does: rows with missing indices, in place, under a new plan."""
        mover = Mover(self.nodes, cluster=CLUSTER, executor=InlineExecutor(), drives=lambda: self.nodes.drives)
        for chunk, row in list(self.catalog.rows.items()):
            if row.missing:
                self.seq += 1
                missing = await mover.rebuild(row, row.group, self.seq)
                self.catalog.relocate(chunk, row.group, missing, self.seq)

    def path(self, row: Placed, index: int) -> str:
        number = self.nodes.drives.index(row.group.drives[index])
        leaf = f"{row.chunk.counter:x}.{index:x}"
        return next(p for p in self.files.paths(f"/drives/d{number}/chunks") if p.endswith("/" + leaf))


@pytest.mark.parametrize("seed", range(6))
def test_what_was_acknowledged_survives_power_loss(seed: int) -> None:
    print("seed", seed)

    async def main() -> None:
        world = World(seed)
        for _ in range(3):
            for _ in range(world.random.randrange(4)):
                await world.put(world.random.choice((1, 5_000, 200_000, 1_200_000)))
            world.files.crash_at = world.files.operations + world.random.randrange(200)
            with suppress_crash():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(world.chunks.run)
                    async with trio.open_nursery() as clients:
                        for _ in range(5):
                            clients.start_soon(world.put, world.random.randrange(1, 300_000))
                    nursery.cancel_scope.cancel()
            world.nodes.crash()
            world.chunks = world.client()
            await world.check()
            await world.scrub()
            assert world.catalog.reports == []

    run(main)


@pytest.mark.parametrize("seed", range(6))
def test_rot_wipes_and_dead_drives_within_m_cost_nothing_and_heal(seed: int) -> None:
    print("seed", seed)

    async def main() -> None:
        world = World(seed, drives=6, hosts=3, local=bool(seed % 2))
        for _ in range(8):
            await world.put(world.random.choice((1, 5_000, 200_000, 1_200_000)))
        hurt: set[tuple[ChunkId, int]] = set()
        for row in world.catalog.rows.values():
            for index in world.random.sample(range(row.group.profile.width), row.group.m):
                path = world.path(row, index)
                world.files.flip(path, world.random.randrange(len(world.files.contents(path))), 1 << seed)
                hurt.add((row.chunk, index))
        await world.check()
        await world.scrub()
        assert {(chunk, index) for chunk, index, _, _ in world.catalog.reports} == hurt
        await world.heal()
        assert not any(row.missing for row in world.catalog.rows.values())
        for drive in world.random.sample(world.nodes.drives, 2):
            world.nodes.down.add(drive)
        await world.check()

    run(main)


def test_an_unreadable_sector_is_rebuilt_reported_and_healed() -> None:
    async def main() -> None:
        world = World(1, drives=6, hosts=6)
        await world.put(200_000)
        (row,) = world.catalog.rows.values()
        world.files.make_unreadable(world.path(row, 0))
        await world.check()

    run(main)


@pytest.mark.parametrize("hosts", [1, 8])
def test_an_fsync_error_in_the_middle_of_a_put(hosts: int) -> None:
    async def main() -> None:
        world = World(3, hosts=hosts)
        await world.put(100_000)
        syncs = iter(range(1000))
        world.files.fail_sync = lambda inode: next(syncs) in (3, 20)  # two drives go out
        for _ in range(4):
            await world.put(100_000)
        world.files.fail_sync = lambda inode: False
        await world.check()

    run(main)


def test_a_full_disk_refuses_writes_and_reads_go_on() -> None:
    async def main() -> None:
        world = World(4)
        await world.put(300_000)
        world.files.capacity = 3 << 20
        with pytest.raises(ClusterError):
            for _ in range(30):
                await world.put(300_000)
        await world.check()
        await world.scrub()
        assert world.catalog.reports == []

    run(main)


def test_a_wiped_drive_is_found_and_rebuilt_elsewhere() -> None:
    async def main() -> None:
        world = World(5, drives=7, hosts=7)
        for _ in range(5):
            await world.put(150_000)
        victim = world.nodes.drives[2]
        world.files.wipe("/drives/d2")
        world.catalog.close_groups()
        await world.check()
        mover = Mover(world.nodes, cluster=CLUSTER, executor=InlineExecutor(), drives=lambda: world.nodes.drives)
        for chunk, row in list(world.catalog.rows.items()):
            if victim in row.group.drives:
                spare = next(drive for drive in world.nodes.drives if drive not in row.group.drives)
                drives = tuple(spare if drive == victim else drive for drive in row.group.drives)
                group = type(row.group)(1000 + chunk.counter, 1, row.group.k, row.group.m, drives)
                world.catalog.relocate(chunk, group, await mover.rebuild(row, group, 500), 500)
        assert not any(row.missing for row in world.catalog.rows.values())
        world.nodes.down = {victim, world.nodes.drives[0], world.nodes.drives[1]}
        await world.check()

    run(main)


@contextmanager
def suppress_crash() -> Iterator[None]:
    """The machine stops: whatever its processes did ends with Crashed, and with errors that followed from it."""
    try:
        yield
    except BaseExceptionGroup as group:
        crashed, rest = group.split(Crashed)
        assert crashed is not None
        if rest is not None and (other := rest.split((ClusterError, trio.Cancelled))[1]) is not None:
            raise other from None
