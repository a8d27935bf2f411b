"""Carries out the collector's plans: bounded transactions through the writer, deletes through the nodes.

Nothing is deleted that is not a durable queue row: rows are read from snapshots of what was committed, and what is
committed is in the log. A drive that is away keeps its bits; its deletes are tried again on each round.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol

import trio

from trivium.cluster.errors import ClusterError
from trivium.cluster.model import ChunkId
from trivium.cluster.nodes import Nodes
from trivium.cluster.wire import DeleteShard, DeleteShards, Outcomes, RemoveLog
from trivium.metadata import collector, queue
from trivium.metadata.queue import Queued
from trivium.metadata.tx import Reader, Tx

log = logging.getLogger(__name__)

IDLE_S = 5.0  # between rounds
BATCH = 500  # queue rows of one round of deletes
NEVER = (1 << 63) - 1


class Transactions(Protocol):
    async def do(self, execute: Callable[[Tx], Any]) -> Any: ...


class CollectLoop:
    """`oldest_read_seq` answers the oldest log seq that a session still reads from (0: none); `allowed` is False
    during the grace after a restart and until an operator confirms a rebuilt database."""

    def __init__(
        self,
        transactions: Transactions,
        read: Callable[[Callable[[Reader], Any]], Awaitable[Any]],
        nodes: Nodes,
        *,
        oldest_read_seq: Callable[[], int],
        allowed: Callable[[], bool] = lambda: True,
    ) -> None:
        self._do = transactions.do
        self._read = read
        self._nodes = nodes
        self._oldest_read_seq = oldest_read_seq
        self._allowed = allowed
        self.deleted = 0

    async def run(self) -> None:
        while True:
            if self._allowed():
                await self.round()
            await trio.sleep(IDLE_S)

    async def round(self) -> None:
        """One pass: staged work, chunks without references, deletes."""
        while not await self._read(collector.is_idle):
            await self._do(collector.sweep)
        await self._do_if(collector.sweep)
        await self._enqueue()
        await self._delete()

    async def _do_if(self, execute: Callable[[Tx], Any]) -> None:
        """Only the answers of old uploads are left, and those are looked for once a round."""
        if await self._read(_has_old_answers):
            await self._do(execute)

    async def _enqueue(self) -> None:
        after: ChunkId | None = ChunkId(0, 0)
        while after is not None:
            found, after = await self._read(partial(collector.unreferenced, after=after))
            if found:
                await self._do(partial(collector.enqueue, chunks=found))

    async def _delete(self) -> None:
        before = self._oldest_read_seq() + 1 if self._oldest_read_seq() else NEVER
        after = (0, 0, 0)
        while rows := await self._read(partial(queue.page, before_seq=before, limit=BATCH, after=after)):
            after = (rows[-1].kind, rows[-1].session, rows[-1].counter)
            done = await self._send(rows)
            if done:
                await self._do(partial(_confirm, done=done))
                self.deleted += len(done)

    async def _send(self, rows: list[Queued]) -> dict[tuple[int, int, int, int], int]:
        """Ask every drive concerned; answers the bits that confirmed by (kind, session, counter, seq)."""
        shards: dict[bytes, list[tuple[Queued, int, bytes]]] = defaultdict(list)  # by node
        logs: list[tuple[Queued, int, bytes]] = []
        for row in rows:
            for index, drive in row.places():
                if row.kind == queue.SEGMENT:
                    logs.append((row, index, drive))
                else:
                    shards[self._nodes.node_of(drive) or drive].append((row, index, drive))
        done: dict[tuple[int, int, int, int], int] = defaultdict(int)
        async with trio.open_nursery() as nursery:
            for places in shards.values():
                nursery.start_soon(self._delete_shards, places, done)
            for place in logs:
                nursery.start_soon(self._remove_log, place, done)
        return done

    async def _delete_shards(
        self, places: list[tuple[Queued, int, bytes]], done: dict[tuple[int, int, int, int], int]
    ) -> None:
        deletes = tuple(DeleteShard(drive, row.chunk, index, row.seq) for row, index, drive in places)
        try:
            reply = await self._nodes.call(deletes[0].drive, DeleteShards(deletes))
        except ClusterError as error:
            log.debug("deletes wait: %s", error)
            return
        assert isinstance(reply.answer, Outcomes)
        for (row, index, _), outcome in zip(places, reply.answer.outcomes, strict=True):
            if outcome.error() is None:
                done[row[:4]] |= 1 << index

    async def _remove_log(self, place: tuple[Queued, int, bytes], done: dict[tuple[int, int, int, int], int]) -> None:
        row, index, drive = place
        try:
            reply = await self._nodes.call(drive, RemoveLog(drive, row.segment))
        except ClusterError as error:
            log.debug("a log segment's removal waits: %s", error)
            return
        assert isinstance(reply.answer, Outcomes)
        if reply.answer.outcomes[0].error() is None:
            done[row[:4]] |= 1 << index


def _confirm(tx: Tx, done: dict[tuple[int, int, int, int], int]) -> None:
    for (kind, session, counter, seq), bits in done.items():
        queue.confirm(tx, kind, session, counter, seq, bits)


def _has_old_answers(reader: Reader) -> bool:
    sql = "SELECT 1 FROM uploads WHERE content = 0 AND created < ? LIMIT 1"
    return reader.one(sql, reader.now - collector.DONE_KEPT_NS) is not None
