"""Decisions about logs, pure: where segments go, what a takeover keeps, how chains change.

Invariants
1. A record that all replicas of a segment had acknowledged is at or below `Keep.last_seq` of every plan.
2. A chain is contiguous: each entry's first seq follows its predecessor's last seq; only the last may be open.
3. A tail is dropped only when no reached replica holds it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from trivium.cluster.errors import Corrupt, Refused
from trivium.cluster.hashing import blake128
from trivium.cluster.model import ClusterMap, SegmentEntry
from trivium.cluster.wire import LogState

Chain = tuple[SegmentEntry, ...]


@dataclass(frozen=True, slots=True)
class LogOwner:
    """Who writes a log: goes into the head of each of its segments."""

    kind: int  # 1 metadata, 2 volume
    owner: bytes  # 16
    session: int = 0
    lease: int = 0  # lease number


@dataclass(frozen=True, slots=True)
class Keep:
    """What a takeover keeps of an open segment."""

    close_at: int  # c: last seq that every reached replica holds
    last_seq: int  # L: records c+1..L go into the next segment
    source: bytes  # a drive that holds them all

    @property
    def copies(self) -> bool:
        return self.last_seq > self.close_at


def plan_takeover(entry: SegmentEntry, reached: Mapping[bytes, LogState]) -> Keep:
    """What to keep, given the sealed states of the replicas that answered. Refused when there is none."""
    if not reached:
        raise Refused(f"none of the drives of log segment {entry.segment.hex()} answers")
    for drive, state in reached.items():
        if not state.sealed:
            raise Corrupt(f"drive {drive.hex()} answered a seal but is not sealed")
        if state.head.first_seq != entry.first_seq:
            raise Corrupt(
                f"drive {drive.hex()}: log segment {entry.segment.hex()} begins elsewhere than its chain says"
            )
    source = max(reached, key=lambda drive: (reached[drive].last_seq, drive))
    return Keep(min(state.last_seq for state in reached.values()), reached[source].last_seq, source)


def check_prefixes(reached: Mapping[bytes, LogState], hashes: Mapping[int, bytes]) -> None:
    """All reached replicas hold prefixes of one chain. `hashes`: seq -> hash, of the longest, from the shortest on."""
    for drive, state in reached.items():
        if hashes[state.last_seq] != state.last_hash:
            raise Corrupt(
                f"drive {drive.hex()}: log segment {state.head.segment.hex()} ends with another record "
                f"{state.last_seq} than the longest replica holds"
            )


def successor(chain: Chain, close_at: int, entry: SegmentEntry, without: Collection[bytes] = ()) -> Chain:
    """The chain with its last segment closed at `close_at` and `entry` opened.

    Drives in `without` (no usable replica) leave the closed entry; a segment without records leaves the chain.
    """
    if not chain:
        return (entry,)
    last = chain[-1]
    drives = tuple(drive for drive in last.drives if drive not in without)
    closed = SegmentEntry(last.segment, drives or last.drives, last.first_seq, close_at)
    kept = chain[:-1] if close_at < last.first_seq else (*chain[:-1], closed)
    return check_chain((*kept, entry))


def closed(chain: Chain, last_seq: int) -> Chain:
    """The chain with its last segment closed."""
    last = chain[-1]
    return (*chain[:-1], SegmentEntry(last.segment, last.drives, last.first_seq, last_seq))


def trimmed(chain: Chain, upto: int) -> Chain:
    """The chain without segments that hold only records up to `upto`; the last one always stays."""
    return tuple(
        entry
        for index, entry in enumerate(chain)
        if index == len(chain) - 1 or entry.last_seq is None or entry.last_seq > upto
    )


def check_chain(chain: Chain) -> Chain:
    for before, after in pairwise(chain):
        if before.last_seq is None or after.first_seq != before.last_seq + 1:
            raise Corrupt(f"the log's chain does not continue after segment {before.segment.hex()}")
    return chain


def choose_drives(
    cluster_map: ClusterMap, up: Collection[bytes], count: int, salt: bytes, avoid: Iterable[bytes] = ()
) -> tuple[bytes, ...]:
    """min(count, usable) drives in use and up, over different disks' domains first, dealt by hash of `salt`."""
    avoided = frozenset(avoid)
    usable = [r for r in cluster_map.drives if not r.reason and r.weight > 0 and r.id in up and r.id not in avoided]
    usable.sort(key=lambda row: blake128(salt + row.id))
    chosen: list[bytes] = []
    used: dict[str, int] = {}
    while usable and len(chosen) < count:
        best = min(usable, key=lambda row: _crowding(row.domain, used))
        usable.remove(best)
        chosen.append(best.id)
        for prefix in _prefixes(best.domain):
            used[prefix] = used.get(prefix, 0) + 1
    return tuple(chosen)


def _prefixes(domain: str) -> list[str]:
    parts = [part for part in domain.split("/") if part]
    return ["/".join(parts[: end + 1]) for end in range(len(parts))]


def _crowding(domain: str, used: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(used.get(prefix, 0) for prefix in _prefixes(domain))
