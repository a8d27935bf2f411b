"""What a leader does beside answering: heal, collect, compact, dump, take stock of the drives.

Each is a loop of its own over the writer's transactions; all end before the metadata server does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from trivium.admin.autoout import AutoOut
from trivium.admin.draining import Draining
from trivium.admin.processes.scrubbing import Scrubbing
from trivium.admin.slowdrives import SlowDrives
from trivium.admin.volumelogs import VolumeLogs
from trivium.cluster import logheal, placement
from trivium.cluster.errors import ClusterError
from trivium.cluster.log import LogParts
from trivium.cluster.model import DumpEntry, Group, NewChunk, Placed, Root
from trivium.cluster.mover import Mover
from trivium.cluster.pacing import Pacer
from trivium.metadata import chunkrows, fsck, inventory, queue, repairqueue
from trivium.metadata.collect_loop import CollectLoop
from trivium.metadata.compact_loop import CompactLoop
from trivium.metadata.dump import Dumper, DumpParts
from trivium.metadata.heal import Healer
from trivium.metadata.metalog import ClusterLog
from trivium.metadata.rebalancer import Rebalancer
from trivium.metadata.records import Record
from trivium.metadata.tx import Reader, Tx
from trivium.metadata.widen import Widening

if TYPE_CHECKING:
    from trivium.admin.processes.lead import Leader

log = logging.getLogger(__name__)

STOCK_PERIOD_S = 3600.0  # between inventories
LOG_HEAL_PERIOD_S = 5.0
CLIENTS_S = 1.0  # so long after a call clients count as at work


class CountingLog(ClusterLog):
    """The metadata log, counting what is appended in this life."""

    appended_bytes = 0

    observe: Callable[[float, str], None] = staticmethod(lambda seconds, kind: None)

    async def append(self, record: Record) -> None:
        began = trio.current_time()
        await super().append(record)
        self.observe(trio.current_time() - began, "log")
        self.appended_bytes += len(record.payload) + 128


class RootDumps:
    """The dumps that the root names."""

    def __init__(self, leader: Leader) -> None:
        self._leader = leader

    def dumps(self) -> tuple[DumpEntry, ...]:
        return self._leader.root.dumps

    async def set_dumps(self, dumps: tuple[DumpEntry, ...]) -> None:
        def edit(root: Root) -> Root:
            return msgspec.structs.replace(root, dumps=dumps)

        await self._leader.register.change(edit)


class Upkeep:
    def __init__(self, leader: Leader, metalog: CountingLog, log_parts: LogParts) -> None:
        self._leader, self.log_parts = leader, log_parts
        substrate = leader.substrate
        self.pacer = Pacer(leader.heal_floor_bytes_s)
        metalog.observe = self._observe_log
        leader.chunks.latency.also = self.pacer.observe
        leader.server.on_latencies = self._observe
        mover = self.mover = Mover(
            substrate.router,
            cluster=substrate.cluster,
            executor=substrate.executor,
            pace=self.pacer,
            drives=lambda: [drive.id for drive in substrate.map.drives if drive.reason != "removed"],
        )
        self.healer = Healer(
            leader.server.writer,
            leader.read,
            mover,
            cluster_map=lambda: leader.server.map,
            usable=substrate.watch.usable,
        )
        self.draining = Draining(leader, mover, self.healer.moving)
        self.volume_logs = VolumeLogs(leader)
        self.auto_out = AutoOut(leader)
        self.slow_drives = SlowDrives(leader)
        self.dumper = Dumper(
            DumpParts(
                str(leader.data.metadata / "trivium.db"),
                metalog,
                leader.chunks,
                RootDumps(leader),
                substrate.executor,
                substrate.clock,
                pool=lambda: max(leader.server.map.pools, key=lambda pool: pool.m).id,
                group=self._group,
                log_bytes=lambda: metalog.appended_bytes,
                drop=self._drop,
            )
        )
        self._collecting = CollectLoop(
            leader.server.writer,
            leader.read,
            substrate.router,
            oldest_read_seq=leader.server.sessions.oldest_read_seq,
            allowed=lambda: not leader.server.leases.unreclaimed and not leader.unconfirmed,
        )
        self._compacting = CompactLoop(
            leader.read, self._commit, leader.chunks, pool=lambda: leader.server.map.pools[0].id
        )
        self.widening = Widening(
            leader.read, self._commit, leader.chunks, whole=self.is_whole, pace=self.pacer, also=self._widen_dump
        )
        leader.widen_volumes = lambda: self.widening.ready
        self.rebalancer = Rebalancer(
            leader.read,
            self.healer.relocate,
            cluster_map=lambda: leader.server.map,
            usable=lambda: substrate.watch.usable() - substrate.watch.unfit(),
            whole=self.is_whole,
        )
        self.scrubbing = Scrubbing(leader, self.pacer)
        self._log_wake = trio.Event()
        self._stock_wake = trio.Event()

    async def start(self, nursery: trio.Nursery) -> None:
        for loop in (
            self.healer.run,
            self._collecting.run,
            self._compacting.run,
            self.widening.run,
            self.rebalancer.run,
            self._heal_log,
            self._dump,
            self._stock,
            self.scrubbing.run,
            self.draining.run,
            self.volume_logs.run,
            self.auto_out.run,
            self.slow_drives.run,
        ):
            nursery.start_soon(loop)

    def drives_changed(self, *, dump: bool = False) -> None:
        """Drives have come or gone; `dump`: one is lost, so the dumps on it are written anew."""
        self.healer.changed()
        self.draining.changed()
        self.rebalancer.changed()
        self.volume_logs.changed()
        self._log_wake.set()
        if dump:
            self.dumper.asked.set()

    def heal_log(self) -> None:
        """The metadata log has segments where they must not stay."""
        self._log_wake.set()

    def take_stock(self) -> None:
        """A drive has come back: look what lies there."""
        self._stock_wake.set()

    async def is_whole(self) -> bool:
        """Every drive that is not removed answers, nothing lacks shards, and new chunks get the pools' profiles."""
        watch, cluster_map = self._leader.substrate.watch, self._leader.server.map
        if any(row.reason == "out" or row.id in watch.down() for row in cluster_map.drives if row.reason != "removed"):
            return False
        fit = watch.usable() - watch.unfit()
        if any(len(placement.usable(cluster_map, fit)) < pool.k + pool.m for pool in cluster_map.pools):
            return False
        return not await self._leader.read(repairqueue.anything)

    def _widen_dump(self) -> None:
        """A dump that was written while drives were away is written anew."""
        pools = {pool.id: pool.k + pool.m for pool in self._leader.server.map.pools}
        dumps = self._leader.root.dumps
        if dumps and dumps[-1].index.group.profile.width < pools.get(dumps[-1].index.group.pool, 0):
            self.dumper.asked.set()

    async def fsck(self, drives: bool) -> list[dict[str, str]]:
        """Findings of the metadata's invariants; with `drives` also of what lies on them."""
        found = [finding._asdict() for finding in await self._leader.read(fsck.check)]
        findings = [{"what": f["area"], "text": f["text"], "repair": f["repair"]} for f in found]
        if drives:
            stock = await self._survey()
            findings += [
                {"what": "drives", "text": f"shard {index} of chunk {chunk} is not on drive {self._name(drive)}",
                 "repair": "rebuild it from the others"}
                for chunk, index, drive in stock.empty
            ]  # fmt: skip
            await inventory.list_empty(self._leader.server.writer.do, stock)
        return findings

    async def note_empty(self) -> None:
        """Take stock of the drives that answer: rows learn which places are empty."""
        await inventory.list_empty(self._leader.server.writer.do, await self._survey())

    async def dump_now(self) -> dict[str, Any]:
        entry = await self.dumper.write()
        return {"seq": entry.seq, "size": entry.size, "digest": entry.digest.hex()}

    # ---- loops ------------------------------------------------------------------------------------------------

    async def _dump(self) -> None:
        while True:
            try:
                await self.dumper.load()
                break
            except ClusterError as error:
                log.warning("the dumps that the root names cannot be read yet: %s", error)
                await trio.sleep(30)
        await self.dumper.run()

    async def _heal_log(self) -> None:
        """Give every log segment its replicas back: when drives have come or gone, and now and then, because a takeover
        or an append that did without a drive for a moment leaves a segment short though no drive's state changes."""
        while True:
            with trio.move_on_after(LOG_HEAL_PERIOD_S):
                await self._log_wake.wait()
            self._log_wake = trio.Event()
            lost, leaving = self._leader.lost_drives(), self._leader.draining_drives()
            avoid, parts = lost | leaving, self.log_parts
            try:
                short = logheal.is_short(self._leader.log.chain, logheal.wanted(parts, avoid), avoid)
                if short and await logheal.heal(parts, self._leader.log, avoid, present=leaving - lost):
                    await trio.sleep(LOG_HEAL_PERIOD_S)
            except ClusterError as error:
                log.warning("the log is not healed yet: %s", error)
                await trio.sleep(LOG_HEAL_PERIOD_S)

    async def _stock(self) -> None:
        """Once an hour: orphans of crashed puts are collected, empty places are healed."""
        while True:
            with trio.move_on_after(STOCK_PERIOD_S):
                await self._stock_wake.wait()
            self._stock_wake = trio.Event()
            found = await self._survey()
            await inventory.list_empty(self._leader.server.writer.do, found)
            count = 0
            if not self._leader.unconfirmed:
                count = await inventory.collect_orphans(self._leader.server.writer.do, found, self.healer.moving)
            log.info("inventory: %d empty places, %d orphans", len(found.empty), count)

    async def _survey(self) -> inventory.Survey:
        usable = self._leader.substrate.watch.usable()
        drives = [drive.id for drive in self._leader.server.map.drives if not drive.reason and drive.id in usable]
        return await inventory.survey(self._leader.read, self._leader.substrate.router, drives, self.dumper.held())

    def _observe_log(self, seconds: float, kind: str) -> None:
        """An append counts while clients wait for appends: healing's own records are nobody's waiting."""
        if trio.current_time() - self._leader.server.called_s < CLIENTS_S:
            self.pacer.observe(seconds, kind)

    def _observe(self, session: int, samples: tuple[tuple[str, int, float], ...]) -> None:
        """What a client process says of its own calls."""
        for kind, calls, p99_s in samples:
            self.pacer.observe_p99(f"{kind} of {session:016x}", calls, p99_s)

    # ---- parts ------------------------------------------------------------------------------------------------

    async def _group(self, number: int) -> Group:
        group: Group | None = await self._leader.read(partial(_group_row, number=number))
        assert group is not None, "a put names a group that was offered"
        return group

    async def _drop(self, places: tuple[Placed, ...]) -> None:
        def execute(tx: Tx) -> None:
            for placed in places:
                queue.add_places(tx, placed.chunk, placed.group.drives)

        await self._leader.server.writer.do(execute)

    async def _commit(self, execute: Callable[[Tx], Any], chunks: Sequence[NewChunk]) -> Any:
        named = {new.chunk: new for new in chunks}
        return await self._leader.server.writer.do(execute, session=self._leader.client.session, chunks=named)

    def _name(self, drive: bytes) -> str:
        return next((row.name for row in self._leader.server.map.drives if row.id == drive), drive.hex())


def _group_row(reader: Reader, number: int) -> Group | None:
    return chunkrows.group_of(reader, number)
