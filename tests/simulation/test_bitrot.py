"""A thousand single random bits of everything that a pool has on its drives: each is detected, none is ever read as
data, and what has redundancy is repaired by the pool's own scrub.

Each round flips one bit in each of many files, never more than m files of one chunk or of one log segment, nor more
than m root files. Then: verifying the drives names exactly these files; every object, the volume and the metadata
read as they were; a scrub makes every byte of every drive verify again. What no CRC covers is a rule, not a shrug:
`unused` says which bytes those are, and such a flip must change nothing that is read.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections import Counter

import trio

from tests.simulation.runner import run_one
from tests.simulation.simclients import BUCKET, read_object
from tests.simulation.test_scenarios import commit, stage
from tests.simulation.world import Client, World
from trivium.cluster import rootfile
from trivium.cluster.drivedir import DriveDir
from trivium.cluster.driveverify import verify
from trivium.cluster.model import ChunkKind, RootSlot
from trivium.cluster.store.drive import ROOT_SCRUB_REPORTS
from trivium.metadata.messages import CreateBucket

BITS = int(os.environ.get("TRIVIUM_BITS", "1000"))
SEED = int(os.environ.get("TRIVIUM_SEED", "11"))
OBJECTS = 36
SIZES = (17_000, 30_000, 90_000)


def unused(kind: str, data: bytes, offset: int) -> str:
    """The rule by which a byte means nothing; "" when it means something."""
    if kind != "root" or offset < rootfile.HEAD_SIZE:
        return ""
    start = offset - (offset - rootfile.HEAD_SIZE) % rootfile.SLOT_SIZE
    length = int.from_bytes(data[start + 56 : start + 60], "little")
    return "behind a root slot's CRC" if length and offset - start >= 60 + length + 4 else ""


class Rot:
    """One pool and what was flipped in it."""

    def __init__(self, world: World, client: Client, rng: random.Random) -> None:
        self.world, self.client, self.rng = world, client, rng
        self.values: dict[bytes, bytes] = {}
        self.counts: Counter[str] = Counter()

    async def fill(self) -> None:
        leader = await self.world.until_up()
        for number in range(OBJECTS):
            await self._put(b"object-%d" % number)
            if number in (12, 24):
                await leader.upkeep.dump_now()

    async def _put(self, name: bytes) -> None:
        data = self.rng.randbytes(self.rng.choice(SIZES))
        await commit(self.client, name, data, await stage(self.client, data))
        self.values[name] = data

    def drives(self) -> dict[str, DriveDir]:
        return {path: DriveDir.open(self.world.files, path, live=True) for path in self.world._paths()}

    def faults(self) -> set[str]:
        found: set[str] = set()
        for path, drive in self.drives().items():
            found |= {f"{path}/{fault.path}" for fault in verify(drive).faults}
            drive.close()
        return found

    def roots(self) -> list[RootSlot | None]:
        newest = [drive.newest() for drive in self.drives().values()]
        return [slot.value if slot is not None else None for slot in newest]

    # ---- flipping ---------------------------------------------------------------------------------------------

    def flip(self, kind: str, path: str, first: int, end: int) -> str:
        """One random bit of bytes [first, end) of a file; answers the path when it counts."""
        data = self.world.files.contents(path)
        offset = self.rng.randrange(first, end)
        rule = unused(kind, data, offset)
        self.world.files.flip(path, offset, 1 << self.rng.randrange(8))
        self.counts[f"{kind}, unused: {rule}" if rule else kind] += 1
        return "" if rule else path

    def flip_shards(self) -> set[str]:
        """In two shards of every chunk: data or dump."""
        by_chunk: dict[tuple[str, str], list[tuple[str, int]]] = {}
        for path, drive in self.drives().items():
            for chunk, index in drive.shard_places():
                assert drive.shards is not None
                kind = "dump shard" if drive.shards.header(chunk, index).spec.kind == ChunkKind.DUMP else "shard"
                name = f"{path}/chunks/{chunk.session:016x}/{chunk.counter >> 12:x}/{chunk.counter:x}.{index:x}"
                by_chunk.setdefault((kind, str(chunk)), []).append((name, index))
            drive.close()
        hit = set()
        for (kind, _), places in sorted(by_chunk.items()):
            for name, _index in self.rng.sample(sorted(places), 2):
                hit.add(self.flip(kind, name, 0, len(self.world.files.contents(name))))
        return hit

    def flip_logs(self) -> set[str]:
        """In two of the three replicas of each segment: heads and records; the zeros behind are tried by themselves."""
        replicas: dict[str, list[tuple[str, int]]] = {}
        for path, drive in self.drives().items():
            for name in drive.segments():
                scan = drive.read_segment(name).scan
                assert scan is not None
                replicas.setdefault(name.partition(".")[0], []).append((f"{path}/log/{name}", 4096 + scan.end))
            drive.close()
        hit = set()
        for _, places in sorted(replicas.items()):
            for name, end in self.rng.sample(sorted(places), 2):
                first = 0 if self.rng.random() < 0.2 else min(4096, end - 1)
                hit.add(self.flip("log head" if first == 0 else "log record", name, first, 4096 if first == 0 else end))
        return hit

    def flip_tails(self) -> None:
        """A bit in the zeros behind an open segment's records is seen at once, and is no record."""
        for path, drive in self.drives().items():
            for name in drive.segments():
                before = drive.read_segment(name)
                assert before.scan is not None
                if name.endswith(".open") and before.size > 4096 + before.scan.end:
                    where = self.rng.randrange(4096 + before.scan.end, before.size)
                    self.world.files.flip(f"{path}/log/{name}", where, 4)
                    after = drive.read_segment(name)
                    assert after.text and after.scan is not None
                    assert [r.hash for r in after.scan.records] == [r.hash for r in before.scan.records]
                    self.world.files.flip(f"{path}/log/{name}", where, 4)
                    self.counts["log tail"] += 1
            drive.close()

    def flip_roots(self) -> set[str]:
        hit = set()
        for path in self.rng.sample(sorted(self.world._paths()), 2):
            name = f"{path}/root"
            data = self.world.files.contents(name)
            start = rootfile.slot_offset(self.rng.randrange(2))
            length = 64 + int.from_bytes(data[start + 56 : start + 60], "little")
            spare = min(rootfile.SLOT_SIZE, length + length // 8)
            hit.add(self.flip("root", name, start, start + spare))
        return hit

    def flip_heads(self) -> None:
        """A root file's head: the drive is refused as it is, and its shards are read all the same (drive export)."""
        path = self.rng.choice(sorted(self.world._paths()))
        offset = self.rng.randrange(rootfile.HEAD_SIZE)
        self.world.files.flip(f"{path}/root", offset, 1)
        assert any(fault.startswith(path) for fault in self.faults())
        self.world.files.flip(f"{path}/root", offset, 1)
        self.counts["root head"] += 1

    # ---- proofs -----------------------------------------------------------------------------------------------

    async def round(self) -> None:
        world = self.world
        await self._put(b"object-%d" % self.rng.randrange(OBJECTS))  # the log grows, and is read back rotten
        self.flip_tails()
        self.flip_heads()
        roots = self.roots()
        hit = self.flip_shards() | self.flip_logs() | self.flip_roots()
        hit.discard("")
        assert self.faults() == hit, "every flipped bit is named, and nothing else"
        assert all(value is None or value.root is not None for value in self.roots())
        assert all(value in self._known_roots(roots) for value in self.roots()), "an older root, never another one"
        await self.read_all()
        await self.repair()
        assert self.faults() == set(), "the scrub has made every byte verify"
        assert len(world.lost) == 0

    def _known_roots(self, roots: list[RootSlot | None]) -> list[RootSlot | None]:
        """What was newest before, or the slot before that."""
        known: list[RootSlot | None] = [*roots, None]
        for drive in self.drives().values():
            known += [found.slot.value for found in drive.slots() if found.slot is not None]
        return known

    async def read_all(self) -> None:
        reader = await self.world.client(f"reader-{self.counts.total()}")
        for name, data in self.values.items():
            assert await read_object(reader, name) == data
        reader.scope.cancel()

    async def repair(self) -> None:
        leader = await self.world.until_up()
        for _ in range(ROOT_SCRUB_REPORTS):
            await leader.substrate.watch.refresh()
        with trio.fail_after(3600):
            for _ in range(3):
                leader.upkeep.scrubbing.now()
                while leader.upkeep.scrubbing.report()["running"]:  # noqa: ASYNC110 (simulated time)
                    await trio.sleep(1)
                await self.world.until_whole()
                await trio.sleep(30)
                if not self.faults():
                    break
        await self.world.until_whole()  # what was found and quarantined last is being made again
        await self.world.check_rows(drives=True)
        await self.read_all()


async def schedule(seed: int, rng: random.Random) -> None:
    with tempfile.TemporaryDirectory(prefix="sim-", dir="/dev/shm") as directory:
        world = World(rng, directory)
        world.log_bytes = 1 << 19
        async with world:
            await world.until_up()
            client = await world.client("c")
            await client.metadata.call(CreateBucket(BUCKET, "root"))
            rot = Rot(world, client, rng)
            await rot.fill()
            while rot.counts.total() < BITS:
                await rot.round()
            world.forget_database()
            world.die("power")
            await world.until_up()
            await rot.read_all()
            print(f"seed {seed}: {rot.counts.total()} bits: " + ", ".join(f"{n} {k}" for k, n in rot.counts.items()))
            assert {"shard", "dump shard", "log head", "log record", "log tail", "root", "root head"} <= set(rot.counts)


def test_any_single_bit_is_detected_never_read_and_repaired() -> None:
    print(f"seed {SEED} (TRIVIUM_SEED), {BITS} bits (TRIVIUM_BITS)")
    run_one(schedule, SEED)
