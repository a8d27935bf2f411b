"""Carries out rebalancing: a few chunks at a time, while nothing else is wrong, until drives hold their shares.

    idle --drives or weights changed, or an hour--> look --balanced--> idle
                                                     `--moves--> relocate (heal's: plan, copy, commit) --> look

Invariants:
1. Nothing moves while anything lacks shards or a drive is down: healing goes first, and has the disks to itself.
2. A move is a relocation like healing's: copied from the place it leaves, which is collected only after the commit.
3. At most BATCH chunks are planned at a time, IN_FLIGHT move side by side, at the pace of background work.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

from trivium.cluster import placement
from trivium.cluster.erasure import shard_size
from trivium.cluster.model import ClusterMap, Placed
from trivium.metadata import rebalance
from trivium.metadata.progress import Progress
from trivium.metadata.tx import Reader

log = logging.getLogger(__name__)

BATCH = 64
IN_FLIGHT = 2
PERIOD_S = 3600.0
WAIT_S = 15.0  # while something else goes first

Relocate = Callable[[Placed, tuple[bytes, ...]], Awaitable[bool]]


class Rebalancer:
    """`whole`: all drives are there and nothing lacks shards. `relocate`: heal.Healer.relocate."""

    def __init__(
        self,
        read: Callable[[Callable[[Reader], Any]], Awaitable[Any]],
        relocate: Relocate,
        *,
        cluster_map: Callable[[], ClusterMap],
        usable: Callable[[], frozenset[bytes]],
        whole: Callable[[], Awaitable[bool]],
    ) -> None:
        self._read, self._relocate = read, relocate
        self._map, self._usable, self._whole = cluster_map, usable, whole
        self._wake = trio.Event()
        self._seen: object = None
        self.progress = Progress()

    def changed(self) -> None:
        """Drives have come or gone, or weigh something else."""
        if (shape := self._shape()) != self._seen:
            self._seen = shape
            self._wake.set()

    def _shape(self) -> object:
        return [(row.id, row.weight, row.reason, row.domain) for row in self._map().drives]

    async def run(self) -> None:
        while True:
            moved = await self.look()
            if not moved:
                waits = bool(self.progress.waiting)
                with trio.move_on_after(WAIT_S if waits else PERIOD_S):
                    await self._wake.wait()
            self._wake = trio.Event()

    async def look(self) -> int:
        """Move one batch; answers how many chunks were moved."""
        cluster_map, usable = self._map(), self._usable()
        if len(placement.usable(cluster_map, usable)) < 2:
            return 0
        found: list[rebalance.Load] = await self._read(rebalance.loads)
        have = rebalance.actual(found)
        want = rebalance.wanted(cluster_map, usable, found)
        off = rebalance.imbalance(have, want)
        if not off:
            self._done()
            return 0
        if not await self._whole():
            self.progress.counted(self._chunks_of(off, found), int(off))
            self.progress.waiting = "rebalancing waits until every chunk has all of its shards and every drive is up"
            return 0
        moves: list[rebalance.Move] = await self._read(
            partial(rebalance.plan, cluster_map=cluster_map, found=found, have=have, want=want, limit=BATCH)
        )
        if not moves:
            self._done()  # as level as domains and chunk sizes allow
            return 0
        self.progress.waiting = ""
        self.progress.counted(self._chunks_of(off, found), int(off))
        return await self._move(moves, found)

    async def _move(self, moves: list[rebalance.Move], found: list[rebalance.Load]) -> int:
        moved = 0
        todo = iter(moves)

        async def worker() -> None:
            nonlocal moved
            for move in todo:
                if self._wake.is_set() or not await self._whole():
                    return
                if await self._relocate(move.placed, move.drives):
                    moved += 1
                    size = shard_size(move.placed.length, move.placed.group.k)
                    self.progress.advance(size, trio.current_time())

        async with trio.open_nursery() as nursery:
            for _ in range(IN_FLIGHT):
                nursery.start_soon(worker)
        return moved

    def _chunks_of(self, off: float, found: list[rebalance.Load]) -> int:
        places = sum(load.place_bytes for load in found)
        return max(1, round(off * sum(load.chunks for load in found) / max(1, places)))

    def _done(self) -> None:
        if self.progress.done:
            log.info("rebalanced: %d chunks moved", self.progress.done)
        self.progress = Progress()

    def report(self) -> dict[str, Any]:
        return self.progress.report(trio.current_time())
