"""Reads verified block ranges of single shards: from a local descriptor where drives are on this host, else by message.

Invariants
1. Bytes are returned only after every block verified against a header that itself verified and that is of the
   wanted cluster, chunk, nonce, index and profile.
2. A descriptor is closed when the last reader and the cache have let go of it, never before: its number cannot be
   another file's while somebody reads.
3. An entry is dropped as soon as something does not verify; a remote header that was cached is asked for again
   before the shard is called corrupt (it may have been placed anew under a later plan).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import trio

from trivium.cluster.clock import Executor
from trivium.cluster.drivepace import DrivePaces
from trivium.cluster.erasure import shard_size
from trivium.cluster.errors import ClusterError, Corrupt, DriveFailed, Unavailable
from trivium.cluster.latency import Latencies
from trivium.cluster.model import BLOCK, SHARD_ALIGN, Placed
from trivium.cluster.nodes import Nodes
from trivium.cluster.ranges import Blocks, Plan
from trivium.cluster.shardfile import ShardHeader, block_count, header_extent, parse_header, verify_blocks
from trivium.cluster.wire import OpenShard, ReadShard, ShardData

CAPACITY = 768  # cached shards; each local one holds a descriptor
IDLE_S = 30.0  # a cached descriptor keeps a deleted shard's space that long at most
INLINE_BYTES = 64 * 1024  # cached reads up to this size are not worth a thread

Key = tuple[bytes, int, int, int]  # drive, session, counter, index


class Descriptor:
    """An open shard file; closes itself with its last reference."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


@dataclass(slots=True)
class OpenedShard:
    header: ShardHeader
    descriptor: Descriptor | None  # None: read by message
    used: float = 0.0


@dataclass(frozen=True, slots=True)
class AtHand:
    """A chunk's data shards that are open here: a thread may read them by itself. Descriptors close with their last
    reference."""

    shard_size: int
    shards: dict[int, OpenedShard]


def check_identity(header: ShardHeader, placed: Placed, index: int, cluster: bytes) -> None:
    """Raise Corrupt unless the header is of exactly this shard of exactly this put."""
    spec, group = header.spec, placed.group
    if (
        spec.cluster != cluster
        or spec.chunk != placed.chunk
        or spec.nonce != placed.nonce
        or header.index != index
        or (spec.k, spec.m, spec.data_length) != (group.k, group.m, placed.length)
    ):
        raise Corrupt(f"the file in the place of shard {index} of chunk {placed.chunk} is of another put")


