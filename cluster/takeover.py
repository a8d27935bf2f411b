"""Taking a log over: seal, keep what may have been answered, change the chain once, serve.

    read chain -> seal the open segment's replicas -> plan -> new segment with c+1..L -> one chain change -> LogWriter
                        |  (one suffices: an answer needs all; waits up to T for those not known lost)
                        +- none reached: refused, in words

Invariants
1. The old writer answers nothing from the moment one replica of its open segment is sealed.
2. Nothing acts on the new segment before the chain names it; whoever loses the compare-and-swap is Fenced.
3. Records are copied unchanged: their hashes are checked against every replica that was reached.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

import trio

from trivium.cluster import logplan, logsegment
from trivium.cluster.errors import ClusterError, Corrupt, Unavailable
from trivium.cluster.log import LogParts, LogWriter, create_segment
from trivium.cluster.logchain import swap_surely
from trivium.cluster.logfile import HEAD_SIZE, NO_HASH, LogRecord, encode_append
from trivium.cluster.logplan import Chain, Keep
from trivium.cluster.model import SegmentEntry
from trivium.cluster.wire import LogState

log = logging.getLogger(__name__)

WAIT_S = 20.0  # T
ATTEMPTS = 3


async def takeover(
    parts: LogParts, *, lost: Collection[bytes] = (), wait_s: float = WAIT_S, chain: Chain | None = None
) -> LogWriter:
    """A writer of a new segment behind everything that may have been answered. `lost`: drives not worth waiting for.

    Fenced: somebody else changed the chain. Unavailable: no replica answers. Corrupt: they contradict each other.
    An empty chain begins a new log with record 1.
    """
    if chain is None:
        chain = await parts.chain_store.read()
    if not chain:
        return await _open(parts, chain, 0, NO_HASH, [], ())
    last = chain[-1]
    if last.last_seq is not None:
        previous_hash = await _closed_hash(parts, last, last.last_seq, wait_s, lost)
        return await _open(parts, chain, last.last_seq, previous_hash, [], ())
    for attempt in range(ATTEMPTS):
        reached, gone = await _seal_all(parts, last, frozenset(lost), wait_s)
        keep = logplan.plan_takeover(last, reached)
        try:
            hash_at_close, records = await _kept(parts, last, keep, reached)
            break
        except ClusterError as error:
            if attempt == ATTEMPTS - 1:
                raise
            # the replica that it read from failed after its seal: ask all of them again, sealing twice is harmless
            log.warning("log segment %s: %s; asking its drives again", last.segment.hex(), error)
            await trio.sleep(parts.options.retry_s)
    return await _open(parts, chain, keep.close_at, hash_at_close, records, gone)


async def _seal_all(
    parts: LogParts, entry: SegmentEntry, lost: frozenset[bytes], wait_s: float
) -> tuple[dict[bytes, LogState], set[bytes]]:
    """Seal every replica that can be reached in time; (states, drives without a usable replica)."""
    reached: dict[bytes, LogState] = {}
    errors: dict[bytes, ClusterError] = {}

    async def seal(drive: bytes) -> None:
        while True:
            errors[drive] = Unavailable("no answer in time")
            try:
                with trio.move_on_after(parts.options.attempt_s):
                    reached[drive] = await logsegment.seal(parts.nodes, drive, entry.segment)
                    del errors[drive]
                    return
            except ClusterError as error:
                errors[drive] = error
                if not isinstance(error, Unavailable):
                    return  # its file is gone or damaged: waiting does not bring it back
            if drive in lost:
                return  # asked once all the same: each replica reached is one more that cannot be missed
            await trio.sleep(parts.options.retry_s)

    with trio.move_on_after(wait_s):
        async with trio.open_nursery() as nursery:
            for drive in entry.drives:
                nursery.start_soon(seal, drive)
    if not reached:
        raise _refusal(entry, errors)
    for drive, error in errors.items():
        log.warning("log segment %s is taken over without drive %s: %s", entry.segment.hex(), drive.hex(), error)
    return reached, set(entry.drives) - set(reached)


def _refusal(entry: SegmentEntry, errors: dict[bytes, ClusterError]) -> ClusterError:
    reasons = "; ".join(f"{drive.hex()}: {errors.get(drive, 'known to be lost')}" for drive in entry.drives)
    text = (
        f"the log cannot be opened: no drive of its last segment {entry.segment.hex()} can be read ({reasons}). "
        "Bring back a drive that has it whole"
    )
    away = any(isinstance(error, Unavailable) for error in errors.values())
    return Unavailable(text) if away else Corrupt(text)


async def _kept(
    parts: LogParts, entry: SegmentEntry, keep: Keep, reached: dict[bytes, LogState]
) -> tuple[bytes, list[LogRecord]]:
    """(hash of record c, records c+1..L), checked against each reached replica."""
    at_close = await logsegment.hash_at(parts.nodes, keep.source, entry.segment, keep.close_at)
    records: list[LogRecord] = []
    if keep.copies:
        records = await logsegment.read_upto(parts.nodes, keep.source, entry.segment, keep.close_at + 1, keep.last_seq)
        if records[0].previous_hash != at_close:
            raise Corrupt(f"log segment {entry.segment.hex()}: record {records[0].seq} does not follow")
    hashes = {keep.close_at: at_close} | {record.seq: record.hash for record in records}
    logplan.check_prefixes(reached, hashes)
    return at_close, records


async def _closed_hash(
    parts: LogParts, entry: SegmentEntry, last_seq: int, wait_s: float, lost: Collection[bytes]
) -> bytes:
    """Hash of the last record of a closed segment, from any replica."""
    give_up = trio.current_time() + wait_s
    while True:
        errors: dict[bytes, ClusterError] = {}
        for drive in entry.drives:
            try:
                return await logsegment.hash_at(parts.nodes, drive, entry.segment, last_seq)
            except ClusterError as error:
                errors[drive] = error
        waiting = any(isinstance(e, Unavailable) and d not in lost for d, e in errors.items())
        if not waiting or trio.current_time() >= give_up:
            raise _refusal(entry, errors)
        await trio.sleep(parts.options.retry_s)


async def _open(
    parts: LogParts,
    chain: Chain,
    close_at: int,
    previous_hash: bytes,
    records: list[LogRecord],
    avoid: Collection[bytes],
) -> LogWriter:
    """A new segment that begins with `records`, durable, then the one change of the chain."""
    avoided = set(avoid)
    while True:
        entry = await create_segment(parts, close_at + 1, previous_hash, avoided)
        data = encode_append(records, entry.segment) if records else b""
        if not data:
            break
        errors = logsegment.failures(
            await logsegment.append(parts.nodes, entry.segment, entry.first_seq, data, entry.drives)
        )
        if not errors:
            break
        avoided |= set(errors)
        await logsegment.remove(parts.nodes, entry.drives, entry.segment)
    # once a change was tried the new segment is not removed here: who displaced us may have built upon it
    new_chain = logplan.successor(chain, close_at, entry, avoid)
    await swap_surely(parts.chain_store, chain, new_chain, retry_s=parts.options.retry_s)
    last_seq, last_hash = (records[-1].seq, records[-1].hash) if records else (close_at, previous_hash)
    return LogWriter(parts, new_chain, last_seq, last_hash, HEAD_SIZE + len(data))
