"""What a pool survives now: pure arithmetic over groups, missing shards and drives that answer.

Losing one more *drive* costs a chunk at most one shard; losing a *disk* (all drives with one st_dev), a host or a rack
costs it all shards there. For each chunk the worst unit goes first, so the answer is what *any* such loss leaves
readable. The pool survives what its weakest chunk survives; -1 means that some chunk cannot be read now.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trivium.cluster.model import Group


@dataclass(frozen=True, slots=True)
class Place:
    """Where a drive is, and whether it answers."""

    up: bool
    disk: object  # equal for drives that share one (st_dev, and the node that says so)
    host: str
    rack: str


@dataclass(frozen=True, slots=True)
class Survival:
    drives: int
    disks: int
    hosts: int
    racks: int


def _losses(units: Counter[object], spare: int) -> int:
    """How many units can go, the fullest first, before more than `spare` shards are gone."""
    lost = 0
    for shards in sorted(units.values(), reverse=True):
        spare -= shards
        if spare < 0:
            return lost
        lost += 1
    return lost


def of_members(members: Iterable[bytes], needed: int, places: Mapping[bytes, Place]) -> Survival:
    """Of one thing of which `needed` members must stay; members that are not up do not count."""
    live = [places[drive] for drive in members if drive in places and places[drive].up]
    spare = len(live) - needed
    if spare < 0:
        return Survival(-1, -1, -1, -1)
    return Survival(
        spare,
        _losses(Counter(place.disk for place in live), spare),
        _losses(Counter(place.host for place in live), spare),
        _losses(Counter(place.rack for place in live), spare),
    )


def of_chunks(chunks: Iterable[tuple[Group, int]], places: Mapping[bytes, Place]) -> Survival | None:
    """Of all chunks, given as distinct (group, missing mask); None when there are none."""
    found = [
        of_members((drive for i, drive in enumerate(group.drives) if not missing >> i & 1), group.k, places)
        for group, missing in chunks
    ]
    return weakest(found)


def weakest(found: Iterable[Survival]) -> Survival | None:
    rows = list(found)
    if not rows:
        return None
    return Survival(*(min(getattr(row, unit) for row in rows) for unit in ("drives", "disks", "hosts", "racks")))


def in_words(what: str, survival: Survival) -> str:
    """A sentence: "data survives the loss of any 2 drives, and of no disk"."""
    if survival.drives < 0:
        return f"{what}: some cannot be read now: too many drives are away"

    def count(number: int, unit: str) -> str:
        return f"no {unit}" if number == 0 else f"any {number} {unit}{'s' if number > 1 else ''}"

    parts = [count(survival.drives, "drive"), count(survival.disks, "disk"), count(survival.hosts, "host")]
    return f"{what} survives the loss of {parts[0]}, of {parts[1]} and of {parts[2]}"
