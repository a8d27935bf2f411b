"""Frames: the pure part of the stream transports. Bytes of one request or answer, its head, its limits.

    head (wire.HEAD, 16 bytes) | body | payload

Flags of a request: EVENTS opens a subscription, GREETING names the logical connection that a socket belongs to (no
answer). In an answer the low byte of `flags` counts the descriptors that came with it, END ends a subscription (or
the use of a socket). HELLO and CREDIT are QUIC's: the first message of a connection, and a subscriber's confirmation
of the bytes (in `reserve`) that it has taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from trivium.cluster.errors import ClusterError, Refused
from trivium.cluster.transport.interface import Buffer
from trivium.cluster.wire import ERRORS, HEAD, MAX_BODY, MAX_PAYLOAD, status_of

EVENTS = 0x100
GREETING = 0x200
END = 0x400
HELLO = 0x800
CREDIT = 0x1000
FD_COUNT = 0xFF
MAX_FDS = 16


class Limits(NamedTuple):
    """The largest body and payload that one side takes."""

    body_bytes: int = MAX_BODY
    payload_bytes: int = MAX_PAYLOAD

    def check(self, body_bytes: int, payload_bytes: int) -> None:
        if body_bytes > self.body_bytes:
            raise Refused(f"the message's body has {body_bytes} bytes, the limit is {self.body_bytes}")
        if payload_bytes > self.payload_bytes:
            raise Refused(f"the message's payload has {payload_bytes} bytes, the limit is {self.payload_bytes}")


DEFAULT_LIMITS = Limits()


class Head(NamedTuple):
    body_bytes: int
    payload_bytes: int
    service: int
    status: int = 0
    flags: int = 0
    reserve: int = 0

    @classmethod
    def parse(cls, data: Buffer, offset: int = 0) -> Head:
        return cls(*HEAD.unpack_from(data, offset))


def as_views(payload: Buffer | Sequence[Buffer]) -> list[memoryview]:
    """The payload's non-empty buffers as flat views of bytes, nothing copied."""
    parts: Sequence[Buffer] = (payload,) if isinstance(payload, (bytes, bytearray, memoryview)) else payload
    return [_flat(part) for part in parts if len(part)]


def _flat(part: Buffer) -> memoryview:
    view = memoryview(part)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def as_one(payload: Buffer | Sequence[Buffer]) -> memoryview:
    """The payload as one view; only a list of several buffers is copied."""
    views = as_views(payload)
    if not views:
        return memoryview(b"")
    return views[0] if len(views) == 1 else memoryview(b"".join(views))


def frame(
    service: int,
    body: bytes,
    views: Sequence[memoryview],
    *,
    status: int = 0,
    flags: int = 0,
    limits: Limits,
    reserve: int = 0,
) -> list[memoryview]:
    """The buffers to send, in order. Refused when a limit is passed: nothing was sent."""
    payload_bytes = sum(map(len, views))
    limits.check(len(body), payload_bytes)
    head = HEAD.pack(len(body), payload_bytes, service, status, flags, reserve)
    return [memoryview(head + body), *views]


def error_of(status: int, text: bytes) -> ClusterError:
    """The error that an answer's status names; an unknown one (a newer peer) is the root class."""
    kind = ERRORS[status - 1] if status <= len(ERRORS) else ClusterError
    return kind(text.decode("utf-8", "replace"))


def bare(error: Exception) -> Exception:
    """The one exception inside the groups that nurseries make."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def status_and_text(error: Exception) -> tuple[int, bytes]:
    """How an exception of a handler travels. Undecodable messages are the caller's fault, the rest is ours."""
    error = bare(error)
    if isinstance(error, ClusterError):
        return status_of(error), str(error).encode()
    if isinstance(error, msgspec.MsgspecError):
        return status_of(Refused()), f"malformed message: {error}".encode()
    return 1, f"internal error {type(error).__name__}: {error}".encode()


def is_internal(error: Exception) -> bool:
    """True when the server should log it with its traceback."""
    return not isinstance(bare(error), (ClusterError, msgspec.MsgspecError))
