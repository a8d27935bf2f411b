"""Loss beyond m, by name: which files, objects and volumes have bytes in chunks that cannot be read.

A chunk is *lost* when fewer than k of its shards are on drives that are in use; it is *away* when it would be readable
if the drives that do not answer came back. Everything else stays readable, and so does the rest of the same file.

Invariants:
1. Derived from rows alone, in one snapshot; nothing is changed.
2. A range that is named holds bytes of such a chunk; a byte of such a chunk that a name leads to is in a range.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from trivium.cluster.model import ChunkId
from trivium.metadata.chunkrows import GONE, split_drives
from trivium.metadata.messages import ROOT_INO

if TYPE_CHECKING:
    from trivium.metadata.tx import Reader

Range = tuple[int, int]  # offset, length


class Loss(NamedTuple):
    """A name and what of it cannot be read. `kind`: file, unnamed (open or being uploaded), volume."""

    kind: str
    name: str
    ranges: tuple[Range, ...]  # of a file; a volume's are found by its map
    chunks: tuple[ChunkId, ...]


class Lost(NamedTuple):
    lost: tuple[ChunkId, ...]
    away: tuple[ChunkId, ...]


def lost_chunks(reader: Reader, usable: frozenset[bytes]) -> Lost:
    """Chunks with fewer than k readable shards, as the rows and the drives that answer (`usable`) say."""
    gone = {row[0] for row in reader.all("SELECT id FROM drives WHERE reason IN (?, ?)", *GONE)}
    known = {row[0] for row in reader.all("SELECT id FROM drives")}
    lost: list[ChunkId] = []
    away: list[ChunkId] = []
    rows = reader.all(
        "SELECT DISTINCT g.id, g.k, g.drives, c.missing FROM chunks c JOIN groups g ON g.id = c.group_id"
    )
    for group, k, packed, missing in rows:
        there = [d for i, d in enumerate(split_drives(packed)) if not missing >> i & 1 and d in known - gone]
        if sum(drive in usable for drive in there) >= k:
            continue
        sql = "SELECT session, counter FROM chunks WHERE group_id = ? AND missing = ?"
        found = [ChunkId(*row) for row in reader.all(sql, group, missing)]
        (lost if len(there) < k else away).extend(found)
    return Lost(tuple(sorted(lost)), tuple(sorted(away)))


def affected(reader: Reader, chunks: Iterable[ChunkId]) -> list[Loss]:
    """What those chunks hold, by name."""
    contents: dict[int, list[tuple[int, int, ChunkId]]] = {}
    volumes: dict[int, list[ChunkId]] = {}
    for chunk in chunks:
        for content, part, offset, length in reader.all(_EXTENTS, chunk.session, chunk.counter):
            start = _start(reader, content, part)
            contents.setdefault(content, []).append((start + offset, length, chunk))
        for (volume,) in reader.all(_VOLUMES, chunk.session, chunk.counter):
            volumes.setdefault(volume, []).append(chunk)
    found = [loss for content, spans in contents.items() for loss in _of_content(reader, content, spans)]
    found += [Loss("volume", _volume(reader, volume), (), tuple(held)) for volume, held in volumes.items()]
    return sorted(found)


_EXTENTS = "SELECT content, part, offset, length FROM extents WHERE session = ? AND counter = ?"
_VOLUMES = (
    "SELECT volume FROM volume_chunks WHERE session = ?1 AND counter = ?2 AND died = 0"
    " UNION SELECT id FROM volumes WHERE checkpoint_session = ?1 AND checkpoint_counter = ?2"
    " UNION SELECT volume FROM snapshots WHERE checkpoint_session = ?1 AND checkpoint_counter = ?2"
)


def _start(reader: Reader, content: int, part: int) -> int:
    row = reader.one("SELECT start FROM parts WHERE content = ? AND part = ?", content, part)
    return max(0, row[0]) if row is not None else 0


def _of_content(reader: Reader, content: int, spans: list[tuple[int, int, ChunkId]]) -> list[Loss]:
    ranges = _merged([(offset, length) for offset, length, _ in spans])
    chunks = tuple(sorted({chunk for _, _, chunk in spans}))
    inodes = [row[0] for row in reader.all("SELECT ino FROM inodes WHERE content = ? AND content != 0", content)]
    names = [name for ino in inodes for name in paths(reader, ino)]
    if names:
        return [Loss("file", name, ranges, chunks) for name in names]
    what = f"inode {inodes[0]}" if inodes else _upload(reader, content)
    return [Loss("unnamed", what, ranges, chunks)]


def _upload(reader: Reader, content: int) -> str:
    row = reader.one("SELECT key FROM uploads WHERE content = ?", content)
    return f"content {content}" if row is None else f"an upload of {row[0].decode('utf-8', 'backslashreplace')}"


def _volume(reader: Reader, volume: int) -> str:
    row = reader.one("SELECT name FROM volumes WHERE id = ?", volume)
    return row[0] if row is not None and row[0] else f"number {volume}"


def _merged(ranges: list[Range]) -> tuple[Range, ...]:
    result: list[Range] = []
    for offset, length in sorted(ranges):
        if result and offset <= sum(result[-1]):
            first = result[-1][0]
            result[-1] = (first, max(sum(result[-1]), offset + length) - first)
        else:
            result.append((offset, length))
    return tuple(result)


def paths(reader: Reader, ino: int) -> list[str]:
    """Every name of an inode, from the root: /bucket/key."""
    found = []
    rows = reader.all("SELECT parent, sort_name FROM dirents WHERE ino = ? ORDER BY parent, sort_name", ino)
    for parent, name in rows:
        parts, seen = [name.decode("utf-8", "backslashreplace")], {ino}
        while parent != ROOT_INO and parent not in seen:
            seen.add(parent)
            row = reader.one("SELECT parent, sort_name FROM dirents WHERE ino = ?", parent)
            if row is None:
                parts.append(f"(directory {parent})/")
                break
            parts.append(row[1].decode("utf-8", "backslashreplace"))
            parent = row[0]
        found.append("/" + "".join(reversed(parts)))
    return found
