"""Takes the write logs of volumes that nobody has open off draining drives.

A living export moves its own log (nbd/volumelog); what an export left behind when it died has no writer, so the
metadata server becomes it for a moment, under a lease of its own: an export that opens meanwhile is told that the
volume is in use and tries again, or breaks the lease, which fences this writer.
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
from trivium.nbd.volumelog import ClusterLogs

if TYPE_CHECKING:
    from trivium.admin.processes.lead import Leader

log = logging.getLogger(__name__)


def left_behind(reader: Reader, drives: frozenset[bytes]) -> list[str]:
    """Volumes without a live writer whose log names one of the drives."""
    sql = (
        "SELECT name, log FROM volumes WHERE name != ''"
        " AND lease_session NOT IN (SELECT id FROM sessions) ORDER BY name"
    )
    return [
        name for name, chain in reader.all(sql) if any(not drives.isdisjoint(e.drives) for e in decode_chain(chain))
    ]


async def move_volume_logs(leader: Leader, drives: frozenset[bytes]) -> None:
    for name in await leader.read(partial(left_behind, drives=drives)):
        try:
            await _move(leader, name, drives)
        except (ClusterError, MetadataError) as error:
            log.info("the write log of volume %s is moved later: %s", name, error)


async def _move(leader: Leader, name: str, drives: frozenset[bytes]) -> None:
    state: VolumeState
    (state,) = await leader.client.call(OpenVolume(name))
    try:
        if not state.log:
            return
        logs = ClusterLogs(leader.client, leader.substrate.router, random=leader.substrate.random)
        parts = logs.parts(state)
        writer = await takeover(parts, lost=leader.lost_drives())
        async with trio.open_nursery() as nursery:
            await nursery.start(writer.run)
            await logheal.heal(parts, writer, leader.lost_drives() | drives, present=drives)
            await writer.close()
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(10):
            await leader.client.call(CloseVolume(state.info.id, state.lease))
