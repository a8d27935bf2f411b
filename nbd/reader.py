"""Bytes that are not in memory: fetched from chunks in granules, each once at a time, and left in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import trio

from trivium.cluster.errors import ClusterError
from trivium.cluster.model import Ref
from trivium.nbd.backend import ChunkStore
from trivium.nbd.cache import GRANULE, GRANULE_SHIFT
from trivium.nbd.core import Miss, VolumeCore
from trivium.nbd.direct import IDLE_S, DirectReader
from trivium.nbd.map import BLOCK_SHIFT, is_flat
from trivium.nbd.together import together

GRANULES_MAX = 16  # of one get: 1 MiB
OPENERS = 2
OPEN_QUEUE = 64
AHEAD_BYTES = 256 * 1024  # reads of this size are taken for sequential ones
AHEAD_BLOCKS = 4096  # 16 MiB


class Moved(Exception):
    """The chunk is not in the table any more: look the blocks up again."""


class ChunkReader:
    """Runs on the event loop."""

    def __init__(self, core: VolumeCore, chunks: ChunkStore) -> None:
        self._core = core
        self._chunks = chunks
        self.direct = DirectReader()  # what was opened here, threads read by themselves from then on
        self._to_open: dict[int, None] = {}
        self._more = trio.Event()
        self._coming: dict[tuple[int, int], trio.Event] = {}

    async def fill(self, misses: Sequence[Miss], out: memoryview) -> None:
        """Fetch the misses of one request into `out`, side by side. Raises Moved, ClusterError."""
        if len(misses) == 1 and misses[0][3] <= GRANULE:
            await self._fill_one(misses[0], out)
            return
        await together(lambda miss: self._fill_one(miss, out), misses, limit=16)

    async def _fill_one(self, miss: Miss, out: memoryview) -> None:
        at, number, inner, length = miss
        end = inner + length
        first, last = inner >> GRANULE_SHIFT, (end - 1) >> GRANULE_SHIFT
        granule = first
        while granule <= last:
            stop = min(last + 1, granule + GRANULES_MAX)
            begin, data = await self._granules(number, granule, stop)
            low, high = max(inner, begin), min(end, begin + len(data))
            out[at + low - inner : at + high - inner] = data[low - begin : high - begin]
            granule = (begin + len(data) - 1 >> GRANULE_SHIFT) + 1

    async def _granules(self, number: int, first: int, stop: int) -> tuple[int, memoryview]:
        """Bytes of the chunk from granule `first` on: at least that granule, at most up to `stop`."""
        key = (number, first)
        while key in self._coming:
            await self._coming[key].wait()
        info = self._core.table.get(number)
        if info is None:
            raise Moved
        with self._core.lock:
            found = self._core.cache.find(number, first << GRANULE_SHIFT)
        if found is not None:
            return found[1], found[0]
        begin = first << GRANULE_SHIFT
        end = min(stop << GRANULE_SHIFT, info.ref.length)
        mine = [granule for granule in range(first, stop) if (number, granule) not in self._coming]
        event = trio.Event()
        for granule in mine:
            self._coming[number, granule] = event
        try:
            data = await self._chunks.get(Ref(info.ref.chunk, info.ref.offset + begin, end - begin))
            self.open_soon(number)
        finally:
            for granule in mine:
                del self._coming[number, granule]
            event.set()
        with self._core.lock:
            for at in range(0, len(data), GRANULE):
                self._core.cache.add_granule(number, first + (at >> GRANULE_SHIFT), data[at : at + GRANULE])
        return begin, data

    # ---- opening for threads --------------------------------------------------------------------------------

    def open_soon(self, number: int) -> None:
        """Later reads of this chunk need not come here, where its shards are on this host."""
        if len(self._to_open) < OPEN_QUEUE and not self.direct.knows(number):
            self._to_open[number] = None
            self._more.set()

    def open_ahead(self, block: int) -> None:
        """Somebody reads large ranges up to here: probably the next ones, too."""
        count = min(AHEAD_BLOCKS, (self._core.size >> BLOCK_SHIFT) - block)
        if count > 0:
            for _, _, entry in self._core.lookup(block, count):
                if not is_flat(entry) and entry >> 16 in self._core.table:
                    self.open_soon(entry >> 16)

    async def run(self) -> None:
        """Open what is asked for, let go of what nobody uses, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep)
            for _ in range(OPENERS):
                nursery.start_soon(self._open)

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(IDLE_S)
            self.direct.sweep()

    async def _open(self) -> None:
        while True:
            while not self._to_open:
                self._more = trio.Event() if self._more.is_set() else self._more
                await self._more.wait()
            number = next(iter(self._to_open))
            del self._to_open[number]
            info = self._core.table.get(number)
            if info is None or info.ref.offset or self.direct.knows(number):
                continue
            with suppress(ClusterError):
                self.direct.publish(number, await self._chunks.at_hand(info.ref))
