"""A whole pool in one thread: the real composition of `trivium up` on simulated disks, and clients on machines of
their own over a network that delays, loses and repeats messages.

    async with World(seed, rng, directory) as world:
        await world.until_up()
        client = await world.client("a")
        world.die("power")          # at this very step; the pool starts again by itself
        await world.rest()          # no more faults: whole again, or AssertionError
        await world.check(model)

Deaths of the pool's machine: "kill" (the process: what was written stays, synced or not), "power" (what was not synced
is lost, torn or kept, the local database is older or gone as well).
"""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, TypeVarTuple, Unpack

import trio

from tests.fakes.simdisk import Crashed, SimFiles
from tests.simulation.network import Network, Weather
from tests.simulation.runner import Trace
from trivium.admin.datadir import DataDir
from trivium.admin.drivecommands import replace_drive
from trivium.admin.errors import CommandError
from trivium.admin.processes.drives import Opened, absolute
from trivium.admin.processes.lead import Leader
from trivium.admin.processes.substrate import Substrate
from trivium.cluster.chunks import Chunks
from trivium.cluster.clock import InlineExecutor, TrioClock
from trivium.cluster.errors import ClusterError, Unavailable
from trivium.cluster.log import LogOptions
from trivium.cluster.model import ClusterMap, DriveRow, NodeRow, PoolRow, Root
from trivium.cluster.router import Router
from trivium.cluster.store import Store
from trivium.cluster.transport.dial import Dialer
from trivium.cluster.transport.interface import Connection
from trivium.cluster.transport.memory import MemoryServer
from trivium.cluster.wire import DriveReport
from trivium.fs.filesystem import Filesystem
from trivium.metadata import database, heal, recovery
from trivium.metadata.client import MetadataClient
from trivium.metadata.digest import digest
from trivium.metadata.messages import Credential
from trivium.metadata.recovery import RecoveryFailed
from trivium.metadata.tx import Reader

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

CLUSTER, NODE = b"C" * 16, b"N" * 16
ROOT_CREDENTIAL = Credential("root", "secret", "root", "", True)
DATABASE = ("trivium.db", "trivium.db-wal")


class Life:
    """One life of the pool's process."""

    def __init__(self) -> None:
        self.dead = ""  # why
        self.scope = trio.CancelScope()
        self.stalls: set[trio.CancelScope] = set()  # of calls that wait for a disk
        self.leader: Leader | None = None
        self.serving = False
        self.started = False


