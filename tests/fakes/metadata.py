"""A complete metadata server in this process: real engine and operations, log in memory, SQLite in a temp directory.

async with memory_metadata() as (server, connect):
    async with memory_client(connect) as client:
        (entry,) = await client.call(Create(ROOT_INO, b"a", 0o100644))
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tests.fakes.metalog import MemoryMetaLog
from trivium.cluster.clock import Clock, Executor, InlineExecutor, TrioClock
from trivium.cluster.model import ClusterMap, DriveRow, NodeRow, PoolRow
from trivium.cluster.transport.interface import Connection
from trivium.cluster.transport.memory import MemoryServer
from trivium.metadata import database
from trivium.metadata.client import MetadataClient
from trivium.metadata.forming import Seed, form
from trivium.metadata.messages import Credential
from trivium.metadata.recovery import recover
from trivium.metadata.server import MetadataServer

CLUSTER = b"c" * 16
NODE = b"n" * 16
CREDENTIAL = Credential("trivium", "trivium-secret", "root", root=True)
Connect = Callable[[], Awaitable[Connection]]


def memory_map(drives: int = 6, k: int = 4, m: int = 2) -> ClusterMap:
    rows = tuple(
        DriveRow(bytes([i + 1]) * 16, f"d{i}", NODE, "host", 1.0, "", f"drives/d{i}", 1 << 40, i + 1)
        for i in range(drives)
    )
    return ClusterMap(1, rows, (NodeRow(NODE, "node"),), (PoolRow(1, "default", k, m),))


def default_operations() -> tuple[Mapping[type, Any], Mapping[type, Any]]:
    try:
        from trivium.metadata.operations import OPERATIONS, QUERIES
    except ImportError:
        return {}, {}
    return OPERATIONS, QUERIES


@asynccontextmanager
async def memory_metadata(
    *,
    cluster_map: ClusterMap | None = None,
    directory: str | None = None,
    metalog: MemoryMetaLog | None = None,
    clock: Clock | None = None,
    seed: int = 1,
    executor: Executor | None = None,
    writer_executor: Executor | None = None,
    operations: Mapping[type, Any] | None = None,
    queries: Mapping[type, Any] | None = None,
    **options: Any,
) -> AsyncIterator[tuple[MetadataServer, Connect]]:
    """A formed, serving server and a way to connect to it. Runs on InlineExecutor (deterministic) unless told."""
    metalog = metalog if metalog is not None else MemoryMetaLog()
    clock = clock if clock is not None else TrioClock()
    executor = executor if executor is not None else InlineExecutor()
    known_operations, known_queries = default_operations()
    with tempfile.TemporaryDirectory() as temporary:
        path = str(Path(directory or temporary) / "trivium.db")
        await recover_or_form(path, metalog, cluster_map or memory_map(), clock)
        server = MetadataServer(
            path,
            metalog,
            cluster=CLUSTER,
            operations=known_operations if operations is None else operations,
            queries=known_queries if queries is None else queries,
            clock=clock,
            random=random.Random(seed),
            executor=executor,
            writer_executor=writer_executor if writer_executor is not None else executor,
            **options,
        )
        transport = MemoryServer()

        async def connect() -> Connection:
            await trio.lowlevel.checkpoint()
            return transport.connect()

        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            await nursery.start(
                lambda task_status: transport.serve(server.handle, server.events, task_status=task_status)
            )
            yield server, connect
            nursery.cancel_scope.cancel()


async def recover_or_form(path: str, metalog: MemoryMetaLog, cluster_map: ClusterMap, clock: Clock) -> str:
    """As a process does it: recovery; a new cluster when the log is empty."""
    how = await recover(path, metalog, (), InlineExecutor())
    if how == "new":
        db = database.open_writer(path)
        try:
            await form(db, metalog, Seed(CLUSTER, cluster_map, (CREDENTIAL,)), clock)
        finally:
            db.close()
    return how


@asynccontextmanager
async def memory_client(
    connect: Connect, *, seed: int = 7, client: str = "test", **options: Any
) -> AsyncIterator[MetadataClient]:
    """A client with a live session."""
    clock = options.pop("clock", None) or TrioClock()
    made = MetadataClient(connect, client=client, random=random.Random(seed), clock=clock, **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(made.run)
        yield made
        nursery.cancel_scope.cancel()
