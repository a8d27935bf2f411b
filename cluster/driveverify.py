"""Verify a drive directory: every byte of it that means anything, by the rules of the formats.

What no CRC covers is listed here, so that nothing is waved through: the bytes of a root slot behind its CRC and a slot
that was never written (remains of longer values, never read), `ballast` (reserved space), `holder` (a line for
people), `tmp/` (emptied at the next start), `quarantine/` (put aside because it did not verify). Everything else on a
drive is either verified or reported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from trivium.cluster.drivedir import DriveDir
from trivium.cluster.errors import ClusterError
from trivium.cluster.rootfile import FILE_SIZE
from trivium.cluster.shardfile import shard_name


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that does not verify. `path` is relative to the drive's directory."""

    path: str
    text: str


@dataclass(slots=True)
class Verified:
    shards: int = 0
    segments: int = 0
    records: int = 0
    bytes: int = 0
    faults: list[Fault] = field(default_factory=list)
    quarantined: int = 0


def total_bytes(drive: DriveDir) -> int:
    """What `verify` will read, for a progress bar."""
    total = len(drive.root_data) + sum(drive.segment_size(name) for name in drive.segments())
    for chunk, index in drive.shard_places():
        try:
            total += drive.shard_size(chunk, index)
        except OSError:
            continue
    return total


def verify(drive: DriveDir, progress: Callable[[int], None] = lambda done: None) -> Verified:
    """Read everything and check every CRC. `progress` hears bytes as they are done. Changes nothing."""
    done = Verified(quarantined=len(drive.quarantined()))
    done.faults += [Fault("", text) for text in drive.problems]
    done.faults += [Fault(path, "not a file of a drive: nothing reads it") for path in drive.foreign()]
    _verify_root(drive, done)
    progress(done.bytes)
    _verify_logs(drive, done, progress)
    _verify_shards(drive, done, progress)
    return done


def _verify_root(drive: DriveDir, done: Verified) -> None:
    done.bytes += len(drive.root_data)
    if drive.root_data and len(drive.root_data) != FILE_SIZE:
        done.faults.append(Fault("root", f"has {len(drive.root_data)} bytes, not {FILE_SIZE}"))
    slots = drive.slots()
    for found in slots:
        if found.bad:
            done.faults.append(Fault("root", f"slot at {found.offset}: {found.text}"))
    if slots and all(found.slot is None for found in slots):
        done.faults.append(Fault("root", "neither slot verifies: the drive does not vote until it is admitted again"))


def _verify_logs(drive: DriveDir, done: Verified, progress: Callable[[int], None]) -> None:
    for name in drive.segments():
        found = drive.read_segment(name)
        done.segments += 1
        done.bytes += found.size
        done.records += len(found.scan.records) if found.scan is not None else 0
        if found.text:
            done.faults.append(Fault(f"log/{name}", found.text))
        progress(found.size)


def _verify_shards(drive: DriveDir, done: Verified, progress: Callable[[int], None]) -> None:
    for chunk, index in drive.shard_places():
        assert drive.shards is not None
        size = 0
        try:
            size = drive.shard_size(chunk, index)
            drive.shards.verify(chunk, index)
        except (ClusterError, OSError) as error:
            done.faults.append(Fault(f"chunks/{shard_name(chunk, index)}", str(error)))
        done.shards += 1
        done.bytes += size
        progress(size)
