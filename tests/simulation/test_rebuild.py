"""A pool loses its metadata beyond their copies and is made anew from shards: what tables of contents know is there.

Truth is taken before: each extent of a chunk that a name led to, with its bytes, and what the volume's guest was
promised. Afterwards a file has each of those extents at the same offset, the bytes read, fsck is clean, the pool takes
new data, and nothing is deleted from a drive before it is confirmed. The machine stops at any disk operation of the
rebuild.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from dataclasses import dataclass, field

import pytest
import trio

from tests.fakes.simdisk import Crashed
from tests.simulation.runner import run_schedules
from tests.simulation.simclients import ROOT, Disk
from tests.simulation.test_volume import SIZE, SMALL, guest
from tests.simulation.world import CLUSTER, NODE, Client, World
from trivium.admin.datadir import ClusterFile
from trivium.admin.processes.drives import absolute
from trivium.admin.refound import Refound
from trivium.admin.refoundbuild import Builder, Built
from trivium.admin.refoundmap import look
from trivium.cluster import logfile, shardfile
from trivium.cluster.chunks import PieceData
from trivium.cluster.clock import InlineExecutor, TrioClock
from trivium.cluster.drivedir import DriveDir
from trivium.cluster.model import ChunkId, ChunkKind, Ref
from trivium.cluster.salvage import Salvage
from trivium.metadata import database
from trivium.metadata.messages import (
    Body,
    CreateBucket,
    CreateVolume,
    DeleteObject,
    Extent,
    GetLayout,
    ObjectMeta,
    PutObject,
    ResizeVolume,
)
from trivium.metadata.tx import Reader
from trivium.nbd.solo import SoloChunks
from trivium.nbd.volume import Volume
from trivium.nbd.volumelog import ClusterLogs

BUCKET = b"objects"
SEEDS = 1  # of each case; TRIVIUM_SEEDS for more
CHUNK_EXTENTS = (
    "SELECT i.ino, e.offset, e.length, e.session, e.counter, e.ref_offset FROM extents e JOIN inodes i"
    " ON i.content = e.content WHERE e.session != 0 AND e.part = 0 AND i.nlink > 0 ORDER BY i.ino, e.offset"
)


@dataclass
class Truth:
    """What names led to in chunks: (inode, offset, ref) -> bytes; the files of lost+found that may have it."""

    extents: dict[tuple[int, int, Ref], bytes] = field(default_factory=dict)
    seq: int = 0


class Disaster:
    def __init__(self, world: World, rng: random.Random) -> None:
        self.world, self.rng = world, rng
        self.truth = Truth()
        self.homes: dict[tuple[int, int, Ref], list[int]] = {}
        self.disk = Disk()
        self.cluster = ClusterFile(CLUSTER.hex(), NODE.hex(), "4+2", False)
        self.crashes = 0
        self.lost = False

    # ---- a life ---------------------------------------------------------------------------------------------

    async def live(self, rounds: int) -> None:
        client = await self.world.client("a")
        await client.metadata.call(CreateBucket(BUCKET, "root"), CreateVolume("v", SIZE))
        leader = await self.world.until_up()
        root = await client.fs.lookup(1, BUCKET)
        handles: list[int] = []
        for number in range(rounds):
            for _ in range(3):
                await self._object(client)
                await self._file(client, root.ino, handles)
            exporter = await self.world.client(f"e{number}")
            await self.disk.turn(exporter, self.rng, 12, patient=True)
            exporter.crash()  # or the copies of the volume's log would be its to restore
            if number == rounds // 2:
                await leader.upkeep.dump_now()
                if self.rng.random() < 0.5:  # healed chunks lie elsewhere, under later plans
                    self.world.lose_drive(self.rng.choice(self.world.healthy()), "wipe")
                    await self.world.until_whole()
        for handle in handles:
            await client.fs.contents.flush(handle)
        await trio.sleep(self.rng.choice((1, 20)))
        await self._note(client)
        client.crash()

    async def _object(self, client: Client) -> None:
        """As the S3 face puts bodies: pieces tagged alike; sometimes over an older one, sometimes deleted."""
        name = b"%d" % self.rng.randrange(5)
        if self.rng.random() < 0.2:
            await client.metadata.call(DeleteObject(BUCKET, name))
            return
        data = self.rng.randbytes(self.rng.choice((3000, 20_000, 300_000)))
        if len(data) < 16_384:
            await client.metadata.call(PutObject(BUCKET, name, Body(len(data), data), "e", ObjectMeta()))
            return
        owner = bytes(8) + self.rng.randbytes(8)
        cut = len(data) // 2
        stored = [
            await client.chunks.put(1, [PieceData(owner, at, 0, part)])
            for at, part in ((0, data[:cut]), (cut, data[cut:]))
        ]
        extents = (Extent(0, cut, stored[0].refs[0]), Extent(cut, len(data) - cut, stored[1].refs[0]))
        new = tuple(chunk for one in stored for chunk in one.chunks)
        body = Body(len(data), None, extents)
        await client.metadata.call(PutObject(BUCKET, name, body, "e", ObjectMeta()), chunks=new)
        for one in stored:
            client.chunks.settle(one)

    async def _file(self, client: Client, parent: int, handles: list[int]) -> None:
        if len(handles) < 3:
            name = b"file-%d" % len(handles)
            _, handle, _ = await client.fs.create(parent, name, 0o644, os.O_RDWR, ROOT)
            handles.append(handle.fh)
        data = self.rng.randbytes(self.rng.choice((500, 70_000, 150_000)))
        handle_no = self.rng.choice(handles)
        await client.fs.contents.write(handle_no, self.rng.randrange(200_000), data)
        if self.rng.random() < 0.6:
            await client.fs.contents.flush(handle_no)

    async def _note(self, client: Client) -> None:
        leader = await self.world.until_up()
        rows = await leader.read(lambda reader: reader.all(CHUNK_EXTENTS))
        for ino, offset, length, session, counter, ref_offset in rows:
            ref = Ref(ChunkId(session, counter), ref_offset, length)
            self.truth.extents[ino, offset, ref] = bytes(await client.chunks.get(ref))
        self.truth.seq = leader.log.last_seq
        assert self.truth.extents

    # ---- its end --------------------------------------------------------------------------------------------

    def stop(self) -> None:
        self.world.pause_s = 10_000
        self.world.die("kill")

    def destroy(self, *, log: bool, dumps: bool, roots: int) -> None:
        for name in os.listdir(self.world.data.metadata):
            path = self.world.data.metadata / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in self.world.files.paths(absolute(self.world.data, "drives")):
            data = self.world.files.contents(path)
            old_log = log and "/log/" in path and logfile.parse_head(data)[1].kind == 1
            dump = dumps and "/chunks/" in path and shardfile.parse_header(data).spec.kind == ChunkKind.DUMP
            if old_log or dump:
                self._unlink(path)
        for path in self.rng.sample(self.world._paths(), min(roots, len(self.world._paths()))):
            self._unlink(f"{path}/root")

    def lose(self, count: int) -> None:
        for row in self.rng.sample(self.world.healthy(), count):
            self.world.files.wipe(absolute(self.world.data, row.path))

    def _unlink(self, path: str) -> None:
        folder, _, name = path.rpartition("/")
        fd = self.world.files.open_path(folder)
        self.world.files.unlink(fd, name)
        self.world.files.sync_folder(fd)
        self.world.files.close(fd)

    # ---- the rebuild ----------------------------------------------------------------------------------------

    async def rebuild(self, crashes: int) -> Built | None:
        """Until it is done; the machine stops `crashes` times on the way. Answers the last one's findings."""
        built: Built | None = None
        while True:
            try:
                built = await self._attempt(crashes - self.crashes) or built
                return built
            except Crashed:
                self.crashes += 1
            finally:
                self.world.files.crash("random")

    async def _attempt(self, crashes: int) -> Built | None:
        world = self.world
        drives = [DriveDir.open(world.files, path) for path in world._paths()]
        refound = Refound(world.data, world.files, self.cluster, random=random.Random(self.rng.random()))
        built = None
        journal = refound.pending()
        if journal is None:
            seen = look(drives, CLUSTER, self.rng, world.data)
            salvage = Salvage(seen.drives)
            salvage.scan()
            builder = Builder(world.data, self.cluster, seen, salvage, clock=TrioClock(), random=self.rng)
            with tempfile.TemporaryDirectory(dir=world.data.path) as folder:
                before = {path: world.files.contents(path) for path in world.files.paths()}
                built = await builder.build(f"{folder}/trivium.db", InlineExecutor())
                self.lost = bool(built.chunks.lost)
                assert before == {path: world.files.contents(path) for path in world.files.paths()}
                self._find_homes(built)
                self._arm(crashes)
                refound.clear([drive.path for drive in seen.drives])
                journal = refound.stage(built, seen)
                for path, data in before.items():
                    assert "/rebuild-" in path or world.files.contents(path) == data, "nothing old is touched"
                refound.decide(journal)
        else:
            self._arm(crashes)
        refound.finish(journal)
        world.files.crash_at = -1
        return built

    def _find_homes(self, built: Built) -> None:
        """Inodes with a name that have each extent at its offset: the running pool moves bytes to other chunks."""
        db = database.open_reader(built.path)
        try:
            reader = Reader(db, now=0, seq=0)
            for ino, offset, ref in self.truth.extents:
                self.homes[ino, offset, ref] = homes = _homes(reader, offset, ref)
                assert homes, f"nothing has bytes {offset} of inode {ino} from {ref}"
        finally:
            db.close()

    def _arm(self, crashes: int) -> None:
        if crashes > 0:
            self.world.files.crash_at = self.world.files.operations + self.rng.randrange(1, 400)

    # ---- what is there afterwards -----------------------------------------------------------------------------

    async def check(self, *, roots_lost: bool) -> None:
        world = self.world
        world.pause_s = 0
        await trio.sleep(10_001)
        leader = await world.until_up()
        assert leader.log.last_seq > self.truth.seq + (1 << 31) or roots_lost
        await world.check_rows(drives=False)
        client = await world.client("b")
        await self._check_files(client)
        await self._check_volume(client)
        await put_fresh(client, self.rng)
        with tempfile.TemporaryDirectory() as folder:
            await world.check_replay(folder)
        await self._check_collecting(client)
        client.crash()
        if not self.lost:  # what an old dump names and nobody has cannot be made whole
            await self._heal()
            await world.check_rows(drives=True)

    async def _heal(self) -> None:
        """Drives that the map names and that are gone are replaced, and all is whole again."""
        leader = await self.world.until_up()
        self.world.lost |= {row.id for row in leader.server.map.drives} & leader.substrate.watch.down()
        await self.world.until_whole()

    async def _check_files(self, client: Client) -> None:
        for (ino, offset, ref), data in self.truth.extents.items():
            found = [await read_range(client, home, offset, ref.length) for home in self.homes[ino, offset, ref]]
            assert data in found, f"bytes {offset} of inode {ino}"

    async def _check_volume(self, client: Client) -> None:
        leader = await self.world.until_up()
        ((name, size),) = await leader.read(lambda reader: reader.all("SELECT name, size FROM volumes"))
        logs = ClusterLogs(client.metadata, client.nodes, random=client.random)
        volume = await Volume.open(
            name, metadata=client.metadata, chunks=SoloChunks(client.chunks), logs=logs, tuning=SMALL
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(volume.run)
            found = bytearray(await volume.read(0, size)) + bytes(SIZE - size)
            self.disk.history.settle(found)
            await volume.close()
            nursery.cancel_scope.cancel()
        await client.metadata.call(ResizeVolume(name, SIZE))
        volume = await Volume.open(
            name, metadata=client.metadata, chunks=SoloChunks(client.chunks), logs=logs, tuning=SMALL
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(volume.run)
            await guest(volume, self.rng, self.disk.history, 30)
            await volume.close()
            nursery.cancel_scope.cancel()

    async def _check_collecting(self, client: Client) -> None:
        """Nothing goes from a drive before the operator confirms; afterwards all that is named still reads."""
        leader = await self.world.until_up()
        old = {path for path in self._shards() if any(chunk in path for chunk in self._truth_chunks())}
        leader.upkeep.take_stock()
        await trio.sleep(60)
        assert old <= self._shards()
        await leader.confirm_rebuilt()
        leader.upkeep.take_stock()
        await trio.sleep(60)
        await self._check_files(client)
        await self.world.check_rows(drives=False)

    def _shards(self) -> set[str]:
        return {path for path in self.world.files.paths(absolute(self.world.data, "drives")) if "/chunks/" in path}

    def _truth_chunks(self) -> set[str]:
        return {f"/chunks/{ref.chunk.session:016x}/" for _, _, ref in self.truth.extents}


async def put_fresh(client: Client, rng: random.Random) -> None:
    await client.metadata.call(CreateBucket(b"fresh", "root"))
    stored = await client.chunks.put(1, [PieceData(bytes(16), 0, 0, data := rng.randbytes(50_000))])
    body = Body(len(data), None, (Extent(0, len(data), stored.refs[0]),))
    await client.metadata.call(PutObject(b"fresh", b"x", body, "e", ObjectMeta()), chunks=stored.chunks)
    client.chunks.settle(stored)
    assert bytes(await client.chunks.get(stored.refs[0])) == data


def _homes(reader: Reader, offset: int, ref: Ref) -> list[int]:
    """Inodes with a name that have these bytes of the chunk at this offset."""
    rows = reader.all(
        "SELECT i.ino, e.offset, e.ref_offset, e.length FROM extents e JOIN inodes i ON i.content = e.content"
        " JOIN dirents d ON d.ino = i.ino WHERE e.session = ? AND e.counter = ? ORDER BY e.ref_offset",
        *(ref.chunk.session, ref.chunk.counter),
    )
    covered: dict[int, int] = {}
    for ino, at, start, length in rows:
        if at - start == offset - ref.offset and start <= covered.setdefault(ino, ref.offset):
            covered[ino] = max(covered[ino], start + length)
    return [ino for ino, end in covered.items() if end >= ref.offset + ref.length]


async def read_range(client: Client, ino: int, offset: int, length: int) -> bytes:
    found = bytearray(length)
    at = offset
    with client.metadata.reading():
        while at < offset + length:
            layout = await client.metadata.ask(GetLayout(ino, at, offset + length - at))
            rows = {row.chunk: row for row in layout.placed}
            for extent in layout.extents:
                data = extent.data or b""
                if extent.ref is not None:
                    data = await client.chunks.get(extent.ref, placed=rows.get(extent.ref.chunk))
                first, end = max(extent.offset, at), min(extent.offset + extent.length, offset + length)
                part = bytes(data)[first - extent.offset : end - extent.offset]
                found[first - offset : first - offset + len(part)] = part
            at = max(at + 1, layout.upto)
    return bytes(found)


@dataclass(frozen=True)
class Case:
    log: bool = True
    dumps: bool = True
    roots: int = 0
    drives: int = 0
    crashes: int = 0


CASES = {
    "metadata gone": Case(),
    "dumps are left": Case(dumps=False, drives=1),
    "and m drives": Case(drives=2, crashes=2),
    "and every root": Case(roots=9, crashes=2),
    "only most roots": Case(log=False, dumps=False, roots=4, crashes=1),
    "crashes": Case(roots=2, crashes=6),
    "roots and drives": Case(roots=9, drives=2),
}


@pytest.mark.parametrize("name", CASES)
def test_what_tables_of_contents_know_is_there(name: str) -> None:
    case = CASES[name]

    async def schedule(seed: int, rng: random.Random) -> None:
        with tempfile.TemporaryDirectory(prefix="sim-") as directory:
            async with World(rng, directory) as world:
                await world.until_up()
                disaster = Disaster(world, rng)
                await disaster.live(3)
                disaster.stop()
                await trio.sleep(1)
                disaster.lose(case.drives)
                disaster.destroy(log=case.log, dumps=case.dumps, roots=case.roots)
                built = await disaster.rebuild(case.crashes)
                if built is not None:
                    assert not built.findings
                    assert not built.losses or not case.dumps, "only what an old dump names may be gone by now"
                    assert built.whole_log != case.log, "what whole metadata do not name is dead"
                    assert case.log or not built.files.total
                await disaster.check(roots_lost=case.roots == 9)

    run_schedules(schedule, SEEDS)
