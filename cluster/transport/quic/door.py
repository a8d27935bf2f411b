"""The server's front door: which datagram belongs to whom, and who must first prove an address. No sockets.

Invariants
1. A connection costs memory only for a first packet that is a whole Initial of our version (1,200 bytes or more).
2. While many connections are half open, a stranger gets a Retry (no state is kept) and must come back with its token;
   beyond `max_half_open` and `max_connections` it gets nothing.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from aioquic._buffer import Buffer
from aioquic.quic.packet import QuicPacketType, QuicProtocolVersion, encode_quic_retry, pull_quic_header
from aioquic.quic.retry import QuicRetryTokenHandler

from trivium.cluster.transport.quic.address import Endpoint
from trivium.cluster.transport.quic.engine import CID_BYTES

MIN_INITIAL_BYTES = 1200


class Arrival(NamedTuple):
    """A stranger that may come in."""

    original_cid: bytes
    retry_cid: bytes | None


def destination(data: bytes | memoryview) -> bytes:
    """The connection id that a datagram is for; empty when it has none."""
    if len(data) < 7:
        return b""
    if data[0] & 0x80:
        return bytes(data[6 : 6 + data[5]])
    return bytes(data[1 : 1 + CID_BYTES])


class FrontDoor:
    """Judges first packets."""

    def __init__(self, *, retry_above: int, max_half_open: int, max_connections: int) -> None:
        self._retry_above = retry_above
        self._max_half_open = max_half_open
        self._max_connections = max_connections
        self._tokens = QuicRetryTokenHandler()

    def judge(
        self, data: bytes, sender: Endpoint, now: float, *, half_open: int, connections: int
    ) -> Arrival | bytes | None:
        """Let in (Arrival), a Retry to send (bytes), or nothing."""
        if len(data) < MIN_INITIAL_BYTES or data[0] & 0xC0 != 0xC0:
            return None
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=CID_BYTES)
        except ValueError:
            return None
        if header.packet_type != QuicPacketType.INITIAL or header.version != QuicProtocolVersion.VERSION_1:
            return None
        if len(header.destination_cid) < 8 or connections >= self._max_connections or half_open >= self._max_half_open:
            return None
        if header.token:
            try:
                original = self._tokens.validate_token(
                    address=sender, destination_cid=header.destination_cid, token=header.token, now=now
                )
            except Exception:  # whatever a forged token does to its parser
                return None
            return Arrival(original, header.destination_cid)
        if half_open < self._retry_above:
            return Arrival(header.destination_cid, None)
        fresh = os.urandom(CID_BYTES)
        token = self._tokens.create_token(
            address=sender,
            original_destination_connection_id=header.destination_cid,
            retry_source_connection_id=fresh,
            now=now,
        )
        return encode_quic_retry(
            version=QuicProtocolVersion.VERSION_1,
            source_cid=fresh,
            destination_cid=header.source_cid,
            original_destination_cid=header.destination_cid,
            retry_token=token,
        )
