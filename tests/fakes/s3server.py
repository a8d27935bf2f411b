"""A gateway on a free loopback port, in a thread of its own, for clients that block (boto3, raw sockets)."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
import botocore.config
import trio

from tests.fakes.s3backend import FakeChunks, FakeMetadata
from trivium.cluster.clock import SystemClock, ThreadExecutor
from trivium.metadata.messages import Credential
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


@contextmanager
def running(http_limits: Limits | None = None, **options: Any) -> Iterator[Running]:
    started: list[Running] = []
    ready = threading.Event()
    failure: list[BaseException] = []

    async def main() -> None:
        chunks = FakeChunks()
        metadata = FakeMetadata(chunks, ACCOUNTS)
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
        if started and thread.is_alive():
            started[0].on_loop(started[0].gateway.stop)
        thread.join(20)
        if failure:
            raise failure[0]
        assert not thread.is_alive()
