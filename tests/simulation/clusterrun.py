"""One schedule of a whole pool: clients at work, misfortunes, then the proofs.

Proofs after every restart (rows are sound) and at the end: all heals; every name has an allowed value, read by a client
that knows nothing; deleted names are not listed; each row's shards are on their drives; dump and log make the database;
no file is left that nothing names; and once more all of it with m drives wiped, the machine without power and the local
database gone.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from contextlib import suppress

import trio

from tests.simulation.network import LATE_S, Weather
from tests.simulation.runner import Trace
from tests.simulation.simclients import BUCKET, FILES, Disk, Files, Objects, check_listing, read_object
from tests.simulation.simmodel import Model
from tests.simulation.test_volume import SIZE
from tests.simulation.world import Client, World
from trivium.admin.processes.drives import absolute
from trivium.cluster.errors import ClusterError
from trivium.cluster.model import SHARD_ALIGN, DriveRow
from trivium.metadata import inventory
from trivium.metadata.collect_loop import IDLE_S
from trivium.metadata.dump import DumpRefused
from trivium.metadata.messages import CreateBucket, CreateVolume, GetBucket, MetadataError

MISFORTUNES = {  # and how often
    "kill": 10, "power": 12, "disk": 10, "client": 8, "all": 4, "drive": 10, "heal": 10, "dump": 10, "full": 4,
    "rot": 8, "stock": 4, "cut": 8, "slow": 4, "clock": 4, "stall": 10,
}  # fmt: skip


class Run:
    misfortunes_of = MISFORTUNES

    def __init__(self, rng: random.Random, world: World, trace: Trace) -> None:
        self.rng, self.world, self.trace = rng, world, trace
        self.objects, self.files = Model(), Model()
        self.disk = Disk()
        self.clients: list[Client] = []
        self.lanes = 0
        self.over = False
        self.flipping: bytes | None = None  # the one drive that rots

    # ---- clients ----------------------------------------------------------------------------------------------

    async def client_machine(self, number: int) -> None:
        """Clients one after another; some crash, some say goodbye, some work to the end of the schedule."""
        while not self.over:
            client = await self.world.client(f"c{number}")
            self.clients.append(client)
            with trio.CancelScope() as work:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch, client, work)
                    await self._work(client, number)
                    nursery.cancel_scope.cancel()
            if not client.dead:
                client.scope.cancel()
            await trio.sleep(LATE_S + 2)

    async def _watch(self, client: Client, work: trio.CancelScope) -> None:
        await client.crashed.wait()
        work.cancel()

    async def _work(self, client: Client, number: int) -> None:
        parent = (await client.metadata.ask(GetBucket(FILES))).ino
        async with trio.open_nursery() as lanes:
            for _ in range(2):
                self.lanes += 1
                objects = Objects(client, self.objects, f"o{self.lanes}", random.Random(self.rng.random()))
                lanes.start_soon(objects.run, self._length())
            self.lanes += 1
            files = Files(client, self.files, f"f{self.lanes}", random.Random(self.rng.random()), parent)
            lanes.start_soon(files.run, self._length())
            if number == 0:
                lanes.start_soon(self.disk.turn, client, random.Random(self.rng.random()), self._length())

    def _length(self) -> int:
        return self.rng.randrange(3, self.rng.choice((6, 12, 24)))

    # ---- misfortunes ------------------------------------------------------------------------------------------

    async def misfortunes(self, count: int) -> None:
        for _ in range(count):
            await trio.sleep(self.rng.random() * self.rng.choice((0.3, 3, 20)))
            what = self.rng.choices(tuple(self.misfortunes_of), tuple(self.misfortunes_of.values()))[0]
            self.trace(f"misfortune {what}")
            if self.rng.random() < 0.5:
                self.world.remember_database()
            await getattr(self, f"_{what}")()

    async def _kill(self) -> None:
        self.world.die_in(self.rng.randrange(1, 300), "kill")

    async def _power(self) -> None:
        self.world.die_in(self.rng.randrange(1, 300), "power")

    async def _disk(self) -> None:
        self.world.die_at_disk(self.rng.randrange(1, 300))

    async def _client(self) -> None:
        living = [client for client in self.clients if not client.dead]
        if living:
            self.rng.choice(living).crash()

    async def _all(self) -> None:
        self.world.die("power")
        for client in self.clients:
            client.crash()

    async def _drive(self) -> None:
        """Lose a drive, or two at once where nothing else is missing; never more than is promised."""
        world = self.world
        if not world.life.serving or await self._not_whole():
            return
        most = 1 if world.weather.loss or self.flipping else 2
        rows = [row for row in world.healthy() if row.id != self.flipping]
        for row in self.rng.sample(rows, self.rng.randrange(1, most + 1)):
            world.lose_drive(row, self.rng.choice(("wipe", "unmount", "sick")))

    async def _not_whole(self) -> str:
        why = "it died meanwhile"
        with suppress(ClusterError), trio.move_on_after(1):
            why = await self.world.whole()
        return why

    async def _heal(self) -> None:
        if self.world.life.serving:
            with suppress(ClusterError, MetadataError), trio.move_on_after(30):
                await self.world.replace_lost()

    async def _dump(self) -> None:
        leader = self.world.life.leader
        if self.world.life.serving and leader is not None:
            with suppress(ClusterError), trio.move_on_after(20):
                try:
                    await leader.upkeep.dump_now()
                    self.trace("dumped")
                except DumpRefused as error:
                    raise AssertionError(str(error)) from error

    async def _full(self) -> None:
        files = self.world.files
        files.capacity = files._used + self.rng.choice((0, 100_000, 3_000_000))
        await trio.sleep(self.rng.random() * 10)
        files.capacity = 1 << 40

    async def _rot(self) -> None:
        """A bit of a shard on the one drive that rots, which then counts as one of the losses."""
        world = self.world
        if world.weather.loss or world.lost:
            return
        rows = {row.id: row for row in world.healthy()}
        if self.flipping not in rows:
            if await self._not_whole():
                return
            self.flipping = self.rng.choice(sorted(rows))
        if world.lost or self.flipping not in rows:
            return
        top = absolute(world.data, rows[self.flipping].path) + "/chunks"
        files = world.files_at(top)
        paths = [path for path in files.paths(top) if files.contents(path)]
        for path in self.rng.sample(paths, min(3, len(paths))):
            files.flip(path, self.rng.randrange(len(files.contents(path))), 1 << self.rng.randrange(8))

    async def _stock(self) -> None:
        leader = self.world.life.leader
        if self.world.life.serving and leader is not None:
            with suppress(ClusterError), trio.move_on_after(10):
                survey = await leader.upkeep._survey()
                await inventory.list_empty(leader.server.writer.do, survey)
                await inventory.collect_orphans(leader.server.writer.do, survey, leader.upkeep.healer.moving)

    async def _cut(self) -> None:
        """A partition between one client and the pool, in both directions or in one."""
        living = [client for client in self.clients if not client.dead and not client.cut]
        if living:
            client, seconds = self.rng.choice(living), self.rng.choice((1, 8, 30, 60))
            client.cut = self.rng.choice(("there", "back", "both"))
            self.world.nursery.start_soon(self._mend, client, seconds)

    async def _mend(self, client: Client, seconds: float) -> None:
        await trio.sleep(seconds)
        client.cut = ""

    async def _slow(self) -> None:
        """The pool's disks take seconds now and then, for a while."""
        self.world.slow_s = self.rng.choice((0.5, 3.0))
        await trio.sleep(self.rng.random() * 20)
        self.world.slow_s = 0.05

    async def _clock(self) -> None:
        """The pool's wall clock is set, by hours and in either direction."""
        self.world.clock.offset_ns += round(self.rng.uniform(-7200, 7200) * 1e9)

    async def _stall(self, *, deadly: bool = False) -> None:
        """Drives hang or have no room, and now and then the machine dies before they are themselves again: what it has
        answered meanwhile must be safe without anything that they were asked for. Where these are only two of the
        log's replicas, the third is lost."""
        world = self.world
        leader = world.life.leader
        if not world.life.serving or leader is None:
            return
        logged = list(leader.log.chain[-1].drives)
        everybody = [row.id for row in leader.server.map.drives]
        few = self.rng.sample(logged, min(2, len(logged)))
        stalled = self.rng.choice((self.rng.sample(everybody, 1), few, few, few, logged, everybody))
        spare = [row for row in world.healthy() if row.id in logged and row.id not in stalled]
        may_lose = stalled is few and spare and not await self._not_whole() and not world.lost
        seconds = self.rng.choice((3.0, 8.0, 20.0, 20.0))
        hang = self.rng.random() < 0.5
        self.trace(f"{len(stalled)} drives {'hang' if hang else 'are full'} for {seconds:.0f} s")
        if hang:
            world.stall(stalled, seconds)
        else:
            world.refuse(row for row in world.healthy() if row.id in stalled)
        await trio.sleep(self.rng.choice((self.rng.random(), 0.9)) * seconds)
        if self.rng.random() < 0.6 or may_lose or deadly:
            world.die(self.rng.choice(("kill", "power")))
            if may_lose and not world.lost and spare[0].id != self.flipping:
                world.lose_drive(spare[0], "wipe")
        world.refusing.clear()

    # ---- proofs -----------------------------------------------------------------------------------------------

    async def finish(self, directory: str) -> None:
        world = self.world
        self.over = world.calm = True
        world.weather.loss = world.weather.repeat = 0.0
        world.slow_s = 0.05
        world.files.crash_at = -1
        world.steps.arm(0, lambda: None)
        for client in self.clients:
            client.crash()
        await trio.sleep(LATE_S + 2)  # late messages
        await world.until_whole()
        await world.until_ended()
        await world.check_rows(drives=False)
        await self.read_all()
        await self.collected()
        await world.until_whole()
        await world.check_rows(drives=True)
        await world.check_replay(directory)
        if self.rng.random() < 0.5:
            await self.crisis()
            await world.until_up()
            await self.read_all()
        else:
            await self.wipe_all()
        await world.until_whole()
        await world.check_rows(drives=False)

    async def wipe_all(self) -> None:
        """m drives, the power and the local database, all at once."""
        world = self.world
        rows = world.healthy()
        wiped = await self.expendable([row for row in rows if row.id != self.flipping], 1 if self.flipping else 2)
        if len(wiped) == 2 and self.rng.random() < 0.5:
            self._rot_all(wiped.pop())  # what it holds is read by whoever does not look
        for row in wiped:
            world.lose_drive(row, "wipe")
        world.forget_database()
        world.die("power")
        await world.until_up()
        await self.read_all()

    async def expendable(self, rows: Sequence[DriveRow], count: int) -> list[DriveRow]:
        """Drives that may be lost at once."""
        return self.rng.sample(rows, count)

    async def crisis(self) -> None:
        """The disks hang under clients at work, and then the machine dies."""
        world = self.world
        client = await world.client("late")
        with trio.CancelScope() as work:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, client, work)
                for _ in range(3):
                    self.lanes += 1
                    objects = Objects(client, self.objects, f"o{self.lanes}", random.Random(self.rng.random()))
                    nursery.start_soon(objects.run, 40)
                while not world.life.dead:
                    await trio.sleep(self.rng.random() * 0.2)
                    await self._stall(deadly=True)
                client.crash()

    def _rot_all(self, row: DriveRow) -> None:
        """A bit of the data of every shard on one drive, behind the header."""
        top = absolute(self.world.data, row.path) + "/chunks"
        files = self.world.files_at(top)
        self.trace(f"all of {row.path} rots")
        for path in files.paths(top):
            if (size := len(files.contents(path))) > SHARD_ALIGN:
                files.flip(path, self.rng.randrange(SHARD_ALIGN, size), 1 << self.rng.randrange(8))

    async def collected(self) -> None:
        """Every session has ended: what no row names goes, and nothing else."""
        leader = await self.world.until_up()
        for _ in range(8):
            survey = await leader.upkeep._survey()
            await inventory.list_empty(leader.server.writer.do, survey)
            await inventory.collect_orphans(leader.server.writer.do, survey, leader.upkeep.healer.moving)
            await trio.sleep(3 * IDLE_S)
            if not survey.unnamed:
                return
        raise AssertionError(f"{len(survey.unnamed)} files are left that nothing names: {survey.unnamed[:3]}")

    async def read_all(self) -> None:
        """A client that knows nothing reads every name."""
        client = await self.world.client("reader")
        with trio.fail_after(5000):
            for name in list(self.objects.allowed):
                self.objects.check(name, await self._read(client, name), "at the end")
            for name in list(self.files.allowed):
                self.files.check(name, await self._read(client, name, FILES), "a file")
            await check_listing(client, self.objects)
            await self.disk.turn(client, self.rng, 0, patient=True)
        client.scope.cancel()

    async def _read(self, client: Client, name: bytes, bucket: bytes = BUCKET) -> bytes | None:
        return await read_object(client, name, bucket)


