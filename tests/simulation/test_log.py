"""Logs under crashes, cut-off writers, lost drives and competing takeovers.

The model: what was answered, in order. Whatever happens, as long as at least one replica of the open segment survives:
every answered record is served, in its place, unchanged; no seq ever has two records; a fenced writer answers nothing.
"""

from __future__ import annotations

import random

import trio

from tests.fakes.chain import MemoryChain
from tests.fakes.cluster import FakeNodes, sim_nodes
from tests.fakes.simdisk import SimFiles
from tests.simulation.runner import Trace, assert_replays, run_schedules
from trivium.cluster import logplan
from trivium.cluster.errors import ClusterError, Fenced, NotFound, Unavailable
from trivium.cluster.log import LogOptions, LogParts, LogWriter
from trivium.cluster.logfile import NO_HASH, LogRecord
from trivium.cluster.logplan import LogOwner
from trivium.cluster.nodes import NodeReply
from trivium.cluster.takeover import takeover
from trivium.cluster.transport.interface import Buffer
from trivium.cluster.wire import NodeRequest

OPTIONS = LogOptions(capacity=32 * 1024, attempt_s=2.0, patience_s=1.0, retry_s=0.1)


class Wire:
    """One writer's way to the drives: delays, losses, and drives it is cut off from."""

    def __init__(self, nodes: FakeNodes, rng: random.Random, loss: float) -> None:
        self.nodes, self.rng, self.loss = nodes, rng, loss
        self.cut: set[bytes] = set()

    async def call(
        self, drive: bytes, request: NodeRequest, payload: Buffer | list[Buffer] | tuple[Buffer, ...] = b""
    ) -> NodeReply:
        await trio.sleep(self.rng.random() * 0.01)
        if drive in self.cut or self.rng.random() < self.loss:
            if self.rng.random() < 0.2:
                await trio.sleep(10)  # silence instead of an error
            raise Unavailable("lost on the way there")
        reply = await self.nodes.call(drive, request, payload)
        await trio.sleep(self.rng.random() * 0.01)
        if drive in self.cut or self.rng.random() < self.loss:
            raise Unavailable("lost on the way back")
        return reply

    def node_of(self, drive: bytes) -> bytes | None:
        return self.nodes.node_of(drive)

    def is_up(self, drive: bytes) -> bool:
        return True

    def is_local(self, drive: bytes) -> bool:
        return False


