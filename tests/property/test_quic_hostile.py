"""Hostile datagrams and streams: whatever comes, the server serves on, and only the sender's connection ends."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.cluster.errors import ClusterError, Refused
from trivium.cluster.transport.frames import EVENTS, HELLO, Head, Limits
from trivium.cluster.transport.interface import Peer, Reply
from trivium.cluster.transport.quic import QuicConnection, QuicServer, make_certificate
from trivium.cluster.transport.quic.assembly import FrameReader
from trivium.cluster.transport.quic.door import Arrival, FrontDoor, destination
from trivium.cluster.wire import HEAD, Service

CERTIFICATE = make_certificate()
SEED = 20_261_121
MUTATIONS = 1500  # of captured datagrams, for each engine


def run(main: Callable[[], Awaitable[Any]]) -> None:
    async def limited() -> None:
        with trio.fail_after(30):
            await main()

    trio.run(limited)


async def echo(peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
    return Reply(body, payload)


def mutate(random_: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    match random_.randrange(5):
        case 0:
            for _ in range(random_.randint(1, 8)):
                changed[random_.randrange(len(changed))] ^= 1 << random_.randrange(8)
        case 1:
            del changed[random_.randrange(len(changed)) :]
        case 2:
            changed += random_.randbytes(random_.randint(1, 300))
        case 3:
            start = random_.randrange(len(changed))
            changed[start : start + 20] = random_.randbytes(20)
        case _:
            changed[1 + random_.randrange(30) : 31] = random_.randbytes(8)
    return bytes(changed)


@pytest.mark.parametrize("engine", ["aioquic", "qh3"])
def test_mutated_datagrams_crash_nothing(engine: str) -> None:
    random_ = random.Random(SEED)
    print("seed", SEED)
    captured: list[bytes] = []

    async def main() -> None:
        server = QuicServer("quic:127.0.0.1:0", CERTIFICATE, engine=engine)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, echo)
            endpoint = server._endpoint
            assert endpoint is not None
            route = endpoint._route

            def record(data: bytes, segment_bytes: int, sender: Any, now: float) -> Any:
                captured.extend(data[at : at + segment_bytes] for at in range(0, len(data), segment_bytes))
                return route(data, segment_bytes, sender, now)

            endpoint._route = record
            connection = QuicConnection(server.address, [CERTIFICATE.pin], engine=engine, datagram_bytes=1452)
            await connection.request(Service.NODE, b"captured", bytes(20_000))
            victim = next(iter(server._cids))
            for number in range(MUTATIONS):
                data = mutate(random_, random_.choice(captured)) or b"\0"
                sender = victim.remote if number % 2 else ("127.0.0.2", random_.randint(1024, 65535))
                for link in route(data, random_.choice((len(data), max(1, len(data) // 3))), sender, server._clock()):
                    endpoint.turn(link)
                if number % 50 == 0:
                    await trio.lowlevel.checkpoint()
            assert (await connection.request(Service.NODE, b"still here")).body == b"still here"
            await connection.aclose()
            nursery.cancel_scope.cancel()

    run(main)


HEADS = st.builds(
    lambda body, payload, flags, reserve: HEAD.pack(body, payload, 1, 0, flags, reserve),
    st.one_of(st.integers(0, 40), st.integers(0, 2**32 - 1)),
    st.one_of(st.integers(0, 40), st.integers(0, 2**32 - 1)),
    st.sampled_from([0, EVENTS, HELLO, 0x1000, 0xFFFF]),
    st.integers(0, 2**32 - 1),
)
WRITES = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.one_of(st.binary(max_size=60), HEADS), max_size=4), st.booleans()),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("welcome_first", [False, True])
def test_hostile_streams_end_at_most_their_own_connection(welcome_first: bool) -> None:
    async def hello(binding: bytes) -> bytes:
        if not welcome_first:
            await trio.sleep_forever()
        return b""

    async def attack(server: QuicServer, writes: list[tuple[int, list[bytes], bool]]) -> None:
        connection = QuicConnection(server.address, [CERTIFICATE.pin], hello=hello)
        made: list[Any] = []
        original = QuicConnection._greet

        async def greet(self: QuicConnection, route: Any, link: Any) -> None:
            made.append(link)
            await original(self, route, link)

        connection._greet = greet.__get__(connection)  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                try:
                    await connection.request(Service.NODE, b"opens the connection")
                except ClusterError:
                    return

            nursery.start_soon(ask)
            while not made:  # noqa: ASYNC110
                await trio.sleep(0.001)
            link = made[0]
            await link.connected.wait()
            if welcome_first:
                assert connection._route is not None
                await connection._route.ready.wait()
            streams: dict[int, int] = {}
            finished: set[int] = set()
            for which, parts, fin in writes:
                if which in finished or link.over is not None:
                    continue
                number = streams.setdefault(which, link.engine.open_stream() if which not in streams else 0)
                link.engine.write(number, memoryview(b"".join(parts)), fin)
                if fin:
                    finished.add(which)
                link._driver.turn(link)
                await trio.lowlevel.checkpoint()
            for _ in range(3):
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        await connection.aclose()

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(WRITES)
    def attacks(writes: list[tuple[int, list[bytes], bool]]) -> None:
        async def main() -> None:
            server = QuicServer("quic:127.0.0.1:0", CERTIFICATE, budget_bytes=1 << 20)
            async with trio.open_nursery() as nursery:
                await nursery.start(server.serve, echo)
                friend = QuicConnection(server.address, [CERTIFICATE.pin])
                await friend.request(Service.NODE, b"")
                await attack(server, writes)
                for link in server._cids:
                    assert link._account.taken <= 1 << 20
                assert (await friend.request(Service.NODE, b"alive")).body == b"alive"
                await friend.aclose()
                nursery.cancel_scope.cancel()

        run(main)

    attacks()


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=50), st.binary(max_size=200)), max_size=5), st.data())
def test_frames_arrive_whole_however_they_are_cut(messages: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    stream = b"".join(HEAD.pack(len(b), len(p), 1, 0, 0, 7) + b + p for b, p in messages)
    reader = FrameReader(Limits(50, 200), lambda head: None)
    frames = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        frames += reader.feed(stream[:cut])
        stream = stream[cut:]
    assert [(frame.body, bytes(frame.payload)) for frame in frames] == messages


def test_memory_is_taken_only_after_the_head_was_accepted() -> None:
    def never(head: Head) -> None:
        raise Refused("no")

    for reader in (FrameReader(Limits(10, 10), lambda head: None), FrameReader(Limits(1 << 40, 1 << 40), never)):
        with pytest.raises(Refused):
            reader.feed(HEAD.pack(2**32 - 1, 2**32 - 1, 1, 0, 0, 0))
        assert reader.failed and reader.feed(b"more") == []


def test_an_announced_message_takes_memory_as_it_arrives() -> None:
    reader = FrameReader(Limits(10, 60 << 20), lambda head: None)
    tracemalloc.start()
    try:
        assert reader.feed(HEAD.pack(10, 60 << 20, 1, 0, 0, 0) + bytes(1 << 16)) == []
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


LIKE_INITIALS = st.binary(max_size=60).map(lambda tail: b"\xc3\0\0\0\1" + tail.ljust(1300, b"\0"))


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=1500), LIKE_INITIALS))
def test_the_front_door_takes_any_bytes(data: bytes) -> None:
    destination(data)
    door = FrontDoor(retry_above=1, max_half_open=2, max_connections=3)
    for half_open in range(3):
        verdict = door.judge(data or b"\0", ("127.0.0.1", 1), 0.0, half_open=half_open, connections=0)
        assert verdict is None or isinstance(verdict, bytes if half_open else Arrival)
        assert half_open < 2 or verdict is None
