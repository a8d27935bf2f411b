"""Where chunks are, by what lies on the drives: a group and a missing mask for each put that was found. Pure.

    places of a put (index -> drives, newest plan first) --matching--> k+m different drives, bits of what nobody has

Invariants:
1. An index that any drive has is placed on a drive that has it, as long as no two indices need the same drive; then as
   many as possible are.
2. Every group names k+m different drives of the map. Who is named for an index that nobody has is a drive that is
   here, as far as there are enough of them: healing puts it there.
3. Equal drive sets give equal groups: chunks that were put together stay together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trivium.cluster.model import Group, PoolRow, Profile


class TooFewDrives(Exception):
    """The map names fewer drives than a chunk has shards."""


@dataclass(frozen=True, slots=True)
class Place:
    group: int
    missing: int


@dataclass(slots=True)
class Groups:
    """Gives each set of drives one group. `first`: groups that are there already; `next_id`: of the next one."""

    pools: Sequence[PoolRow]
    next_id: int
    here: Sequence[bytes]  # drives that were read, in the map's order
    away: Sequence[bytes]  # drives that the map names besides
    known: dict[tuple[int, int, str, tuple[bytes, ...]], Group] = field(default_factory=dict)
    made: list[Group] = field(default_factory=list)

    def learn(self, groups: Sequence[Group]) -> None:
        for group in groups:
            self.known.setdefault((group.k, group.m, group.codec, group.drives), group)

    def place(self, profile: Profile, places: Mapping[int, Sequence[bytes]]) -> Place:
        """TooFewDrives."""
        dealt = match(profile.width, places)
        missing = sum(1 << index for index in range(profile.width) if index not in dealt)
        spare = [drive for drive in (*self.here, *self.away) if drive not in dealt.values()]
        wanted = profile.width - len(dealt)
        if len(spare) < wanted:
            raise TooFewDrives(f"a chunk of {profile} needs {profile.width} drives")
        fill = iter(spare)
        drives = tuple(dealt[index] if index in dealt else next(fill) for index in range(profile.width))
        return Place(self._group(profile, drives).id, missing)

    def _group(self, profile: Profile, drives: tuple[bytes, ...]) -> Group:
        key = (profile.k, profile.m, profile.codec, drives)
        found = self.known.get(key)
        if found is None:
            pool = pool_of(self.pools, profile)
            found = self.known[key] = Group(self.next_id, pool, profile.k, profile.m, drives, profile.codec)
            self.next_id += 1
            self.made.append(found)
        return found


def match(width: int, places: Mapping[int, Sequence[bytes]]) -> dict[int, bytes]:
    """index -> drive, each drive once, as many indices as possible; the first drive listed is preferred."""
    taken: dict[bytes, int] = {}

    def seat(index: int, tried: set[bytes]) -> bool:
        for drive in places.get(index, ()):
            if drive in tried:
                continue
            tried.add(drive)
            if drive not in taken or seat(taken[drive], tried):
                taken[drive] = index
                return True
        return False

    for index in range(width):
        seat(index, set())
    return {index: drive for drive, index in taken.items()}


def pool_of(pools: Sequence[PoolRow], profile: Profile) -> int:
    """A shard does not say its pool: the one of its very profile, else one that it may be a narrow group of."""
    for pool in pools:
        if (pool.k, pool.m) == (profile.k, profile.m):
            return pool.id
    wider = [pool for pool in pools if pool.k + pool.m >= profile.width]
    return (wider or list(pools))[0].id
