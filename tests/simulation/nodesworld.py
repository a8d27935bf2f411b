"""A pool over three machines: the metadata server's own two drives, and two nodes of two drives each in processes of
their own, which die and lose power one at a time, and which the metadata server may not reach though clients do.

Deaths of a node: as those of the pool's machine (world.py). A node that is away counts as two losses.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import trio

from tests.fakes.simdisk import Crashed, SimFiles
from tests.simulation.clusterrun import MISFORTUNES, Run
from tests.simulation.simclients import BUCKET
from tests.simulation.world import CLUSTER, NODE, Client, Life, MortalExecutor, World
from trivium.admin.joining import Joining
from trivium.admin.processes import metadata
from trivium.admin.processes.metadata import MetadataOptions
from trivium.admin.processes.substrate import Substrate
from trivium.cluster.errors import ClusterError, Unavailable
from trivium.cluster.model import ClusterMap, DriveRow, NodeRow, PoolRow
from trivium.cluster.node import Node
from trivium.cluster.store import Store
from trivium.cluster.transport.dial import Dialer
from trivium.cluster.transport.interface import Connection
from trivium.cluster.transport.memory import MemoryServer
from trivium.metadata.messages import MetadataError

_GROUPS = "SELECT DISTINCT g.m, g.drives FROM chunks c JOIN groups g ON g.id = c.group_id"
NODES, DRIVES = 3, 2  # the first node is the metadata server's own


class FarNode:
    """The process of a node on a machine of its own."""

    def __init__(self, world: NodesWorld, number: int) -> None:
        self.world, self.name, self.id = world, f"n{number}", f"n{number}".encode().ljust(16, b"N")
        self.files = SimFiles(world.rng.getrandbits(32))
        self.files.fail_sync = lambda inode: (self.files, inode) in world.failed
        self.top = f"/far/{self.name}/drives"
        self.address = f"sim:{self.name}"
        self.server: MemoryServer | None = None
        self.life = Life()
        self.up = trio.Event()  # for the first time
        self.cut = ""  # between it and the metadata server: "there", "back" or "both"
        self.first = {f"{self.top}/d{number}": world.rng.randbytes(16) for number in range(DRIVES)}
        for path, drive in self.first.items():
            Store.format(self.files, path, cluster=CLUSTER, drive=drive, ballast=4096)

    @property
    def domain(self) -> str:
        return f"default/{self.name}"

    def die(self, how: str) -> None:
        if not self.life.dead:
            self.world.trace(f"{how} {self.name}")
            self.life.dead = how
            self.files._down = True
            self.life.scope.cancel()

    async def lives(self) -> None:
        while True:
            self.life = life = Life()
            with suppress(Crashed):
                try:
                    with life.scope:
                        await self._live(life)
                except* Crashed:
                    life.dead = life.dead or "the disk stopped"
                except* Exception:
                    if not life.dead:
                        raise
            self.server = None
            rng = self.world.rng
            self.files.crash("everything" if life.dead == "kill" else rng.choice(("random", "random", "nothing")))
            self.files._down = False
            await trio.sleep(rng.random() * rng.choice((0.5, 3, 30, 60)))

    async def _live(self, life: Life) -> None:
        world = self.world
        node = Node(
            self.id,
            self._stores(),
            files=self.files,
            executor=MortalExecutor(life, world.rng, lambda: world.slow_s, world.stalled),
            cluster=CLUSTER,
        )
        server = MemoryServer(self.name)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, node.handle)
            self.server = server
            self.up.set()
            world.trace(f"{self.name} serves {len(node.stores)} drives")
            await self._join(node)
            await trio.sleep_forever()

    def _stores(self) -> list[Store]:
        stores = []
        for path in self.paths():
            with suppress(ClusterError, OSError):
                stores.append(Store.open(self.files, path, cluster=CLUSTER))
        return stores

    def paths(self) -> list[str]:
        return sorted({path[: path.index("/", len(self.top) + 1)] for path in self.files.paths(self.top)})

    async def _join(self, node: Node) -> None:
        """As admin/processes/node does, in the metadata server's memory: the way there is not what is tried here."""
        said = {"node": self.id, "name": self.name, "addresses": [self.address], "domain": self.domain}
        while True:
            leader = self.world.life.leader
            if self.world.life.serving and leader is not None:
                with suppress(ClusterError, MetadataError), trio.move_on_after(60):
                    answer: dict[str, Any] = await Joining(leader).join(said)
                    for drive, path in answer["paths"].items():
                        await node.open_drive(bytes.fromhex(drive), path)
                    return
            await trio.sleep(2)


