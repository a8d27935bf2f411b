"""Gives space back: live blocks of mostly dead chunks are copied together, so that the old chunks can die.

    pick the least live chunks -> read what is live -> put one new chunk of COPY entries -> commit its row
    -> point the map to the copies, where it still points to the sources -> the next checkpoint lets the sources go

Crash-safe at each step: a copy names its source's place in the map and applies only where the map still points there,
in the running volume as in recovery; a source dies with a checkpoint that does not map it any more.
"""

from __future__ import annotations

import trio

from trivium.cluster.chunks import PieceData
from trivium.cluster.errors import ChunkLost, Corrupt, NotFound, Unavailable
from trivium.cluster.model import VOLUME_CHUNK_SIZE, ChunkKind, PieceFlag, Ref
from trivium.nbd.core import ChunkInfo
from trivium.nbd.journal import COPY, DATA, Piece, encode_table, table_bytes
from trivium.nbd.leased import Leased
from trivium.nbd.map import BLOCK_SHIFT, entry_of
from trivium.nbd.recovery import read_table

LIVE_BELOW = 0.6
RUN_BLOCKS = 256
COPY_BLOCKS_MAX = (VOLUME_CHUNK_SIZE >> BLOCK_SHIFT) - 32
PIECES_MAX = 2048

Run = tuple[int, int, int]  # block, blocks, entry of the map


class Cleaner:
    """One at a time per volume, on the event loop."""

    def __init__(self, held: Leased) -> None:
        self._held = held
        self.one = trio.Lock()  # who copies: the widener does as well

    async def run(self) -> None:
        while True:
            await trio.sleep(self._held.tuning.clean_period_s)
            while await self._round():  # noqa: ASYNC110 (a pause between rounds, no waiting for anything)
                await trio.sleep(0.05)  # room for others between rounds

    async def _round(self) -> int:
        async with self.one:
            return await self.clean()

    def victims(self) -> list[ChunkInfo]:
        """Chunks worth cleaning, least live first: together they fill at most one chunk, and free at least one."""
        core = self._held.core
        with core.lock:
            sparse = [
                (core.base.live.get(info.number, 0), info)
                for info in core.table.values()
                if 0 < core.base.live.get(info.number, 0) < LIVE_BELOW * max(info.blocks, 1)
            ]
        sparse.sort(key=lambda pair: (pair[0] / max(pair[1].blocks, 1), pair[1].number))
        chosen: list[ChunkInfo] = []
        live = 0
        for count, info in sparse:
            if live + count > COPY_BLOCKS_MAX:
                break
            live += count
            chosen.append(info)
        gain = sum(info.blocks for info in chosen) - live
        return chosen if gain >= self._held.tuning.clean_min_blocks else []

    async def clean(self) -> int:
        """One round. Returns how many blocks it moved."""
        held = self._held
        copies: list[Run] = []  # (block, blocks, source entry)
        blocks = 0
        for info in self.victims():
            try:
                live = await self.live_runs(info)
            except (NotFound, ChunkLost, Corrupt, Unavailable):
                continue
            count = sum(run[1] for run in live)
            if blocks + count > COPY_BLOCKS_MAX or len(copies) + len(live) > PIECES_MAX:
                break
            copies += live
            blocks += count
        if not copies:
            return 0
        try:
            data = [await self.bytes_of(entry, count) for _, count, entry in copies]
        except (NotFound, ChunkLost, Corrupt, Unavailable, KeyError):
            return 0
        return await self.store(copies, data, blocks) if held.core.failed is None else 0

    async def store(self, copies: list[Run], data: list[memoryview], blocks: int) -> int:
        held = self._held
        core = held.core
        number = core.new_number()
        pieces: list[Piece] = []
        at = 0
        for block, count, source in copies:
            pieces.append((block, count, COPY, 0, at, source))
            at += count
        upto = core.upto
        table = encode_table(held.owner, number, upto + 1, upto, blocks, pieces)
        assert (blocks << BLOCK_SHIFT) + table_bytes(len(pieces)) <= VOLUME_CHUNK_SIZE
        piece = PieceData(held.owner, 0, upto, [*data, table], flags=int(PieceFlag.COPY))
        stored = await held.put(piece, ChunkKind.VOLUME)
        stored = await held.commit_segment(stored, upto, upto)
        return core.commit_copy(ChunkInfo(number, stored.refs[0], upto + 1, upto, blocks), pieces)

    async def live_runs(self, info: ChunkInfo) -> list[Run]:
        """(block, blocks, entry) of what the map still maps to this chunk."""
        core = self._held.core
        table = await read_table(self._held.chunks, info.ref)
        live: list[Run] = []
        for block, count, kind, _, position, _ in table.pieces:
            if kind not in (DATA, COPY):
                continue
            shift = entry_of(info.number, position) - block
            with core.lock:
                runs = core.base.runs(block, count)
            live += [run for run in runs if run[2] == shift + run[0]]
        return live

    async def bytes_of(self, entry: int, count: int) -> memoryview:
        ref = self._held.core.table[entry >> 16].ref
        start = (entry & 0xFFFF) << BLOCK_SHIFT
        return await self._held.chunks.get(Ref(ref.chunk, ref.offset + start, count << BLOCK_SHIFT))
