"""Addresses of the QUIC transport: `quic:HOST:PORT`, IPv6 in brackets (`quic:[::1]:7400`)."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import NamedTuple

import trio

from trivium.cluster.errors import Refused, Unavailable

SCHEME = "quic:"
PATH_DATAGRAM_BYTES = 1452  # fits 1,500-byte Ethernet under IPv6 and IPv4
_ADDRESS = re.compile(r"quic:(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]\s]+)):(\d{1,5})")

Endpoint = tuple[str, int]


class QuicAddress(NamedTuple):
    """Where a QUIC server listens: a name or a number, and a UDP port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> QuicAddress:
        match = _ADDRESS.fullmatch(text)
        if match is None or int(match[3]) > 65535:
            raise Refused(f"{text!r} is no QUIC address; write quic:HOST:PORT, an IPv6 HOST in brackets")
        return cls(match[1] or match[2], int(match[3]))

    def __str__(self) -> str:
        return f"{SCHEME}[{self.host}]:{self.port}" if ":" in self.host else f"{SCHEME}{self.host}:{self.port}"

    async def resolve(self) -> tuple[socket.AddressFamily, Endpoint]:
        """The address family and the numeric address to use. Unavailable when the name is unknown."""
        try:
            found = await trio.socket.getaddrinfo(self.host, self.port, type=socket.SOCK_DGRAM)
        except OSError as error:
            raise Unavailable(f"the host of {self} is not known: {error}") from error
        family, _, _, _, sockaddr = found[0]
        return socket.AddressFamily(family), (str(sockaddr[0]), int(sockaddr[1]))


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