class World:
    def __init__(self, seed: int, rng: random.Random, trace: Trace | None = None) -> None:
        self.rng = rng
        self.files = SimFiles(seed)
        self.nodes = sim_nodes(6, nodes=6, files=self.files)
        self.chain = MemoryChain()
        self.acked: dict[int, bytes] = {}  # seq -> payload
        self.served: dict[int, bytes] = {}  # seq -> hash, ever
        self.rotten: set[bytes] = set()
        self.trace = trace or Trace()

    def parts(self) -> tuple[LogParts, Wire]:
        wire = Wire(self.nodes, self.rng, self.rng.choice((0, 0, 0.02, 0.1)))

        def choose(segment: bytes, avoid: frozenset[bytes]) -> tuple[bytes, ...]:
            return logplan.choose_drives(self.nodes.map(), self.nodes.drives, 3, segment, avoid | self.nodes.down)

        return LogParts(wire, self.chain, LogOwner(1, bytes(16)), choose, self.rng, OPTIONS), wire

    async def life(self, number: int, ends: trio.CancelScope) -> None:
        """One writer: takes over, appends from several tasks, dies when its scope is cancelled."""
        parts, wire = self.parts()
        with ends:
            try:
                async with trio.open_nursery() as nursery:
                    writer = await takeover(parts, wait_s=20.0)
                    self.trace(f"writer {number} from {writer.next_seq}")
                    await nursery.start(writer.run)
                    await self.check(writer)
                    for lane in range(3):
                        nursery.start_soon(self.append_many, writer, f"{number}.{lane}")
                    nursery.start_soon(self.misfortune, wire, writer)
            except* (Fenced, NotFound, Unavailable) as group:  # NotFound: its node was stopped in between
                self.trace(f"writer {number}: {type(group.exceptions[0]).__name__}")

    async def append_many(self, writer: LogWriter, name: str) -> None:
        for count in range(40):
            payload = f"{name}.{count}".encode() + bytes(self.rng.randrange(1500))
            last = await writer.append([LogRecord(0, 3, 1, 0, 0, NO_HASH, payload)])
            assert last not in self.acked, f"seq {last} was answered twice"
            self.acked[last] = payload
            await trio.sleep(self.rng.random() * 0.05)

    async def misfortune(self, wire: Wire, writer: LogWriter) -> None:
        while True:
            await trio.sleep(self.rng.random() * 0.5)
            dice = self.rng.random()
            if dice < 0.3:
                wire.cut = set(self.rng.sample(self.nodes.drives, self.rng.randrange(3)))
            elif dice < 0.4:
                await writer.leave(self.rng.sample(self.nodes.drives, 1))
            elif dice < 0.5 and writer.last_seq > 30:
                await writer.read(max(1, writer.last_seq - 20)).__anext__()

    def rot(self) -> None:
        """The end of one replica of the open segment rots: after a restart it looks like a torn tail."""
        self.nodes.down = set()
        entry = self.chain.chain[-1] if self.chain.chain else None
        if entry is None or entry.last_seq is not None or self.rotten or len(entry.drives) < 3:
            return
        drive = self.rng.choice(entry.drives)
        state = self.nodes.store(drive).logs.stat(entry.segment)
        if state.last_seq < entry.first_seq:
            return
        name = entry.segment.hex() + (".sealed" if state.sealed else ".open")
        self.nodes.stop()
        self.files.flip(f"{self.nodes.paths[drive]}/log/{name}", state.size - self.rng.randrange(8, 60))
        self.nodes.start()
        self.rotten.add(drive)
        self.trace("one replica's tail rots")

    async def check(self, writer: LogWriter) -> None:
        """Everything answered is served; nothing ever changes."""
        upto = writer.last_seq
        before = dict(self.acked)
        found: dict[int, bytes] = {}
        for attempt in range(200):
            try:
                async for record in writer.read(max(found, default=0) + 1):
                    found[record.seq] = bytes(record.payload)
                    assert self.served.setdefault(record.seq, record.hash) == record.hash, f"two records {record.seq}"
                break
            except (Unavailable, ClusterError):
                await trio.sleep(0.2)
                assert attempt < 199
        assert sorted(found) == list(range(1, max(found, default=0) + 1)) and max(found, default=0) >= upto
        for seq, payload in before.items():
            assert found.get(seq) == payload, f"answered record {seq} is not served"


async def schedule(seed: int, rng: random.Random, trace: Trace | None = None) -> None:
    world = World(seed, rng, trace)
    async with world.nodes, trio.open_nursery() as nursery:
        scopes = []
        for number in range(rng.randrange(2, 5)):
            scope = trio.CancelScope()
            scopes.append(scope)
            nursery.start_soon(world.life, number, scope)
            if rng.random() < 0.3:  # two at once
                rival = trio.CancelScope()
                scopes.append(rival)
                nursery.start_soon(world.life, number + 100, rival)
            await trio.sleep(rng.random() * 4)
            dice = rng.random()
            if dice < 0.4:
                scopes[-1].cancel()  # dies at any await
            if dice < 0.5:
                world.nodes.crash()  # power: what was not synced is lost
                world.trace("power loss")
            elif dice < 0.7 and world.chain.chain and world.chain.chain[-1].last_seq is None:
                drives = set(world.chain.chain[-1].drives)
                survivor = rng.choice(sorted(drives - world.rotten))
                world.nodes.down = drives - {survivor}  # replicas - 1 of the open segment
                world.trace("all replicas but one away")
            elif dice < 0.85:
                world.rot()
        await trio.sleep(5)
        for scope in scopes:
            scope.cancel()
        await trio.sleep(30)
        world.nodes.down = set()
    parts, _ = world.parts()
    parts.nodes = world.nodes
    world.nodes.start()  # all nodes stopped cleanly at the end of the block
    async with trio.open_nursery() as nursery:
        writer = await takeover(parts, wait_s=20.0)
        await nursery.start(writer.run)
        await world.check(writer)
        world.trace(f"end: {len(world.acked)} answered, last {writer.last_seq}")
        await writer.close()
        nursery.cancel_scope.cancel()
    world.nodes.stop()


def test_answered_records_survive_whatever_the_writers_do() -> None:
    run_schedules(schedule, count=40)


def test_a_seed_replays() -> None:
    assert_replays(schedule, 3)
