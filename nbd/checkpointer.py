"""Writes checkpoints (checkpoint.py has their form): dirty pages, MAP chunks, the index, one call that swaps it all."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import trio

from trivium.cluster.chunks import PieceData, Stored
from trivium.cluster.model import ChunkId, ChunkKind, NewChunk, PieceFlag
from trivium.metadata.messages import CHUNK_REFUSED, Checkpoint, CommitSegment, MetadataError
from trivium.nbd import checkpoint as form
from trivium.nbd.leased import Leased
from trivium.nbd.map import BLOCK


class Checkpointer:
    """One at a time per volume, on the event loop."""

    def __init__(self, held: Leased, pages: form.PageTable, stale: set[ChunkId]) -> None:
        self._held = held
        self._pages = pages
        self._stale = stale  # rows that no checkpoint will map: they die with the next one
        self._one = trio.Lock()

    @property
    def needed(self) -> bool:
        return bool(self._held.core.base.dirty or self._stale)

    def renew(self, chunks: Collection[ChunkId]) -> None:
        """The next checkpoint writes again what lies in these MAP chunks."""
        numbers = {number for number, info in self._pages.maps.items() if info.ref.chunk in chunks}
        with self._held.core.lock:
            self._held.core.base.dirty |= form.pages_in(self._pages, numbers)

    async def idle(self) -> None:
        """No checkpoint is under way when this returns (until the next checkpoint of the event loop)."""
        while self._one.locked():
            async with self._one:
                pass

    async def checkpoint(self) -> None:
        """Make the map as of `core.upto` durable and let go what it needs no more."""
        core = self._held.core
        async with self._one:
            with core.lock:
                core.base.dirty |= form.sparse_pages(self._pages)
                taken = form.snapshot(core.base, core.table, core.upto, core.next_number)
            done = False
            try:
                while not done:
                    done = await self._write(taken)
            finally:
                if not done:
                    with core.lock:
                        core.base.dirty |= taken.pages.keys()

    async def _write(self, taken: form.Snapshot) -> bool:
        """False: chunks were refused; all of it has to be put again (pages name chunk numbers, so that is simple)."""
        held = self._held
        made = form.draft(self._pages, taken.pages, iter(held.core.new_number, -1))
        taken.next_number = held.core.next_number
        maps = {n: form.MapInfo(i.ref, i.pages, made.live[n]) for n, i in self._pages.maps.items()}
        puts: list[Stored] = []
        rows: list[Any] = []
        for number, pages in made.chunks:
            stored = await self._put(pages, taken.upto)
            puts.append(stored)
            maps[number] = form.MapInfo(stored.refs[0], len(pages), made.live[number])
            rows.append(CommitSegment(held.info.id, held.lease, stored.refs[0].chunk, taken.upto, taken.upto))
        dead = {n for n in taken.table if not taken.live.get(n, 0)}
        dead_maps = {n for n, info in maps.items() if not info.live}
        index = form.index_of(taken, made, maps, held.core.size, dead | dead_maps)
        parts: set[ChunkId] = set()
        for part in form.split_index(index, held.tuning.index_rows):
            stored = await self._put([form.encode_part(part)], taken.upto)
            puts.append(stored)
            ref = stored.refs[0]
            parts.add(ref.chunk)
            index.parts.append((ref.chunk, ref.offset, ref.length))
            rows.append(CommitSegment(held.info.id, held.lease, ref.chunk, taken.upto, taken.upto))
        puts.append(await self._put([form.encode_index(index)], taken.upto))
        died = {taken.table[n].ref.chunk for n in dead} | {maps[n].ref.chunk for n in dead_maps}
        died |= self._stale | self._pages.parts
        swap = Checkpoint(
            held.info.id,
            held.lease,
            taken.upto,
            puts[-1].refs[0],
            died=tuple(sorted(died)),
            used=taken.used_blocks * BLOCK,
        )
        if not await self._commit([*rows, swap], puts):
            return False
        self._stale -= died
        self._pages.maps = {n: info for n, info in maps.items() if n not in dead_maps}
        self._pages.pages.update(made.pages)
        self._pages.places = made.places
        self._pages.parts = parts
        with held.core.lock:
            for number in dead:
                held.core.table.pop(number, None)
                held.core.base.live.pop(number, None)
        return True

    async def _put(self, pages: list[bytes], upto: int) -> Stored:
        piece = PieceData(self._held.owner, 0, upto, [*pages], flags=int(PieceFlag.MAP))
        return await self._held.put(piece, ChunkKind.MAP)

    async def _commit(self, operations: list[Any], puts: list[Stored]) -> bool:
        held = self._held
        new: list[NewChunk] = [chunk for put in puts for chunk in put.chunks]
        try:
            await held.keep_trying(partial(held.call, *operations, chunks=new))
        except MetadataError as error:
            if error.code != CHUNK_REFUSED:
                raise
            for put in puts:
                held.chunks.give_up(put)
            return False
        for put in puts:
            held.chunks.settle(put)
        return True
