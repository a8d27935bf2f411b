"""Which blocks of which shards hold a byte range of a chunk. Pure.

The block ranges of neighbouring shards join in chunk order (inner shards are read whole), so one buffer of `size`
bytes that begins at chunk offset `base` takes them all, and the asked-for bytes are one slice of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from trivium.cluster.erasure import shard_size
from trivium.cluster.model import BLOCK


@dataclass(frozen=True, slots=True)
class Blocks:
    """A block-aligned byte range [start, end) of a shard; the end may be the shard's own."""

    start: int
    end: int

    @property
    def first(self) -> int:
        return self.start // BLOCK

    @property
    def count(self) -> int:
        return -(-(self.end - self.start) // BLOCK)

    @property
    def size(self) -> int:
        return self.end - self.start

    def covers(self, other: Blocks) -> bool:
        return self.start <= other.start and other.end <= self.end

    def union(self, other: Blocks) -> Blocks:
        return Blocks(min(self.start, other.start), max(self.end, other.end))

    def cut(self, data: memoryview, inner: Blocks) -> memoryview:
        """`inner`'s bytes out of this range's `data`."""
        return data[inner.start - self.start : inner.end - self.start]


@dataclass(frozen=True, slots=True)
class Plan:
    """How to read chunk bytes [offset, offset + length)."""

    offset: int
    length: int
    shard_size: int
    base: int
    size: int
    shards: dict[int, Blocks]  # data shard -> its blocks

    def at(self, index: int) -> int:
        """Where shard `index`'s blocks go in the buffer."""
        return index * self.shard_size + self.shards[index].start - self.base

    def result(self, buffer: memoryview) -> memoryview:
        return buffer[self.offset - self.base : self.offset - self.base + self.length]


def plan(offset: int, length: int, chunk_length: int, k: int) -> Plan:
    """`length` > 0, within the chunk."""
    size = shard_size(chunk_length, k)
    first, last = offset // size, (offset + length - 1) // size
    shards: dict[int, Blocks] = {}
    for index in range(first, last + 1):
        start = (offset - index * size) // BLOCK * BLOCK if index == first else 0
        end = -(-(offset + length - index * size) // BLOCK) * BLOCK if index == last else size
        shards[index] = Blocks(start, min(end, size))
    base = first * size + shards[first].start
    return Plan(offset, length, size, base, last * size + shards[last].end - base, shards)
