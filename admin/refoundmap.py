"""The map and the numbers of a pool that is made anew: which drives are here, which are named besides, where counting
goes on. Reads only.

Invariants:
1. A drive keeps the id that its root file says; one whose root file is lost is the drive whose place it has in the
   newest map, else it gets a new id. Drives of other clusters and those that the map calls removed are left out.
2. Drives that the newest map names and that are not here stay in it: they are down, as after a start without them.
3. Every number begins beyond all that any copy of the root, any log and any shard shows.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from trivium.admin.datadir import ClusterFile, DataDir
from trivium.admin.errors import CommandError
from trivium.admin.processes.drives import DEFAULT_POOL, absolute, relative
from trivium.cluster.clock import Random
from trivium.cluster.drivedir import NOBODY, DriveDir
from trivium.cluster.model import Ballot, ClusterMap, DriveRow, NodeRow, PoolRow, Profile, Root, RootSlot
from trivium.cluster.rootplan import choose_root_drives, has_majority
from trivium.cluster.salvage import Salvage
from trivium.cluster.salvagelog import SegmentFiles, newest_root
from trivium.metadata.refoundrows import GAP

METADATA_LOG = 1
BALLOT_GAP = 1 << 20


@dataclass(slots=True)
class Seen:
    """`drives` count; `ids` by path. `last_seq`, `ballot`, `version`: the highest that anything shows."""

    drives: list[DriveDir] = field(default_factory=list)
    ids: dict[str, bytes] = field(default_factory=dict)
    root: Root | None = None
    last_seq: int = 0
    ballot: int = 0
    version: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def here(self) -> list[bytes]:
        return [self.ids[drive.path] for drive in self.drives]

    def may_start(self) -> bool:
        """Whether a majority of the root drives still votes: else no pool starts on this root."""
        voting = [self.ids[drive.path] for drive in self.drives if (slot := drive.newest()) and slot.value.root]
        return self.root is not None and has_majority(voting, self.root)


def look(drives: Sequence[DriveDir], cluster: bytes, random: Random, data: DataDir) -> Seen:
    """CommandError: a drive lies there twice."""
    seen = Seen()
    ours = [drive for drive in drives if drive.cluster in (cluster, NOBODY)]
    seen.notes += [f"{drive.path}: left out, a drive of another pool" for drive in drives if drive not in ours]
    found = newest_root(ours)
    seen.root = found[1] if found is not None else None
    removed = {row.id for row in seen.root.map.drives if row.reason == "removed"} if seen.root is not None else set()
    for drive in ours:
        if drive.drive in removed:
            seen.notes.append(f"{drive.path}: left out, it was removed from the pool")
            continue
        id = drive.drive if drive.drive != NOBODY else _id_of(drive, ours, seen.root, data) or random.randbytes(16)
        if id in seen.ids.values():
            other = next(path for path, one in seen.ids.items() if one == id)
            raise CommandError(f"{drive.path} and {other} say that they are the same drive: leave one, with --drive.")
        if drive.drive == NOBODY:
            seen.notes.append(f"{drive.path}: its root file is lost; it gets a new one")
        seen.ids[drive.path] = id
        seen.drives.append(drive)
        _see_slots(seen, drive)
    for copy in SegmentFiles(seen.drives).copies(METADATA_LOG):
        seen.last_seq = max(seen.last_seq, copy.head.first_seq, copy.scan.last_seq)
    return seen


def _id_of(drive: DriveDir, drives: Sequence[DriveDir], root: Root | None, data: DataDir) -> bytes:
    """Of a drive without its root file: whose place this is by the newest map, unless that one is elsewhere."""
    elsewhere = {other.drive for other in drives}
    rows = root.map.drives if root is not None else ()
    found = [row.id for row in rows if absolute(data, row.path) == drive.path and row.reason != "removed"]
    return found[0] if len(found) == 1 and found[0] not in elsewhere else b""


def _see_slots(seen: Seen, drive: DriveDir) -> None:
    for slot in (found.slot.value for found in drive.slots() if found.slot is not None):
        seen.ballot = max(seen.ballot, slot.promised.number, slot.accepted.number)
        seen.version = max(seen.version, slot.version)
        if slot.root is not None:
            seqs = [entry.last_seq or entry.first_seq for entry in slot.root.log]
            seen.last_seq = max([seen.last_seq, *seqs, *(dump.seq for dump in slot.root.dumps)])


def see_plans(seen: Seen, salvage: Salvage, restored_seq: int) -> None:
    plans = (plan for put in salvage.all() for found in put.places.values() for plan, _ in found)
    seen.last_seq = max([seen.last_seq, restored_seq, *plans])


def next_root(seen: Seen, cluster_map: ClusterMap, starter: bytes) -> RootSlot:
    """Without a log yet. Above everything that any drive, here or not, may have promised."""
    most = max(pool.m for pool in cluster_map.pools)
    here = set(seen.here)
    candidates = [(row.id, row.domain) for row in cluster_map.drives if row.id in here]
    voters = choose_root_drives(candidates, 2 * most + 1)
    ballot = Ballot(seen.ballot + BALLOT_GAP, starter)
    return RootSlot(ballot, ballot, seen.version + BALLOT_GAP, Root(cluster_map, voters, (), ()))


def first_seq(seen: Seen) -> int:
    return seen.last_seq + GAP + 1


# ---- the map ----------------------------------------------------------------------------------------------------


def draw_map(seen: Seen, salvage: Salvage, data: DataDir, cluster: ClusterFile, random: Random) -> ClusterMap:
    """The newest map as far as there is one, every drive that is here at its place on this machine, and as many more
    drives as the widest chunk needs."""
    old = seen.root.map if seen.root is not None else ClusterMap()
    node = bytes.fromhex(cluster.node)
    pools = old.pools or _pools(salvage, cluster)
    rows = _rows(seen, old, data, node)
    width = max([*(pool.k + pool.m for pool in pools), *(put.key.k + put.key.m for put in salvage.all())])
    number = 0
    while sum(1 for row in rows if row.reason != "removed") < width:
        number += 1
        name = f"lost{number}"
        if all(row.name != name for row in rows):
            rows.append(DriveRow(random.randbytes(16), name, node, _domain(old), 1.0, "", f"drives/{name}", 0, 0))
    nodes = tuple(row for row in old.nodes if row.id != node)
    mine = next((row for row in old.nodes if row.id == node), None)
    mine = mine or NodeRow(node, platform.node() or "localhost", ("unix:run/trivium.sock",))
    return ClusterMap(old.version, tuple(rows), (*nodes, mine), pools)


def _rows(seen: Seen, old: ClusterMap, data: DataDir, node: bytes) -> list[DriveRow]:
    known = {row.id: row for row in old.drives}
    names = {row.name for row in old.drives}
    rows: list[DriveRow] = []
    for drive in seen.drives:
        id = seen.ids[drive.path]
        device = drive.files.stat_path(drive.path).device
        row = known.pop(id, None)
        if row is None:
            name = _free_name(Path(drive.path).name, names)
            names.add(name)
            row = DriveRow(id, name, node, _domain(old), 1.0)
        path = relative(data, drive.path)
        rows.append(msgspec.structs.replace(row, node=node, reason="", path=path, device=device))
    for row in known.values():
        rows.append(msgspec.structs.replace(row, reason="" if row.reason == "draining" else row.reason))
    return sorted(rows, key=lambda row: row.name)


def _free_name(name: str, taken: Iterable[str]) -> str:
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    return found


def _domain(old: ClusterMap) -> str:
    return old.drives[0].domain if old.drives else f"default/{platform.node() or 'localhost'}"


def _pools(salvage: Salvage, cluster: ClusterFile) -> tuple[PoolRow, ...]:
    """Without any map: the profile that the cluster file or most chunks have, and wider ones besides."""
    counts = Counter(Profile(put.key.k, put.key.m, put.key.codec) for put in salvage.all())
    if cluster.profile:
        k, m = (int(part) for part in cluster.profile.split("+"))
    else:
        most = max(counts, key=lambda profile: (counts[profile], profile.width), default=Profile(4, 2))
        k, m = most.k, most.m
    codec = next((profile.codec for profile in counts if (profile.k, profile.m) == (k, m)), Profile(k, m).codec)
    pools = [PoolRow(DEFAULT_POOL, "default", k, m, codec=codec)]
    for profile in sorted(counts, key=lambda profile: (profile.k, profile.m, profile.codec)):
        if profile.width > k + m and all((pool.k, pool.m) != (profile.k, profile.m) for pool in pools):
            number = len(pools) + 1
            pools.append(PoolRow(number, f"found-{profile}", profile.k, profile.m, codec=profile.codec))
    return tuple(pools)


def drive_paths(data: DataDir, more: Sequence[Path]) -> list[str]:
    """Directories below drives/ that may be drives, and those named besides."""
    inside = sorted(entry for entry in data.drives.iterdir() if entry.is_dir()) if data.drives.is_dir() else []
    return list(dict.fromkeys(os.path.abspath(path) for path in (*inside, *more)))
