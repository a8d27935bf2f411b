"""Moves what lies on draining drives elsewhere. The same plan, rebuild and commit as healing, with another reason.

    in use --drain--> draining: no new groups --chunks relocated, log, root, dumps moved (admin/draining)--> empty
       ^------------------- cancel -------------------|                                                       `-> remove

What is to do is a query over rows (groups that name a draining drive), so a restart goes on where it was.

Invariants
1. A move never lessens redundancy: the row changes only when every shard that left the draining drive is durable at its
   new place (a heal may commit with a place still missing; a move may not: its source is intact).
2. Chunks that lack shards are healed first, by the healer; a chunk is moved only when it is whole.
3. The transaction that changes the row queues the place that was left, so that no inventory has to find it.
4. From plan to commit the chunk is in `moving`: the inventory does not take what was written for orphans.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import trio

from trivium.cluster.errors import ClusterError
from trivium.cluster.model import ChunkId, ClusterMap, DriveRow, Group, Placed
from trivium.metadata import chunkrows, heal, queue
from trivium.metadata.moving import Moving
from trivium.metadata.tx import Reader, Tx
from trivium.metadata.volumes import decode_chain

log = logging.getLogger(__name__)

DRAINING = "draining"
BATCH = 128  # rows of one look
IN_FLIGHT = 8  # chunks moved side by side
IDLE_S = 5.0
NO_PLACE = "the drain waits: there is no drive outside the group with room; add one (trivium drive add)"


# ---- what names a drive ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Named:
    """What rows still put on a drive. `width`: the widest group with chunks on it."""

    chunks: int = 0
    open_groups: int = 0
    volumes: tuple[str, ...] = ()  # volumes whose write log has a segment there
    width: int = 0


def draining(cluster_map: ClusterMap) -> tuple[DriveRow, ...]:
    return tuple(row for row in cluster_map.drives if row.reason == DRAINING)


def named(reader: Reader, drive: bytes) -> Named:
    """What names the drive in the tables."""
    chunks = opened = width = 0
    for number, k, m, is_open in _groups(reader, drive):
        count = reader.one("SELECT count(*) FROM chunks WHERE group_id = ?", number)
        assert count is not None
        chunks += count[0]
        opened += is_open
        width = max(width, k + m) if count[0] else width
    return Named(chunks, opened, tuple(_volumes(reader, drive)), width)


def _groups(reader: Reader, drive: bytes) -> list[tuple[int, int, int, int]]:
    rows = reader.all("SELECT id, k, m, open, drives FROM groups WHERE instr(drives, ?) > 0", drive)
    return [(row[0], row[1], row[2], row[3]) for row in rows if drive in chunkrows.split_drives(row[4])]


def _volumes(reader: Reader, drive: bytes) -> list[str]:
    rows = reader.all("SELECT name, log FROM volumes WHERE instr(log, ?) > 0 ORDER BY name", drive)
    return [name for name, chain in rows if any(drive in entry.drives for entry in decode_chain(chain))]


def would_be_lost(reader: Reader, drive: bytes, away: frozenset[bytes] = frozenset()) -> int:
    """Chunks that could not be read without this drive: fewer than k of their other shards are on drives in use.
    `away`: drives that do not answer (they may never come back)."""
    gone = {row[0] for row in reader.all("SELECT id FROM drives WHERE reason IN ('out', 'removed')")} | {drive} | away
    lost = 0
    for number, k, _m, _open in _groups(reader, drive):
        group = chunkrows.group_of(reader, number)
        assert group is not None
        bad = sum(1 << index for index, one in enumerate(group.drives) if one in gone)
        rows = reader.all("SELECT missing, count(*) FROM chunks WHERE group_id = ? GROUP BY missing", number)
        lost += sum(count for missing, count in rows if group.profile.width - (missing | bad).bit_count() < k)
    return lost


def logs_lost_without(reader: Reader, gone: frozenset[bytes]) -> list[str]:
    """Volumes whose write log has a segment on no other drives than these."""
    rows = reader.all("SELECT name, log FROM volumes ORDER BY name")
    return [name for name, chain in rows if any(gone.issuperset(entry.drives) for entry in decode_chain(chain))]


# ---- moving ---------------------------------------------------------------------------------------------------


def to_move(reader: Reader, limit: int = BATCH, skip: frozenset[ChunkId] = frozenset()) -> list[Placed]:
    """Whole chunks of groups that name a draining drive."""
    found: list[Placed] = []
    gone = {row[0] for row in reader.all("SELECT id FROM drives WHERE reason IN ('out', 'removed')")}
    numbers: dict[int, None] = {}
    for (drive,) in reader.all("SELECT id FROM drives WHERE reason = ? ORDER BY id", DRAINING):
        numbers.update(dict.fromkeys(number for number, *_ in _groups(reader, drive)))
    for number in numbers:
        group = chunkrows.group_of(reader, number)
        if group is None or not gone.isdisjoint(group.drives):
            continue
        sql = f"SELECT session, counter FROM chunks WHERE group_id = ? AND missing = 0 LIMIT {limit + len(skip)}"
        for row in reader.all(sql, number):
            chunk = ChunkId(*row)
            if chunk not in skip and not chunkrows.is_queued(reader, chunk):
                placed = chunkrows.placed_of(reader, chunk)
                assert placed is not None
                found.append(placed)
                if len(found) == limit:
                    return found
    return found


def target_drives(group: Group, cluster_map: ClusterMap, usable: frozenset[bytes]) -> tuple[bytes, ...] | None:
    """The group's drives with the draining ones replaced, by the healer's rule. None: there is no drive for any."""
    rows = (msgspec.structs.replace(row, reason="out") if row.reason == DRAINING else row for row in cluster_map.drives)
    drives = heal.target_drives(group, msgspec.structs.replace(cluster_map, drives=tuple(rows)), usable)
    return None if drives == group.drives else drives


def commit(tx: Tx, placed: Placed, target: Group, seq: int, lacking: int) -> bool:
    """Place the chunk and queue what it left. False: nothing changed (the row moved on, or a shard is not durable)."""
    left = [(i, old) for i, (old, new) in enumerate(zip(placed.group.drives, target.drives, strict=True)) if old != new]
    if lacking or heal.commit(tx, placed, target, seq, 0) is None:
        return False
    for index, drive in left:
        queue.add_orphan(tx, placed.chunk, index, drive)
    return True


class Drainer:
    """`usable` answers drives that are up; `changed` wakes it."""

    def __init__(
        self,
        transactions: heal.Transactions,
        read: Callable[[Callable[[Reader], Any]], Awaitable[Any]],
        mover: heal.Rebuilder,
        *,
        cluster_map: Callable[[], ClusterMap],
        usable: Callable[[], frozenset[bytes]],
        moving: Moving,
        forget: Callable[[Sequence[ChunkId]], None] = lambda chunks: None,
    ) -> None:
        self._do, self._read, self._mover = transactions.do, read, mover
        self._map, self._usable, self._forget = cluster_map, usable, forget
        self._moving = moving
        self._wake = trio.Event()
        self.waiting = ""  # why nothing moves
        self.moved = 0
        self.moved_bytes = 0

    def changed(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        while True:
            moved = await self.round() if draining(self._map()) else 0
            if not moved:
                with trio.move_on_after(IDLE_S):
                    await self._wake.wait()
                self._wake = trio.Event()

    async def round(self) -> int:
        """One look at everything that is to move; answers how many chunks were."""
        self.waiting = ""
        tried: frozenset[ChunkId] = frozenset()
        moved = 0
        while work := await self._read(partial(to_move, limit=BATCH, skip=tried)):
            tried |= frozenset(placed.chunk for placed in work)
            moved += await self._move_all(work)
            if not draining(self._map()):
                break
        return moved

    async def _move_all(self, work: list[Placed]) -> int:
        limit = trio.CapacityLimiter(IN_FLIGHT)
        done = 0

        async def one(placed: Placed) -> None:
            nonlocal done
            async with limit:
                done += await self._move(placed)

        async with trio.open_nursery() as nursery:
            for placed in work:
                nursery.start_soon(one, placed)
        return done

    async def _move(self, placed: Placed) -> bool:
        drives = target_drives(placed.group, self._map(), self._usable())
        if drives is None:
            if draining(self._map()):  # else the drain was cancelled meanwhile
                self.waiting = NO_PLACE
            return False
        try:
            with self._moving.of(placed.chunk):
                planned: tuple[Group, int] | None = await self._do(lambda tx: heal.plan(tx, placed, drives))
                if planned is None:
                    return False
                target, seq = planned
                lacking = await self._mover.rebuild(placed, target, seq)
                moved: bool = await self._do(lambda tx: commit(tx, placed, target, seq, lacking))
        except ClusterError as error:
            log.warning("chunk %s is not moved yet: %s", placed.chunk, error)
            return False
        if moved:
            self._forget((placed.chunk,))
            self.moved += 1
            self.moved_bytes += placed.length
        return moved
