"""The part of a scrub that no row names: dumps, the metadata log, the copies of the root.

A dump's shard that is gone or does not verify is put aside and rebuilt in its place from the others; a log replica is
copied anew (cluster.logscrub); a root slot is written again from memory by its drive (Store.scrub_root, within the
drive's own reports).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from trivium.cluster import logscrub
from trivium.cluster.background import Background
from trivium.cluster.errors import ClusterError
from trivium.cluster.model import Placed
from trivium.cluster.scrub import Scrub

if TYPE_CHECKING:
    from trivium.admin.processes.lead import Leader

log = logging.getLogger(__name__)


async def scrub_metadata(leader: Leader) -> list[str]:
    """One pass; answers findings in words."""
    findings: list[str] = []
    try:
        for found in await logscrub.scrub(leader.upkeep.log_parts, leader.log, leader.lost_drives()):
            findings.append(f"log segment {found.segment.hex()} on {_name(leader, found.drive)}: {found.text}")
    except ClusterError as error:
        log.warning("the scrub of the log goes on later: %s", error)
    findings += await _scrub_dumps(leader, leader.upkeep.dumper.places())
    return findings


async def _scrub_dumps(leader: Leader, places: Iterable[Placed]) -> list[str]:
    async def nothing(*_: object) -> None:
        """A dump's chunk has no row that could list what is missing."""

    scrub = Scrub(leader.substrate.router, nothing, background=Background())
    words: list[str] = []
    for placed in places:
        try:
            found = await scrub.check(placed)
            if not found:
                continue
            words += [f"shard {f.index} of chunk {f.chunk} of a dump is {f.what}" for f in found]
            missing = sum(1 << finding.index for finding in found)
            lacking = msgspec.structs.replace(placed, missing=missing)
            if await leader.upkeep.mover.rebuild(lacking, placed.group, 0):
                leader.upkeep.dumper.asked.set()
        except ClusterError as error:
            log.warning("a dump's chunk %s cannot be made whole, another dump is written: %s", placed.chunk, error)
            leader.upkeep.dumper.asked.set()
    return words


def _name(leader: Leader, drive: bytes) -> str:
    return next((row.name for row in leader.server.map.drives if row.id == drive), drive.hex())
