"""The write logs of volumes that nobody has open: off draining and lost drives, and back to their number of replicas.

A living export looks after its own log (nbd/volumelog); what an export left behind when it died has no writer, so the
metadata server becomes it for a moment, under a lease of its own: an export that opens meanwhile is told that the
volume is in use and tries again, or breaks the lease, which fences this writer.

    whole --drive draining, out, removed | a takeover did without one--> short --taken over, copied, closed--> whole

Invariant: what was flushed to a volume is on as many drives as a pool's m promises, also while nobody has it open: the
query is over rows, so it is repeated until nothing is short, over crashes and restarts.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import trio

from trivium.cluster import logheal
from trivium.cluster.errors import ClusterError
from trivium.cluster.takeover import takeover
from trivium.metadata.messages import CloseVolume, MetadataError, OpenVolume, VolumeState
from trivium.metadata.tx import Reader
from trivium.metadata.volumes import decode_chain
from trivium.nbd.volumelog import ClusterLogs, replicas

if TYPE_CHECKING:
    from trivium.admin.processes.lead import Leader

log = logging.getLogger(__name__)

LOOK_S = 10.0  # between looks
LOOK_MOST_S = 60.0  # while something stays short


def short_of_copies(reader: Reader, wanted: int, avoid: frozenset[bytes], *, all: bool = False) -> list[str]:
    """Volumes whose log lacks replicas or has some on `avoid`: those without a live writer, or all."""
    sql = "SELECT name, log FROM volumes WHERE name != ''"
    if not all:
        sql += " AND lease_session NOT IN (SELECT id FROM sessions)"
    rows = reader.all(sql + " ORDER BY name")
    return [name for name, chain in rows if logheal.is_short(decode_chain(chain), wanted, avoid)]


class VolumeLogs:
    """`changed()` looks at once."""

    def __init__(self, leader: Leader) -> None:
        self._leader = leader
        self._wake = trio.Event()

    def changed(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        wait_s = LOOK_S
        while True:
            with trio.move_on_after(wait_s) as pause:
                await self._wake.wait()
            self._wake = trio.Event()
            tried = await self.heal()
            wait_s = min(2 * wait_s, LOOK_MOST_S) if tried and pause.cancelled_caught else LOOK_S

    async def short(self, *, all: bool = False) -> list[str]:
        """Volumes whose log has fewer copies than it should, or some where they must not stay."""
        cluster_map, usable = self._leader.server.map, self._leader.substrate.watch.usable()
        avoid, _ = self._avoid()
        left = [row for row in cluster_map.drives if not row.reason and row.weight > 0 and row.id in usable]
        wanted = min(replicas(cluster_map), len(left))
        names: list[str] = await self._leader.read(partial(short_of_copies, wanted=wanted, avoid=avoid, all=all))
        return names

    async def heal(self) -> int:
        """One look; answers how many logs were short."""
        names = await self.short()
        for name in names:
            try:
                await self._heal(name)
            except* (ClusterError, MetadataError) as group:
                log.info("the write log of volume %s is healed later: %s", name, group.exceptions[0])
        return len(names)

    def _avoid(self) -> tuple[frozenset[bytes], frozenset[bytes]]:
        """Drives that keep no segment, and those of them that still have theirs. A drive that is merely silent keeps
        its own, as with chunks: it comes back or is marked out."""
        rows = self._leader.server.map.drives
        draining = self._leader.draining_drives()
        return draining | {row.id for row in rows if row.reason in ("out", "removed")}, draining

    async def _heal(self, name: str) -> None:
        leader = self._leader
        state: VolumeState
        (state,) = await leader.client.call(OpenVolume(name))
        try:
            if not state.log:
                return
            logs = ClusterLogs(leader.client, leader.substrate.router, random=leader.substrate.random)
            parts = logs.parts(state)
            avoid, draining = self._avoid()
            writer = await takeover(parts, lost=leader.lost_drives())
            async with trio.open_nursery() as nursery:
                await nursery.start(writer.run)
                await logheal.heal(parts, writer, avoid, present=draining)
                await writer.close()
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(10):
                await leader.client.call(CloseVolume(state.info.id, state.lease))
