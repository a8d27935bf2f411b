"""A gateway on a free loopback port, in a thread of its own, for clients that block (boto3, raw sockets)."""

from __future__ import annotations

import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import trio

from tests.fakes.cluster import CLUSTER, real_nodes
from tests.fakes.metadata import memory_client, memory_metadata
from tests.fakes.s3backend import FakeChunks, FakeMetadata
from trivium.cluster.chunks import Chunks
from trivium.cluster.clock import SystemClock, ThreadExecutor
from trivium.metadata.client import MetadataClient
from trivium.metadata.messages import Credential, SetCredential
from trivium.s3.gateway import Gateway
from trivium.s3.http import Limits, open_listener

ROOT = Credential("AKROOT", "root-secret", "root", root=True)
ALICE = Credential("AKALICE", "alice-secret", "alice")
BOB = Credential("AKBOB", "bob-secret", "bob")
TENANT = Credential("AKTENANT", "tenant-secret", "tenant", bucket="tenant-bucket")
ACCOUNTS = (ROOT, ALICE, BOB, TENANT)


@dataclass
class Running:
    port: int
    gateway: Gateway
    metadata: FakeMetadata
    chunks: FakeChunks
    token: trio.lowlevel.TrioToken

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, who: Credential | None = ROOT, **config: Any) -> Any:
        """A boto3 client at default settings, but for what `config` says."""
        config.setdefault("retries", {"max_attempts": 1, "mode": "standard"})
        if who is None:
            config["signature_version"] = botocore.UNSIGNED
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=who.access_key if who else "x",
            aws_secret_access_key=who.secret_key if who else "x",
            config=botocore.config.Config(**config),
        )

    def on_loop(self, function: Callable[..., Any], *args: Any) -> Any:
        return trio.from_thread.run_sync(function, *args, trio_token=self.token)


@asynccontextmanager
async def pool(path: Path) -> AsyncIterator[tuple[MetadataClient, Chunks]]:
    nodes = real_nodes(path, 6)
    clock, executor = SystemClock(), ThreadExecutor(8)
    options: dict[str, Any] = {"cluster_map": nodes.map(), "clock": clock, "executor": executor}
    async with nodes, memory_metadata(**options) as (_, connect), memory_client(connect, clock=clock) as client:
        for one in ACCOUNTS:
            await client.call(SetCredential(one))
        chunks = Chunks(client, nodes, cluster=CLUSTER, random=random.Random(3), executor=executor)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(chunks.run)
            yield client, chunks
            nursery.cancel_scope.cancel()
        chunks.close()


@contextmanager
def running(http_limits: Limits | None = None, real: Path | None = None, **options: Any) -> Iterator[Running]:
    """`real`: an empty directory for six drives; then metadata and chunks are the real ones (log in memory)."""
    started: list[Running] = []
    ready = threading.Event()
    failure: list[BaseException] = []

    async def main() -> None:
        if real is not None:
            async with pool(real) as (metadata, chunks):
                await serve(metadata, chunks)
        else:
            chunks = FakeChunks()
            await serve(FakeMetadata(chunks, ACCOUNTS), chunks)

    async def serve(metadata: Any, chunks: Any) -> None:
        gateway = Gateway(
            metadata,
            chunks,
            random=random.Random(1),
            clock=SystemClock(),
            executor=ThreadExecutor(4),
            http_limits=http_limits,
            **options,
        )
        listener = open_listener("127.0.0.1", 0)
        port = listener.socket.getsockname()[1]
        started.append(Running(port, gateway, metadata, chunks, trio.lowlevel.current_trio_token()))
        ready.set()
        await gateway.serve([listener])

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:
            failure.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        if not started:
            raise failure[0]
        yield started[0]
    finally:
        with suppress(trio.RunFinishedError):  # a test may have stopped it
            if started:
                started[0].on_loop(started[0].gateway.stop)
        thread.join(20)
        if failure:
            raise failure[0]
        assert not thread.is_alive()
