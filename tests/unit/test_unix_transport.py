"""What only the Unix transport has: paths, modes, stale files, malformed frames, pooling, lost descriptors."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from trivium.cluster.errors import InUse, Refused, Unavailable
from trivium.cluster.transport.frames import EVENTS, GREETING, Limits
from trivium.cluster.transport.interface import Peer, Reply
from trivium.cluster.transport.unix import UnixConnection, UnixServer
from trivium.cluster.wire import HEAD, Service


async def echo(peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
    return Reply(body, payload)


@asynccontextmanager
async def serving(server: UnixServer) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, echo)
        yield
        nursery.cancel_scope.cancel()


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        with trio.fail_after(10):
            await main()

    trio.run(limited)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_mode_and_group_of_the_socket(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(UnixServer(str(tmp_path / "a"))):
            assert mode(tmp_path / "a") == 0o600
        assert not (tmp_path / "a").exists()
        async with serving(UnixServer(str(tmp_path / "b"), mode=0o660, group=os.getgid())):
            assert mode(tmp_path / "b") == 0o660
        with pytest.raises(Refused, match="no group"):
            await UnixServer(str(tmp_path / "c"), group="no-such-group-here").bind()

    run(main)


def test_long_paths_are_served_and_reached(tmp_path: Path) -> None:
    async def main() -> None:
        folder = tmp_path / ("d" * 100) / ("e" * 100)
        folder.mkdir(parents=True)
        path = folder / "trivium.sock"
        async with serving(UnixServer(str(path))):
            connection = UnixConnection(str(path))
            assert (await connection.request(Service.NODE, b"hello")).body == b"hello"
            with pytest.raises(InUse):
                await UnixServer(str(path)).bind()
            await connection.aclose()
        assert not path.exists()
        with pytest.raises(Refused, match="too long"):
            await UnixServer(str(folder / ("f" * 120))).bind()

    run(main)


def test_a_live_listener_is_not_displaced_a_stale_file_is(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "socket"
        async with serving(UnixServer(str(path))):
            with pytest.raises(InUse, match="another process listens"):
                await UnixServer(str(path)).bind()
            connection = UnixConnection(str(path))
            assert (await connection.request(Service.NODE, b"still here")).body == b"still here"
            await connection.aclose()
        left_over = socket.socket(socket.AF_UNIX)
        left_over.bind(str(path))
        left_over.close()
        async with serving(UnixServer(str(path))):
            connection = UnixConnection(str(path))
            assert (await connection.request(Service.NODE, b"new")).body == b"new"
            await connection.aclose()
        path.write_text("precious")
        with pytest.raises(Refused, match="not a socket"):
            await UnixServer(str(path)).bind()
        assert path.read_text() == "precious"

    run(main)


def test_two_starters_at_once_one_wins(tmp_path: Path) -> None:
    async def main() -> None:
        path = str(tmp_path / "socket")
        left_over = socket.socket(socket.AF_UNIX)
        left_over.bind(path)
        left_over.close()
        results: list[str] = []
        servers = [UnixServer(path) for _ in range(8)]

        async def start(server: UnixServer) -> None:
            try:
                await server.bind()
                results.append("bound")
            except InUse:
                results.append("in use")

        async with trio.open_nursery() as nursery:
            for server in servers:
                nursery.start_soon(start, server)
        assert sorted(results) == ["bound"] + ["in use"] * 7
        for server in servers:
            server.unbind()

    run(main)


GREET = HEAD.pack(16, 0, 0, 0, GREETING, 0) + bytes(16)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        bytes(1000),
        b"\xff" * 1000,
        GREET,
        GREET + b"\xff" * 1000,
        GREET + HEAD.pack(10, 0, 1, 0, 0, 0) + b"short",
        GREET + HEAD.pack(0, 1 << 31, 1, 0, 0, 0),
        GREET + HEAD.pack(5, 0, 1, 0, EVENTS, 0) + b"event",
        GREET + HEAD.pack(5, 0, 200, 77, 0xFFFF, 9) + b"odd  ",
    ],
)
def test_malformed_frames_harm_nobody_else(tmp_path: Path, data: bytes) -> None:
    async def main() -> None:
        path = str(tmp_path / "socket")
        async with serving(UnixServer(path, limits=Limits(1000, 1000))):
            connection = UnixConnection(path)
            raw = await trio.open_unix_socket(path)
            await raw.send_all(data)
            await raw.aclose()
            for _ in range(3):
                assert (await connection.request(Service.NODE, b"fine")).body == b"fine"
            await connection.aclose()

    run(main)


def test_a_servers_smaller_limit_is_told_in_words(tmp_path: Path) -> None:
    async def main() -> None:
        path = str(tmp_path / "socket")
        async with serving(UnixServer(path, limits=Limits(1000, 1_000_000))):
            connection = UnixConnection(path)
            for _ in range(3):
                with pytest.raises(Refused, match="payload has 9000000 bytes"):
                    await connection.request(Service.NODE, b"", bytes(9_000_000))
                assert (await connection.request(Service.NODE, b"fine")).body == b"fine"
            await connection.aclose()

    run(main)


def test_a_restarted_server_is_found_again(tmp_path: Path) -> None:
    async def main() -> None:
        path = str(tmp_path / "socket")
        connection = UnixConnection(path)
        for _ in range(3):
            async with serving(UnixServer(path)):
                async with trio.open_nursery() as nursery:
                    for _ in range(5):
                        nursery.start_soon(connection.request, Service.NODE, b"x", b"y" * 100_000)
                assert (await connection.request(Service.NODE, b"x")).body == b"x"  # not one stale pooled socket fails
            with pytest.raises(Unavailable):
                await connection.request(Service.NODE, b"x")
        await connection.aclose()

    run(main)


def test_nothing_leaks(tmp_path: Path) -> None:
    async def main() -> None:
        path = str(tmp_path / "socket")
        before = len(os.listdir("/proc/self/fd"))
        async with serving(UnixServer(path)):
            connection = UnixConnection(path, max_idle=3)
            async with trio.open_nursery() as nursery:
                for number in range(40):

                    async def impatient(number: int) -> None:
                        with trio.move_on_after(number * 0.0002):
                            await connection.request(Service.NODE, b"x", bytes(200_000))

                    nursery.start_soon(impatient, number)
            assert (await connection.request(Service.NODE, b"x")).body == b"x"
            await connection.aclose()
        assert len(os.listdir("/proc/self/fd")) == before

    run(main)