class MortalExecutor(InlineExecutor):
    """Inline; a dead process's disks and database see nothing more of it. Some calls take a while (`slow_s`), some let
    others run between what they did and whoever waits for it; what stalled drives are asked for waits (`stalled`)."""

    def __init__(
        self, life: Life, rng: random.Random, slow_s: Callable[[], float], stalled: Mapping[bytes, float]
    ) -> None:
        self._life, self._rng, self._slow_s, self._stalled = life, rng, slow_s, stalled

    async def run(self, fn: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        if self._rng.random() < 0.02:
            with trio.CancelScope(shield=True):
                await trio.sleep(self._rng.random() * self._slow_s())
        else:
            await trio.lowlevel.checkpoint()
        late = self._stalled and self._rng.random() < 0.1  # the disk has done it, and says so much later
        if self._stalled and not late:
            await self._stall(fn, args)
        if self._life.dead and getattr(fn, "__name__", "") != "close":
            nursery = trio.lowlevel.current_task().parent_nursery
            if nursery is not None and nursery.parent_task is trio.lowlevel.current_root_task():
                raise Unavailable("the process is dead")  # a system task: nobody is left to hear of Crashed
            raise Crashed
        result = fn(*args)
        if late:
            await self._stall(fn, args)
        elif self._rng.random() < 0.3:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return result

    async def run_all(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Drives that stall do not hold up the others."""
        if not self._stalled:
            return await super().run_all(calls)
        results: dict[int, T] = {}

        async def one(place: int, call: Callable[[], T]) -> None:
            results[place] = await self.run(call)

        try:
            async with trio.open_nursery() as nursery:
                for place, call in enumerate(calls):
                    nursery.start_soon(one, place, call)
        except* Crashed:
            raise Crashed from None
        return [results[place] for place in range(len(calls))]

    async def _stall(self, fn: Any, args: Sequence[Any]) -> None:
        """Until the drive that this is about answers again, or the process dies."""
        store = next((one for one in (*args, *getattr(fn, "args", ())) if isinstance(one, Store)), None)
        until = self._stalled.get(store.drive, 0.0) if store is not None else 0.0
        if until > trio.current_time() and not self._life.dead:
            with trio.CancelScope(shield=True, deadline=until) as scope:
                self._life.stalls.add(scope)
                await trio.sleep_forever()
            self._life.stalls.discard(scope)


class SteppedClock(TrioClock):
    """The machine's wall clock is set, forwards and backwards; what counts periods is not."""

    offset_ns = 0

    def wall_ns(self) -> int:
        return super().wall_ns() + self.offset_ns


class Steps(trio.abc.Instrument):
    """Calls `then` before the n-th step of any task from now on."""

    def __init__(self) -> None:
        self._left = 0
        self._then: Callable[[], None] = lambda: None

    def arm(self, steps: int, then: Callable[[], None]) -> None:
        """0 steps: never."""
        if self._left:
            trio.lowlevel.remove_instrument(self)
        self._left, self._then = steps, then
        if steps:
            trio.lowlevel.add_instrument(self)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if not self._left:
            trio.lowlevel.remove_instrument(self)
            self._then()


class Client:
    """A client machine: a session, chunks, a mount. `crash()` and nothing of it is heard again."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.crashed = trio.Event()
        self.cut = ""  # while a partition lasts: "there", "back" or "both"
        self.scope = trio.CancelScope()
        self.ended: list[str] = []
        rng = random.Random(world.rng.random())
        self.metadata = MetadataClient(self._connect, client=name, random=rng, clock=TrioClock())
        self.nodes = Router(self._connect_node)
        self.metadata.on_map = self.nodes.update
        self.random = rng
        self.chunks: Chunks
        self.fs: Filesystem

    async def _connect(self) -> Connection:
        return self.world.network.connect(self.world.metadata_server, lambda: self.dead, lambda: self.cut)

    async def _connect_node(self, node: bytes) -> Connection:
        return self.world.network.connect(lambda: self.world.node_server(node), lambda: self.dead, lambda: self.cut)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.metadata.run)
                self.nodes.update(self.metadata.map(), self.metadata.down)
                executor = InlineExecutor()
                self.chunks = Chunks(
                    self.metadata, self.nodes, cluster=CLUSTER, random=self.random, executor=executor
                )
                nursery.start_soon(self.chunks.run)
                self.fs = Filesystem(self.metadata, self.chunks, clock=TrioClock())
                on_ended = self.fs.on_ended

                def ended(why: str = "") -> None:
                    self.ended.append(why)
                    on_ended(why)

                self.metadata.attach(
                    on_recall=self.fs.on_recall,
                    on_ended=ended,
                    on_lapsed=self.fs.on_lapsed,
                    open_inodes=self.fs.hold_open,
                )
                await nursery.start(self.fs.run)
                task_status.started()
        if not self.dead:
            self.chunks.close()

    @property
    def dead(self) -> bool:
        return self.crashed.is_set()

    def crash(self) -> None:
        self.crashed.set()
        self.scope.cancel()


class World:
    keeps_unfinished = False  # drives of a first start that was interrupted

    def __init__(
        self,
        rng: random.Random,
        directory: str,
        *,
        weather: Weather | None = None,
        drives: int = 6,
        profile: tuple[int, int] = (4, 2),
        trace: Trace | None = None,
    ) -> None:
        self.rng = rng
        self.trace = trace or Trace()
        self.files = SimFiles(rng.getrandbits(32))
        self.data = DataDir(Path(directory))
        self.weather = weather or Weather()
        self.profile = profile
        self.drive_count = drives
        self.life = Life()
        self.lives = 0
        self.steps = Steps()
        self.network: Network
        self.log_bytes = rng.choice((1 << 21, 1 << 22))
        self.failed: set[tuple[SimFiles, int]] = set()  # files whose syncs fail
        self.lost: set[bytes] = set()  # drives that were lost and not yet replaced
        self.pause_s = 0.0  # until the next life; 0: any
        self.slow_s = 0.05  # the most that a slow call of a disk takes
        self.stalled: dict[bytes, float] = {}  # drives that answer nothing, until when
        self.refusing: set[int] = set()  # inodes that find no room for what is written to them
        self.clock = SteppedClock()
        self._forget = False
        self.calm = False  # no faults any more: the process must not end by itself
        self._stopping = False
        self._up = trio.Event()
        self._known: dict[bytes, DriveRow] = {}
        self._exit: trio.Nursery | None = None
        self._manager: Any = None
        self._older: dict[str, bytes] = {}

    # ---- running ----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> World:
        self.data.metadata.mkdir(parents=True, exist_ok=True)
        (self.data.run / "sessions").mkdir(parents=True, exist_ok=True)
        self.files.fail_sync = lambda inode: (self.files, inode) in self.failed
        self.files.fail_write = lambda inode: errno.ENOSPC if inode in self.refusing else 0
        self._manager = trio.open_nursery()
        self.nursery = await self._manager.__aenter__()
        self.network = Network(self.rng, self.weather, self.nursery)
        self.nursery.start_soon(self._lives)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.steps.arm(0, lambda: None)
        self._stopping = True
        self.life.dead = "the end"
        self.nursery.cancel_scope.cancel()
        await self._manager.__aexit__(kind, value, traceback)

    async def until_up(self) -> Leader:
        while not self._up.is_set():
            await self._up.wait()
        assert self.life.leader is not None
        return self.life.leader

    async def client(self, name: str) -> Client:
        client = Client(self, name)
        await self.nursery.start(client.run)
        return client

    def metadata_server(self) -> MemoryServer | None:
        return self.life.leader.memory if self.life.serving and self.life.leader is not None else None

    def node_server(self, node: bytes) -> MemoryServer | None:
        """A node serves as soon as its drives are open."""
        leader = self.life.leader
        return leader.substrate.memory if self.life.started and leader is not None else None

    async def _lives(self) -> None:
        while not self._stopping:
            self.life = life = Life()
            self.lives += 1
            try:
                with life.scope:
                    await self._live(life)
            except* Crashed:
                life.dead = life.dead or "the disk stopped"
            except* Exception as group:
                if not life.dead:
                    self.trace(f"the process ended: {group.exceptions!r}"[:300])
                    if not self._may_end(group):
                        raise
            life.serving = life.started = False
            if self._up.is_set():  # who waits already waits on: for the next life that serves
                self._up = trio.Event()
            self._bury(life)
            if not self._stopping:
                await trio.sleep(self.pause_s or self.rng.random() * self.rng.choice((0.5, 3, 30)))

    def _may_end(self, group: BaseExceptionGroup[Exception]) -> bool:
        """A process may refuse to start while its drives are sick; anything else is a fault of the program."""
        _, others = group.split((ClusterError, CommandError, RecoveryFailed))
        return others is None and not self.calm

    async def _live(self, life: Life) -> None:
        files, data = self.files, self.data
        forming = not self._known
        stores, absent, newest = self._open_drives()
        executor = MortalExecutor(life, self.rng, lambda: self.slow_s, self.stalled)
        first = self._first_map(stores) if forming else None
        substrate = Substrate(
            data,
            CLUSTER,
            NODE,
            Opened(stores, absent, newest),
            first,
            files=files,
            executor=executor,
            clock=self.clock,
            random=random.Random(self.rng.random()),
            dialer=self._dialer(life),
        )
        leader = life.leader = Leader(
            substrate, data, writer_executor=executor, log_options=LogOptions(capacity=self.log_bytes)
        )
        async with trio.open_nursery() as low:
            await substrate.start(low)
            life.started = True
            if not forming:
                await self._find_root(substrate)
            await leader.begin(low, ROOT_CREDENTIAL)
            self._known = {row.id: row for row in leader.root.map.drives}
            async with trio.open_nursery() as middle:
                await leader.serve(middle)
                async with trio.open_nursery() as top:
                    await leader.work(top, ROOT_CREDENTIAL)
                    life.serving = True
                    self.trace(f"life {self.lives} serves from {leader.log.last_seq}")
                    self._up.set()
                    await trio.sleep_forever()

    def _dialer(self, life: Life) -> Dialer | None:
        """How the pool's process reaches other nodes: there are none here."""
        return None

    async def _find_root(self, substrate: Substrate) -> None:
        """Wait for the root drives of other nodes: there are none here."""

    def files_at(self, path: str) -> SimFiles:
        """The disks of the machine that has this path."""
        return self.files

    def new_path(self, row: DriveRow) -> str:
        """Where a drive in the place of this one may lie."""
        return absolute(self.data, f"drives/{row.name}-{self.rng.getrandbits(24):x}")

    def _open_drives(self) -> tuple[list[Store], list[DriveReport], Root | None]:
        stores: list[Store] = []
        absent: list[DriveReport] = []
        if not self._known:
            for number in range(self.drive_count):
                path = absolute(self.data, f"drives/d{number}")
                if self.keeps_unfinished:
                    with suppress(ClusterError):
                        stores.append(Store.open(self.files, path, cluster=CLUSTER))
                        continue
                with suppress(OSError, KeyError):
                    self.files.wipe(path)
                Store.format(self.files, path, cluster=CLUSTER, drive=self.rng.randbytes(16), ballast=4096)
                stores.append(Store.open(self.files, path, cluster=CLUSTER))
            return stores, absent, None
        slots = []
        for path in self._paths():
            try:
                store = Store.open(self.files, path, cluster=CLUSTER)
            except (ClusterError, OSError):
                continue
            stores.append(store)
            with suppress(ClusterError):
                slots.append(store.root.read())
        best = max((slot for slot in slots if slot.root), key=lambda slot: (slot.accepted, slot.version), default=None)
        newest = best.root if best is not None else None
        own = [row for row in newest.map.drives if row.node == NODE] if newest else []
        rows = {row.id: row for row in own if row.reason != "removed"}
        used = [store for store in stores if store.drive in rows]
        for store in stores:
            if store not in used:
                store.close()
        have = {store.drive for store in used}
        for row in rows.values():
            if row.id not in have:
                absent.append(DriveReport(row.id, "missing", "cannot be opened", 0, 0, row.device, row.path))
        return used, absent, newest

    def _paths(self) -> list[str]:
        top = absolute(self.data, "drives")
        found = {path[: path.index("/", len(top) + 1)] for path in self.files.paths(top)}
        return sorted(found)

    def _first_map(self, stores: Sequence[Store]) -> ClusterMap:
        rows = tuple(
            DriveRow(store.drive, f"d{i}", NODE, "default/host", 1.0, "", f"drives/d{i}", 1 << 40, i + 1)
            for i, store in enumerate(stores)
        )
        nodes = (NodeRow(NODE, "host", ("unix:run/trivium.sock",)),)
        return ClusterMap(1, rows, nodes, (PoolRow(1, "default", *self.profile),))

    # ---- deaths -----------------------------------------------------------------------------------------------

    def die(self, how: str) -> None:
        """At this step."""
        life = self.life
        if life.dead:
            return
        life.dead = how
        self.trace(f"{how}")
        if life.leader is not None and hasattr(life.leader, "client"):
            client = life.leader.client
            if client._lock_fd >= 0:  # as the kernel does: closed, not removed
                os.close(client._lock_fd)
                client._lock_fd = -1
        self.files._down = True
        for scope in life.stalls:
            scope.cancel()
        life.scope.cancel()

    def die_in(self, steps: int, how: str) -> None:
        self.steps.arm(steps, lambda: self.die(how))

    def die_at_disk(self, operations: int) -> None:
        """The machine stops at some operation of its disks, in the middle of it where it is a write."""
        self.files.crash_at = self.files.operations + operations

    def _bury(self, life: Life) -> None:
        kill = life.dead == "kill"
        self.files.crash("everything" if kill else self.rng.choice(("random", "random", "nothing")))
        self.files._down = False
        self.stalled.clear()
        self.refusing.clear()
        if not kill:
            self._age_database()

    def remember_database(self) -> None:
        """What of the local database is on its disk."""
        for name in DATABASE:
            path = self.data.metadata / name
            self._older[name] = path.read_bytes() if path.exists() else b""

    def forget_database(self) -> None:
        """At the next loss of power the local database is gone."""
        self._forget = True
        self._older.clear()

    def _age_database(self) -> None:
        dice = self.rng.random()
        if dice < 0.25 and not self._forget:
            return
        self._forget = False
        for name in os.listdir(self.data.metadata):
            path = self.data.metadata / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if dice < 0.75 and self._older:
            for name, data in self._older.items():
                if data:
                    (self.data.metadata / name).write_bytes(data)

    # ---- drives -----------------------------------------------------------------------------------------------

    def healthy(self) -> list[DriveRow]:
        leader = self.life.leader
        rows = leader.server.map.drives if self.life.serving and leader is not None else self._known.values()
        return [row for row in rows if row.reason == "" and row.id not in self.lost]

    def lose_drive(self, row: DriveRow, how: str) -> None:
        """wipe: its directory is empty; unmount: another one is in its place; sick: every sync fails."""
        path = absolute(self.data, row.path)
        self.trace(f"{how} {row.path}")
        self.lost.add(row.id)
        files = self.files_at(path)
        if how == "sick":
            self.failed.update((files, inode) for inode in self._inodes(path))
        elif how == "wipe":
            files.wipe(path)
        else:
            files.unmount(path)

    def stall(self, drives: Iterable[bytes], seconds: float) -> None:
        """A controller that is being reset: what they are asked for is done when it is back, unless the process dies
        before."""
        for drive in drives:
            self.stalled[drive] = trio.current_time() + seconds

    def refuse(self, rows: Iterable[DriveRow]) -> None:
        """A quota, or a file system that copies what it changes: no room even for what was preallocated. Until the
        set is cleared, or the machine starts anew."""
        for row in rows:
            self.refusing.update(self._inodes(absolute(self.data, row.path)))

    def _inodes(self, path: str) -> list[int]:
        found: list[int] = []
        stack = [self.files_at(path)._walk(path)]
        while stack:
            one = stack.pop()
            found.append(one.inode)
            stack.extend(getattr(one, "entries", {}).values())
        return found

    async def replace_lost(self) -> None:
        """Put new drives in the place of lost ones. Raises what the command does."""
        for drive in sorted(self.lost):
            leader = await self.until_up()
            row = next((row for row in leader.server.map.drives if row.id == drive), None)
            if row is None or row.reason == "removed":
                self.lost.discard(drive)
                continue
            await replace_drive(leader, row.name, self.new_path(row))
            self.lost.discard(drive)
            self._known = {row.id: row for row in leader.server.map.drives}
            self.trace(f"replaced {row.name}")

    def _give_up_sick(self) -> None:
        """A sick drive that nobody has written to since is not known to be sick: its operator takes it away."""
        assert self.life.leader is not None
        rows = self.life.leader.server.map.drives
        used = {row.path for row in rows if row.id not in self.lost and row.reason != "removed"}
        for row in rows:
            if row.id in self.lost and row.reason == "" and row.path not in used:
                with suppress(OSError, KeyError):
                    path = absolute(self.data, row.path)
                    self.files_at(path).unmount(path)

    async def whole(self) -> str:
        """"" when chunks, logs and the newest dump have all of their copies; else what is short."""
        leader = await self.until_up()
        if self.lost:
            return "drives are lost"
        live = {row.id for row in leader.server.map.drives if row.reason == ""}
        down = leader.substrate.watch.down() & live
        if down:
            return f"down: {[drive.hex()[:6] for drive in sorted(down)]}"
        count = await leader.read(heal.count_to_repair)
        if count:
            return f"{count} chunks to repair: {leader.upkeep.healer.progress.waiting}"
        if not set(leader.root.root_drives) <= live:
            return "root drives"
        for entry in leader.log.chain:
            if not set(entry.drives) <= live or len(entry.drives) < self.profile[1] + 1:
                return "the log is short"
        short = await leader.upkeep.volume_logs.short(all=True)
        if short:
            return f"the write log of volume {short[0]} is short"
        if leader.root.dumps and not set(leader.root.dumps[-1].index.group.drives) <= live:
            return "the newest dump is short"
        return ""

    async def until_whole(self, limit_s: float = 600) -> None:
        why = "it never came up"
        deadline = trio.current_time() + limit_s
        while trio.current_time() < deadline:
            with trio.move_on_after(60):
                leader = await self.until_up()
                if self.lost:
                    with suppress(ClusterError):
                        self._give_up_sick()
                        await leader.substrate.watch.refresh()
                        await self.replace_lost()
                why = await self.whole()
                if not why:
                    return
            await trio.sleep(2)
        raise AssertionError(f"not whole after {limit_s:.0f} s: {why}")

    async def until_ended(self, limit_s: float = 120) -> None:
        """No session is left but this process's own, neither in memory nor as a row, and nothing of one."""
        left: object = None
        deadline = trio.current_time() + limit_s
        while trio.current_time() < deadline:
            leader = await self.until_up()
            with suppress(ClusterError):
                own = leader.client.session
                left = [session.client for session in leader.server.sessions.all() if session.id != own]
                for table, column in (("sessions", "id"), ("slots", "session"), ("held", "session")):
                    sql = f"SELECT count(*) FROM {table} WHERE {column} != ?"
                    left = left or await leader.read(partial(_count, sql=sql, own=own))
                if not left:
                    return
            await trio.sleep(2)
        raise AssertionError(f"sessions have not ended after {limit_s:.0f} s: {left}")

    # ---- checks -----------------------------------------------------------------------------------------------

    async def check_rows(self, *, drives: bool) -> None:
        """fsck is clean; with `drives` every place that a row names holds its shard."""
        leader = await self.until_up()
        findings = await leader.upkeep.fsck(drives)
        assert not findings, findings

    async def check_replay(self, directory: str) -> None:
        """Dump and log make exactly the database that is served."""
        leader = await self.until_up()
        path = os.path.join(directory, "replayed.db")
        for suffix in ("", "-wal", "-shm"):
            Path(path + suffix).unlink(missing_ok=True)  # noqa: ASYNC240
        metalog = leader._metalog
        digests = []
        await recovery.recover(path, metalog, leader._dumps(), InlineExecutor())
        for one in (path, str(self.data.metadata / "trivium.db")):
            db = database.open_reader(one)
            digests.append((database.applied(db), digest(db)))
            db.close()
        if digests[0] != digests[1] and digests[0][0] != digests[1][0]:
            return  # something was committed meanwhile; the caller repeats
        assert digests[0] == digests[1], "dump and log do not make the database that is served"


def _count(reader: Reader, sql: str, own: int) -> str:
    row = reader.one(sql, own)
    return f"{row[0]} rows: {sql}" if row and row[0] else ""


logging.getLogger("trivium").setLevel(logging.CRITICAL)
