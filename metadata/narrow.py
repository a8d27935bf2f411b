"""Narrow chunks: written while drives were away, on fewer drives than their pool's profile says. Queries only.

They are whole in themselves (k' + m' shards, nothing missing), but survive less or take more space than was asked for;
status counts them as degraded until they are written anew. Chunks in the collector's queue have no rows any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from trivium.cluster.model import ChunkId, ChunkKind
from trivium.metadata.tx import Reader

_GROUPS = "SELECT g.id FROM groups g JOIN pools p ON p.id = g.pool WHERE g.k + g.m < p.k + p.m ORDER BY g.id"


class Narrow(NamedTuple):
    chunk: ChunkId
    kind: int
    length: int


class Tally(NamedTuple):
    """`volumes`: chunks among them that only the writer of their volume can write anew."""

    chunks: int
    size_bytes: int
    volumes: int


def groups(reader: Reader) -> list[int]:
    return [row[0] for row in reader.all(_GROUPS)]


def tally(reader: Reader) -> Tally:
    chunks = size = volumes = 0
    for number in groups(reader):
        for kind, count, length in reader.all(
            "SELECT kind, count(*), sum(length) FROM chunks WHERE group_id = ? GROUP BY kind", number
        ):
            chunks, size = chunks + count, size + length
            volumes += count if kind != ChunkKind.DATA else 0
    return Tally(chunks, size, volumes)


def page(reader: Reader, group: int, after: ChunkId, limit: int) -> list[Narrow]:
    """Chunks of file data in a narrow group, in key order after one."""
    rows = reader.all(
        "SELECT session, counter, kind, length FROM chunks WHERE group_id = ? AND (session, counter) > (?, ?)"
        " AND kind = ? ORDER BY session, counter LIMIT ?",
        *(group, after.session, after.counter, int(ChunkKind.DATA), limit),
    )
    return [Narrow(ChunkId(row[0], row[1]), row[2], row[3]) for row in rows]


def of_volume(reader: Reader, volume: int, limit: int) -> tuple[ChunkId, ...]:
    """Narrow chunks of a volume, its checkpoint's among them."""
    narrow = groups(reader)
    if not narrow:
        return ()
    marks = ",".join(map(str, narrow))
    rows = reader.all(
        "SELECT c.session, c.counter FROM volume_chunks v JOIN chunks c ON c.session = v.session AND"
        f" c.counter = v.counter WHERE v.volume = ?1 AND v.died = 0 AND c.group_id IN ({marks})"
        " UNION ALL SELECT c.session, c.counter FROM volumes v JOIN chunks c ON c.session = v.checkpoint_session"
        f" AND c.counter = v.checkpoint_counter WHERE v.id = ?1 AND c.group_id IN ({marks}) LIMIT ?2",
        *(volume, limit),
    )
    return tuple(ChunkId(*row) for row in rows)


def is_narrow(reader: Reader, numbers: Sequence[int]) -> bool:
    """Whether any of these groups is narrower than its pool's profile."""
    narrow = set(groups(reader))
    return any(number in narrow for number in numbers)
