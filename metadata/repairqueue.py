"""What lacks shards, by risk: the repair queue as queries. Nothing is stored beside the rows themselves.

Chunks of one group with one missing mask are equally at risk: a class. Classes are found by the two indexes (missing
masks, groups with a drive that is gone), counted once a look, and read page by page in key order.

Invariants:
1. Every row that lacks a shard (listed as missing, or on a drive that is out or removed) is in exactly one class.
2. Order: least remaining redundancy first; of equals those with missing indices (partial writes) before those whose
   drive is gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from trivium.cluster.model import ChunkId, Group, Placed
from trivium.metadata import chunkrows
from trivium.metadata.tx import Reader

GONE_DRIVES = "SELECT id FROM drives WHERE reason IN ('out', 'removed')"


class RiskClass(NamedTuple):
    """Chunks of `group` that list `missing`; `lost`: these and the places on drives that are gone."""

    group: Group
    missing: int
    lost: int
    chunks: int
    size_bytes: int

    @property
    def redundancy(self) -> int:
        """Shards that may still go; negative: the chunk cannot be read from its group."""
        return self.group.m - self.lost.bit_count()


def gone(reader: Reader) -> frozenset[bytes]:
    """Drives that are out or removed."""
    return frozenset(row[0] for row in reader.all(GONE_DRIVES))


def anything(reader: Reader) -> bool:
    """Cheap: whether any row lacks a shard."""
    if reader.one("SELECT 1 FROM chunks WHERE missing != 0 LIMIT 1") is not None:
        return True
    for number in broken_groups(reader):
        if reader.one("SELECT 1 FROM chunks WHERE group_id = ? LIMIT 1", number) is not None:
            return True
    return False


def broken_groups(reader: Reader) -> list[int]:
    """Groups with a drive that is out or removed."""
    away = gone(reader)
    if not away:
        return []
    rows = reader.all("SELECT id, drives FROM groups")
    return [number for number, drives in rows if not away.isdisjoint(chunkrows.split_drives(drives))]


def classes(reader: Reader) -> list[RiskClass]:
    """All of them, those at the greatest risk first."""
    sql = "SELECT group_id, missing, count(*), sum(length) FROM chunks WHERE {} GROUP BY group_id, missing"
    rows = list(reader.all(sql.format("missing != 0")))
    for number in broken_groups(reader):
        rows += reader.all(sql.format("group_id = ? AND missing = 0"), number)
    away = gone(reader)
    found = []
    for number, missing, count, size in rows:
        group = chunkrows.group_of(reader, number)
        assert group is not None, "a chunk's group has a row"
        found.append(RiskClass(group, missing, missing | _mask(group, away), count, size))
    return sorted(found, key=lambda one: (one.redundancy, not one.missing, one.group.id, one.missing))


def count(reader: Reader) -> tuple[int, int]:
    """Chunks that lack shards, and their bytes."""
    found = classes(reader)
    return sum(one.chunks for one in found), sum(one.size_bytes for one in found)


def page(reader: Reader, one: RiskClass, after: ChunkId, limit: int) -> list[Placed]:
    """The class's next chunks in key order; those that are being collected are left out."""
    rows = reader.all(
        "SELECT c.session, c.counter FROM chunks c WHERE c.group_id = ? AND c.missing = ?"
        " AND (c.session, c.counter) > (?, ?)"
        " AND NOT EXISTS (SELECT 1 FROM queue q WHERE q.kind = 1 AND q.session = c.session AND q.counter = c.counter)"
        " ORDER BY c.session, c.counter LIMIT ?",
        *(one.group.id, one.missing, after.session, after.counter, limit),
    )
    return [placed for row in rows if (placed := chunkrows.placed_of(reader, ChunkId(*row)))]


def _mask(group: Group, drives: Iterable[bytes]) -> int:
    return sum(1 << index for index, drive in enumerate(group.drives) if drive in set(drives))
