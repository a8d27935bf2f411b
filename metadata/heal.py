"""Makes the pool whole: the one scheduler of repair. Nodes' shards are rebuilt by a Mover; rows say what is to do.

Repair work is a query, never an event: chunks whose row lists missing shards, or whose group has a drive that is out
or removed; those with the least redundancy first. One chunk's repair:

    read row -> plan (a record: target group, plan_seq) -> rebuild the places that differ -> commit (a record)

Invariants:
1. A chunk's id, k, m, nonce and bytes never change here; only its group, missing mask and plan_seq do.
2. The plan is durable before a shard is written; shards are written under the plan's seq, so that an older delete
   cannot remove them and an older plan cannot overwrite them.
3. The commit applies only if the row still has the group and plan_seq that were planned; drives that have gone out
   meanwhile count as missing.
4. A place whose drive is away stays listed as missing and is tried again; healing never waits for one drive while
   others can be made whole. Without a drive outside the group it waits, and says so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import msgspec
import trio

from trivium.cluster import placement
from trivium.cluster.errors import ClusterError
from trivium.cluster.model import ChunkId, ClusterMap, Group, Placed
from trivium.metadata import chunkrows, queue
from trivium.metadata.tx import Reader, Tx

log = logging.getLogger(__name__)

BATCH = 256  # rows of one look at the repair query
IN_FLIGHT = 24  # chunks rebuilt side by side: their plans and commits share records
IN_FLIGHT_BYTES = 12 << 20  # and the bytes of data that they are together, unless it is one
IDLE_S = 5.0  # between looks when nothing is to do or nothing can be done


class Rebuilder(Protocol):
    """cluster.mover.Mover: copies or rebuilds the shards that `target` lacks."""

    async def rebuild(self, placed: Placed, target: Group, plan_seq: int) -> int:
        """Mask of the indices of `target` that are not durable after this."""
        ...


class Transactions(Protocol):
    async def do(self, execute: Callable[[Tx], Any]) -> Any: ...


@dataclass(slots=True)
class Progress:
    """Since the pool was last whole. `rate` in bytes/s of healed chunk data."""

    done: int = 0
    left: int = 0
    bytes_done: int = 0
    began_s: float = field(default_factory=time.monotonic)
    waiting: str = ""

    def report(self) -> dict[str, Any]:
        elapsed = max(time.monotonic() - self.began_s, 1e-3)
        pace = self.done / elapsed
        return {
            "done": self.done,
            "total": self.done + self.left,
            "rate": self.bytes_done / elapsed,
            "seconds_left": self.left / pace if pace and self.left else None if self.left else 0.0,
            "waiting": self.waiting,
        }


def gone_drives(cluster_map: ClusterMap) -> frozenset[bytes]:
    return frozenset(drive.id for drive in cluster_map.drives if drive.reason in chunkrows.GONE)


def count_to_repair(reader: Reader) -> int:
    row = reader.one(f"SELECT count(*) FROM chunks c WHERE {_lacking(reader)}")
    assert row is not None
    return int(row[0])


def broken_groups(reader: Reader) -> list[int]:
    """Groups with a drive that is out or removed."""
    gone = {row[0] for row in reader.all("SELECT id FROM drives WHERE reason IN ('out', 'removed')")}
    if not gone:
        return []
    rows = reader.all("SELECT id, drives FROM groups")
    return [number for number, drives in rows if not gone.isdisjoint(chunkrows.split_drives(drives))]


def _lacking(reader: Reader) -> str:
    """SQL condition on chunks c: shards are missing, or lie on a drive that is gone."""
    return f"(c.missing != 0 OR c.group_id IN ({','.join(map(str, broken_groups(reader)))}))"


def to_repair(reader: Reader, limit: int = BATCH, skip: frozenset[ChunkId] = frozenset()) -> list[Placed]:
    """Chunks that lack shards, those with the least redundancy first."""
    rows = reader.all(
        f"SELECT c.session, c.counter FROM chunks c WHERE {_lacking(reader)}"
        " AND NOT EXISTS (SELECT 1 FROM queue q WHERE q.kind = 1 AND q.session = c.session AND q.counter = c.counter)"
        f" LIMIT {limit + len(skip)}"
    )
    chunks = (ChunkId(*row) for row in rows)
    found = [placed for chunk in chunks if chunk not in skip and (placed := chunkrows.placed_of(reader, chunk))]
    gone = {row[0] for row in reader.all("SELECT id FROM drives WHERE reason IN ('out', 'removed')")}
    return sorted(found, key=lambda placed: _redundancy(placed, gone))[:limit]


def _redundancy(placed: Placed, gone: Iterable[bytes]) -> int:
    lost = sum(1 for i, drive in enumerate(placed.group.drives) if placed.missing >> i & 1 or drive in gone)
    return placed.group.m - lost


def target_drives(group: Group, cluster_map: ClusterMap, usable: frozenset[bytes]) -> tuple[bytes, ...] | None:
    """The group's drives with those that are gone replaced, spread like new groups. None: there is no drive for it."""
    gone = gone_drives(cluster_map) | (frozenset(group.drives) - {drive.id for drive in cluster_map.drives})
    bad = [i for i, drive in enumerate(group.drives) if drive in gone]
    if not bad:
        return group.drives
    spare = usable - set(group.drives) - gone
    kept = [drive for drive in group.drives if drive not in gone]
    order = placement.substitutes(cluster_map, kept, len(bad), group.m, spare, group.id)
    if len(order) < len(bad):
        return None
    drives = list(group.drives)
    for place, drive in zip(bad, order, strict=False):
        drives[place] = drive
    return tuple(drives)


