"""Listing a bucket: a walk over the rows of `dirents` in UTF-8 byte order of the keys that can seek.

A listed key is a regular file with a UTF-8 path, a hidden row, or an explicit directory (`dir/`; its own row with the
empty name stands for it when there is one). Implied directories, links, special files and names that are not UTF-8
are no keys. The cost of a page is its entries plus one seek (a look-up per path component) for each common prefix
that does not end in a row already read: what lies under a prefix is never scanned.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from trivium.metadata import inodes, namespace
from trivium.metadata.bucketnames import need_bucket
from trivium.metadata.messages import Listing, ListObjects, ObjectInfo
from trivium.metadata.objectrows import Stat, info_of

if TYPE_CHECKING:
    from trivium.metadata.tx import Reader

LIST_MAX = 1000
FIRST_BATCH, LARGEST_BATCH = 16, 512

_ROWS = (
    "SELECT d.sort_name, d.hidden, i.ino, i.mode, i.size, i.version, i.mtime, i.explicit, o.etag, o.owner, o.meta"
    " FROM dirents d JOIN inodes i ON i.ino = d.ino LEFT JOIN objects o ON o.ino = d.ino"
    " WHERE d.parent = ? AND d.sort_name >= ? ORDER BY d.sort_name LIMIT ?"
)


class Item(NamedTuple):
    """A row of a directory with its inode and object."""

    sort_name: bytes
    hidden: int
    stat: Stat

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.stat.mode)


@dataclass(slots=True)
class Frame:
    """A directory on the way down: rows from `start` on are still to come."""

    reader: Reader
    ino: int
    path: bytes
    start: bytes = b""
    rows: list[Item] = field(default_factory=list)
    index: int = 0
    batch: int = FIRST_BATCH
    at_end: bool = False

    def peek(self) -> Item | None:
        if self.index == len(self.rows) and not self.at_end:
            found = self.reader.all(_ROWS, self.ino, self.start, self.batch)
            self.rows = [Item(row[0], row[1], Stat(*row[2:])) for row in found]
            self.index = 0
            self.at_end = len(found) < self.batch
            self.batch = min(2 * self.batch, LARGEST_BATCH)
            if found:
                self.start = found[-1][0] + b"\0"
        return self.rows[self.index] if self.index < len(self.rows) else None

    def skip_to(self, name: bytes) -> None:
        """Forward to the first row at or after the name."""
        while self.index < len(self.rows) and self.rows[self.index].sort_name < name:
            self.index += 1
        if self.index == len(self.rows):
            self.start = max(self.start, name)


class Walk:
    """Keys of a bucket at or after a start, in order."""

    def __init__(self, reader: Reader, bucket: int, start: bytes) -> None:
        self._reader = reader
        self._stack = [Frame(reader, bucket, b"")]
        self._own: tuple[bytes, Item] | None = None  # a directory's own key, due before its rows
        self.seek(start)

    def seek(self, target: bytes) -> None:
        """Go forward: the next entry is the first at or after the key."""
        if self._own is not None and self._own[0] < target:
            self._own = None
        stack = self._stack
        while len(stack) > 1 and not target.startswith(stack[-1].path):
            stack.pop()
        while True:
            frame = stack[-1]
            rest = target[len(frame.path) :]
            slash = rest.find(b"/")
            name = rest[: slash + 1]
            frame.skip_to(name if slash >= 0 else rest)
            item = frame.peek() if slash >= 0 else None
            if item is None or item.sort_name != name or not item.is_dir:
                frame.skip_to(rest)
                return
            self._enter(item)
            if target != stack[-1].path:
                self._own = None

    def _enter(self, item: Item) -> None:
        frame = self._stack[-1]
        frame.index += 1
        path = frame.path + item.sort_name
        below = Frame(self._reader, item.stat.ino, path)
        self._stack.append(below)
        first = below.peek()
        if item.stat.explicit and (first is None or first.sort_name):
            self._own = (path, item)

    def next(self) -> tuple[bytes, Item] | None:
        while True:
            if self._own is not None:
                own, self._own = self._own, None
                return own
            frame = self._stack[-1]
            item = frame.peek()
            if item is None:
                if len(self._stack) == 1:
                    return None
                self._stack.pop()
            elif not is_utf8(item.sort_name):
                frame.index += 1
            elif item.is_dir:
                self._enter(item)
            else:
                frame.index += 1
                if stat.S_ISREG(item.stat.mode):
                    return frame.path + item.sort_name, item

    def entries(self) -> Iterator[tuple[bytes, Item]]:
        while (found := self.next()) is not None:
            yield found


def is_utf8(name: bytes) -> bool:
    if name.isascii():
        return True
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def past(prefix: bytes) -> bytes | None:
    """The first key after all that begin with the prefix; None when there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else None


def common_prefix(key: bytes, prefix: bytes, delimiter: bytes) -> bytes:
    """The common prefix that the key rolls up into, empty when it is listed itself."""
    at = key.find(delimiter, len(prefix)) if delimiter else -1
    return key[: at + len(delimiter)] if at >= 0 else b""


def start_of(prefix: bytes, delimiter: bytes, after: bytes) -> bytes | None:
    """Where a page begins; None when nothing is left."""
    if not after or after < prefix:
        return prefix
    if after.startswith(prefix) and common_prefix(after, prefix, delimiter) == after:
        return past(after)
    return after + b"\0"


def list_objects(reader: Reader, query: ListObjects) -> Listing:
    bucket = need_bucket(reader, query.bucket)
    limit = min(query.limit, LIST_MAX)
    start = start_of(query.prefix, query.delimiter, query.after)
    entries: list[ObjectInfo] = []
    prefixes: list[bytes] = []
    last = b""
    walk = Walk(reader, bucket, start) if start is not None and limit > 0 else None
    while walk is not None:
        found = walk.next()
        if found is None or not found[0].startswith(query.prefix):
            break
        if len(entries) + len(prefixes) == limit:
            return Listing(tuple(entries), tuple(prefixes), True, last)
        key, item = found
        last = common_prefix(key, query.prefix, query.delimiter)
        if not last:
            last = key
            entries.append(info_of(key, item.stat))
            continue
        prefixes.append(last)
        beyond = past(last)
        if beyond is None:
            break
        walk.seek(beyond)
    return Listing(tuple(entries), tuple(prefixes), False)


def unlisted(reader: Reader, directory: int, limit: int, path: bytes = b"") -> list[bytes]:
    """Paths of up to `limit` entries below a directory that are no directories (a bucket without any key)."""
    found: list[bytes] = []
    rows = reader.all(
        "SELECT sort_name, ino FROM dirents WHERE parent = ? ORDER BY sort_name LIMIT ?", directory, 10 * limit
    )
    for sort_name, ino in rows:
        if len(found) >= limit:
            break
        inode = inodes.load(reader, ino)
        if inode is not None and inode.is_dir:
            below = unlisted(reader, ino, limit - len(found), path + sort_name)
            found += below or ([path + sort_name] if namespace.is_empty(reader, ino) else [])
        else:
            found.append(path + sort_name)
    return found
