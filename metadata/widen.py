"""Writes narrow chunks anew at the pool's profile, once the pool has been whole for ten minutes.

    not whole --nothing lacks, no drive down, a full group to be had--> whole --10 min without a break--> widening
        ^------------------------- any of these ends, or a new chunk comes out narrow ------------------------'

A narrow chunk's live bytes -> a new chunk under a new id -> references swapped where rows are still what was read
(compactor.swap, one transaction) -> nothing names the old chunk -> collector.

Invariants:
1. An id never means two layouts: the new profile is a new chunk.
2. A swap changes only rows that are exactly as they were read; what was overwritten or deleted meanwhile stays so.
3. A copy that came out narrow or with shards missing is given up, and the ten minutes begin anew: chunks are not
   written again and again while a drive flaps.
4. Chunks of volumes are written anew by their volume's writer, which asks for them (`NarrowChunks`); dumps by the
   dumper.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import trio

from trivium.cluster.chunks import Chunks, PieceData, Stored
from trivium.cluster.errors import ClusterError
from trivium.cluster.model import ChunkId, Ref
from trivium.cluster.pacing import Pace, unpaced
from trivium.metadata import compactor, narrow
from trivium.metadata.compact_loop import Swaps
from trivium.metadata.compactor import Place, Row
from trivium.metadata.messages import MetadataError
from trivium.metadata.progress import Progress
from trivium.metadata.tx import Reader

log = logging.getLogger(__name__)

WHOLE_S = 600.0
LOOK_S = 10.0
PAGE = 64
ROWS = 1024  # references moved by one transaction


class Unfit(Exception):
    """The pool does not give full groups after all."""


class Widening:
    """`whole` says whether all drives are there and nothing lacks shards; `also` is told when narrow things that are
    not rows (dumps) may be written anew."""

    def __init__(
        self,
        read: Callable[[Callable[[Reader], Any]], Awaitable[Any]],
        commit: Swaps,
        chunks: Chunks,
        *,
        whole: Callable[[], Awaitable[bool]],
        pace: Pace = unpaced,
        also: Callable[[], None] = lambda: None,
    ) -> None:
        self._read, self._commit, self._chunks = read, commit, chunks
        self._whole, self._pace, self._also = whole, pace, also
        self._since: float | None = None
        self.ready = False  # as of the last look, for other threads
        self.progress = Progress()

    def allowed(self) -> bool:
        """The pool has been whole for ten minutes."""
        return self._since is not None and trio.current_time() - self._since >= WHOLE_S

    async def run(self) -> None:
        while True:
            try:
                await self.look()
            except (ClusterError, MetadataError) as error:
                log.info("narrow chunks are written anew later: %s", error)
            await trio.sleep(LOOK_S)

    async def report(self) -> dict[str, Any]:
        """Progress, and how long until it begins (None: not while the pool is not whole)."""
        left: narrow.Tally = await self._read(narrow.tally)
        self.progress.counted(left.chunks, left.size_bytes)
        now = trio.current_time()
        begins = None if self._since is None else max(0.0, self._since + WHOLE_S - now)
        return self.progress.report(now) | {"left": left.chunks, "volumes": left.volumes, "begins_in_s": begins}

    async def look(self) -> None:
        """One look: is the pool whole, for how long, and what is narrow."""
        self.ready = await self._still_whole() and self.allowed()
        if not self.ready:
            return
        self._also()
        left: narrow.Tally = await self._read(narrow.tally)
        if not left.chunks:
            self.progress = Progress()
            return
        try:
            for group in await self._read(narrow.groups):
                await self._group(group)
        except Unfit:
            self._since, self.ready = None, False

    async def _still_whole(self) -> bool:
        if not await self._whole():
            self._since = None
            return False
        self._since = trio.current_time() if self._since is None else self._since
        return True

    async def _group(self, group: int) -> None:
        after = ChunkId(0, 0)
        while found := await self._read(partial(narrow.page, group=group, after=after, limit=PAGE)):
            for one in found:
                if not await self._still_whole():
                    return
                await self._pace(one.length * 3)
                if await self.rewrite(one.chunk):
                    self.progress.advance(one.length, trio.current_time())
            after = found[-1].chunk

    async def rewrite(self, chunk: ChunkId) -> int:
        """Move what names the chunk to new ones; answers how many references were moved."""
        moved = 0
        while rows := await self._read(partial(compactor.rows_of, chunk=chunk, limit=ROWS)):
            swapped = await self._move(chunk, rows)
            moved += swapped
            if len(rows) < ROWS or not swapped:
                break
        return moved

    async def _move(self, chunk: ChunkId, rows: Sequence[Row]) -> int:
        ranges = union(rows)
        pieces = [
            PieceData(
                first.content.to_bytes(8, "little") + first.part.to_bytes(8, "little"),
                *(first.offset, 0, await self._chunks.get(Ref(chunk, begin, end - begin))),
            )
            for begin, end, first in ranges
        ]
        pool = await self._read(partial(_pool_of, chunk=chunk))
        if pool is None:
            return 0  # collected meanwhile
        stored: Stored = await self._chunks.put(pool, pieces, reserve_class=1)
        try:
            groups = [new.group for new in stored.chunks]
            if any(new.missing for new in stored.chunks) or await self._read(partial(narrow.is_narrow, numbers=groups)):
                raise Unfit
            swap = partial(compactor.swap, places=_places(rows, ranges, stored.refs))
            swapped: int = await self._commit(swap, stored.chunks)
        except (MetadataError, Unfit):
            self._chunks.give_up(stored)
            raise
        self._chunks.settle(stored)
        return swapped


def union(rows: Sequence[Row]) -> list[tuple[int, int, Row]]:
    """Ranges of the chunk (begin, end, the first row of each) that cover what the rows name. Rows that share bytes
    (copies) share a range; neighbours do not, so that each range has one owner."""
    found: list[tuple[int, int, Row]] = []
    for row in sorted(rows, key=lambda row: (row.ref_offset, -row.length, row.content, row.part, row.offset)):
        begin, end = row.ref_offset, row.ref_offset + row.length
        if found and begin < found[-1][1]:
            last = found[-1]
            found[-1] = (last[0], max(last[1], end), last[2])
        else:
            found.append((begin, end, row))
    return found


def _places(rows: Sequence[Row], ranges: Sequence[tuple[int, int, Row]], refs: Sequence[Ref]) -> list[Place]:
    places = []
    for row in rows:
        for (begin, end, _), ref in zip(ranges, refs, strict=True):
            if begin <= row.ref_offset and row.ref_offset + row.length <= end:
                places.append(Place(row, Ref(ref.chunk, ref.offset + row.ref_offset - begin, row.length)))
                break
    return places


def _pool_of(reader: Reader, chunk: ChunkId) -> int | None:
    row = reader.one(
        "SELECT g.pool FROM chunks c JOIN groups g ON g.id = c.group_id WHERE c.session = ? AND c.counter = ?",
        *(chunk.session, chunk.counter),
    )
    return None if row is None else int(row[0])
