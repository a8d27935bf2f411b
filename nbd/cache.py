"""Bytes of chunks kept in memory, so that a read that hits needs no event loop. Least recently used goes first.

Two kinds of entries: granules of 64 KiB that were read, and whole chunks that were just written. Chunks never change,
so there is nothing to invalidate; numbers that are gone just age. Not locked: the owner does.
"""

from __future__ import annotations

GRANULE = 64 * 1024
GRANULE_SHIFT = 16


class ChunkCache:
    """At most `limit_bytes` of chunk data by chunk number."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self._entries: dict[int, memoryview] = {}  # number << 16 | granule, or -number for a whole chunk

    def find(self, number: int, offset: int) -> tuple[memoryview, int] | None:
        """The entry that holds byte `offset` of the chunk, and where in the chunk that entry begins."""
        entries = self._entries
        key = number << 16 | offset >> GRANULE_SHIFT
        view = entries.pop(key, None)
        if view is not None:
            entries[key] = view
            return view, offset >> GRANULE_SHIFT << GRANULE_SHIFT
        view = entries.pop(-number, None)
        if view is None:
            return None
        entries[-number] = view
        return (view, 0) if offset < len(view) else None

    def add_granule(self, number: int, granule: int, data: memoryview) -> None:
        self._add(number << 16 | granule, data)

    def add_whole(self, number: int, data: memoryview) -> None:
        self._add(-number, data)

    def _add(self, key: int, data: memoryview) -> None:
        entries = self._entries
        old = entries.pop(key, None)
        self.size_bytes += len(data) - (len(old) if old is not None else 0)
        entries[key] = data
        while self.size_bytes > self.limit_bytes and len(entries) > 1:
            oldest = next(iter(entries))
            self.size_bytes -= len(entries.pop(oldest))