class Healer:
    """`usable` answers drives that are up and have room for healing. `changed` wakes it at once."""

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
        self._forget = forget

    def changed(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        while True:
            healed = await self._pass()
            if not healed:
                with trio.move_on_after(IDLE_S):
                    await self._wake.wait()
                self._wake = trio.Event()

    async def report(self) -> dict[str, Any]:
        """Progress with a fresh count of what is left."""
        self.progress.left = await self._read(count_to_repair)
        if not self.progress.left:
            self.progress.waiting = ""
        return self.progress.report()

    async def _pass(self) -> int:
        """One look at the repair query; answers how many chunks were made whole."""
        self.progress.left = await self._read(count_to_repair)
        if not self.progress.left:
            if self.progress.done:
                log.info("healed %d chunks: whole", self.progress.done)
            self.progress = Progress()
            return 0
        self.progress.waiting = ""
        tried: frozenset[ChunkId] = frozenset()
        healed = 0
        while work := await self._read(partial(to_repair, limit=BATCH, skip=tried)):
            tried |= frozenset(placed.chunk for placed in work)
            healed += await self._heal_all(work)
        return healed

    async def _heal_all(self, work: list[Placed]) -> int:
        healed = chunks = size = 0
        ended = trio.lowlevel.ParkingLot()

        async def one(placed: Placed) -> None:
            nonlocal healed, chunks, size
            if await self._heal(placed):
                healed += 1
                self.progress.done += 1
                self.progress.left -= 1
                self.progress.bytes_done += placed.length
            chunks, size = chunks - 1, size - placed.length
            ended.unpark_all()

        async with trio.open_nursery() as nursery:
            for placed in work:
                while chunks == IN_FLIGHT or (chunks and size + placed.length > IN_FLIGHT_BYTES):
                    await ended.park()
                chunks, size = chunks + 1, size + placed.length
                nursery.start_soon(one, placed)
        return healed

    async def _heal(self, placed: Placed) -> bool:
        """Plan, rebuild, commit one chunk; False when it is not whole yet."""
        drives = target_drives(placed.group, self._map(), self._usable())
        if drives is None:
            self.progress.waiting = "healing waits: there is no drive outside the group with room; replace or add one"
            return False
        try:
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
    gone = {row[0] for row in tx.all("SELECT id FROM drives WHERE reason IN ('out', 'removed')")}
    missing = sum(1 << i for i, drive in enumerate(target.drives) if lacking >> i & 1 or drive in gone)
    if target.profile.width - missing.bit_count() < min(target.k, target.profile.width):
        return None
    changed = tx.run(
        "UPDATE chunks SET group_id = ?, missing = ?"
        " WHERE session = ? AND counter = ? AND group_id = ? AND plan_seq = ?",
        *(target.id, missing, placed.chunk.session, placed.chunk.counter, placed.group.id, seq),
    )
    return missing if changed else None
