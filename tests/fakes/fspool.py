"""A small pool for the files face in this process: real metadata engine, real chunks on six drives."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.fakes.cluster import CLUSTER, FakeNodes, drive_id, node_id, real_nodes, sim_nodes
from tests.fakes.metadata import Connect, memory_client, memory_metadata
from trivium.cluster.chunks import Chunks
from trivium.cluster.clock import Clock, InlineExecutor, SystemClock, ThreadExecutor, TrioClock
from trivium.cluster.errors import Unavailable
from trivium.cluster.model import ClusterMap, DriveRow, NodeRow, PoolRow
from trivium.cluster.transport.interface import Buffer, Connection, Reply
from trivium.cluster.wire import Service
from trivium.fs.filesystem import Filesystem
from trivium.fs.recalls import Notifier
from trivium.metadata.client import MetadataClient
from trivium.metadata.server import MetadataServer


class Line:
    """A client's way to the metadata server. While `cut` nothing passes, in neither direction."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self.cut = False

    async def connect(self) -> Connection:
        self.check()
        return LineConnection(self, await self._connect())

    def check(self) -> None:
        if self.cut:
            raise Unavailable("the line is cut")


class LineConnection:
    def __init__(self, line: Line, connection: Connection) -> None:
        self._line, self._connection = line, connection
        self.local = True

    async def request(self, service: Service, body: bytes, payload: Buffer | Sequence[Buffer] = b"") -> Reply:
        self._line.check()
        reply = await self._connection.request(service, body, payload)
        self._line.check()
        return reply

    async def subscribe(self, service: Service, body: bytes) -> AsyncIterator[bytes]:
        self._line.check()
        async for event in self._connection.subscribe(service, body):
            self._line.check()
            yield event

    async def aclose(self) -> None:
        await self._connection.aclose()


@dataclass
class Pool:
    server: MetadataServer
    connect: Connect
    nodes: FakeNodes
    real: bool

    @asynccontextmanager
    async def session(self, seed: int = 7, line: Line | None = None) -> AsyncIterator[tuple[MetadataClient, Chunks]]:
        executor = ThreadExecutor(16) if self.real else InlineExecutor()
        clock: Clock = SystemClock() if self.real else TrioClock()
        async with memory_client(line.connect if line else self.connect, seed=seed, clock=clock) as client:
            chunks = Chunks(client, self.nodes, cluster=CLUSTER, random=random.Random(seed), executor=executor)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(chunks.run)
                yield client, chunks
                nursery.cancel_scope.cancel()
            chunks.close()

    @asynccontextmanager
    async def filesystem(
        self, seed: int = 7, notifier: Notifier | None = None, line: Line | None = None
    ) -> AsyncIterator[Filesystem]:
        async with self.session(seed, line) as (client, chunks):
            clock: Clock = SystemClock() if self.real else TrioClock()
            filesystem = Filesystem(client, chunks, clock=clock, notifier=notifier)
            async with trio.open_nursery() as nursery:
                await nursery.start(filesystem.run)
                yield filesystem
                await filesystem.sync_all()
                nursery.cancel_scope.cancel()


@asynccontextmanager
async def memory_pool(directory: Path | None = None, *, seed: int = 0) -> AsyncIterator[Pool]:
    """Simulated drives and an inline executor, or (with `directory`) real files and threads."""
    real = directory is not None
    nodes = real_nodes(directory, 6) if directory is not None else sim_nodes(6, seed=seed)
    rows = tuple(DriveRow(drive_id(i), f"d{i}", node_id(0), "host", 1.0, "", f"d{i}", 1 << 40, i + 1) for i in range(6))
    cluster_map = ClusterMap(1, rows, (NodeRow(node_id(0), "node"),), (PoolRow(1, "default", 4, 2),))
    clock: Clock = SystemClock() if real else TrioClock()
    executor = ThreadExecutor(8) if real else InlineExecutor()
    path = os.path.join(str(directory), "metadata") if directory is not None else None
    if path is not None:
        os.makedirs(path, exist_ok=True)
    async with memory_metadata(cluster_map=cluster_map, clock=clock, executor=executor, directory=path) as (
        server,
        connect,
    ):
        yield Pool(server, connect, nodes, real)
