"""Marks drives out that stay away, and takes them back in when they return. What is due is cluster/liveness's (pure).

    up --10 min without an answer, or a real I/O error; not in maintenance--> out (row, note) --answers again--> up
                                                                                |  (after silence only: what had an
                                                                                |  I/O error comes back by hand)
                                                                                `--remove, replace--> removed

1. Nothing is marked out during maintenance; when it ends, silence counts anew.
2. The reason and what the drive was before (draining, say) are a record, so a restart knows who may come back.
3. Who comes back holds old files: rows never name them (deleted stays deleted, moved stays moved); an inventory of the
   drive, asked for here, finds them for the collector.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec
import trio

from trivium.cluster.errors import ClusterError
from trivium.cluster.liveness import FAILED_STATES, Liveness
from trivium.cluster.model import ClusterMap, DriveRow
from trivium.metadata import maprows, mapsettings
from trivium.metadata.mapsettings import OutNote
from trivium.metadata.messages import MetadataError
from trivium.metadata.tx import Tx

if TYPE_CHECKING:
    from trivium.admin.processes.lead import Leader

log = logging.getLogger(__name__)

PERIOD_S = 2.0
UP = ("ok", "full")


class AutoOut:
    def __init__(self, leader: Leader) -> None:
        self._leader = leader
        self._clock = leader.substrate.clock
        self._liveness = Liveness(self._clock.boot_s())
        self._maintenance = False
        self._held_back: set[bytes] = set()

    async def run(self) -> None:
        while True:
            try:
                await self._look()
            except (ClusterError, MetadataError) as error:
                log.warning("the drives' states are settled later: %s", error)
            await trio.sleep(PERIOD_S)

    @property
    def held_back(self) -> frozenset[str]:
        """Names of drives that have been silent for long and that the cap keeps in."""
        return frozenset(row.name for row in self._leader.server.map.drives if row.id in self._held_back)

    def silent_s(self, drive: bytes) -> float:
        return self._liveness.silent_s(drive, self._clock.boot_s())

    # ---- looking ----------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        leader, now = self._leader, self._clock.boot_s()
        cluster_map = leader.server.map
        if mapsettings.is_maintenance(cluster_map.maintenance_until, self._clock.wall_ns()):
            self._maintenance = True
        elif self._maintenance:
            self._maintenance = False
            self._liveness = Liveness(now)
        self._listen(cluster_map, now)
        notes = await leader.read(mapsettings.out_notes)
        await self._take_back(notes)
        if self._maintenance:
            self._held_back.clear()
            return
        most = max((pool.m for pool in cluster_map.pools), default=0)
        already = {row.id for row in cluster_map.drives if row.reason == "out"}
        due = self._liveness.outs(now, m=most, already=already)
        late = {row.id for row in cluster_map.drives if self.silent_s(row.id) >= self._liveness.out_after_s}
        self._held_back = late - set(due) - already
        rows = [row for row in cluster_map.drives if row.id in due and row.reason not in ("out", "removed")]
        if rows:
            await self._mark_out(rows, due)

    def _listen(self, cluster_map: ClusterMap, now_s: float) -> None:
        self._liveness.follow((row.id for row in cluster_map.drives if row.reason != "removed"), now_s)
        for report in self._leader.substrate.watch.reports.values():
            if report.state in UP or report.state in FAILED_STATES:
                self._liveness.heartbeat(report.drive, now_s - PERIOD_S, report.state, report.text)

    # ---- changing the map -------------------------------------------------------------------------------------

    async def _mark_out(self, rows: list[DriveRow], due: dict[bytes, str]) -> None:
        failed = {row.id for row in rows if self._liveness.failed(row.id)}

        def execute(tx: Tx) -> None:
            for row in rows:
                maprows.put_drive(tx, msgspec.structs.replace(row, reason="out"))
                mapsettings.note_out(tx, row.id, OutNote(due[row.id], row.id not in failed, row.reason))

        await self._leader.change_map(execute)
        for row in rows:
            log.warning("drive %s is out (%s): its data is healed elsewhere", row.name, due[row.id])
        self._leader.upkeep.drives_changed(dump=True)

    async def _take_back(self, notes: dict[bytes, OutNote]) -> None:
        reports = self._leader.substrate.watch.reports
        for row in self._leader.server.map.drives:
            note, report = notes.get(row.id), reports.get(row.id)
            if row.reason == "out" and note and note.silent and report is not None and report.state in UP:
                await take_in(self._leader, row, note)


async def take_in(leader: Leader, row: DriveRow, note: OutNote | None) -> None:
    """A drive that was out is in use again; what it holds and no row names will be collected."""

    def execute(tx: Tx) -> None:
        maprows.put_drive(tx, msgspec.structs.replace(row, reason=note.was if note else ""))
        mapsettings.note_out(tx, row.id, None)

    await leader.change_map(execute)
    log.warning("drive %s is back in", row.name)
    leader.upkeep.drives_changed()
    leader.upkeep.take_stock()
