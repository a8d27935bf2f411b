"""Reads chunks on nbdkit's own threads: from descriptors of this host's data shards that the event loop has opened.

    opened by the event loop (a read that missed) --publish--> used --not used for IDLE_S--> let go

Invariants
1. A read answers True only when all of its bytes verified against headers of the very put that the chunk's row names;
   anything else (not here, not in the page cache, not right) answers False and the event loop serves it, with all that
   it knows about other shards, hedges and reports.
2. No read waits for a disk: a drive that hangs must not hold nbdkit's threads.
3. Chunks never change, so a descriptor of one that is gone still gives the right bytes; it is let go when unused.
4. A descriptor closes with its last reference, never under a reader.
"""

from __future__ import annotations

import os

from trivium.cluster.errors import Corrupt
from trivium.cluster.model import BLOCK
from trivium.cluster.shardfile import verify_blocks
from trivium.cluster.shardreader import AtHand, OpenedShard
from trivium.nbd.core import Miss

IDLE_S = 10.0  # between sweeps: what was not used between two is let go
SHARDS_MAX = 1024
SCRATCH_BLOCKS = 4  # reads of up to so many blocks go through a buffer of their own


class _Chunk:
    __slots__ = ("shard_size", "shards", "used")

    def __init__(self, shard_size: int, shards: dict[int, OpenedShard]) -> None:
        self.shard_size = shard_size
        self.shards = shards
        self.used = True


class DirectReader:
    """read() on any thread, the rest on the event loop."""

    def __init__(self, limit: int = SHARDS_MAX) -> None:
        self._limit = limit
        self._count = 0
        self._chunks: dict[int, _Chunk] = {}

    # ---- any thread -----------------------------------------------------------------------------------------

    def read(self, miss: Miss, out: memoryview) -> bool:
        """Fill the miss's part of the request's buffer. False: it may hold anything now."""
        at, number, inner, length = miss
        chunk = self._chunks.get(number)
        if chunk is None:
            return False
        chunk.used = True
        size, shards = chunk.shard_size, chunk.shards
        while length:
            index, start = divmod(inner, size)
            step = min(length, size - start)
            shard = shards.get(index)
            if shard is None or not read_now(shard, start, out[at : at + step]):
                return False
            at, inner, length = at + step, inner + step, length - step
        return True

    # ---- event loop -----------------------------------------------------------------------------------------

    def publish(self, number: int, found: AtHand) -> None:
        """These shards of the volume's chunk `number` may be read."""
        if number in self._chunks:
            self._forget(number)
        self._count += len(found.shards)
        self._chunks[number] = _Chunk(found.shard_size, found.shards)
        while self._chunks and (self._count > self._limit or len(self._chunks) > self._limit):
            self._evict()

    def knows(self, number: int) -> bool:
        """Whether the chunk was published already (perhaps without shards: none is on this host)."""
        return number in self._chunks

    def sweep(self) -> None:
        """Let go of what was not used since the last sweep."""
        for number, chunk in list(self._chunks.items()):
            if chunk.used:
                chunk.used = False
            else:
                self._forget(number)

    def _evict(self) -> None:
        """The oldest that was not used lately (each one is passed over once)."""
        number, chunk = next(iter(self._chunks.items()))
        if chunk.used:
            chunk.used = False
            del self._chunks[number]
            self._chunks[number] = chunk
        else:
            self._forget(number)

    def _forget(self, number: int) -> None:
        self._count -= len(self._chunks.pop(number).shards)


def read_now(shard: OpenedShard, start: int, target: memoryview) -> bool:
    """Verified bytes of a shard from the page cache. False when they are not there, or not right."""
    header = shard.header
    assert shard.descriptor is not None
    end = start + len(target)
    first = start // BLOCK
    begin = first * BLOCK
    stop = min(-(-end // BLOCK) * BLOCK, header.spec.shard_size)
    try:
        if stop - begin <= SCRATCH_BLOCKS * BLOCK:
            data = memoryview(bytearray(stop - begin))
            if not _read_verified(shard, begin, [data]):
                return False
            target[:] = data[start - begin : end - begin]
            return True
        # the blocks in the middle go straight to where they are wanted, those at the ends by way of buffers
        head = memoryview(bytearray(BLOCK if start > begin else 0))
        tail = memoryview(bytearray(stop - (end // BLOCK) * BLOCK if end < stop else 0))
        inner = len(target) - (begin + BLOCK - start if len(head) else 0) - (end % BLOCK if len(tail) else 0)
        at = len(target) - inner - (end % BLOCK if len(tail) else 0)
        if not _read_verified(shard, begin, [head, target[at : at + inner], tail]):
            return False
        if len(head):
            target[:at] = head[start - begin :]
        if len(tail):
            target[at + inner :] = tail[: end % BLOCK]
        return True
    except (OSError, Corrupt):
        return False


def _read_verified(shard: OpenedShard, begin: int, parts: list[memoryview]) -> bool:
    """Whole blocks from byte `begin` of the shard on, into parts of whole blocks (the last may be the shard's end)."""
    assert shard.descriptor is not None
    header = shard.header
    parts = [part for part in parts if len(part)]
    count = os.preadv(shard.descriptor.fd, parts, header.data_offset + begin, os.RWF_NOWAIT)
    if count != sum(map(len, parts)):
        return False
    block = begin // BLOCK
    for part in parts:
        verify_blocks(header, block, part)
        block += -(-len(part) // BLOCK)
    return True
