"""Reads every shard whole from time to time, so that rot is found while the others can still repair it.

One pass takes PASS_S when nothing hurries it (every shard within 30 days); `trivium scrub` makes one at once.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from trivium.admin.processes.metascrub import scrub_metadata
from trivium.cluster.errors import ClusterError
from trivium.cluster.model import ChunkId, Placed
from trivium.cluster.scrub import Scrub, ScrubProgress
from trivium.metadata import chunkrows
from trivium.metadata.tx import Reader

if TYPE_CHECKING:
    from trivium.admin.processes.lead import Leader

log = logging.getLogger(__name__)

PASS_S = 15 * 86400.0
PAUSE_MOST_S = 600.0  # between chunks of a small pool
PAGE = 64


class Scrubbing:
    """`now` asks for a pass without pauses; its progress is `report()`."""

    def __init__(self, leader: Leader) -> None:
        self._leader = leader
        self._hurry = trio.Event()
        self._scrub = self._new()
        self._total = 0
        self.hurried: ScrubProgress | None = None  # of the last pass that was asked for
        self._running = False
        self._metadata: list[str] = []  # what the last pass found in dumps and log

    def now(self) -> None:
        """Begin a pass at once, unless one is running."""
        if not self._running:
            self._running = True
            self.hurried = None
            self._hurry.set()

    def report(self) -> dict[str, Any]:
        progress = self._scrub.progress if self._running else self.hurried or self._scrub.progress
        return {
            "running": self._running,
            "chunks": progress.chunks,
            "total": self._total,
            "shards": progress.shards,
            "bytes": progress.size_bytes,
            "skipped": progress.skipped,
            "findings": [f"shard {f.index} of chunk {f.chunk} is {f.what}" for f in progress.findings] + self._metadata,
        }

    async def run(self) -> None:
        while True:
            hurried = self._hurry.is_set()
            self._scrub = self._new()
            self._total = await self._leader.read(_count)
            try:
                self._metadata = await scrub_metadata(self._leader)
                progress = await self._scrub.run(self._rows(hurried))
            except ClusterError as error:
                log.warning("the scrub goes on later: %s", error)
                await trio.sleep(60)
                continue
            if hurried:
                self.hurried, self._running, self._hurry = progress, False, trio.Event()
            if progress.findings:
                self._leader.upkeep.drives_changed()

    def _new(self) -> Scrub:
        return Scrub(self._leader.substrate.router, self._leader.client.report)

    async def _rows(self, hurried: bool) -> AsyncIterator[Placed]:
        """All chunks in key order, with pauses; a pass that is asked for meanwhile ends this one."""
        after = ChunkId(0, 0)
        while rows := await self._leader.read(partial(_page, after=after)):
            for placed in rows:
                if not hurried:
                    with trio.move_on_after(min(PASS_S / max(self._total, 1), PAUSE_MOST_S)):
                        await self._hurry.wait()
                        return
                yield placed
            after = rows[-1].chunk
        if not hurried:
            with trio.move_on_after(PAUSE_MOST_S):  # an empty pool is no busy loop
                await self._hurry.wait()


def _count(reader: Reader) -> int:
    row = reader.one("SELECT count(*) FROM chunks")
    return int(row[0]) if row else 0


def _page(reader: Reader, after: ChunkId) -> list[Placed]:
    rows = reader.all(
        "SELECT session, counter FROM chunks WHERE (session, counter) > (?, ?) ORDER BY session, counter LIMIT ?",
        *(after.session, after.counter, PAGE),
    )
    return [placed for row in rows if (placed := chunkrows.placed_of(reader, ChunkId(*row)))]
