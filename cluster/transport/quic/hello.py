"""The seam for authentication: HELLO, the first message of every connection, on its first stream.

    client                                    server
      |--- TLS 1.3; the client checks the pin ---|
      |--- HELLO: bytes of ClientHello --------->|  at most MAX_HELLO_BYTES, within the deadline, nothing beside it
      |                                          |  Verifier: attributes of the Peer, or Refused
      |<-- Welcome, or Refused and the end ------|
      |=== requests and subscriptions ===========|

The binding is a secret of this one connection (both ends derive it from its TLS traffic secrets): a signature or MAC
over it proves possession of a key here and now and is worth nothing on any other connection, so no further challenge
is needed. Without a verifier everybody is welcome (who may connect is then the network's matter).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from trivium.cluster.transport.frames import Limits

MAX_HELLO_BYTES = 16 << 10
MAX_WELCOME_BYTES = 64 << 10
STRANGER_LIMITS = Limits(16 << 10, 0)
STRANGER_S = 30.0

ClientHello = Callable[[bytes], Awaitable[bytes]]
"""binding -> the bytes to send. Asked anew for each connection (so after each reconnection)."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What a verifier grants: the attributes of the connection's Peer, and bytes for the client. `stranger`: nobody
    knows this key, so it has one small request (STRANGER_LIMITS, STRANGER_S), counts as half-open, and then goes."""

    attributes: Mapping[str, object] = field(default_factory=dict)
    answer: bytes = b""
    stranger: bool = False


Verifier = Callable[[bytes, bytes, str], Awaitable[Admission]]
"""(binding, the client's bytes, its address) -> Admission; Refused ends the connection and tells the client why."""


class Welcome(msgspec.Struct, frozen=True, array_like=True):
    """The server's announcement. It enforces every number in it."""

    budget_bytes: int  # requests and the answers reserved for them, on their way at once
    streams: int  # requests and subscriptions at once
    body_bytes: int  # largest body and payload of a message
    payload_bytes: int
    reserve_bytes: int  # what a request without a reserve of its own counts for its answer
    answer: bytes = b""  # the verifier's


async def no_hello(binding: bytes) -> bytes:
    return b""


async def welcome_everybody(binding: bytes, hello: bytes, address: str) -> Admission:
    return Admission()
