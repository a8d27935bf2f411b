"""Reading a log by its chain: any replica serves, every record is verified and chained to the one before."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from trivium.cluster import logsegment
from trivium.cluster.errors import ChunkLost, ClusterError, Corrupt, NotFound, Unavailable
from trivium.cluster.logfile import LogRecord
from trivium.cluster.logplan import Chain
from trivium.cluster.model import SegmentEntry
from trivium.cluster.nodes import Nodes


async def read_chain(
    nodes: Nodes, chain: Callable[[], Chain], from_seq: int, upto: Callable[[], int]
) -> AsyncIterator[LogRecord]:
    """Records from_seq..upto() (both looked up again as the chain moves). NotFound when they were trimmed;
    Unavailable or Corrupt when no replica has the next one: nothing is left out silently."""
    previous: bytes | None = None
    while from_seq <= upto():
        entry = _holding(chain(), from_seq)
        last = upto() if entry.last_seq is None else min(entry.last_seq, upto())
        for record in await _read_some(nodes, entry, from_seq):
            if record.seq > last:
                break
            if previous is not None and record.previous_hash != previous:
                raise Corrupt(f"log record {record.seq} does not follow the one before it")
            yield record
            previous = record.hash
            from_seq = record.seq + 1


def _holding(chain: Chain, seq: int) -> SegmentEntry:
    for entry in reversed(chain):
        if entry.first_seq <= seq and (entry.last_seq is None or seq <= entry.last_seq):
            return entry
    raise NotFound(f"record {seq} is not in the log any more")


async def _read_some(nodes: Nodes, entry: SegmentEntry, from_seq: int) -> tuple[LogRecord, ...]:
    errors: list[ClusterError] = []
    for drive in sorted(entry.drives, key=lambda drive: (not nodes.is_up(drive), not nodes.is_local(drive))):
        try:
            _, records = await logsegment.read(nodes, drive, entry.segment, from_seq)
        except ClusterError as error:
            errors.append(error)
            continue
        if records:
            return records
        errors.append(Corrupt(f"drive {drive.hex()} does not hold record {from_seq}"))
    what = f"log segment {entry.segment.hex()}: no drive gives record {from_seq}: {errors[0] if errors else 'none'}"
    raise Unavailable(what) if any(isinstance(error, Unavailable) for error in errors) else ChunkLost(what)
