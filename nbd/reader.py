"""Bytes that are not in memory: fetched from chunks in granules, each once at a time, and left in the cache."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from trivium.cluster.model import Ref
from trivium.nbd.backend import ChunkStore
from trivium.nbd.cache import GRANULE, GRANULE_SHIFT
from trivium.nbd.core import Miss, VolumeCore
from trivium.nbd.together import together

GRANULES_MAX = 16  # of one get: 1 MiB


class Moved(Exception):
    """The chunk is not in the table any more: look the blocks up again."""


class ChunkReader:
    """Runs on the event loop."""

    def __init__(self, core: VolumeCore, chunks: ChunkStore) -> None:
        self._core = core
        self._chunks = chunks
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
        finally:
            for granule in mine:
                del self._coming[number, granule]
            event.set()
        with self._core.lock:
            for at in range(0, len(data), GRANULE):
                self._core.cache.add_granule(number, first + (at >> GRANULE_SHIFT), data[at : at + GRANULE])
        return begin, data
