"""Carries out the compactor's plans: reads, puts a chunk, swaps in one transaction under this process's own session.

What a swap finds changed stays as it is; a refused or failed one leaves a chunk without references to the collector.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol

import trio

from trivium.cluster.chunks import Chunks, PieceData, Stored
from trivium.cluster.errors import ClusterError
from trivium.cluster.model import ChunkId, NewChunk, Ref
from trivium.metadata import compactor
from trivium.metadata.compactor import Place, Row
from trivium.metadata.messages import MetadataError
from trivium.metadata.tx import Reader, Tx

log = logging.getLogger(__name__)

IDLE_S = 10.0
ROWS = 1024  # extents of one chunk
CHUNK = 4 << 20  # bytes of one put
SCAN = 500  # rows of chunks looked at for sparse ones in a round


class Swaps(Protocol):
    """A transaction of this process's session that introduces chunks."""

    async def __call__(self, execute: Callable[[Tx], Any], chunks: Sequence[NewChunk]) -> Any: ...


class CompactLoop:
    def __init__(
        self,
        read: Callable[[Callable[[Reader], Any]], Awaitable[Any]],
        commit: Swaps,
        chunks: Chunks,
        *,
        pool: Callable[[], int],
    ) -> None:
        self._read = read
        self._commit = commit
        self._chunks = chunks
        self._pool = pool
        self._after = ChunkId(0, 0)
        self.moved = 0

    async def run(self) -> None:
        while True:
            try:
                await self.round()
            except (ClusterError, MetadataError) as error:
                log.info("compacting waits: %s", error)
            await trio.sleep(IDLE_S)

    async def round(self) -> None:
        for content in await self._read(compactor.crowded):
            rows: list[Row] = await self._read(partial(compactor.inline_rows, content=content, limit=ROWS))
            await self._move([(row, row.data) for row in rows])
        found, after = await self._read(partial(compactor.sparse, after=self._after, limit=SCAN))
        self._after = after or ChunkId(0, 0)
        for chunk in found:
            await self._rewrite(chunk)

    async def _rewrite(self, chunk: ChunkId) -> None:
        """The live rest of a sparse chunk."""
        rows: list[Row] = await self._read(partial(compactor.rows_of, chunk=chunk, limit=ROWS))
        held: list[tuple[Row, bytes]] = []
        for row in rows:
            held.append((row, bytes(await self._chunks.get(Ref(chunk, row.ref_offset, row.length)))))
            if sum(len(data) for _, data in held) >= CHUNK:
                await self._move(held)
                held = []
        await self._move(held)

    async def _move(self, held: Sequence[tuple[Row, bytes]]) -> None:
        if not held:
            return
        pieces = [
            PieceData(row.content.to_bytes(8, "little") + row.part.to_bytes(8, "little"), row.offset, 0, data)
            for row, data in held
        ]
        stored: Stored = await self._chunks.put(self._pool(), pieces, reserve_class=1)
        places = [Place(row, ref) for (row, _), ref in zip(held, stored.refs, strict=True)]
        try:
            self.moved += await self._commit(partial(compactor.swap, places=places), stored.chunks)
        except MetadataError:
            self._chunks.give_up(stored)
            raise
        self._chunks.settle(stored)
