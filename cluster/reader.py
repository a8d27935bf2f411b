"""Reads byte ranges of chunks: from the data shards that hold them, else rebuilt, else from wherever a shard is.

    page cache (open descriptors) -> own shards -> + rebuild from k others (RangeRead)
        -> the row looked up once more -> every drive of the map -> ChunkLost

Invariants
1. Every byte returned was verified against a header of the row's nonce.
2. ChunkLost is said only after every drive of the map that is not out has answered; while one is away: Unavailable.
3. A place is reported only when a fresh row still names it, and "corrupt" only when its node finds it corrupt, too
   (then it is quarantined first, never deleted).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import trio

from trivium.cluster.background import Background
from trivium.cluster.catalog import Catalog
from trivium.cluster.clock import Executor
from trivium.cluster.errors import ChunkLost, ClusterError, Corrupt, NotFound, Refused, Unavailable
from trivium.cluster.model import ChunkKind, Placed
from trivium.cluster.nodes import Nodes
from trivium.cluster.rangeread import Exhausted, RangeRead, Source
from trivium.cluster.ranges import Plan, plan
from trivium.cluster.shardreader import ShardReader
from trivium.cluster.wire import Outcomes, Quarantine, VerifyShard

HANDOFFS_AT_ONCE = 16
REPORT_AGAIN_S = 60.0
REPORTS = 4096


class ChunkReader:
    def __init__(
        self, catalog: Catalog, nodes: Nodes, shards: ShardReader, *, executor: Executor, background: Background
    ) -> None:
        self._catalog, self._nodes, self._shards = catalog, nodes, shards
        self._executor, self._background = executor, background
        self._reported: OrderedDict[tuple[object, ...], float] = OrderedDict()

    async def read(self, placed: Placed, offset: int, length: int, *, staged: bool = False) -> memoryview:
        """Bytes [offset, offset + length) of the chunk. `staged`: it may have no row yet.

        Raises NotFound (no row), Unavailable (too many drives are away), ChunkLost.
        """
        if offset < 0 or length < 0 or offset + length > placed.length:
            raise Refused(f"bytes {offset}+{length} are not in chunk {placed.chunk} of {placed.length} bytes")
        if not length:
            return memoryview(b"")
        layout = plan(offset, length, placed.length, placed.group.k)
        try:
            return await self._read_group(placed, layout)
        except Exhausted as first:
            return await self._search(placed, layout, first, staged)

    async def _read_group(self, placed: Placed, layout: Plan) -> memoryview:
        buffer = memoryview(bytearray(layout.size))
        left = await self._shards.read_cached(placed, layout, buffer)
        if not left:
            return layout.result(buffer)
        drives = placed.group.drives
        trusted = [
            index
            for index in left
            if not placed.missing >> index & 1
            and self._nodes.is_up(drives[index])
            and not self._shards.paces.is_slow(drives[index], trio.current_time())
        ]
        read = RangeRead(
            self._shards,
            placed,
            {index: layout.shards[index] for index in left},
            self._sources(placed),
            executor=self._executor,
            background=self._background,
            trusted=trusted,
        )
        try:
            parts = await read.run()
        finally:
            self._report_all(placed, read.failures)
        if len(layout.shards) == 1:
            return layout.result(parts[left[0]])
        for index, data in parts.items():
            buffer[layout.at(index) : layout.at(index) + len(data)] = data
        return layout.result(buffer)

    def _sources(self, placed: Placed) -> list[Source]:
        """The group's places: present ones first, then those on drives that are up, not slow, then the nearest."""
        nodes, paces, now_s = self._nodes, self._shards.paces, trio.current_time()

        def rank(source: Source) -> tuple[bool, bool, bool, bool, int]:
            gone = bool(placed.missing >> source.index & 1)
            slow = paces.is_slow(source.drive, now_s)
            return gone, not nodes.is_up(source.drive), slow, not nodes.is_local(source.drive), source.index

        return sorted((Source(drive, index) for index, drive in enumerate(placed.group.drives)), key=rank)

    # ---- when the group does not have it --------------------------------------------------------------------

    async def _search(self, placed: Placed, layout: Plan, first: Exhausted, staged: bool) -> memoryview:
        (fresh,) = await self._catalog.locate((placed.chunk,), fresh=True)
        if fresh is None and not staged and placed.kind != ChunkKind.DUMP:  # a dump's chunks have no rows
            raise NotFound(f"there is no chunk {placed.chunk}")
        if fresh is not None and fresh != placed:
            if (fresh.nonce, fresh.length) != (placed.nonce, placed.length):
                raise NotFound(f"chunk {placed.chunk} is not the one that was asked for")
            placed = fresh
            layout = plan(layout.offset, layout.length, placed.length, placed.group.k)
            try:
                return await self._read_group(placed, layout)
            except Exhausted as second:
                first = second
        return await self._ask_everybody(placed, layout, first)

    async def _ask_everybody(self, placed: Placed, layout: Plan, known: Exhausted) -> memoryview:
        """Shards may be on drives that no row names (a move that did not finish, an older map)."""
        rows = self._catalog.map().drives
        drives = list(dict.fromkeys((*placed.group.drives, *(row.id for row in rows))))
        sources = [Source(drive, index) for index in range(placed.group.profile.width) for drive in drives]
        sources.sort(key=lambda source: not self._nodes.is_up(source.drive))
        read = RangeRead(
            self._shards,
            placed,
            layout.shards,
            sources,
            executor=self._executor,
            background=self._background,
            width=HANDOFFS_AT_ONCE,
        )
        try:
            parts = await read.run()
        except Exhausted as last:
            raise self._verdict(placed, last) from last
        buffer = memoryview(bytearray(layout.size))
        for index, data in parts.items():
            buffer[layout.at(index) : layout.at(index) + len(data)] = data
        return layout.result(buffer)

    def _verdict(self, placed: Placed, last: Exhausted) -> ClusterError:
        """Lost only when nobody who could have a shard is away."""
        rows = {row.id: row for row in self._catalog.map().drives}
        away = {s.drive for s, error in last.failures.items() if isinstance(error, Unavailable)}
        away |= {source.drive for source in last.silent}
        away = {drive for drive in away if drive in rows and rows[drive].reason not in ("out", "removed")}
        names = ", ".join(sorted(rows[drive].name for drive in away))
        if away:
            return Unavailable(f"chunk {placed.chunk} cannot be read while these drives are away: {names}")
        return ChunkLost(f"chunk {placed.chunk}: fewer than {placed.group.k} of its shards are on any drive")

    # ---- reports --------------------------------------------------------------------------------------------

    def _report_all(self, placed: Placed, failures: Mapping[Source, ClusterError]) -> None:
        now = trio.current_time()
        for source, error in failures.items():
            if not isinstance(error, NotFound | Corrupt):
                continue
            key = (placed.chunk, source.index, source.drive)
            if self._reported.get(key, -REPORT_AGAIN_S) + REPORT_AGAIN_S > now:
                continue
            self._reported[key] = now
            while len(self._reported) > REPORTS:
                self._reported.popitem(last=False)
            self._background.start(self._report, placed, source)

    async def _report(self, placed: Placed, source: Source) -> None:
        try:
            (row,) = await self._catalog.locate((placed.chunk,), fresh=True)
            if row is None or row.group.drives[source.index] != source.drive or row.missing >> source.index & 1:
                return
            what = await inspect(self._nodes, row, source.index)
            if what:
                await self._catalog.report(row.chunk, source.index, source.drive, what)
        except ClusterError:
            pass  # scrub and inventory will see it, too


async def inspect(nodes: Nodes, placed: Placed, index: int) -> str:
    """Let the node verify a place: "" (intact), "missing", or "corrupt" (and now quarantined)."""
    drive = placed.group.drives[index]
    reply = await nodes.call(drive, VerifyShard(drive, placed.chunk, index, placed.nonce))
    assert isinstance(reply.answer, Outcomes)
    error = reply.answer.outcomes[0].error()
    if error is None:
        return ""
    if isinstance(error, NotFound):
        return "missing"
    if not isinstance(error, Corrupt):
        raise error
    await nodes.call(drive, Quarantine(drive, placed.chunk, index))
    return "corrupt"
