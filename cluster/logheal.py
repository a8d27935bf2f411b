"""Restoring the copies of a log: closed segments are copied, the open one is left (LogWriter.leave).

Invariant: the chain names a drive only after every record of the segment, up to its recorded last seq, is durable
there; what a source holds beyond that seq is not copied.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from trivium.cluster import logsegment
from trivium.cluster.errors import ClusterError, Unavailable
from trivium.cluster.log import LogParts, LogWriter
from trivium.cluster.logfile import encode_append
from trivium.cluster.logplan import Chain
from trivium.cluster.model import SegmentEntry
from trivium.cluster.wire import LogHead

log = logging.getLogger(__name__)


def wanted(parts: LogParts, avoid: Collection[bytes]) -> int:
    """How many replicas a new segment would get now."""
    return len(parts.choose(b"", frozenset(avoid)))


def is_short(chain: Chain, wanted: int, avoid: Collection[bytes]) -> bool:
    """Some segment has a replica that must go, or fewer than a new one would get: a takeover or a move that did without
    a drive leaves it out of the closed segment, and nothing about the drives needs to change ever again."""
    return any(len(entry.drives) < wanted or not set(entry.drives).isdisjoint(avoid) for entry in chain)


async def heal(
    parts: LogParts, writer: LogWriter, avoid: Collection[bytes], *, present: Collection[bytes] = ()
) -> int:
    """Give every segment as many replicas as a new one would get, none on `avoid` (out, draining). Answers how many
    segments still have too few. Replicas on `present` (draining, among `avoid`) are left only for other ones."""
    count = wanted(parts, avoid)
    if is_short(writer.chain[-1:], count, avoid):
        await writer.leave(avoid)  # first: what it closes is copied below
    short = int(len(writer.chain[-1].drives) < count)
    for entry in writer.chain[:-1]:
        if is_short((entry,), count, avoid):
            kept = tuple(drive for drive in entry.drives if drive not in avoid)
            short += not await _heal_closed(parts, writer, entry, kept, count, avoid, present)
    return short


async def _heal_closed(
    parts: LogParts,
    writer: LogWriter,
    entry: SegmentEntry,
    kept: tuple[bytes, ...],
    wanted: int,
    avoid: Collection[bytes],
    present: Collection[bytes],
) -> bool:
    others = parts.choose(entry.segment, frozenset(avoid) | frozenset(entry.drives))
    good = list(kept)
    for drive in others:
        if len(good) >= wanted:
            break
        try:
            await _copy(parts, entry, drive)
            good.append(drive)
        except ClusterError as error:
            log.warning("log segment %s is not copied to %s: %s", entry.segment.hex(), drive.hex(), error)
    whole = len(good) >= wanted
    good += [drive for drive in entry.drives if drive in present and drive not in good][: max(0, wanted - len(good))]
    if not good:
        return False
    new = SegmentEntry(entry.segment, tuple(good), entry.first_seq, entry.last_seq)
    if new != entry:
        await writer.replace_closed(entry, new)
    return whole


async def _copy(parts: LogParts, entry: SegmentEntry, target: bytes) -> None:
    """All records of a closed segment, from whichever replica has them, durable on `target`."""
    assert entry.last_seq is not None
    failure: ClusterError = Unavailable("it has no replica")
    for source in entry.drives:
        try:
            state = await logsegment.stat(parts.nodes, source, entry.segment)
            records = await logsegment.read_upto(parts.nodes, source, entry.segment, entry.first_seq, entry.last_seq)
        except ClusterError as error:
            failure = error
            continue
        await _write(parts, state.head, target, encode_append(records, entry.segment))
        return
    raise failure


async def _write(parts: LogParts, head: LogHead, target: bytes, data: bytes) -> None:
    options = parts.options
    results = await logsegment.create(parts.nodes, head, (target,), options.capacity, options.reserve_class)
    if not logsegment.failures(results) and data:
        results = await logsegment.append(parts.nodes, head.segment, head.first_seq, data, (target,))
    for error in logsegment.failures(results).values():
        raise error
    await logsegment.seal(parts.nodes, target, head.segment)
