"""The seam to a QUIC implementation: packets in, packets out, the time is an argument; no sockets, no tasks.

Two engines implement it, `aioquic` (Python) and `qh3` (Rust core); they speak the same wire protocol, and either end
of a connection may run either. Everything above is written once, against this.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import io
import os
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from trivium.cluster.errors import Refused
from trivium.cluster.transport.quic.address import Endpoint
from trivium.cluster.transport.quic.certificate import ServerCertificate

ALPN = "trivium/1"
CID_BYTES = 8
ENGINES = ("qh3", "aioquic")  # the order of preference
CHOICE = "TRIVIUM_QUIC_ENGINE"  # environment variable: the engine of all connections of this process
STREAM_WINDOW_BYTES = 4 << 20
CONNECTION_WINDOW_BYTES = 16 << 20

Datagram = tuple[bytes, Endpoint]


class Sink(Protocol):
    """Where an engine's events go."""

    def on_connected(self) -> None: ...
    def on_data(self, stream: int, data: bytes, fin: bool) -> None: ...
    def on_reset(self, stream: int) -> None: ...
    def on_stop(self, stream: int) -> None: ...
    def on_closed(self, code: int, reason: str) -> None: ...
    def on_cid(self, cid: bytes, issued: bool) -> None: ...


class Engine(Protocol):
    """One connection's protocol state. Calls may raise anything on hostile input: the caller drops the connection."""

    cid: bytes

    def connect(self, remote: Endpoint, now: float) -> None: ...

    def receive(self, data: bytes, segment_bytes: int, remote: Endpoint, now: float) -> None:
        """Datagrams of one sender, of `segment_bytes` each but for the last."""
        ...

    def poll(self, sink: Sink) -> None:
        """Hand all events over."""
        ...

    def transmit(self, now: float) -> Sequence[Datagram]: ...
    def timer(self) -> float | None: ...
    def on_timer(self, now: float) -> None: ...
    def open_stream(self) -> int: ...
    def write(self, stream: int, data: memoryview, fin: bool) -> None: ...

    def reset(self, stream: int, code: int) -> None:
        """Send nothing more on the stream. Harmless when it is over."""
        ...

    def stop(self, stream: int, code: int) -> None:
        """Ask the peer to send nothing more on the stream. Harmless when it is over."""
        ...

    def buffered_bytes(self) -> int:
        """Bytes written and held by the engine: not yet sent, or not yet known to have arrived."""
        ...

    def ping(self) -> None: ...
    def close(self, code: int, reason: str) -> None: ...
    def ending(self) -> str | None:
        """Why the connection takes no more streams, once either side has closed it or broken the protocol."""
        ...

    def peer_certificate(self) -> bytes | None: ...

    def binding(self) -> bytes:
        """32 bytes that only the two ends of this very connection know. After on_connected."""
        ...


class EngineOptions(NamedTuple):
    datagram_bytes: int
    idle_timeout_s: float
    certificate: ServerCertificate | None = None  # servers only
    original_cid: bytes = b""  # servers only: the destination of the client's first packet
    retry_cid: bytes | None = None  # servers only: the source of the Retry that was answered


class Secrets(io.TextIOBase):
    """Takes the TLS secrets that both engines can write in NSS key log format, to derive the binding."""

    def __init__(self) -> None:
        self._secrets: dict[str, bytes] = {}

    def write(self, text: str) -> int:
        label, _, secret = text.split()
        self._secrets.setdefault(label, bytes.fromhex(secret))
        return len(text)

    def binding(self) -> bytes:
        both = self._secrets["CLIENT_TRAFFIC_SECRET_0"] + self._secrets["SERVER_TRAFFIC_SECRET_0"]
        return hmac.new(both, b"trivium connection binding", hashlib.sha256).digest()


def available_engines() -> tuple[str, ...]:
    return tuple(name for name in ENGINES if importlib.util.find_spec(name) is not None)


def default_engine() -> str:
    """The one that the environment names, else the best that is installed. Refused when there is none of that name."""
    there, chosen = available_engines(), os.environ.get(CHOICE, "")
    if chosen and chosen not in there:
        known = f"choose one of {', '.join(ENGINES)}" if chosen not in ENGINES else "it is not installed"
        raise Refused(f"there is no QUIC engine {chosen!r} ({CHOICE}); {known}")
    return chosen or there[0]


def make_engine(name: str, options: EngineOptions) -> Engine:
    """A client's engine, or a server's when the options hold a certificate. Refused for an unknown name."""
    if name == "qh3":
        from trivium.cluster.transport.quic.engine_qh3 import Qh3Engine

        return Qh3Engine(options)
    if name == "aioquic":
        from trivium.cluster.transport.quic.engine_aioquic import AioquicEngine

        return AioquicEngine(options)
    raise Refused(f"there is no QUIC engine {name!r}; choose one of {', '.join(ENGINES)}")


def loopback_datagram_bytes(name: str) -> int:
    """The datagram size for peers on the same host, as measured."""
    return 16_000