async def schedule(
    seed: int,
    rng: random.Random,
    trace: Trace | None = None,
    *,
    make_world: type[World] = World,
    make_run: type[Run] = Run,
) -> None:
    trace = trace or Trace()
    weather = Weather(rng.choice((0, 0, 0.01, 0.05)), rng.choice((0, 0.05)), rng.choice((0.001, 0.02, 0.3)))
    with tempfile.TemporaryDirectory(prefix="sim-", dir="/dev/shm") as directory, \
            tempfile.TemporaryDirectory(prefix="sim-", dir="/dev/shm") as beside:
        world = make_world(rng, directory, weather=weather, trace=trace)
        async with world:
            await world.until_up()
            run = make_run(rng, world, trace)
            first = await world.client("first")
            await first.metadata.call(CreateBucket(BUCKET, "root"))
            await first.metadata.call(CreateBucket(FILES, "root"), CreateVolume("v", SIZE))
            async with trio.open_nursery() as nursery:
                for number in range(2):
                    nursery.start_soon(run.client_machine, number)
                await run.misfortunes(rng.randrange(3, rng.choice((6, 6, 12))))
                nursery.cancel_scope.cancel()
            run.clients.append(first)
            await run.finish(beside)
            trace(f"end: {run.objects.answered} objects, {run.files.answered} files, {world.lives} lives")
