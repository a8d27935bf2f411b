"""Watches the drives of this process's node: who answers, who is full, who was wiped; tells who must know.

A drive that its own node cannot use (failed, wiped, missing) is down at once. Down is memory only: it closes groups,
makes readers look elsewhere and replaces replicas of open log segments; it is never checked at a commit.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from trivium.cluster.files import Space
from trivium.cluster.store import space
from trivium.cluster.wire import DriveReport, NodeReport

log = logging.getLogger(__name__)

PERIOD_S = 2.0


def is_near_full(report: DriveReport) -> bool:
    room = Space(report.bytes_total, report.bytes_free)
    return room.total > 0 and not space.fits(room, 0, space.CLIENT)


class DriveWatch:
    """`ping` asks the node; `listeners` are called (in order, awaited) when the set of drives in use changes."""

    def __init__(self, ping: Callable[[], Awaitable[NodeReport]]) -> None:
        self._ping = ping
        self.reports: dict[bytes, DriveReport] = {}
        self.listeners: list[Callable[[], Awaitable[None]]] = []
        self._look = trio.Event()

    def down(self) -> frozenset[bytes]:
        """Drives that do not answer."""
        return frozenset(drive for drive, report in self.reports.items() if report.state not in ("ok", "full"))

    def unfit(self) -> frozenset[bytes]:
        """Drives that take no new shards: down or full."""
        return frozenset(drive for drive, report in self.reports.items() if report.state != "ok")

    def near_full(self) -> frozenset[bytes]:
        """Drives over the limit for new data (85 %, and little is free)."""
        return frozenset(drive for drive, report in self.reports.items() if is_near_full(report))

    def usable(self) -> frozenset[bytes]:
        """Drives that answer: healing has a limit of its own, which the drive itself holds."""
        return frozenset(self.reports) - self.down()

    def fill(self) -> dict[bytes, float]:
        """How full drives are, 0 to 1."""
        known = ((drive, report) for drive, report in self.reports.items() if report.bytes_total > 0)
        return {drive: 1 - report.bytes_free / report.bytes_total for drive, report in known}

    def look(self) -> None:
        """Look now: somebody met an error."""
        self._look.set()

    async def refresh(self) -> None:
        """Ask once, and tell the listeners when something has changed."""
        before = {drive: report.state for drive, report in self.reports.items()}
        report = await self._ping()
        self.reports = {drive.drive: drive for drive in report.drives}
        after = {drive: report.state for drive, report in self.reports.items()}
        if before == after:
            return
        for drive in sorted(after, key=lambda drive: drive.hex()):
            if before.get(drive, "ok") != after[drive]:
                found = self.reports[drive]
                log.warning("drive %s is %s: %s", found.path or drive.hex(), found.state, found.text or "back")
        for listener in self.listeners:
            await listener()

    async def run(self) -> None:
        while True:
            await self.refresh()
            with trio.move_on_after(PERIOD_S):
                await self._look.wait()
            self._look = trio.Event()
