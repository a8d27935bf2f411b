"""Makes the pool whole: the one scheduler of repair. Nodes' shards are rebuilt by a Mover; rows say what is to do.

Repair work is a query, never an event: chunks whose row lists missing shards, or whose group has a drive that is out
or removed, by risk (repairqueue); so it goes on after a crash where it was. One chunk's repair:

    read row -> plan (a record: target group, plan_seq) -> rebuild the places that differ -> commit (a record)

Invariants:
1. A chunk's id, k, m, nonce and bytes never change here; only its group, missing mask and plan_seq do.
2. The plan is durable before a shard is written; shards are written under the plan's seq, so that an older delete
   cannot remove them and an older plan cannot overwrite them.
3. The commit applies only if the row still has the group and plan_seq that were planned; drives that have gone out
   meanwhile count as missing.
4. What a chunk leaves on drives that are not removed is queued for collecting by the transaction that moves it.
5. A place whose drive is away stays listed as missing and is tried again; healing never waits for one drive while
   others can be made whole. Without a drive outside the group it waits, and says so.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec
import trio

from trivium.cluster import placement
from trivium.cluster.errors import ClusterError
from trivium.cluster.model import ChunkId, ClusterMap, Group, Placed
from trivium.metadata import chunkrows, queue, repairqueue
from trivium.metadata.moving import Moving
from trivium.metadata.progress import Progress
from trivium.metadata.tx import Reader, Tx

log = logging.getLogger(__name__)

NO_DRIVE = "healing waits: there is no drive outside the group with room; replace or add one"
BATCH = 256  # rows of one look at the repair query
IN_FLIGHT = 24  # chunks rebuilt side by side: their plans and commits share records
IN_FLIGHT_BYTES = 12 << 20  # and the bytes of data that they are together, unless it is one
IDLE_S = 1.0  # between looks when nothing is to do or nothing can be done: a partial write waits no longer
LOOK_S = 2.0  # after so long the classes are counted anew: a greater risk goes first
LOOK_SHARE = 10  # and counting takes at most a tenth of the time
FORGET_S = 30.0  # what could not be healed is tried again after so long


class Rebuilder(Protocol):
    """cluster.mover.Mover: copies or rebuilds the shards that `target` lacks."""

    async def rebuild(self, placed: Placed, target: Group, plan_seq: int) -> int:
        """Mask of the indices of `target` that are not durable after this."""
        ...


class Transactions(Protocol):
    async def do(self, execute: Callable[[Tx], Any]) -> Any: ...


def gone_drives(cluster_map: ClusterMap) -> frozenset[bytes]:
    return frozenset(drive.id for drive in cluster_map.drives if drive.reason in chunkrows.GONE)


def count_to_repair(reader: Reader) -> int:
    return repairqueue.count(reader)[0]


def lost_drives(group: Group, cluster_map: ClusterMap) -> frozenset[bytes]:
    return gone_drives(cluster_map) | (frozenset(group.drives) - {drive.id for drive in cluster_map.drives})


def target_drives(group: Group, cluster_map: ClusterMap, usable: frozenset[bytes]) -> tuple[bytes, ...]:
    """The group's drives with those that are gone replaced, as many as there are drives for, spread like new groups."""
    gone = lost_drives(group, cluster_map)
    bad = [i for i, drive in enumerate(group.drives) if drive in gone]
    if not bad:
        return group.drives
    spare = usable - set(group.drives) - gone
    kept = [drive for drive in group.drives if drive not in gone]
    order = placement.substitutes(cluster_map, kept, len(bad), group.m, spare, group.id)
    drives = list(group.drives)
    for place, drive in zip(bad, order, strict=False):
        drives[place] = drive
    return tuple(drives)


