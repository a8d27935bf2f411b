"""Decisions about the root register, pure: which value is the newest, which list counts, what a majority is.

A value is ordered by (ballot it was accepted under, version). The lists of drives that vote are part of the value: one,
and while a change of the list settles also the one before (Root.former_root_drives). Promises and acceptances need a
majority of each list, so whoever follows the newest value that it can reach ends at the list in force or at none.
A drive without any value does not vote: it may have forgotten what it promised.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from trivium.cluster.errors import Refused
from trivium.cluster.model import NO_BALLOT, Ballot, Root, RootSlot


def order(slot: RootSlot) -> tuple[Ballot, int]:
    return slot.accepted, slot.version


def newest(slots: Mapping[bytes, RootSlot]) -> RootSlot | None:
    """The newest value among copies, hints included; None when no copy has one."""
    return max((slot for slot in slots.values() if slot.root is not None), key=order, default=None)


def quorum(count: int) -> int:
    return count // 2 + 1


def lists(root: Root) -> tuple[tuple[bytes, ...], ...]:
    """The lists of drives of which a majority each must agree."""
    return (root.root_drives, root.former_root_drives) if root.former_root_drives else (root.root_drives,)


def voters(root: Root) -> tuple[bytes, ...]:
    """Every drive that votes, once."""
    return tuple(dict.fromkeys(drive for voting in lists(root) for drive in voting))


def has_majority(members: Collection[bytes], root: Root) -> bool:
    """True when `members` holds a majority of each list; an empty list has none."""
    got = set(members)
    return all(len(got & set(voting)) >= quorum(len(voting)) for voting in lists(root))


def may_have_majority(lost: Collection[bytes], root: Root) -> bool:
    """False when so many voters obey a higher ballot that no majority is left."""
    return has_majority(set(voters(root)) - set(lost), root)


def next_ballot(slots: Mapping[bytes, RootSlot], starter: bytes) -> Ballot:
    """Higher than everything seen."""
    highest = max((max(slot.promised, slot.accepted) for slot in slots.values()), default=NO_BALLOT)
    return Ballot(highest.number + 1, starter)


def changed(old: Root, new: Root) -> Root:
    """`new` as it is written over `old`: names the former list when the list changes. Refused unless that is one
    drive at a time (added, removed or replaced), and never to nothing."""
    before, after = set(old.root_drives), set(new.root_drives)
    if not after or len(after) != len(new.root_drives):
        raise Refused("the list of root drives must name at least one drive, each once")
    if len(before - after) > 1 or len(after - before) > 1:
        raise Refused("the list of root drives changes one drive at a time")
    former = () if before == after else old.root_drives
    return msgspec.structs.replace(new, former_root_drives=former)


def choose_root_drives(candidates: Sequence[tuple[bytes, str]], count: int) -> tuple[bytes, ...]:
    """`count` of the (drive, domain) pairs, over different domains first; an odd number when there are enough."""
    count = min(count, len(candidates))
    if count % 2 == 0 and count > 2:
        count -= 1
    chosen: list[bytes] = []
    used: dict[str, int] = {}
    rest = list(candidates)
    while len(chosen) < count:
        best = min(rest, key=lambda pair: used.get(pair[1], 0))
        rest.remove(best)
        chosen.append(best[0])
        used[best[1]] = used.get(best[1], 0) + 1
    return tuple(chosen)


def swap_voter(root: Root, old: bytes, new: bytes) -> Root:
    """The root with drive `new` in the place of `old` in the list of root drives."""
    drives = tuple(new if drive == old else drive for drive in root.root_drives)
    return msgspec.structs.replace(root, root_drives=drives)
