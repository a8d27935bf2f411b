"""Reads everything that is stored whole from time to time, so that rot is found while the others can still repair it.

    slow pass (PASS_S, every shard within 30 days) --asked for: begin again--> hurried pass (no pauses) --> slow pass

A pass: every chunk's shards in key order, then the dumps, the closed log segments, the root copies. Bad shards are put
aside and listed as missing (healing takes it from there), a bad dump is written anew, a bad copy of a log segment is
replaced while another one is good.

Invariants:
1. Position and findings are a row (metadata.scrubstate), written every SAVE_S, at findings and at the end: a restart
   goes on there, a hurried pass stays one.
2. A drive that is away is no finding; its shards are counted as skipped.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from trivium.admin.processes import scrubrest
from trivium.cluster.errors import ClusterError
from trivium.cluster.model import ChunkId, Placed
from trivium.cluster.scrub import Finding, Scrub
from trivium.metadata import chunkrows, scrubstate
from trivium.metadata.messages import MetadataError
from trivium.metadata.progress import Progress
from trivium.metadata.scrubstate import FINDINGS_KEPT, ScrubState
from trivium.metadata.tx import Reader

if TYPE_CHECKING:
    from trivium.admin.processes.lead import Leader
    from trivium.cluster.pacing import Pace

log = logging.getLogger(__name__)

PASS_S = 15 * 86400.0
PAUSE_MOST_S = 600.0  # between chunks of a small pool
SAVE_S = 60.0
PAGE = 64
SIDE_BY_SIDE = 4  # chunks of a hurried pass


class Scrubbing:
    """`now` asks for a pass without pauses; its progress is `report()`."""

    def __init__(self, leader: Leader, pace: Pace) -> None:
        self._leader, self._pace = leader, pace
        self._hurry = trio.Event()
        self._loaded = False
        self._asked = False
        self._saved_at = 0.0
        self._total = 0
        self._scrub = self._new(leader_report(leader))
        self.state = ScrubState()
        self.progress = Progress()

    def now(self) -> None:
        """Begin a pass at once, unless one is running."""
        if not self.running:
            self._asked = True
            self._hurry.set()

    @property
    def running(self) -> bool:
        """Whether a pass that was asked for is under way (or about to be)."""
        return self._asked or self.state.hurried

    def report(self) -> dict[str, Any]:
        state, now = self.state, trio.current_time()
        last = not self.running and state.last_ended_ns
        return {
            "running": self.running,
            "chunks": state.chunks,
            "total": self._total,
            "shards": state.last_shards if last else state.shards,
            "bytes": state.last_bytes if last else state.size_bytes,
            "skipped": state.last_skipped if last else state.skipped,
            "findings": list(state.last_findings if last else state.findings),
            "began_ns": state.began_ns,
            "last_ended_ns": state.last_ended_ns,
            "rate": self.progress.rate_bytes_s(now),
            "seconds_left": self.progress.report(now)["seconds_left"] if self.running else None,
        }

    async def run(self) -> None:
        while True:
            try:
                if not self._loaded:
                    self.state = await self._leader.read(scrubstate.load)
                    self._loaded = True
                await self._pass()
            except (ClusterError, MetadataError) as error:
                log.warning("the scrub goes on later: %s", error)
                await trio.sleep(60)

    # ---- one pass -------------------------------------------------------------------------------------------

    async def _pass(self) -> None:
        if self._asked:
            await self._begin(hurried=True)
        elif not self.state.began_ns:
            await self._begin(hurried=False)
        self._scrub = self._new(leader_report(self._leader))
        self.progress = Progress()
        self._total, size = await self._leader.read(_count)
        self.progress.counted(max(0, self._total - self.state.chunks), size)
        while rows := await self._leader.read(partial(_page, after=self.state.after)):
            for start in range(0, len(rows), self._at_once()):
                if not self.state.hurried and not await self._pause():
                    return  # a pass that was asked for begins
                await self._check(rows[start : start + self._at_once()])
                await self._save_sometimes()
        if not self.state.hurried and not self.state.chunks and not await self._pause():
            return  # an empty pool is no busy loop
        await self._rest()
        await self._end()

    def _at_once(self) -> int:
        return SIDE_BY_SIDE if self.state.hurried else 1

    async def _begin(self, *, hurried: bool) -> None:
        state = self.state
        self.state = ScrubState(
            hurried=hurried,
            began_ns=self._leader.substrate.clock.wall_ns(),
            last_ended_ns=state.last_ended_ns,
            last_shards=state.last_shards,
            last_bytes=state.last_bytes,
            last_skipped=state.last_skipped,
            last_findings=state.last_findings,
        )
        self._asked, self._hurry = False, trio.Event()
        await self._save()

    async def _pause(self) -> bool:
        """Between chunks of a slow pass; False when another pass was asked for."""
        with trio.move_on_after(min(PASS_S / max(self._total, 1), PAUSE_MOST_S)):
            await self._hurry.wait()
            return False
        return True

    async def _check(self, rows: list[Placed]) -> None:
        before = self._counts(self._scrub)
        async with trio.open_nursery() as nursery:
            for placed in rows:
                nursery.start_soon(self._scrub.check, placed)
        found = self._scrub.progress.findings[before[3] :]
        self._add(self._scrub, before)
        self.state.chunks += len(rows)
        self.state.after = rows[-1].chunk
        for placed in rows:
            self.progress.advance(placed.length, trio.current_time())
        if found:
            self._note([in_words(one) for one in found])
            self._leader.upkeep.drives_changed()
            await self._save()

    def _counts(self, scrub: Scrub) -> tuple[int, int, int, int]:
        progress = scrub.progress
        return progress.shards, progress.size_bytes, progress.skipped, len(progress.findings)

    def _add(self, scrub: Scrub, before: tuple[int, int, int, int]) -> None:
        shards, size, skipped, _ = self._counts(scrub)
        self.state.shards += shards - before[0]
        self.state.size_bytes += size - before[1]
        self.state.skipped += skipped - before[2]

    async def _rest(self) -> None:
        """Dumps, log segments, root copies."""
        leader = self._leader

        async def on_dump(chunk: ChunkId, index: int, drive: bytes, what: str) -> None:
            pass  # a dump's chunks have no rows: it is written anew

        scrub = self._new(on_dump)
        found = await scrubrest.logs(leader, leader.upkeep.log_parts)  # before a new dump trims the log
        found += await scrubrest.roots(leader)
        bad_dumps = await scrubrest.dumps(leader, scrub)
        if bad_dumps:
            await scrubrest.write_dumps_anew(leader)
        self._add(scrub, (0, 0, 0, 0))
        found += bad_dumps
        if found:
            self._note(found)
            leader.upkeep.drives_changed()

    async def _end(self) -> None:
        state = self.state
        self.state = ScrubState(
            last_ended_ns=self._leader.substrate.clock.wall_ns(),
            last_shards=state.shards,
            last_bytes=state.size_bytes,
            last_skipped=state.skipped,
            last_findings=state.findings,
        )
        await self._save()

    def _note(self, found: list[str]) -> None:
        for text in found:
            log.warning("scrub: %s", text)
        self.state.findings = [*self.state.findings, *found][-FINDINGS_KEPT:]

    async def _save_sometimes(self) -> None:
        if trio.current_time() - self._saved_at >= SAVE_S:
            await self._save()

    async def _save(self) -> None:
        self._saved_at = trio.current_time()
        await self._leader.server.writer.do(partial(scrubstate.save, state=scrubstate.encode(self.state)))

    def _new(self, report: Callable[[ChunkId, int, bytes, str], Awaitable[None]]) -> Scrub:
        return Scrub(self._leader.substrate.router, report, pace=self._pace)


def leader_report(leader: Leader) -> Callable[[ChunkId, int, bytes, str], Awaitable[None]]:
    return leader.client.report


def in_words(finding: Finding) -> str:
    return f"shard {finding.index} of chunk {finding.chunk} is {finding.what}"


def _count(reader: Reader) -> tuple[int, int]:
    row = reader.one("SELECT count(*), coalesce(sum(length), 0) FROM chunks")
    return (int(row[0]), int(row[1])) if row else (0, 0)


def _page(reader: Reader, after: ChunkId) -> list[Placed]:
    rows = reader.all(
        "SELECT session, counter FROM chunks WHERE (session, counter) > (?, ?) ORDER BY session, counter LIMIT ?",
        *(after.session, after.counter, PAGE),
    )
    return [placed for row in rows if (placed := chunkrows.placed_of(reader, ChunkId(*row)))]
