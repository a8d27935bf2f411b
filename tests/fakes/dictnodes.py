"""Nodes in memory: drives are dicts of shard files, with faults that tests switch on. Speaks cluster.wire's shards."""

from __future__ import annotations

import os
from collections.abc import Sequence

import trio

from trivium.cluster import shardfile
from trivium.cluster.errors import ClusterError, Corrupt, DriveFailed, Exists, NoSpace, NotFound, Refused, Unavailable
from trivium.cluster.model import BLOCK, ChunkId, ClusterMap
from trivium.cluster.nodes import NodeReply
from trivium.cluster.transport.interface import Buffer
from trivium.cluster.wire import (
    OK,
    DeleteShards,
    NodeAnswer,
    NodeRequest,
    OpenShard,
    Outcome,
    Outcomes,
    PutShard,
    PutShards,
    Quarantine,
    ReadShard,
    ShardData,
    VerifyShard,
)

Name = tuple[ChunkId, int]


class FakeDrive:
    def __init__(self) -> None:
        self.files: dict[Name, bytes] = {}
        self.quarantine: dict[Name, bytes] = {}
        self.hang = False  # neither answers nor fails
        self.failed = False
        self.full = False
        self.delay_s = 0.0
        self.reads = 0
        self.opened = 0
        self.puts = 0

    async def touch(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.hang:
            await trio.sleep_forever()
        if self.delay_s:
            await trio.sleep(self.delay_s)
        if self.failed:
            raise DriveFailed("the drive gave an I/O error")

    def get(self, name: Name) -> bytes:
        if name not in self.files:
            raise NotFound(f"no shard {name}")
        return self.files[name]


class DictNodes:
    """`local`: whether descriptors are passed (files in memory, by memfd)."""

    def __init__(self, cluster_map: ClusterMap, *, local: bool = False) -> None:
        self.drives = {row.id: FakeDrive() for row in cluster_map.drives}
        self.homes = {row.id: row.node for row in cluster_map.drives}
        self.unreachable: set[bytes] = set()  # drives whose node does not answer (and nobody knows yet)
        self.down: set[bytes] = set()  # ... and it is known
        self.local = local
        self.messages: list[NodeRequest] = []

    # ---- Nodes ----------------------------------------------------------------------------------------------

    def node_of(self, drive: bytes) -> bytes | None:
        return self.homes.get(drive)

    def is_up(self, drive: bytes) -> bool:
        return drive in self.drives and drive not in self.down

    def is_local(self, drive: bytes) -> bool:
        return self.local

    async def call(self, drive: bytes, request: NodeRequest, payload: Buffer | Sequence[Buffer] = b"") -> NodeReply:
        await trio.lowlevel.checkpoint()
        if drive not in self.drives or drive in self.down or drive in self.unreachable:
            raise Unavailable("the node does not answer")
        self.messages.append(request)
        flat = bytes(payload) if isinstance(payload, bytes | bytearray | memoryview) else b"".join(payload)
        match request:
            case PutShards(puts=puts):
                return NodeReply(await self._put(puts, flat))
            case ReadShard():
                return await self._read(request)
            case OpenShard():
                return await self._open(request)
            case VerifyShard():
                return NodeReply(Outcomes((await self._verify(request),)))
            case Quarantine():
                shelf = self.drives[request.drive]
                name = (request.chunk, request.index)
                if name in shelf.files:
                    shelf.quarantine[name] = shelf.files.pop(name)
                return NodeReply(Outcomes((OK,)))
            case DeleteShards():
                for entry in request.deletes:
                    self.drives[entry.drive].files.pop((entry.chunk, entry.index), None)
                return NodeReply(Outcomes((OK,) * len(request.deletes)))
        raise Refused("the fake does not know this request")

    # ---- faults ---------------------------------------------------------------------------------------------

    def flip(self, drive: bytes, name: Name, at: int) -> None:
        data = bytearray(self.drives[drive].files[name])
        data[at] ^= 0x40
        self.drives[drive].files[name] = bytes(data)

    # ---- requests -------------------------------------------------------------------------------------------

    async def _put(self, puts: Sequence[PutShard], payload: bytes) -> NodeAnswer:
        outcomes: list[Outcome] = [OK] * len(puts)

        async def one(number: int, put: PutShard, data: bytes) -> None:
            try:
                await self._put_one(put, data)
            except ClusterError as error:
                outcomes[number] = Outcome.of(error)

        async with trio.open_nursery() as nursery:
            at = 0
            for number, put in enumerate(puts):
                nursery.start_soon(one, number, put, payload[at : at + put.length])
                at += put.length
        return Outcomes(tuple(outcomes))

    async def _put_one(self, put: PutShard, data: bytes) -> None:
        drive = self.drives[put.drive]
        await drive.touch()
        if put.drive in self.unreachable or put.drive in self.down:
            raise Unavailable("the drive went away")
        if drive.full:
            raise NoSpace("the drive is full")
        header = shardfile.verify_file(data)
        name = (put.chunk, put.index)
        if name in drive.files:
            if not put.replace:
                raise Exists("there already")
            old = _plan_seq(drive.files[name])
            if old is not None and old >= header.spec.plan_seq:
                raise Exists("planned later already")
        drive.files[name] = data
        drive.puts += 1

    async def _read(self, request: ReadShard) -> NodeReply:
        drive = self.drives[request.drive]
        await drive.touch()
        drive.reads += 1
        data = drive.get((request.chunk, request.index))
        extent = shardfile.header_extent(data)
        start = extent + request.first_block * BLOCK
        end = len(data) if request.blocks < 0 else start + request.blocks * BLOCK
        head = data[:extent] if request.with_header else b""
        return NodeReply(ShardData(len(head)), memoryview(head + data[start:end]))

    async def _open(self, request: OpenShard) -> NodeReply:
        drive = self.drives[request.drive]
        await drive.touch()
        data = drive.get((request.chunk, request.index))
        drive.opened += 1
        fd = os.memfd_create("shard")
        os.write(fd, data)
        return NodeReply(Outcomes((OK,)), fds=(fd,))

    async def _verify(self, request: VerifyShard) -> Outcome:
        drive = self.drives[request.drive]
        try:
            await drive.touch()
            header = shardfile.verify_file(drive.get((request.chunk, request.index)))
            if request.nonce and header.spec.nonce != request.nonce:
                raise Corrupt("of another put")
        except ClusterError as error:
            return Outcome.of(error)
        return OK


def _plan_seq(data: bytes) -> int | None:
    try:
        return shardfile.parse_header(data).spec.plan_seq
    except Corrupt:
        return None