class Healer:
    """`usable` answers drives that are up and have room for healing. `changed` wakes it at once. `moving`: chunks with
    a plan under way, whose files no inventory may take for orphans."""

    def __init__(
        self,
        transactions: Transactions,
        read: Callable[[Callable[[Reader], Any]], Awaitable[Any]],
        mover: Rebuilder,
        *,
        cluster_map: Callable[[], ClusterMap],
        usable: Callable[[], frozenset[bytes]],
        forget: Callable[[Sequence[ChunkId]], None] = lambda chunks: None,
    ) -> None:
        self._do = transactions.do
        self._read = read
        self._mover = mover
        self._map = cluster_map
        self._usable = usable
        self._wake = trio.Event()
        self.progress = Progress()
        self.moving = Moving()
        self._forget = forget
        self._failed: set[ChunkId] = set()
        self._failed_since = 0.0

    def changed(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        while True:
            self._wake = trio.Event()
            if not await self.look():
                with trio.move_on_after(IDLE_S):
                    await self._wake.wait()

    async def report(self) -> dict[str, Any]:
        """Progress with a fresh count of what is left."""
        self.progress.counted(*await self._read(repairqueue.count))
        return self.progress.report(trio.current_time())

    @property
    def busy(self) -> bool:
        """Whether anything lacks shards, as last counted: others make way."""
        return bool(self.progress.left)

    # ---- order ----------------------------------------------------------------------------------------------

    async def look(self) -> int:
        """Heal what is at the greatest risk, for a while; answers how many chunks were made whole."""
        began = trio.current_time()
        if not await self._read(repairqueue.anything):
            if self.progress.done:
                log.info("healed %d chunks: whole", self.progress.done)
            self.progress = Progress()
            self._failed.clear()
            return 0
        found: list[repairqueue.RiskClass] = await self._read(repairqueue.classes)
        counted_s = trio.current_time() - began
        until = trio.current_time() + max(LOOK_S, LOOK_SHARE * counted_s)
        self.progress.counted(sum(one.chunks for one in found), sum(one.size_bytes for one in found))
        if trio.current_time() - self._failed_since > FORGET_S or self._wake.is_set():
            self._failed.clear()
            self._failed_since = trio.current_time()
        waiting = ""
        healed = 0
        for one in found:
            if why := self.obstacle(one):
                waiting = waiting or why
                continue
            healed += await self._heal_class(one, until)
            if self._over(until):
                break
        self.progress.waiting = "" if healed else waiting
        return healed

    def obstacle(self, one: repairqueue.RiskClass) -> str:
        """Why nothing of a class can be healed now, "" when something can."""
        usable, cluster_map = self._usable(), self._map()
        drives = target_drives(one.group, cluster_map, usable)
        lost = lost_drives(one.group, cluster_map)
        wanted = [i for i, drive in enumerate(drives) if drive in lost or drive != one.group.drives[i]]
        wanted += [i for i in range(len(drives)) if one.missing >> i & 1 and i not in wanted]
        if wanted and not any(drives[i] in usable for i in wanted):
            if any(drives[i] in lost for i in wanted):
                return NO_DRIVE
            names = {row.id: row.name for row in self._map().drives}
            away = ", ".join(sorted({names.get(drives[i], drives[i].hex()) for i in wanted}))
            return f"healing waits for drive {away} to come back: bring it back, or: trivium drive replace"
        return ""

    async def _heal_class(self, one: repairqueue.RiskClass, until: float) -> int:
        healed = 0
        after = ChunkId(0, 0)
        while not self._over(until):
            rows: list[Placed] = await self._read(partial(repairqueue.page, one=one, after=after, limit=BATCH))
            if not rows:
                break
            after = rows[-1].chunk
            healed += await self._heal_all([row for row in rows if row.chunk not in self._failed], until)
        return healed

    def _over(self, until: float) -> bool:
        return self._wake.is_set() or trio.current_time() >= until

    # ---- chunks ---------------------------------------------------------------------------------------------

    async def _heal_all(self, work: list[Placed], until: float = math.inf) -> int:
        healed = chunks = size = 0
        ended = trio.lowlevel.ParkingLot()

        async def one(placed: Placed) -> None:
            nonlocal healed, chunks, size
            if await self._heal(placed):
                healed += 1
                self.progress.advance(placed.length, trio.current_time())
            else:
                self._failed.add(placed.chunk)
            chunks, size = chunks - 1, size - placed.length
            ended.unpark_all()

        async with trio.open_nursery() as nursery:
            for placed in work:
                while chunks == IN_FLIGHT or (chunks and size + placed.length > IN_FLIGHT_BYTES):
                    await ended.park()
                if self._over(until):
                    break
                chunks, size = chunks + 1, size + placed.length
                nursery.start_soon(one, placed)
        return healed

    async def _heal(self, placed: Placed) -> bool:
        """Plan, rebuild, commit one chunk; False when it is not whole yet."""
        return await self.relocate(placed, target_drives(placed.group, self._map(), self._usable()))

    async def relocate(self, placed: Placed, drives: tuple[bytes, ...]) -> bool:
        """Bring a chunk to these drives; False when it is not whole there. What it leaves is queued for collecting."""
        try:
            with self.moving.of(placed.chunk):
                planned: tuple[Group, int] | None = await self._do(lambda tx: plan(tx, placed, drives))
                if planned is None:
                    return False
                target, seq = planned
                lacking = await self._mover.rebuild(placed, target, seq)
                missing: int | None = await self._do(lambda tx: commit(tx, placed, target, seq, lacking))
        except ClusterError as error:
            log.warning("chunk %s is not healed yet: %s", placed.chunk, error)
            return False
        self._forget((placed.chunk,))
        return missing == 0


def plan(tx: Tx, placed: Placed, drives: tuple[bytes, ...]) -> tuple[Group, int] | None:
    """Name the target group and raise the row's plan_seq. None when the row is not what was read any more."""
    changed = tx.run(
        "UPDATE chunks SET plan_seq = ? WHERE session = ? AND counter = ? AND group_id = ? AND plan_seq = ?",
        *(tx.seq, placed.chunk.session, placed.chunk.counter, placed.group.id, placed.plan_seq),
    )
    if not changed or chunkrows.is_queued(tx, placed.chunk):
        return None
    queue.placed_again(tx, placed.chunk)
    return target_group(tx, placed.group, drives), tx.seq


def target_group(tx: Tx, group: Group, drives: tuple[bytes, ...]) -> Group:
    """The row of a group with these drives, made (closed to new chunks) when there is none."""
    if drives == group.drives:
        return group
    row = tx.one(
        "SELECT id FROM groups WHERE drives = ? AND pool = ? AND k = ? AND m = ? AND codec = ?",
        *(b"".join(drives), group.pool, group.k, group.m, group.codec),
    )
    if row is not None:
        return msgspec.structs.replace(group, id=row[0], drives=drives)
    number = tx.next_id("group")
    tx.run(
        "INSERT INTO groups (id, pool, k, m, drives, codec, open) VALUES (?, ?, ?, ?, ?, ?, 0)",
        *(number, group.pool, group.k, group.m, b"".join(drives), group.codec),
    )
    return msgspec.structs.replace(group, id=number, drives=drives)


def commit(tx: Tx, placed: Placed, target: Group, seq: int, lacking: int) -> int | None:
    """Place the chunk, without the indices `lacking`. Answers what is missing now, None when the row was changed."""
    gone = repairqueue.gone(tx)
    missing = sum(1 << i for i, drive in enumerate(target.drives) if lacking >> i & 1 or drive in gone)
    if target.profile.width - missing.bit_count() < min(target.k, target.profile.width):
        return None
    changed = tx.run(
        "UPDATE chunks SET group_id = ?, missing = ?"
        " WHERE session = ? AND counter = ? AND group_id = ? AND plan_seq = ?",
        *(target.id, missing, placed.chunk.session, placed.chunk.counter, placed.group.id, seq),
    )
    if not changed:
        return None
    left = sum(1 << i for i, drive in enumerate(placed.group.drives) if drive != target.drives[i])
    queue.left_behind(tx, placed.chunk, placed.group.drives, left)
    return missing
