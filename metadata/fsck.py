"""Proves the invariants of the rows, and says what it would repair. Changes nothing.

`check(reader)` is the whole check of one snapshot; it answers findings, none of which a sound database has.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from trivium.metadata import memberrows, namespace
from trivium.metadata.chunkrows import split_drives
from trivium.metadata.finding import Finding
from trivium.metadata.messages import INLINE_MAX, ROOT_INO
from trivium.metadata.schema import CHUNK_COLUMNS
from trivium.metadata.volumes import decode_chain

if TYPE_CHECKING:
    from trivium.metadata.tx import Reader


def check(reader: Reader) -> list[Finding]:
    return [
        *names(reader),
        *inode_rows(reader),
        *contents(reader),
        *chunks(reader),
        *volumes(reader),
        *memberrows.check(reader),
    ]


# ---- names --------------------------------------------------------------------------------------------------------


def names(reader: Reader) -> Iterator[Finding]:
    rows = reader.all(
        "SELECT d.parent, d.sort_name, d.ino, d.hidden, i.mode, p.mode FROM dirents d"
        " LEFT JOIN inodes i ON i.ino = d.ino LEFT JOIN inodes p ON p.ino = d.parent"
    )
    for parent, name, ino, hidden, mode, parent_mode in rows:
        where = f"{name!r} in directory {parent}"
        if mode is None:
            yield Finding("names", f"{where} names inode {ino}, which is not there", "remove the entry")
            continue
        if parent_mode is None or not stat.S_ISDIR(parent_mode):
            yield Finding("names", f"{where}: its directory is not there", "move it to lost+found")
        is_dir = stat.S_ISDIR(mode)
        legal = namespace.is_component(name[:-1] if is_dir else name)
        if (is_dir and (not name.endswith(b"/") or not legal)) or hidden != int(not is_dir and not legal):
            yield Finding("names", f"{where} is marked wrongly", "mark it by its name")
        if hidden:
            yield from _hidden(reader, parent, name)
    yield from _tree(reader)


def _hidden(reader: Reader, parent: int, name: bytes) -> Iterator[Finding]:
    first, slash, _ = name.partition(b"/")
    if slash and namespace.find_dir(reader, parent, first):
        yield Finding("names", f"{name!r} in directory {parent} stands beside the directory {first!r}", "move it there")
    elif namespace.could_be_path(name) and namespace.find_plain(reader, parent, first) is None:
        many = (
            "SELECT count(*) FROM (SELECT 1 FROM dirents WHERE parent = ? AND sort_name > ? AND sort_name < ? LIMIT ?)"
        )
        count = reader.one(many, parent, first + b"/", first + b"0", namespace.MOVE_LIMIT + 1)
        if count is not None and count[0] <= namespace.MOVE_LIMIT // 2:
            yield Finding("names", f"{name!r} in directory {parent} is hidden, nothing is in its way", "show it")


def _tree(reader: Reader) -> Iterator[Finding]:
    above = {
        ino: (parent, nlink)
        for ino, parent, nlink in reader.all("SELECT ino, parent, nlink FROM inodes WHERE mode & 61440 = 16384")
    }
    named = reader.all(
        "SELECT d.ino, d.parent FROM dirents d JOIN inodes i ON i.ino = d.ino WHERE mode & 61440 = 16384"
    )
    below: dict[int, list[int]] = {}
    for ino, parent in named:
        below.setdefault(parent, []).append(ino)
        if above[ino][0] != parent:
            yield Finding(
                "names", f"directory {ino} is in {parent}, says it is in {above[ino][0]}", "believe the entry"
            )
    for ino, (_, nlink) in above.items():
        expected = 2 + len(below.get(ino, ()))
        if nlink not in (0, expected):
            yield Finding("inodes", f"directory {ino} has {nlink} links, should have {expected}", "set it")
    reached, todo = {ROOT_INO}, [ROOT_INO]
    while todo:
        for ino in below.get(todo.pop(), ()):
            if ino in reached:
                yield Finding("names", f"directory {ino} has two names", "keep the one that its row says")
                continue
            reached.add(ino)
            todo.append(ino)
    for ino, (_, nlink) in above.items():
        if nlink and ino not in reached:
            yield Finding("names", f"directory {ino} cannot be reached from the root", "move it to lost+found")


# ---- inodes -------------------------------------------------------------------------------------------------------


def _rows(reader: Reader, area: str, repair: str, text: str, sql: str) -> Iterator[Finding]:
    """A finding for each row that the query answers."""
    for row in reader.all(sql):
        yield Finding(area, text.format(*row), repair)


def inode_rows(reader: Reader) -> Iterator[Finding]:
    yield from _rows(
        *(reader, "inodes", "set it to what is found", "inode {0} has {1} links, {2} names lead to it"),
        "SELECT i.ino, i.nlink, count(d.ino) FROM inodes i LEFT JOIN dirents d ON d.ino = i.ino"
        " WHERE i.mode & 61440 != 16384 GROUP BY i.ino HAVING i.nlink != count(d.ino)",
    )
    yield from _rows(
        *(reader, "inodes", "remove it", "inode {0} has neither a name nor a holder"),
        "SELECT ino FROM inodes WHERE nlink = 0 AND ino NOT IN (SELECT ino FROM held)",
    )
    for table in ("xattrs", "objects", "buckets", "bucket_config", "held"):
        yield from _rows(
            *(reader, "inodes", "remove the row", f"a row of {table} names inode {{0}}, which is not there"),
            f"SELECT ino FROM {table} WHERE ino NOT IN (SELECT ino FROM inodes)",
        )


# ---- contents -----------------------------------------------------------------------------------------------------


def contents(reader: Reader) -> Iterator[Finding]:
    yield from _rows(
        *(reader, "contents", "doom it", "content {0} has extents and nothing names it"),
        "SELECT DISTINCT content FROM extents WHERE content NOT IN (SELECT content FROM inodes) AND content NOT IN"
        " (SELECT content FROM uploads) AND content NOT IN (SELECT content FROM doomed)",
    )
    yield from _rows(
        *(reader, "contents", "ask the operator", "extents of content {0} part {1} overlap at {2}"),
        "SELECT content, part, offset FROM (SELECT content, part, offset, lag(offset + length) OVER"
        " (PARTITION BY content, part ORDER BY offset) AS before FROM extents) WHERE before > offset",
    )
    yield from _rows(
        *(reader, "contents", "ask the operator", "extent {2} of content {0} part {1} has an impossible size or place"),
        "SELECT content, part, offset FROM extents WHERE length <= 0 OR offset < 0 OR (blob = 0) = (session = 0)"
        f" OR (blob != 0 AND length > {INLINE_MAX})",
    )
    yield from _beyond(reader)
    yield from _used(reader)
    yield from _blobs(reader)
    yield from _parts(reader)


def _beyond(reader: Reader) -> Iterator[Finding]:
    yield from _rows(
        *(reader, "contents", "cut them", "inode {0} has extents beyond its size"),
        "SELECT i.ino FROM inodes i WHERE i.content != 0 AND i.cut < 0 AND EXISTS (SELECT 1 FROM extents e WHERE"
        " e.content = i.content AND e.part = 0 AND e.offset + e.length > i.size)",
    )
    yield from _rows(
        *(reader, "contents", "cut them", "part {1} of content {0} has extents beyond its length"),
        "SELECT p.content, p.part FROM parts p WHERE EXISTS (SELECT 1 FROM extents e WHERE e.content = p.content"
        " AND e.part = p.part AND e.offset + e.length > p.length)"
        " AND NOT EXISTS (SELECT 1 FROM inodes i WHERE i.content = p.content AND i.cut >= 0)",
    )


def _used(reader: Reader) -> Iterator[Finding]:
    yield from _rows(
        *(reader, "contents", "set it to what is found", "inode {0} uses {1} bytes, its extents cover {2}"),
        "SELECT ino, used, covered FROM (SELECT i.ino, i.used, (SELECT coalesce(sum(e.length), 0) FROM extents e"
        " WHERE e.content = i.content AND (e.part = 0 OR EXISTS (SELECT 1 FROM parts p WHERE p.content = e.content"
        " AND p.part = e.part))) AS covered FROM inodes i WHERE i.mode & 61440 = 32768 AND i.cut < 0)"
        " WHERE used != covered",
    )


def _blobs(reader: Reader) -> Iterator[Finding]:
    yield from _rows(
        *(reader, "contents", "remove it", "blob {0} is in no extent"),
        "SELECT id FROM blobs WHERE id NOT IN (SELECT blob FROM extents WHERE blob != 0)",
    )
    yield from _rows(
        *(reader, "contents", "ask the operator", "an extent of content {0} reaches beyond blob {1}, or it is gone"),
        "SELECT e.content, e.blob FROM extents e LEFT JOIN blobs b ON b.id = e.blob WHERE e.blob != 0"
        " AND (b.id IS NULL OR e.ref_offset + e.length > length(b.data))",
    )
    yield from _rows(
        *(reader, "contents", "count again", "content {0} is said to have {1} inline extents of {2} bytes"),
        "SELECT c.content, c.inline_count, c.inline_bytes FROM contents c WHERE (c.inline_count, c.inline_bytes) !="
        " (SELECT count(*), coalesce(sum(length), 0) FROM extents e WHERE e.content = c.content AND e.blob != 0)"
        " OR c.inline_count <= 0",
    )


def _parts(reader: Reader) -> Iterator[Finding]:
    """The parts of an object cover it without gaps."""
    rows = reader.all(
        "SELECT i.ino, i.size, p.start, p.length FROM inodes i JOIN parts p ON p.content = i.content"
        " WHERE i.content != 0 AND i.cut < 0 ORDER BY i.ino, p.start, p.length"
    )
    ends: dict[int, tuple[int, int]] = {}
    for ino, size, start, length in rows:
        expected = ends.get(ino, (0, size))[0]
        if start != expected:
            yield Finding("contents", f"a part of inode {ino} begins at {start}, not {expected}", "ask the operator")
        ends[ino] = (start + length, size)
    for ino, (end, size) in ends.items():
        if end != size:
            yield Finding(
                "contents", f"the parts of inode {ino} end at {end}, it has {size} bytes", "fit the last part"
            )


# ---- chunks and volumes ---------------------------------------------------------------------------------------------


def chunks(reader: Reader) -> Iterator[Finding]:
    for table, session, counter in CHUNK_COLUMNS:
        yield from _rows(
            *(reader, "chunks", "look for its shards on every drive", f"{table} names chunk {{0:x}}/{{1:x}}: no row"),
            f"SELECT DISTINCT {session}, {counter} FROM {table} t WHERE {session} != 0 AND NOT EXISTS"
            f" (SELECT 1 FROM chunks c WHERE c.session = t.{session} AND c.counter = t.{counter})",
        )
    yield from _rows(
        *(reader, "chunks", "ask the operator", "an extent of content {0} reaches beyond chunk {1:x}/{2:x}"),
        "SELECT e.content, e.session, e.counter FROM extents e JOIN chunks c ON c.session = e.session AND"
        " c.counter = e.counter WHERE e.session != 0 AND e.ref_offset + e.length > c.length",
    )
    yield from _rows(
        *(reader, "chunks", "remove the queue's row", "chunk {0:x}/{1:x} has a row and is queued for deletion"),
        "SELECT q.session, q.counter FROM queue q JOIN chunks c ON c.session = q.session AND c.counter = q.counter"
        " WHERE q.kind = 1",
    )
    yield from _rows(
        *(reader, "chunks", "ask the operator", "chunk {0:x}/{1:x} is in group {2}, which has no row"),
        "SELECT session, counter, group_id FROM chunks WHERE group_id NOT IN (SELECT id FROM groups)",
    )
    known = {row[0] for row in reader.all("SELECT id FROM drives")}
    for group, k, m, drives in reader.all("SELECT id, k, m, drives FROM groups"):
        ids = split_drives(drives)
        if len(ids) != k + m or len(set(ids)) != len(ids):
            yield Finding("chunks", f"group {group} does not name {k}+{m} different drives", "ask the operator")
        elif not known.issuperset(ids):
            yield Finding("chunks", f"group {group} names a drive that has no row", "ask the operator")


def volumes(reader: Reader) -> Iterator[Finding]:
    for name, log in reader.all("SELECT name, log FROM volumes"):
        chain = decode_chain(log)
        for before, after in pairwise(chain):
            if before.last_seq is None or before.last_seq + 1 != after.first_seq:
                yield Finding("volumes", f"the log's chain of volume {name} has a gap", "ask the operator")
    yield from _rows(
        *(reader, "volumes", "keep the newer", "two volumes have the name {0}"),
        "SELECT name FROM volumes WHERE name != '' GROUP BY name HAVING count(*) > 1",
    )
    for table in ("volume_chunks", "snapshots"):
        yield from _rows(
            *(reader, "volumes", "remove them", f"rows of {table} name volume {{0}}, which is not there"),
            f"SELECT DISTINCT volume FROM {table} WHERE volume NOT IN (SELECT id FROM volumes)",
        )
