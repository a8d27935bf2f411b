"""A process's way into a pool: session, routes to the nodes, chunks, composed once for everything that is no server.

    async with connect_pool(data_dir, client="cli") as pool:
        await pool.metadata.call(...); await pool.chunks.get(ref)

reach.py says how the metadata server is found; each node is by the addresses in its row of the map (unix:PATH, relative
to the data directory, on this host; quic:HOST:PORT).
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from trivium.cluster.chunks import Chunks
from trivium.cluster.clock import Executor, SystemClock, ThreadExecutor
from trivium.cluster.errors import Unavailable
from trivium.cluster.router import Router
from trivium.cluster.transport.dial import addresses_of, member_of
from trivium.cluster.transport.interface import Connection
from trivium.metadata.client import MetadataClient, OnRecall
from trivium.metadata.reach import Reach, Way


@dataclass(frozen=True, slots=True)
class Pool:
    """What a face gets from below."""

    metadata: MetadataClient
    chunks: Chunks
    nodes: Router
    cluster: bytes


@asynccontextmanager
async def connect_pool(
    where: str | os.PathLike[str] | Reach,
    *,
    client: str = "client",
    on_recall: OnRecall | None = None,
    on_ended: Callable[[str], None] | None = None,
    on_lapsed: Callable[[], None] | None = None,
    io_timeout: float | None = None,
    connect_timeout: float | None = None,
    executor: Executor | None = None,
    threads: int = 16,
) -> AsyncIterator[Pool]:
    """A live session. `connect_timeout`: seconds until Unavailable when no server answers (None: wait for ever);
    `io_timeout`: the same for later requests. The other arguments are MetadataClient's."""
    reach = where if isinstance(where, Reach) else Reach(Path(os.path.abspath(where)))  # noqa: ASYNC240
    rng, clock = random.SystemRandom(), SystemClock()
    executor = executor or ThreadExecutor(threads)
    way = Way(reach, clock)
    metadata = MetadataClient(
        way.metadata,
        client=client,
        random=rng,
        clock=clock,
        on_recall=on_recall,
        on_ended=on_ended,
        on_lapsed=on_lapsed,
        io_timeout=io_timeout,
        run_directory=str(reach.directory),
    )
    metadata.on_grant, metadata.on_key, way.be_guest = way.granted, way.heard_of_key, metadata.be_guest

    async def connect_node(node: bytes) -> Connection:
        return await way.dialer.node(node, addresses_of(metadata.map(), node), member_of(metadata.map(), node))

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
            raise Unavailable(f"no pool answers at {reach}: {metadata.trouble or 'no answer yet'}")
        nodes.update(metadata.map(), metadata.down)
        chunks = Chunks(metadata, nodes, cluster=metadata.cluster, random=rng, executor=executor)
        metadata.latencies = chunks.latency.take
        background = trio.CancelScope()

        async def run_chunks() -> None:
            with background:
                await chunks.run()

        async def present() -> None:
            with presenting:
                await way.keep_presenting()

        presenting = trio.CancelScope()
        nursery.start_soon(run_chunks)
        nursery.start_soon(present)
        try:
            yield Pool(metadata, chunks, nodes, metadata.cluster)
        finally:
            background.cancel()
            presenting.cancel()
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