class NodesWorld(World):
    keeps_unfinished = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options, drives=DRIVES)
        self.far = [FarNode(self, number) for number in range(1, NODES)]

    async def __aenter__(self) -> NodesWorld:
        await super().__aenter__()
        for node in self.far:
            self.nursery.start_soon(node.lives)
        return self

    async def _live(self, life: Life) -> None:
        if not self._known:  # the pool is formed once all of them are there
            for node in self.far:
                await node.up.wait()
        await super()._live(life)

    def node_server(self, node: bytes) -> MemoryServer | None:
        far = next((one for one in self.far if one.id == node), None)
        return super().node_server(node) if far is None else far.server

    def _dialer(self, life: Life) -> Dialer:
        dialer = Dialer()

        async def dial(name: str, member: bytes = b"") -> Connection:
            await trio.lowlevel.checkpoint()
            far = next(one for one in self.far if one.name == name)
            return self.network.connect(lambda: far.server, lambda: bool(life.dead), lambda: far.cut)

        dialer.register("sim", dial)
        return dialer

    async def _find_root(self, substrate: Substrate) -> None:
        options = MetadataOptions(self.data, nodes=tuple(node.address for node in self.far))
        await metadata._find_root(options, substrate)

    def _first_map(self, stores: Sequence[Store]) -> ClusterMap:
        own = [(NODE, "default/n0", store.drive, f"drives/d{i}") for i, store in enumerate(stores)]
        far = [(node.id, node.domain, drive, path) for node in self.far for path, drive in node.first.items()]
        rows = tuple(
            DriveRow(drive, f"d{i}", node, domain, 1.0, "", path, 1 << 40, i + 1)
            for i, (node, domain, drive, path) in enumerate(own + far)
        )
        nodes = (NodeRow(NODE, "n0", ()), *(NodeRow(node.id, node.name, (node.address,)) for node in self.far))
        return ClusterMap(1, rows, nodes, (PoolRow(1, "default", *self.profile),))

    # ---- losses -----------------------------------------------------------------------------------------------

    def files_at(self, path: str) -> SimFiles:
        return next((node.files for node in self.far if path.startswith(node.top)), self.files)

    def new_path(self, row: DriveRow) -> str:
        far = next((node for node in self.far if node.id == row.node), None)
        return super().new_path(row) if far is None else f"{far.top}/{row.name}-{self.rng.getrandbits(24):x}"

    async def replace_lost(self) -> None:
        try:
            await super().replace_lost()
        except MetadataError as error:
            if error.code not in ("EHOSTUNREACH", "EIO"):  # its node is away just now, or died while it made the drive
                raise
            self.trace(f"not replaced: {error.text}"[:120])

    async def whole(self) -> str:
        away = [node.name for node in self.far if node.server is None or node.cut]
        return f"{away[0]} is away" if away else await super().whole()


class NodesRun(Run):
    """While the schedule ends, no node dies any more."""

    misfortunes_of = MISFORTUNES | {"node": 40, "part": 15}
    world: NodesWorld

    async def _node(self) -> None:
        """A node dies while nothing else is missing; with its two drives that is as much as is promised."""
        world = self.world
        if world.life.serving and not world.weather.loss and not self.flipping and not await self._not_whole():
            node, how = self.rng.choice(world.far), self.rng.choice(("kill", "power", "disk"))
            if how == "disk":
                node.files.crash_at = node.files.operations + self.rng.randrange(1, 100)
            else:
                node.die(how)
            await trio.sleep(self.rng.random() * self.rng.choice((1, 10, 40)))

    async def finish(self, directory: str) -> None:
        for node in self.world.far:
            node.files.crash_at = -1
        await super().finish(directory)

    async def expendable(self, rows: Sequence[DriveRow], count: int) -> list[DriveRow]:
        """What was written while nodes were away has less parity (a volume's until somebody serves it): no more than
        that of any chunk's drives."""
        leader = await self.world.until_up()
        groups = await leader.read(lambda reader: reader.all(_GROUPS))
        chosen = await super().expendable(rows, count)
        gone = {row.id for row in chosen}
        for m, drives in groups:
            if len(gone & {drives[at : at + 16] for at in range(0, len(drives), 16)}) > m:
                return chosen[:1]
        return chosen

    async def _read(self, client: Client, name: bytes, bucket: bytes = BUCKET) -> bytes | None:
        """Drives are wiped while a node may just be starting again: it is waited for."""
        while True:
            try:
                return await super()._read(client, name, bucket)
            except Unavailable as error:
                self.trace(f"{name!r} waits: {error}")
                await trio.sleep(1)

    async def _part(self) -> None:
        """The metadata server does not reach a node, or is not heard, and clients may go on with it."""
        node, seconds = self.rng.choice(self.world.far), self.rng.choice((1, 8, 30, 60))
        if not node.cut:
            node.cut = self.rng.choice(("there", "back", "both"))
            self.world.nursery.start_soon(self._join_again, node, seconds)

    async def _join_again(self, node: FarNode, seconds: float) -> None:
        await trio.sleep(seconds)
        node.cut = ""


async def schedule(seed: int, rng: random.Random, trace: Any = None) -> None:
    from tests.simulation import clusterrun

    await clusterrun.schedule(seed, rng, trace, make_world=NodesWorld, make_run=NodesRun)
