"""What every transport promises, one suite for all of them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.lowlevel
import trio.testing

from trivium.cluster.errors import ClusterError, Fenced, NoSpace, Refused, Unavailable
from trivium.cluster.transport.frames import Limits
from trivium.cluster.transport.interface import Connection, EventSource, Handler, Peer, Reply
from trivium.cluster.transport.memory import MemoryServer
from trivium.cluster.transport.quic import QuicConnection, QuicServer, make_certificate
from trivium.cluster.transport.unix import UnixConnection, UnixServer
from trivium.cluster.wire import Service

Open = Callable[..., AbstractAsyncContextManager[Connection]]
LIMITS = Limits(body_bytes=100_000, payload_bytes=3_000_000)


@asynccontextmanager
async def memory(path: Path, handler: Handler, events: EventSource | None = None) -> AsyncIterator[Connection]:
    server = MemoryServer(limits=LIMITS)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, handler, events)
        yield server.connect()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def unix(path: Path, handler: Handler, events: EventSource | None = None) -> AsyncIterator[Connection]:
    server = UnixServer(str(path / "socket"), limits=LIMITS)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, handler, events)
        connection = UnixConnection(str(path / "socket"))
        yield connection
        await connection.aclose()
        nursery.cancel_scope.cancel()


CERTIFICATE = make_certificate()


def quic(client: str, server: str) -> Any:
    """QUIC on loopback, with these engines at its ends."""

    @asynccontextmanager
    async def transport(path: Path, handler: Handler, events: EventSource | None = None) -> AsyncIterator[Connection]:
        listener = QuicServer("quic:127.0.0.1:0", CERTIFICATE, engine=server, limits=LIMITS)
        async with trio.open_nursery() as nursery:
            await nursery.start(listener.serve, handler, events)
            connection = QuicConnection(listener.address, [CERTIFICATE.pin], engine=client)
            yield connection
            await connection.aclose()
            nursery.cancel_scope.cancel()

    return transport


ENGINES = ("aioquic", "qh3")
QUIC = {f"quic-{client}-{server}": quic(client, server) for client in ENGINES for server in ENGINES}
LOCAL = {"memory": memory, "unix": unix}
ALL = LOCAL | QUIC


@pytest.fixture(params=LOCAL.values(), ids=LOCAL.keys())
def local(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    return lambda *args: request.param(tmp_path, *args)


@pytest.fixture(params=QUIC.values(), ids=QUIC.keys())
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    return lambda *args: request.param(tmp_path, *args)


@pytest.fixture(params=ALL.values(), ids=ALL.keys())
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    return lambda *args: request.param(tmp_path, *args)


def run(main: Callable[[], Awaitable[Any]]) -> None:
    async def limited() -> None:
        with trio.fail_after(10):
            await main()

    trio.run(limited)


async def echo(peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
    return Reply(body[::-1], bytes(payload))


@pytest.mark.parametrize("size", [0, 1, 5, 4096, 32 * 1024 - 16, 32 * 1024, 32 * 1024 + 1, 1 << 20, 3_000_000])
def test_body_and_payload_arrive_whole(opened: Open, size: int) -> None:
    async def main() -> None:
        async with opened(echo) as connection:
            data = os.urandom(size)
            reply = await connection.request(Service.NODE, b"abc", [data[:7], data[7:100], b"", memoryview(data)[100:]])
            assert reply.body == b"cba"
            assert isinstance(reply.payload, memoryview) and reply.payload == data

    run(main)


def test_answers_may_be_lists_of_buffers(opened: Open) -> None:
    async def handler(peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
        return Reply(bytes((service,)), [b"one", memoryview(b"two"), bytearray(b"three")])

    async def main() -> None:
        async with opened(handler) as connection:
            reply = await connection.request(Service.METADATA, b"")
            assert reply.body == bytes((Service.METADATA,))
            assert bytes(reply.payload) == b"onetwothree"  # type: ignore[arg-type]

    run(main)


def test_requests_run_side_by_side_and_answers_find_their_requester(opened: Open) -> None:
    gates = [trio.Event() for _ in range(20)]

    async def handler(peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
        number = body[0]
        if number + 1 < len(gates):
            await gates[number + 1].wait()  # answers come in the reverse order
        gates[number].set()
        return Reply(body, payload)

    async def main() -> None:
        async with opened(handler) as connection, trio.open_nursery() as nursery:

            async def ask(number: int) -> None:
                reply = await connection.request(Service.NODE, bytes((number,)), b"x" * number)
                assert reply.body[0] == number and len(reply.payload) == number

            for number in range(len(gates)):
                nursery.start_soon(ask, number)

    run(main)


@pytest.mark.parametrize("error", [Fenced("sealed"), NoSpace("drive d3 is full"), Refused("no"), ClusterError("x")])
def test_errors_arrive_by_class_and_text(opened: Open, error: ClusterError) -> None:
    async def handler(peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
        if body == b"fine":
            return Reply(b"fine")
        raise error

    async def main() -> None:
        async with opened(handler) as connection:
            with pytest.raises(type(error)) as caught:
                await connection.request(Service.NODE, b"")
            assert type(caught.value) is type(error) and str(caught.value) == str(error)
            assert (await connection.request(Service.NODE, b"fine")).body == b"fine"

    run(main)


def test_a_failing_handler_is_an_internal_error_and_the_server_lives(opened: Open) -> None:
    async def handler(peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
        if body == b"grouped":
            raise ExceptionGroup("from a nursery", [Fenced("inside")])
        if body == b"undecodable":
            msgspec.msgpack.decode(b"\xc1")
        raise ZeroDivisionError("oops")

    async def main() -> None:
        async with opened(handler) as connection:
            with pytest.raises(ClusterError, match="internal error ZeroDivisionError"):
                await connection.request(Service.NODE, b"")
            with pytest.raises(Fenced, match="inside"):
                await connection.request(Service.NODE, b"grouped")
            with pytest.raises(Refused, match="malformed"):
                await connection.request(Service.NODE, b"undecodable")

    run(main)


def test_limits_are_refused_in_words(opened: Open) -> None:
    async def handler(peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
        return Reply(b"", bytes(int(body)) if body.isdigit() else b"")

    async def main() -> None:
        async with opened(handler) as connection:
            with pytest.raises(Refused, match="payload has 3000001 bytes, the limit is 3000000"):
                await connection.request(Service.NODE, b"x", bytes(3_000_001))
            with pytest.raises(Refused, match="body has 100001 bytes"):
                await connection.request(Service.NODE, b"x" * 100_001)
            with pytest.raises(Refused, match="payload has 3000001 bytes"):
                await connection.request(Service.NODE, b"3000001")
            assert len((await connection.request(Service.NODE, b"3000000")).payload) == 3_000_000

    run(main)


def test_a_cancelled_request_is_safe_and_its_handler_runs_to_its_end(opened: Open) -> None:
    began, go, finished = trio.Event(), trio.Event(), trio.Event()

    async def handler(peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
        if body == b"slow":
            began.set()
            await go.wait()
            finished.set()
            return Reply(b"late answer", b"x" * 100_000, (os.open("/dev/null", os.O_RDONLY),))
        return Reply(body)

    async def main() -> None:
        async with opened(handler) as connection:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.request, Service.NODE, b"slow")
                await began.wait()
                nursery.cancel_scope.cancel()
            assert nursery.cancel_scope.cancelled_caught
            assert (await connection.request(Service.NODE, b"next")).body == b"next"
            before = len(os.listdir("/proc/self/fd"))
            go.set()
            await finished.wait()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert (await connection.request(Service.NODE, b"again")).body == b"again"
            assert len(os.listdir("/proc/self/fd")) <= before

    run(main)


def test_a_transport_between_hosts_passes_no_descriptors(remote: Open) -> None:
    async def handler(peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
        assert not peer.local and peer.address.startswith("quic:127.0.0.1:")
        return Reply(b"body", b"payload", (os.open("/dev/null", os.O_RDONLY),) * body[0])

    async def main() -> None:
        async with remote(handler) as connection:
            assert not connection.local
            await connection.request(Service.NODE, b"\0")
            before = set(os.listdir("/proc/self/fd"))
            reply = await connection.request(Service.NODE, b"\1")
            assert (reply.body, bytes(reply.payload), reply.fds) == (b"body", b"payload", ())  # type: ignore[arg-type]
            assert set(os.listdir("/proc/self/fd")) == before  # the handler's were closed

    run(main)


def test_descriptors_are_passed_and_belong_to_the_receiver(local: Open, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"contents")

    async def handler(peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
        assert peer.local
        return Reply(b"", b"p" * 50_000, tuple(os.open(tmp_path / "file", os.O_RDONLY) for _ in range(body[0])))

    async def main() -> None:
        async with local(handler) as connection:
            await connection.request(Service.NODE, b"\0")
            before = set(os.listdir("/proc/self/fd"))
            reply = await connection.request(Service.NODE, b"\3")
            assert [os.pread(fd, 100, 0) for fd in reply.fds] == [b"contents"] * 3
            reply.close()
            assert set(os.listdir("/proc/self/fd")) == before

    run(main)


def test_peer_is_authenticated_and_shared_by_a_connection(opened: Open) -> None:
    async def handler(peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
        mine = (os.getuid(), os.getgid(), os.getpid()) if peer.local else (None, None, None)
        assert (peer.uid, peer.gid, peer.pid) == mine
        peer.attributes["seen"] = int(peer.attributes.get("seen", 0)) + 1  # type: ignore[call-overload]
        await trio.lowlevel.checkpoint()
        return Reply(str(peer.attributes["seen"]).encode())

    async def main() -> None:
        async with opened(handler) as connection, trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(connection.request, Service.NODE, b"")
            nursery.cancel_scope.shield = True
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert (await connection.request(Service.NODE, b"")).body == b"6"

    run(main)


async def count(peer: Peer, service: int, body: bytes) -> AsyncIterator[bytes]:
    for number in range(int(body)):
        yield str(number).encode()


def test_events_come_in_order_and_end(opened: Open) -> None:
    async def main() -> None:
        async with opened(echo, count) as connection:
            got = [event async for event in connection.subscribe(Service.METADATA, b"1000")]
            assert got == [str(number).encode() for number in range(1000)]

    run(main)


def test_a_closed_subscription_closes_its_source(opened: Open) -> None:
    closed = trio.Event()

    async def forever(peer: Peer, service: int, body: bytes) -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await trio.sleep_forever()
        finally:
            closed.set()

    async def main() -> None:
        async with opened(echo, forever) as connection:
            async with aclosing(connection.subscribe(Service.METADATA, b"")) as events:  # type: ignore[type-var]
                async for event in events:
                    assert event == b"first"
                    break
            await closed.wait()

    run(main)


def test_an_event_source_that_fails_tells_its_subscriber(opened: Open) -> None:
    async def failing(peer: Peer, service: int, body: bytes) -> AsyncIterator[bytes]:
        yield b"one"
        raise Fenced("the session has ended")

    async def main() -> None:
        async with opened(echo, failing) as connection:
            got = []
            with pytest.raises(Fenced, match="session has ended"):
                async for event in connection.subscribe(Service.METADATA, b""):
                    got.append(event)
            assert got == [b"one"]

    run(main)


@pytest.mark.parametrize("transport", ALL.values(), ids=ALL.keys())
def test_a_server_that_goes_is_unavailable(transport: Any, tmp_path: Path) -> None:
    async def hang(peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
        if body == b"hang":
            await trio.sleep_forever()
        return Reply(b"")

    async def no_events(peer: Peer, service: int, body: bytes) -> AsyncIterator[bytes]:
        yield b"hello"
        await trio.sleep_forever()

    async def main() -> None:
        seen: list[str] = []
        async with trio.open_nursery() as nursery, transport(tmp_path, hang, no_events) as connection:
            await connection.request(Service.NODE, b"")

            async def expect(what: str) -> None:
                with pytest.raises(Unavailable):
                    if what == "request":
                        await connection.request(Service.NODE, b"hang")
                    else:
                        async for _ in connection.subscribe(Service.NODE, b""):
                            pass
                seen.append(what)

            nursery.start_soon(expect, "request")
            nursery.start_soon(expect, "events")
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert sorted(seen) == ["events", "request"]
        with pytest.raises(Unavailable):
            await connection.request(Service.NODE, b"")

    run(main)
