"""Logs read from whatever segment files are at hand, by a chain that a root or a row gives.

Invariants:
1. Records come in order, each chained by hash to the one before; the first that cannot be had ends the log.
2. Nothing beyond a recorded last seq counts; of an open segment the longest replica does (as a takeover keeps it).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trivium.cluster.drivedir import DriveDir
from trivium.cluster.logfile import LogRecord, Scan
from trivium.cluster.logplan import Chain
from trivium.cluster.model import Root, SegmentEntry
from trivium.cluster.wire import LogHead


@dataclass(frozen=True, slots=True)
class SegmentCopy:
    """One drive's file of a segment."""

    drive: DriveDir
    head: LogHead
    scan: Scan


class SegmentFiles:
    """Which drive has which segment's file."""

    def __init__(self, drives: Sequence[DriveDir]) -> None:
        self._files: dict[str, list[tuple[DriveDir, str]]] = {}
        for drive in drives:
            for name in drive.segments():
                self._files.setdefault(name.partition(".")[0], []).append((drive, name))

    def records(self, chain: Chain, from_seq: int = 0, previous: bytes | None = None) -> Iterator[LogRecord]:
        """Records from `from_seq` on (0: from the first one there is) as far as they go without a gap. `previous`:
        the hash that the first must name."""
        wanted = from_seq or (chain[0].first_seq if chain else 0)
        for entry in chain:
            if entry.last_seq is not None and entry.last_seq < wanted:
                continue
            if entry.first_seq > wanted:
                return
            for record in self._longest(entry):
                if record.seq < wanted:
                    continue
                if entry.last_seq is not None and record.seq > entry.last_seq:
                    break
                if previous is not None and record.previous_hash != previous:
                    return
                yield record
                previous, wanted = record.hash, record.seq + 1
            if entry.last_seq is None or wanted <= entry.last_seq:
                return

    def copies(self, kind: int) -> Iterator[SegmentCopy]:
        """Every segment file of this kind of log (its head says so), one of each drive: sealed before open."""
        for segment, files in sorted(self._files.items()):
            seen: set[str] = set()
            for drive, name in sorted(files, key=lambda pair: (pair[0].path, not pair[1].endswith(".sealed"))):
                found = drive.read_segment(name)
                if found.head is None or found.scan is None or drive.path in seen or found.head.kind != kind:
                    continue
                if found.head.segment.hex() == segment:
                    seen.add(drive.path)
                    yield SegmentCopy(drive, found.head, found.scan)

    def has(self, entry: SegmentEntry) -> bool:
        """Whether any replica of it begins as the chain says."""
        found = (drive.read_segment(name).head for drive, name in self._files.get(entry.segment.hex(), ()))
        return any(head is not None and head.first_seq == entry.first_seq for head in found)

    def _longest(self, entry: SegmentEntry) -> tuple[LogRecord, ...]:
        best: tuple[LogRecord, ...] = ()
        for drive, name in self._files.get(entry.segment.hex(), ()):
            scan = drive.read_segment(name).scan
            if scan is not None and len(scan.records) > len(best):
                best = scan.records
        return best


def newest_root(drives: Sequence[DriveDir]) -> tuple[int, Root] | None:
    """(version, value) of the newest root that any of the drives has a copy of."""
    slots = [slot.value for drive in drives if (slot := drive.newest()) is not None and slot.value.root is not None]
    if not slots:
        return None
    best = max(slots, key=lambda slot: (slot.accepted, slot.version))
    assert best.root is not None
    return best.version, best.root
