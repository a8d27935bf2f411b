"""Reads every replica of a log whole, and gives a segment that has rotted somewhere a good copy again.

    replica --every record verifies, chained, up to the recorded last seq--> good
        `--Corrupt | gone--> left out of the chain (an open segment is closed first) -> its file removed -> copied anew

Invariants:
1. A replica is taken out of the chain only while another one of the same segment was just read whole.
2. A bad file is removed only once no chain names it. A drive that is away is no finding.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from trivium.cluster import logheal, logsegment
from trivium.cluster.errors import ClusterError, Corrupt, NotFound
from trivium.cluster.log import LogParts, LogWriter
from trivium.cluster.model import SegmentEntry

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LogFinding:
    segment: bytes
    drive: bytes
    text: str


async def scrub(parts: LogParts, writer: LogWriter, avoid: Collection[bytes] = ()) -> list[LogFinding]:
    """One pass over the chain as it is now; answers what was found (and repaired, where another replica is good)."""
    findings: list[LogFinding] = []
    for entry in writer.chain:
        last_seq = entry.last_seq if entry.last_seq is not None else writer.last_seq
        bad = await _bad_replicas(parts, entry, last_seq)
        findings += [LogFinding(entry.segment, drive, str(error)) for drive, error in bad.items()]
        if bad and len(bad) < len(entry.drives):
            await _leave_out(parts, writer, entry, frozenset(bad))
    if findings:
        await logheal.heal(parts, writer, avoid)
    return findings


async def _bad_replicas(parts: LogParts, entry: SegmentEntry, last_seq: int) -> dict[bytes, ClusterError]:
    async def read(drive: bytes) -> None:
        await logsegment.stat(parts.nodes, drive, entry.segment)
        await logsegment.read_upto(parts.nodes, drive, entry.segment, entry.first_seq, last_seq)

    answers = await logsegment.at_each(entry.drives, read)
    return {drive: error for drive, error in answers.items() if isinstance(error, Corrupt | NotFound)}


async def _leave_out(parts: LogParts, writer: LogWriter, entry: SegmentEntry, bad: frozenset[bytes]) -> None:
    if entry.last_seq is None:
        await writer.leave(bad)
    now = next((one for one in writer.chain if one.segment == entry.segment), None)
    if now is not None and now.last_seq is not None and not bad.isdisjoint(now.drives):
        good = tuple(drive for drive in now.drives if drive not in bad)
        if not good or not await writer.replace_closed(
            now, SegmentEntry(now.segment, good, now.first_seq, now.last_seq)
        ):
            return
    log.warning("log segment %s does not verify on %d drives: copied anew", entry.segment.hex(), len(bad))
    await logsegment.remove(parts.nodes, bad, entry.segment)
