"""Writes a volume's narrow chunks anew (written while drives were away) once the metadata server says that it is time.

    ask which are narrow -> copy what is live of each (as the cleaner does) -> checkpoint: nothing maps them any more

A copy names its source's place in the map and applies only where the map still points there; a volume chunk dies with
the checkpoint that maps it no more, a MAP chunk when its pages have been written again. So a crash at any step leaves
both, or the new one, and an overwrite meanwhile wins.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from trivium.cluster.errors import ClusterError
from trivium.cluster.model import ChunkId
from trivium.metadata.messages import MetadataError, NarrowChunks
from trivium.nbd.checkpointer import Checkpointer
from trivium.nbd.cleaner import COPY_BLOCKS_MAX, PIECES_MAX, Cleaner, Run
from trivium.nbd.core import ChunkInfo
from trivium.nbd.leased import Leased

log = logging.getLogger(__name__)

PERIOD_S = 60.0


class Widener:
    """One at a time per volume, on the event loop."""

    def __init__(
        self, held: Leased, cleaner: Cleaner, checkpointer: Checkpointer, checkpoint: Callable[[], Awaitable[None]]
    ) -> None:
        self._held, self._cleaner = held, cleaner
        self._checkpointer, self._checkpoint = checkpointer, checkpoint

    async def run(self) -> None:
        while True:
            await trio.sleep(PERIOD_S)
            try:
                await self.widen()
            except (ClusterError, MetadataError) as error:
                log.info("volume %s: narrow chunks are written anew later: %s", self._held.info.name, error)

    async def widen(self) -> int:
        """One round; answers how many chunks were narrow."""
        narrow: frozenset[ChunkId] = frozenset(await self._held.metadata.ask(NarrowChunks(self._held.info.id)))
        if not narrow or self._held.core.failed is not None:
            return 0
        core = self._held.core
        with core.lock:
            infos = [info for info in core.table.values() if info.ref.chunk in narrow]
        for info in infos:
            async with self._cleaner.one:
                await self._copy(info)
        self._checkpointer.renew(narrow)
        await self._checkpoint()
        return len(narrow)

    async def _copy(self, info: ChunkInfo) -> None:
        for batch in split(await self._cleaner.live_runs(info)):
            try:
                data = [await self._cleaner.bytes_of(entry, count) for _, count, entry in batch]
            except KeyError:
                continue  # a checkpoint has let the chunk go meanwhile
            if self._held.core.failed is not None:
                raise self._held.core.failed
            await self._cleaner.store(batch, data, sum(run[1] for run in batch))


def split(runs: list[Run]) -> list[list[Run]]:
    """Runs (block, blocks, entry) in batches that each fit into one chunk."""
    batches: list[list[Run]] = [[]]
    room = COPY_BLOCKS_MAX
    for block, count, entry in runs:
        while count:
            if not room or len(batches[-1]) == PIECES_MAX:
                batches.append([])
                room = COPY_BLOCKS_MAX
            take = min(count, room)
            batches[-1].append((block, take, entry))
            block, count, entry, room = block + take, count - take, entry + take, room - take
    return [batch for batch in batches if batch]
