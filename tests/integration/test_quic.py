"""QUIC on loopback: who is let in, what is bounded, what is left behind, what happens when a peer goes."""

from __future__ import annotations

import gc
import hashlib
import hmac
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from trivium.cluster.errors import InUse, Refused, Unavailable
from trivium.cluster.transport.interface import Peer, Reply
from trivium.cluster.transport.quic import Admission, QuicConnection, QuicServer, make_certificate
from trivium.cluster.transport.quic.client import EVENT_WINDOW_BYTES
from trivium.cluster.wire import Service

CERTIFICATE = make_certificate()
ENGINES = ("aioquic", "qh3")
PAIRS = [(client, server) for client in ENGINES for server in ENGINES]
KEY = b"a key that client and server share"


@pytest.fixture(params=PAIRS, ids=["-".join(pair) for pair in PAIRS])
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param  # type: ignore[no-any-return]


def run(main: Callable[[], Awaitable[Any]]) -> None:
    async def limited() -> None:
        with trio.fail_after(20):
            await main()

    trio.run(limited)


async def echo(peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
    return Reply(repr(sorted(peer.attributes.items())).encode() if body == b"who" else body, payload)


@asynccontextmanager
async def serving(engine: str, handler: Any = echo, events: Any = None, **options: Any) -> AsyncIterator[QuicServer]:
    server = QuicServer("quic:127.0.0.1:0", CERTIFICATE, engine=engine, **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, handler, events)
        yield server
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(server: QuicServer, engine: str, **options: Any) -> AsyncIterator[QuicConnection]:
    connection = QuicConnection(server.address, options.pop("pins", [CERTIFICATE.pin]), engine=engine, **options)
    try:
        yield connection
    finally:
        with trio.CancelScope(shield=True):
            await connection.aclose()


async def prove(binding: bytes) -> bytes:
    return hmac.digest(KEY, binding, "sha256")


async def verify(binding: bytes, hello: bytes, address: str) -> Admission:
    if not hmac.compare_digest(hello, hmac.digest(KEY, binding, "sha256")):
        raise Refused("this client's key is not known here")
    return Admission({"name": "one of us"})


def test_hello_is_bound_to_the_connection(pair: tuple[str, str]) -> None:
    seen: list[bytes] = []

    async def main() -> None:
        async def spy(binding: bytes) -> bytes:
            seen.append(await prove(binding))
            return seen[-1]

        async def replay(binding: bytes) -> bytes:
            return seen[0]

        async with serving(pair[1], verify=verify) as server:
            async with connected(server, pair[0], hello=spy) as connection:
                assert b"one of us" in (await connection.request(Service.NODE, b"who")).body
            async with connected(server, pair[0], hello=replay) as thief:
                with pytest.raises(Refused, match="not known here"):
                    await thief.request(Service.NODE, b"who")

    run(main)


def test_a_server_without_the_pinned_key_gets_nothing(pair: tuple[str, str]) -> None:
    asked: list[bytes] = []

    async def main() -> None:
        async def hello(binding: bytes) -> bytes:
            asked.append(binding)
            return b""

        async with serving(pair[1]) as server:
            other = hashlib.sha256(b"another key").digest()
            async with connected(server, pair[0], pins=[other], hello=hello) as connection:
                with pytest.raises(Refused, match="does not hold the cluster's key"):
                    await connection.request(Service.NODE, b"secret")
            assert not asked
            async with connected(server, pair[0], pins=[other, CERTIFICATE.pin]) as connection:
                await connection.request(Service.NODE, b"one pin of several fits")

    run(main)


def test_a_stranger_must_come_back_when_many_are_half_open(pair: tuple[str, str]) -> None:
    async def main() -> None:
        async with serving(pair[1], retry_above=0) as server, connected(server, pair[0]) as connection:
            assert (await connection.request(Service.NODE, b"after a Retry")).body == b"after a Retry"

    run(main)


def test_beyond_the_limits_nobody_is_let_in() -> None:
    async def main() -> None:
        async with serving("qh3", max_connections=1) as server, connected(server, "qh3") as first:
            await first.request(Service.NODE, b"")
            async with connected(server, "qh3", connect_timeout_s=0.3) as second:
                with pytest.raises(Unavailable, match="did not answer"):
                    await second.request(Service.NODE, b"")
            assert server.connections == 1

    run(main)


def test_a_peer_that_never_says_hello_is_dropped() -> None:
    async def main() -> None:
        async def never(binding: bytes) -> bytes:
            await trio.sleep_forever()
            return b""

        async with serving("qh3", hello_timeout_s=0.2) as server, connected(server, "qh3", hello=never) as connection:
            with pytest.raises(Unavailable):
                await connection.request(Service.NODE, b"")
            assert server.half_open == 0

    run(main)


def test_requests_wait_for_the_announced_budget_and_a_larger_one_goes_alone(pair: tuple[str, str]) -> None:
    running = most = 0

    async def handler(peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.lowlevel.checkpoint()
        running -= 1
        return Reply(b"", payload)

    async def main() -> None:
        async with serving(pair[1], handler, budget_bytes=600_000) as server, connected(server, pair[0]) as connection:
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(lambda: connection.request(Service.NODE, b"", bytes(90_000), reserve=100_000))
            assert 1 <= most <= 3
            assert len((await connection.request(Service.NODE, b"", bytes(2_000_000))).payload) == 2_000_000

    run(main)


def test_cancelled_requests_give_their_budget_back(pair: tuple[str, str]) -> None:
    async def handler(peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
        if body == b"hang":
            began.set()
            await go.wait()
        return Reply(body)

    began, go = trio.Event(), trio.Event()

    async def main() -> None:
        nonlocal began
        async with serving(pair[1], handler, budget_bytes=2_000_000) as server:
            async with connected(server, pair[0]) as connection:
                for _ in range(5):
                    began = trio.Event()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(connection.request, Service.NODE, b"hang", bytes(1_000_000))
                        await began.wait()
                        nursery.cancel_scope.cancel()
                assert (await connection.request(Service.NODE, b"next", bytes(1_000_000))).body == b"next"
                go.set()

    run(main)


def test_a_slow_subscriber_is_a_window_behind_at_most(pair: tuple[str, str]) -> None:
    made = 0

    async def flood(peer: Peer, service: int, body: bytes) -> AsyncIterator[bytes]:
        nonlocal made
        while True:
            made += 1
            yield bytes(10_000)

    async def main() -> None:
        async with serving(pair[1], echo, flood) as server, connected(server, pair[0]) as connection:
            async with aclosing(connection.subscribe(Service.NODE, b"")) as events:  # type: ignore[type-var]
                await anext(events)
                for _ in range(30):
                    await connection.request(Service.NODE, b"time passes")
                assert made <= EVENT_WINDOW_BYTES // 10_000 + 2
                for _ in range(60):
                    await anext(events)
                assert made <= 2 * (EVENT_WINDOW_BYTES // 10_000 + 2) + 60

    run(main)


def test_nobody_listening_and_a_port_in_use_are_said_in_words() -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            with pytest.raises(InUse):
                await QuicServer(f"quic:127.0.0.1:{taken.getsockname()[1]}", CERTIFICATE).bind()
            port = taken.getsockname()[1]
        connection = QuicConnection(f"quic:127.0.0.1:{port}", [CERTIFICATE.pin])
        with pytest.raises(Unavailable, match="nobody answers"):
            await connection.request(Service.NODE, b"")
        await connection.aclose()
        with pytest.raises(Refused, match="quic:HOST:PORT"):
            QuicConnection("quic:::1:80", [CERTIFICATE.pin])
        with pytest.raises(Refused, match="pin"):
            QuicConnection("quic:[::1]:80", [])

    run(main)


def test_a_connection_is_made_anew_after_the_server_came_back(pair: tuple[str, str]) -> None:
    async def main() -> None:
        async with serving(pair[1]) as server:
            address = server.address
            connection = QuicConnection(address, [CERTIFICATE.pin], engine=pair[0])
            await connection.request(Service.NODE, b"1")
        with pytest.raises(Unavailable):
            await connection.request(Service.NODE, b"2")
        again = QuicServer(address, CERTIFICATE, engine=pair[1])
        async with trio.open_nursery() as nursery:
            await nursery.start(again.serve, echo)
            assert (await connection.request(Service.NODE, b"3")).body == b"3"
            await connection.aclose()
            nursery.cancel_scope.cancel()

    run(main)


SERVER_PROCESS = """
import sys, trio
from trivium.cluster.transport.quic import QuicServer, ServerCertificate
async def hang(*arguments):
    await trio.sleep_forever()
async def main():
    server = QuicServer("quic:127.0.0.1:0", ServerCertificate(*sys.stdin.buffer.read().split(b"\\0")))
    await server.bind()
    print(server.address, flush=True)
    await server.serve(hang)
trio.run(main)
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_killed_peer_is_noticed(engine: str) -> None:
    async def main() -> None:
        with subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-c", SERVER_PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            try:
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write(CERTIFICATE.certificate_pem + b"\0" + CERTIFICATE.key_pem)
                process.stdin.close()
                address = process.stdout.readline().decode().strip()
                connection = QuicConnection(address, [CERTIFICATE.pin], engine=engine, keepalive_s=0.1, silence_s=2)
                async with trio.open_nursery() as nursery:

                    async def ask() -> None:
                        with pytest.raises(Unavailable):
                            await connection.request(Service.NODE, b"")

                    nursery.start_soon(ask)
                    while connection._route is None or not connection._route.ready.is_set():  # noqa: ASYNC110
                        await trio.sleep(0.01)
                    process.kill()
                await connection.aclose()
            finally:
                process.kill()

    run(main)


def test_nothing_is_left_of_many_connections(pair: tuple[str, str], count: int = 0) -> None:
    count = count or int(os.environ.get("TRIVIUM_QUIC_CONNECTIONS", "60"))

    async def main() -> None:
        async with serving(pair[1]) as server:

            async def once() -> None:
                async with connected(server, pair[0]) as connection:
                    assert (await connection.request(Service.NODE, b"x", b"payload")).body == b"x"

            await once()
            gc.collect()
            descriptors, tasks = len(os.listdir("/proc/self/fd")), trio.lowlevel.current_statistics().tasks_living
            for _ in range(count // 10):
                async with trio.open_nursery() as nursery:
                    for _ in range(10):
                        nursery.start_soon(once)
            with trio.move_on_after(10):
                while server.connections:  # noqa: ASYNC110 - closing connections drain by their own timers
                    await trio.sleep(0.05)
            assert (server.connections, server.half_open, server._by_cid, server._cids) == (0, 0, {}, {})
            assert len(os.listdir("/proc/self/fd")) == descriptors
            assert trio.lowlevel.current_statistics().tasks_living == tasks

    async def patient() -> None:
        with trio.fail_after(20 + count):
            await main()

    trio.run(patient)
