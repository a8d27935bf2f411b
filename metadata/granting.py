"""Where answers carry leases: which inodes an answer is about, and setting or clearing its lease fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from trivium.metadata.messages import Attr, Create, DirPage, Entry, GetAttr, Lookup, ReadDir, Stat

READ = 1
replace = msgspec.structs.replace


def wanted(query: Any) -> bool:
    """Whether the query asks for leases."""
    return bool(getattr(query, "lease", 0))


def made(operations: Sequence[Any]) -> int | None:
    """The place in a call of a Create that asks for a lease and whose answer nothing after it outdates."""
    for index, operation in enumerate(operations):
        if isinstance(operation, Create) and operation.lease:
            return index if all(isinstance(later, Stat) for later in operations[index + 1 :]) else None
    return None


def inodes(query: Any, value: Any) -> list[int]:
    """Inodes that the answer could be leased on."""
    if isinstance(query, Lookup):
        return [query.parent] if value.attr is None else [query.parent, value.attr.ino]
    if isinstance(query, GetAttr):
        return [value.ino]
    if isinstance(query, Create) and value.attr is not None:
        return [value.attr.ino]
    if isinstance(query, ReadDir):
        return [query.ino, *(entry.attr.ino for entry in value.entries)]
    return []


def mark(query: Any, value: Any, leased: Callable[[int], bool]) -> Any:
    """The answer with its lease fields set for the inodes that are `leased`."""

    def attr_of(attr: Attr) -> Attr:
        return replace(attr, lease=READ if leased(attr.ino) else 0)

    if isinstance(value, Entry) and isinstance(query, Lookup):
        attr = None if value.attr is None else attr_of(value.attr)
        return replace(value, attr=attr, lease=READ if leased(query.parent) else 0)
    if isinstance(value, Entry) and isinstance(query, Create) and value.attr is not None:
        return replace(value, attr=attr_of(value.attr))
    if isinstance(value, Attr):
        return attr_of(value)
    if isinstance(value, DirPage) and isinstance(query, ReadDir):
        entries = tuple(replace(entry, attr=attr_of(entry.attr)) for entry in value.entries)
        return replace(value, entries=entries, lease=READ if leased(query.ino) else 0)
    return value


def strip(query: Any, value: Any, recalled: set[int]) -> Any:
    """The answer without leases on inodes that were recalled while it travelled."""
    before = dict.fromkeys(inodes(query, value), False)
    if isinstance(value, Attr):
        before[value.ino] = bool(value.lease)
    elif isinstance(value, Entry) and isinstance(query, Create) and value.attr is not None:
        before[value.attr.ino] = bool(value.attr.lease)
    elif isinstance(value, Entry) and isinstance(query, Lookup):
        before[query.parent] = bool(value.lease)
        if value.attr is not None:
            before[value.attr.ino] = bool(value.attr.lease)
    elif isinstance(value, DirPage) and isinstance(query, ReadDir):
        before.update({entry.attr.ino: bool(entry.attr.lease) for entry in value.entries})
        before[query.ino] = bool(value.lease)
    return mark(query, value, lambda ino: before.get(ino, False) and ino not in recalled)
