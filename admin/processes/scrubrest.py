"""What a scrub reads besides the chunks of the rows: dumps, closed log segments, root copies. Findings are words.

A drive that is away is no finding. A bad copy of a closed log segment leaves the chain only when another copy has just
been read whole; healing then gives the segment its copy back (elsewhere: the bad file stays until nothing names it).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import apsw
import msgspec

from trivium.cluster import logsegment
from trivium.cluster.errors import ClusterError, Unavailable
from trivium.cluster.log import LogParts
from trivium.cluster.model import Placed, SegmentEntry
from trivium.cluster.scrub import Scrub
from trivium.cluster.wire import ReadRoot
from trivium.metadata.dump import DumpRefused, read_index

if TYPE_CHECKING:
    from trivium.admin.processes.lead import Leader

log = logging.getLogger(__name__)


async def dumps(leader: Leader, scrub: Scrub) -> list[str]:
    """Every shard of the dumps that the root names."""
    found = []
    for entry in leader.root.dumps:
        places: list[Placed] = [entry.index]
        try:
            index = await read_index(leader.chunks, entry)
            places += [part.placed for part in index.parts]
        except Unavailable:
            continue
        except ClusterError as error:
            found.append(f"the dump of record {entry.seq} cannot be read: {error}")
        for placed in places:
            for finding in await scrub.check(placed):
                found.append(f"shard {finding.index} of the dump of record {entry.seq} is {finding.what}")
    return found


async def write_dumps_anew(leader: Leader) -> None:
    """Both that the root names: the first new one still keeps the newest old one beside it."""
    try:
        for _ in range(2):
            await leader.upkeep.dumper.write()
    except (ClusterError, DumpRefused, apsw.Error, OSError) as error:
        leader.upkeep.dumper.asked.set()
        log.error("a damaged dump is not written anew yet: %s", error)


async def logs(leader: Leader, parts: LogParts) -> list[str]:
    """Every copy of every closed segment of the metadata log, record by record."""
    found = []
    for entry in leader.log.chain[:-1]:
        good, bad = await _copies(parts, entry)
        if not bad:
            continue
        names = ", ".join(_name(leader, drive) for drive in bad)
        found.append(f"log segment {entry.segment.hex()[:12]} is damaged on {names}")
        if good:
            left = msgspec.structs.replace(entry, drives=tuple(d for d in entry.drives if d not in bad))
            await leader.log.replace_closed(entry, left)
    return found


async def _copies(parts: LogParts, entry: SegmentEntry) -> tuple[list[bytes], list[bytes]]:
    """Drives whose copy was read whole, and those whose copy is damaged or gone."""
    assert entry.last_seq is not None
    good, bad = [], []
    for drive in entry.drives:
        try:
            await logsegment.read_upto(parts.nodes, drive, entry.segment, entry.first_seq, entry.last_seq)
            good.append(drive)
        except Unavailable:
            continue
        except ClusterError as error:
            log.warning("log segment %s on %s: %s", entry.segment.hex(), drive.hex(), error)
            bad.append(drive)
    return good, bad


async def roots(leader: Leader) -> list[str]:
    """The root copy of every drive in use. A damaged one does not vote; the next change of the root writes it anew."""
    found = []
    for row in leader.server.map.drives:
        if row.reason == "removed":
            continue
        try:
            await leader.substrate.router.call(row.id, ReadRoot(row.id))
        except Unavailable:
            continue
        except ClusterError as error:
            found.append(f"the root copy on {row.name} is damaged: {error}")
    return found


def _name(leader: Leader, drive: bytes) -> str:
    return next((row.name for row in leader.server.map.drives if row.id == drive), drive.hex())