class ShardReader:
    def __init__(self, nodes: Nodes, *, cluster: bytes, executor: Executor, capacity: int = CAPACITY) -> None:
        self._nodes = nodes
        self._cluster = cluster
        self._executor = executor
        self._capacity = capacity
        self._opened: OrderedDict[Key, OpenedShard] = OrderedDict()
        self.latencies = Latencies()
        self.paces = DrivePaces()

    # ---- what is open and in the page cache -----------------------------------------------------------------

    def opened(self, placed: Placed, index: int) -> OpenedShard | None:
        """The shard if its descriptor is at hand and of this put."""
        entry = self._opened.get(_key(placed.group.drives[index], placed, index))
        if entry is None or entry.descriptor is None or entry.header.spec.nonce != placed.nonce:
            return None
        return entry

    async def at_hand(self, placed: Placed) -> AtHand:
        """The chunk's data shards that this host has, opened, for readers of their own."""
        drives, k = placed.group.drives, placed.group.k

        async def open_one(index: int) -> None:
            with suppress(ClusterError, OSError):  # whoever reads it finds out, and says so
                entry = await self._open(drives[index], placed, index)
                if entry is not None:
                    self._remember(_key(drives[index], placed, index), entry)

        async with trio.open_nursery() as nursery:
            for index in range(k):
                here = self._nodes.is_local(drives[index]) and self._nodes.is_up(drives[index])
                if here and not placed.missing >> index & 1 and self.opened(placed, index) is None:
                    nursery.start_soon(open_one, index)
        found = ((index, self.opened(placed, index)) for index in range(k))
        shards = {index: entry for index, entry in found if entry is not None}
        return AtHand(shard_size(placed.length, k), shards)

    async def read_cached(self, placed: Placed, plan: Plan, buffer: memoryview) -> list[int]:
        """Fill in what open descriptors give without waiting for a disk. Returns the shards still to be read."""
        entries = {index: entry for index in plan.shards if (entry := self.opened(placed, index)) is not None}
        if not entries:
            return list(plan.shards)
        now = trio.current_time()
        for index, entry in entries.items():
            entry.used = now
            self._opened.move_to_end(_key(placed.group.drives[index], placed, index))
        if plan.size <= INLINE_BYTES:
            served = _read_now(entries, plan, buffer)
        else:
            served = await self._executor.run(_read_now, entries, plan, buffer)
        return [index for index in plan.shards if index not in served]

    # ---- one shard, from wherever ---------------------------------------------------------------------------

    async def read(self, drive: bytes, placed: Placed, index: int, blocks: Blocks) -> memoryview:
        """Verified bytes of `blocks`. Raises NotFound, Corrupt, Unavailable, DriveFailed."""
        began = trio.current_time()
        try:
            if self._nodes.is_local(drive):
                data = await self._read_local(drive, placed, index, blocks)
            else:
                data = await self._read_remote(drive, placed, index, blocks)
        except (Corrupt, DriveFailed):
            self.paces.error(drive, trio.current_time())
            raise
        now = trio.current_time()
        self.latencies.add(now - began)
        self.paces.add(drive, now - began, now)
        return data

    async def read_file(self, drive: bytes, placed: Placed, index: int) -> tuple[ShardHeader, memoryview]:
        """A whole shard, verified: its header and its body. By message, nothing cached (healing reads once)."""
        size = shard_size(placed.length, placed.group.k)
        reply = await self._nodes.call(drive, ReadShard(drive, placed.chunk, index, 0, block_count(size), True))
        if not isinstance(reply.answer, ShardData):
            raise Unavailable("a node gave an answer of the wrong kind to a read")
        payload, length = memoryview(reply.payload), reply.answer.header_length
        header = await self._executor.run(parse_header, payload[:length])
        check_identity(header, placed, index, self._cluster)
        body = payload[length:]
        await self._executor.run(_verify, header, Blocks(0, header.spec.shard_size), body)
        return header, body

    def forget(self, drive: bytes, placed: Placed, index: int) -> None:
        self._opened.pop(_key(drive, placed, index), None)

    def sweep(self) -> None:
        """Let go of what nobody has read for a while."""
        oldest = trio.current_time() - IDLE_S
        while self._opened and next(iter(self._opened.values())).used < oldest:
            self._opened.popitem(last=False)

    def close(self) -> None:
        self._opened.clear()

    async def _read_local(self, drive: bytes, placed: Placed, index: int, blocks: Blocks) -> memoryview:
        key = _key(drive, placed, index)
        entry = self._opened.get(key)
        try:
            if entry is None or entry.descriptor is None or entry.header.spec.nonce != placed.nonce:
                entry = await self._open(drive, placed, index)
                if entry is None:
                    return await self._read_remote(drive, placed, index, blocks)
                self._remember(key, entry)
            return await self._executor.run(_read_whole, entry, blocks)
        except (ClusterError, OSError) as error:
            self._opened.pop(key, None)
            if isinstance(error, OSError):  # an unreadable sector is as bad as a wrong one
                raise Corrupt(f"shard {index} of chunk {placed.chunk} cannot be read: {error}") from error
            raise

    async def _open(self, drive: bytes, placed: Placed, index: int) -> OpenedShard | None:
        reply = await self._nodes.call(drive, OpenShard(drive, placed.chunk, index))
        if not reply.fds:
            return None
        descriptor, *rest = map(Descriptor, reply.fds)
        del rest
        header = await self._executor.run(_read_header, descriptor)
        check_identity(header, placed, index, self._cluster)
        return OpenedShard(header, descriptor)

    async def _read_remote(self, drive: bytes, placed: Placed, index: int, blocks: Blocks) -> memoryview:
        key = _key(drive, placed, index)
        entry = self._opened.get(key)
        if entry is not None and entry.header.spec.nonce == placed.nonce:
            try:
                reply = await self._ask(drive, placed, index, blocks, with_header=False)
                _verify(entry.header, blocks, reply[1])
                self._remember(key, entry)
                return reply[1]
            except Corrupt:  # perhaps only placed anew: its header tells
                self._opened.pop(key, None)
        length, payload = await self._ask(drive, placed, index, blocks, with_header=True)
        header = parse_header(payload[:length])
        check_identity(header, placed, index, self._cluster)
        data = payload[length:]
        _verify(header, blocks, data)
        self._remember(key, OpenedShard(header, None))
        return data

    async def _ask(
        self, drive: bytes, placed: Placed, index: int, blocks: Blocks, *, with_header: bool
    ) -> tuple[int, memoryview]:
        request = ReadShard(drive, placed.chunk, index, blocks.first, blocks.count, with_header)
        reply = await self._nodes.call(drive, request)
        if not isinstance(reply.answer, ShardData):
            raise Unavailable("a node gave an answer of the wrong kind to a read")
        return reply.answer.header_length, memoryview(reply.payload)

    def _remember(self, key: Key, entry: OpenedShard) -> None:
        entry.used = trio.current_time()
        self._opened[key] = entry
        self._opened.move_to_end(key)
        while len(self._opened) > self._capacity:
            self._opened.popitem(last=False)
        self.sweep()


