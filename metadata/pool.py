"""A process's way into a pool: session, routes to the nodes, chunks, composed once for everything that is no server.

    async with connect_pool(data_dir, client="cli") as pool:
        await pool.metadata.call(...); await pool.chunks.get(ref)

The metadata server is reached by the data directory's socket DIR/run/trivium.sock, each node by the addresses in its
row of the map (unix:PATH, relative to the data directory, on this host; other transports join by `dialer`).
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from trivium.cluster.chunks import Chunks
from trivium.cluster.clock import Executor, SystemClock, ThreadExecutor
from trivium.cluster.errors import Unavailable
from trivium.cluster.router import Router
from trivium.cluster.transport.dial import Dialer, addresses_of
from trivium.cluster.transport.interface import Connection
from trivium.cluster.transport.unix import UnixConnection
from trivium.metadata.client import MetadataClient, OnRecall


@dataclass(frozen=True, slots=True)
class Pool:
    """What a face gets from below."""

    metadata: MetadataClient
    chunks: Chunks
    nodes: Router
    cluster: bytes


def socket_path(data_dir: str | os.PathLike[str]) -> str:
    return os.path.join(os.fspath(data_dir), "run", "trivium.sock")


@asynccontextmanager
async def connect_pool(
    data_dir: str | os.PathLike[str],
    *,
    client: str = "client",
    on_recall: OnRecall | None = None,
    on_ended: Callable[[str], None] | None = None,
    on_lapsed: Callable[[], None] | None = None,
    io_timeout: float | None = None,
    connect_timeout: float | None = None,
    executor: Executor | None = None,
    threads: int = 16,
    dialer: Dialer | None = None,
) -> AsyncIterator[Pool]:
    """A live session. `connect_timeout`: seconds until Unavailable when no server answers (None: wait for ever);
    `io_timeout`: the same for later requests. The other arguments are MetadataClient's."""
    data_dir = os.path.abspath(data_dir)  # noqa: ASYNC240 (touches no disk)
    rng = random.SystemRandom()
    executor = executor or ThreadExecutor(threads)
    ways = dialer or Dialer(data_dir)

    async def connect_metadata() -> Connection:
        return UnixConnection(socket_path(data_dir))

    metadata = MetadataClient(
        connect_metadata,
        client=client,
        random=rng,
        clock=SystemClock(),
        on_recall=on_recall,
        on_ended=on_ended,
        on_lapsed=on_lapsed,
        io_timeout=io_timeout,
        run_directory=data_dir,
    )

    async def connect_node(node: bytes) -> Connection:
        return await ways.node(node, addresses_of(metadata.map(), node))

    nodes = Router(connect_node)
    metadata.on_map = nodes.update
    async with _plain_errors(), trio.open_nursery() as nursery:
        stop = trio.CancelScope()

        async def live(task_status: trio.TaskStatus[None]) -> None:
            with stop:
                await metadata.run(task_status=task_status)

        with trio.move_on_after(float("inf") if connect_timeout is None else connect_timeout) as scope:
            await nursery.start(live)
        if scope.cancelled_caught:
            raise Unavailable(f"no pool answers on {socket_path(data_dir)} (is `trivium up` running?)")
        nodes.update(metadata.map(), metadata.down)
        chunks = Chunks(metadata, nodes, cluster=metadata.cluster, random=rng, executor=executor)
        metadata.latencies = chunks.latency.take
        background = trio.CancelScope()

        async def run_chunks() -> None:
            with background:
                await chunks.run()

        nursery.start_soon(run_chunks)
        try:
            yield Pool(metadata, chunks, nodes, metadata.cluster)
        finally:
            background.cancel()
            chunks.close()
            stop.cancel()  # says Goodbye
    await nodes.aclose()


@asynccontextmanager
async def _plain_errors() -> AsyncIterator[None]:
    """An error of the body leaves as itself, not as a group of one."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from error.__cause__
