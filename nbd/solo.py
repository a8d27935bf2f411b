"""Chunks for volumes: small puts go one at a time, so that each is a chunk of its own.

Puts that meet in flight are otherwise gathered into one chunk; the rows of volume chunks and checkpoints name whole
chunks. Volumes put little that is small (the end of a segment at close, checkpoints).
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from trivium.cluster.chunks import PieceData, Stored
from trivium.cluster.model import MIB, ChunkKind
from trivium.nbd.backend import ChunkStore


class SoloChunks:
    """A ChunkStore over another one; all volumes of a process share it."""

    def __init__(self, chunks: ChunkStore) -> None:
        self._chunks = chunks
        self._one = trio.Lock()
        self.get = chunks.get
        self.at_hand = chunks.at_hand
        self.settle = chunks.settle
        self.give_up = chunks.give_up

    async def put(
        self,
        pool: int,
        pieces: Sequence[PieceData],
        *,
        kind: int = ChunkKind.DATA,
        lease: int = 0,
        reserve_class: int = 0,
    ) -> Stored:
        if sum(piece.size for piece in pieces) >= MIB:
            return await self._chunks.put(pool, pieces, kind=kind, lease=lease, reserve_class=reserve_class)
        async with self._one:
            return await self._chunks.put(pool, pieces, kind=kind, lease=lease, reserve_class=reserve_class)

    async def put_again(self, stored: Stored) -> Stored:
        async with self._one:
            return await self._chunks.put_again(stored)