def _key(drive: bytes, placed: Placed, index: int) -> Key:
    return drive, placed.chunk.session, placed.chunk.counter, index


def _verify(header: ShardHeader, blocks: Blocks, data: memoryview) -> None:
    if len(data) != blocks.size:
        raise Corrupt(f"shard {header.index} of chunk {header.spec.chunk} is cut short")
    verify_blocks(header, blocks.first, data)


# ---- blocking parts, run in a thread ------------------------------------------------------------------------


def _read_now(entries: Mapping[int, OpenedShard], plan: Plan, buffer: memoryview) -> set[int]:
    """Read from the page cache alone, straight into the buffer; whatever is not there or not right is left out."""
    served = set()
    for index, entry in entries.items():
        assert entry.descriptor is not None
        blocks, at = plan.shards[index], plan.at(index)
        target = buffer[at : at + blocks.size]
        try:
            count = os.preadv(entry.descriptor.fd, [target], entry.header.data_offset + blocks.start, os.RWF_NOWAIT)
            if count == blocks.size:
                verify_blocks(entry.header, blocks.first, target)
                served.add(index)
        except (OSError, Corrupt):
            continue
    return served


def _read_whole(entry: OpenedShard, blocks: Blocks) -> memoryview:
    assert entry.descriptor is not None
    data = memoryview(bytearray(blocks.size))
    _pread_full(entry.descriptor.fd, data, entry.header.data_offset + blocks.start)
    _verify(entry.header, blocks, data)
    return data


def _pread_full(fd: int, target: memoryview, offset: int) -> None:
    while target:
        count = os.preadv(fd, [target], offset)
        if not count:
            raise Corrupt("a shard file is cut short")
        target, offset = target[count:], offset + count


def _read_header(descriptor: Descriptor) -> ShardHeader:
    start = os.pread(descriptor.fd, SHARD_ALIGN + BLOCK, 0)
    extent = header_extent(start)
    if extent > len(start):
        start += os.pread(descriptor.fd, extent - len(start), len(start))
    return parse_header(start)
