"""What an enemy on the network can send: captured frames changed and sent again, noise, connections that talk rubbish.

The enemy reads every frame and may send any (also under another's address); it has no key, but QUIC's handshake needs
none, so a `Stranger` gets as far as streams. Nothing here uses the product's client: only its engine, for the packets.
"""

from __future__ import annotations

import random
import select
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from trivium.cluster.transport.frames import CREDIT, EVENTS, HELLO
from trivium.cluster.transport.quic.engine import EngineOptions, make_engine
from trivium.cluster.wire import HEAD

ETHERNET, IP, UDP = 14, 20, 8
LARGEST = 1452


@dataclass(frozen=True, slots=True)
class Datagram:
    """A UDP datagram over IPv4 in its Ethernet frame."""

    frame: bytes
    source: str
    destination: str
    destination_port: int
    payload: bytes

    @classmethod
    def parse(cls, frame: bytes) -> Self | None:
        if len(frame) < ETHERNET + IP + UDP or frame[12:14] != b"\x08\x00" or frame[14] != 0x45 or frame[23] != 17:
            return None
        (port,) = struct.unpack_from(">H", frame, ETHERNET + IP + 2)
        payload = frame[ETHERNET + IP + UDP :]
        return cls(frame, socket.inet_ntoa(frame[26:30]), socket.inet_ntoa(frame[30:34]), port, payload)

    def with_payload(self, payload: bytes) -> bytes:
        """The same sender and receiver, other contents."""
        ip = bytearray(self.frame[ETHERNET : ETHERNET + IP])
        struct.pack_into(">H", ip, 2, IP + UDP + len(payload))
        ip[10:12] = b"\0\0"
        struct.pack_into(">H", ip, 10, checksum(ip))
        udp = self.frame[ETHERNET + IP : ETHERNET + IP + 4] + struct.pack(">HH", UDP + len(payload), 0)
        return self.frame[:ETHERNET] + bytes(ip) + udp + payload


def checksum(data: bytes | bytearray) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def datagrams(frames: Sequence[bytes]) -> list[Datagram]:
    return [found for frame in frames if (found := Datagram.parse(frame)) is not None]


def mutate(source: random.Random, data: bytes) -> bytes:
    """A datagram that is nearly right: bits flipped, cut, longer, overwritten, another id, two joined; or noise."""
    changed = bytearray(data[:LARGEST])
    match source.randrange(8):
        case 0 | 1:
            for _ in range(source.randint(1, 8)):
                changed[source.randrange(len(changed))] ^= 1 << source.randrange(8)
        case 2:
            del changed[source.randrange(len(changed)) :]
        case 3:
            changed += source.randbytes(source.randint(1, max(1, LARGEST - len(changed))))
        case 4:
            start = source.randrange(len(changed))
            changed[start : start + 20] = source.randbytes(min(20, len(changed) - start))
        case 5:
            changed[1:9] = source.randbytes(8)
        case 6:
            cut = source.randrange(len(changed))
            changed = changed[:cut] + changed[: LARGEST - cut]
        case _:
            head = bytes((source.choice((0xC3, 0xE0, 0xF0, 0x40, 0x80)),)) + source.choice((b"\0\0\0\1", b"\0\0\0\0"))
            changed = bytearray(head + source.randbytes(source.choice((0, 20, 1195, LARGEST - 5))))
    return bytes(changed[:LARGEST])


def rubbish(source: random.Random, captured: Sequence[bytes] = ()) -> bytes:
    """What a stream may say: heads that promise too much, too little, nothing; msgpack or noise behind them."""
    size = source.choice((0, 1, 40, 3000))
    body = source.choice(captured) if captured and source.random() < 0.3 else source.randbytes(size)
    lengths = (len(body), 0, 1, 1 << 20, (1 << 32) - 1)
    flags = source.choice((0, HELLO, HELLO, EVENTS, CREDIT, 0x1000, 0xFFFF))
    sizes = source.choice((len(body), *lengths)), source.choice((0, 0, *lengths))
    head = HEAD.pack(
        *sizes, source.randrange(5), source.choice((0, 255)), flags, source.choice((0, 1 << 20, (1 << 32) - 1))
    )
    data = head + body
    return data[: source.randint(1, len(data))] if source.random() < 0.2 else data


class Stranger:
    """A QUIC client without a key: one connection, blocking, by the engine alone."""

    def __init__(self, host: str, port: int, engine: str) -> None:
        self.connected, self.closed = False, ""
        self.answers: dict[int, bytes] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect((host, port))
        self._remote = (host, port)
        self.engine = make_engine(engine, EngineOptions(LARGEST, 10.0))
        self.engine.connect(self._remote, time.monotonic())
        self._flush()

    # ---- Sink

    def on_connected(self) -> None:
        self.connected = True

    def on_data(self, stream: int, data: bytes, fin: bool) -> None:
        self.answers[stream] = self.answers.get(stream, b"") + data

    def on_reset(self, stream: int) -> None:
        self.answers.setdefault(stream, b"")

    def on_stop(self, stream: int) -> None:
        self.answers.setdefault(stream, b"")

    def on_closed(self, code: int, reason: str) -> None:
        self.closed = self.closed or f"{code} {reason}"

    def on_cid(self, cid: bytes, issued: bool) -> None:
        return

    # ---- driving

    def _flush(self) -> None:
        for data, _ in self.engine.transmit(time.monotonic()):
            try:
                self._socket.send(data)
            except OSError:
                self.closed = self.closed or "unreachable"

    def turn(self, wait_s: float) -> None:
        """Send what there is, take what comes within `wait_s`."""
        self._flush()
        until = time.monotonic() + wait_s
        while (rest := until - time.monotonic()) > 0 and not self.closed:
            timer = self.engine.timer()
            if timer is not None:
                rest = min(rest, max(0.0, timer - time.monotonic()))
            if select.select([self._socket], [], [], rest)[0]:
                try:
                    data = self._socket.recv(65535)
                except OSError:
                    self.closed = self.closed or "unreachable"
                    return
                self.engine.receive(data, len(data), self._remote, time.monotonic())
            elif timer is not None and timer <= time.monotonic():
                self.engine.on_timer(time.monotonic())
            self.engine.poll(self)
            self._flush()

    def connect(self, timeout_s: float = 10) -> bool:
        until = time.monotonic() + timeout_s
        while not self.connected and not self.closed and time.monotonic() < until:
            self.turn(0.02)
        return self.connected

    def say(self, data: bytes, *, fin: bool) -> None:
        """On a stream of its own. An engine whose peer has closed the connection may raise anything."""
        try:
            self.engine.write(self.engine.open_stream(), memoryview(data), fin)
            self._flush()
        except Exception as error:
            self.closed = self.closed or repr(error)

    def close(self) -> None:
        self._socket.close()
