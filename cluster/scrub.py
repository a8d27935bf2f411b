"""Scrub: every placed shard is read whole by its node from time to time; what is bad is put aside and reported.

for each row, for each index not listed as missing: VerifyShard -> intact | missing: report | corrupt: quarantine,
report (the repair queue takes it from there). A drive that is away is no finding.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable
from dataclasses import dataclass, field

import trio

from trivium.cluster.background import Background
from trivium.cluster.erasure import shard_size
from trivium.cluster.errors import ClusterError
from trivium.cluster.model import ChunkId, Placed
from trivium.cluster.nodes import Nodes
from trivium.cluster.pacing import Pace, unpaced
from trivium.cluster.reader import inspect

VERIFY_LIMIT_S = 60.0

Report = Callable[[ChunkId, int, bytes, str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Finding:
    chunk: ChunkId
    index: int
    drive: bytes
    what: str  # "missing" | "corrupt"


@dataclass(slots=True)
class ScrubProgress:
    chunks: int = 0
    shards: int = 0
    size_bytes: int = 0
    skipped: int = 0  # places on drives that did not answer
    findings: list[Finding] = field(default_factory=list)


class Scrub:
    """Walks the rows that it is given, verifying the places of one chunk side by side."""

    def __init__(
        self, nodes: Nodes, report: Report, *, pace: Pace = unpaced, background: Background | None = None
    ) -> None:
        self._nodes, self._report, self._pace = nodes, report, pace
        self._background = background or Background()
        self.progress = ScrubProgress()

    async def run(self, rows: AsyncIterable[Placed]) -> ScrubProgress:
        """One pass over `rows`. The caller decides how often (30 days) and where to go on."""
        async for placed in rows:
            await self.check(placed)
        return self.progress

    async def check(self, placed: Placed) -> list[Finding]:
        """Verify every place of one chunk; report and return what is not intact."""
        group = placed.group
        size = shard_size(placed.length, group.k)
        indices = [index for index in range(group.profile.width) if not placed.missing >> index & 1]
        await self._pace(size * len(indices))
        findings: list[Finding] = []

        async def look(index: int) -> None:
            try:
                what = await self._background.within(VERIFY_LIMIT_S, inspect, self._nodes, placed, index)
            except ClusterError:
                self.progress.skipped += 1
                return
            self.progress.shards += 1
            self.progress.size_bytes += size
            if what:
                findings.append(Finding(placed.chunk, index, group.drives[index], what))

        async with trio.open_nursery() as nursery:
            for index in indices:
                nursery.start_soon(look, index)
        for finding in findings:
            await self._report(finding.chunk, finding.index, finding.drive, finding.what)
        self.progress.chunks += 1
        self.progress.findings += findings
        return findings
