"""The interface that transports implement and everything above them uses."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from trivium.cluster.wire import Service

Buffer = bytes | bytearray | memoryview


@dataclass(slots=True)
class Reply:
    """An answer: msgpack body, raw payload, and (same host only) open descriptors.

    The receiver owns `fds` and closes them. A server's handler gives up `fds`: the transport sends (or dups) and
    closes them.
    """

    body: bytes
    payload: Buffer | Sequence[Buffer] = b""
    fds: tuple[int, ...] = ()

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is asking, as the transport authenticated it."""

    address: str
    uid: int | None = None
    gid: int | None = None
    pid: int | None = None
    local: bool = True  # same host: descriptors may be passed
    attributes: dict[str, object] = field(default_factory=dict)  # lives as long as the connection


Handler = Callable[[Peer, int, bytes, memoryview], Awaitable[Reply]]
"""(peer, service, body, payload) -> Reply. A ClusterError raised travels by class and text; anything else is logged
by the server and arrives as ClusterError("internal error ...")."""

EventSource = Callable[[Peer, int, bytes], AsyncIterator[bytes]]
"""(peer, service, body) -> the events of one subscription, until the client closes it."""


class Connection(Protocol):
    """A client's way to one process. Requests run side by side; cancelling one is safe (its outcome is unknown).

    Errors: the ClusterError that the handler raised; Unavailable when the peer cannot be reached or the connection
    broke before the answer (the request may or may not have been executed).
    """

    local: bool

    async def request(self, service: Service, body: bytes, payload: Buffer | Sequence[Buffer] = b"") -> Reply: ...

    def subscribe(self, service: Service, body: bytes) -> AsyncIterator[bytes]:
        """Events pushed by the server, on a stream of their own. Ends with Unavailable when the peer goes."""
        ...

    async def aclose(self) -> None: ...


class Server(Protocol):
    """Serves handlers until cancelled."""

    address: str

    async def serve(self, handler: Handler, events: EventSource | None = None) -> None: ...
