"""QUIC against a plain TCP stream: bulk transfer between two processes, and small requests, in one run."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import trio

from trivium.cluster.transport.interface import Peer, Reply
from trivium.cluster.transport.quic import QuicConnection, QuicServer, ServerCertificate, available_engines
from trivium.cluster.transport.quic.certificate import make_certificate
from trivium.cluster.wire import Service

CHUNK = bytes(4 << 20)
IN_FLIGHT = 4
PATH_BYTES = 1452


async def _take(peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
    return Reply(body, CHUNK if body == b"read" else b"")


async def _serve_quic(engine: str, datagram_bytes: int | None, certificate: ServerCertificate) -> None:
    server = QuicServer("quic:127.0.0.1:0", certificate, engine=engine, datagram_bytes=datagram_bytes)
    await server.bind()
    print(server.address, flush=True)
    await server.serve(_take)


async def _serve_tcp() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listeners[0].socket.getsockname()[1], flush=True)

    async def take(stream: trio.SocketStream) -> None:
        async with stream:
            while await stream.receive_some(1 << 20):
                pass

    await trio.serve_listeners(take, listeners)


async def _repeat(seconds: float, once: Callable[[], Awaitable[object]], side_by_side: int) -> float:
    """How often `once` ran, per second."""
    count, began = 0, time.perf_counter()

    async def again() -> None:
        nonlocal count
        while time.perf_counter() - began < seconds:
            await once()
            count += 1

    async with trio.open_nursery() as nursery:
        for _ in range(side_by_side):
            nursery.start_soon(again)
    return count / (time.perf_counter() - began)


async def _ask_quic(
    address: str, pin: bytes, engine: str, datagram_bytes: int | None, seconds: float
) -> dict[str, float]:
    connection = QuicConnection(address, [pin], engine=engine, datagram_bytes=datagram_bytes)
    await connection.request(Service.NODE, b"")
    reserve = len(CHUNK) + 1024
    write = await _repeat(seconds, lambda: connection.request(Service.NODE, b"", CHUNK), IN_FLIGHT)
    read = await _repeat(seconds, lambda: connection.request(Service.NODE, b"read", reserve=reserve), IN_FLIGHT)
    small = await _repeat(seconds / 2, lambda: connection.request(Service.NODE, b"x" * 120), 32)
    await connection.aclose()
    megabytes = len(CHUNK) / 1e6
    return {"write_MBs": write * megabytes, "read_MBs": read * megabytes, "requests_s": small}


async def _ask_tcp(port: int, seconds: float) -> float:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        return await _repeat(seconds, lambda: stream.send_all(CHUNK), 1) * len(CHUNK) / 1e6


def _with_server(arguments: list[str], given: bytes, ask: Callable[[str], Awaitable[object]]) -> object:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.quic", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(given)
        process.stdin.close()
        address = process.stdout.readline().decode().strip()
        return trio.run(ask, address)
    finally:
        process.kill()
        process.wait()


def measure(seconds: float = 2.0) -> dict[str, object]:
    """MB/s by engine and datagram size, and their ratios to TCP (goals: 0.07 path-sized, 0.12 on loopback)."""
    certificate = make_certificate()
    tcp = _with_server(["tcp"], b"", lambda port: _ask_tcp(int(port), seconds))
    assert isinstance(tcp, float)
    out: dict[str, object] = {"tcp_MBs": round(tcp, 1)}
    for engine in available_engines():
        for name, size in (("path", PATH_BYTES), ("loopback", None)):
            given = certificate.certificate_pem + b"\0" + certificate.key_pem

            async def ask(address: str, engine: str = engine, size: int | None = size) -> dict[str, float]:
                return await _ask_quic(address, certificate.pin, engine, size, seconds)

            got = _with_server(["quic", engine, str(size or 0)], given, ask)
            assert isinstance(got, dict)
            row = {key: round(value, 1) for key, value in got.items()}
            row |= {f"{key}_ratio": round(got[f"{key}_MBs"] / tcp, 3) for key in ("write", "read")}
            out[f"{engine}_{name}"] = row
    return out


def _child(arguments: list[str]) -> None:
    if arguments[0] == "tcp":
        trio.run(_serve_tcp)
    else:
        certificate = ServerCertificate(*sys.stdin.buffer.read().split(b"\0"))
        trio.run(_serve_quic, arguments[1], int(arguments[2]) or None, certificate)


if __name__ == "__main__":
    _child(sys.argv[1:])
