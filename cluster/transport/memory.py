"""The transport inside one process: a call goes to the server's task as it is, nothing is encoded or copied.

It keeps the other transports' rules: a handler that has begun runs to its end although its requester is cancelled,
errors arrive by class and text, a server that is not serving is Unavailable. Payloads are handed over as views of the
caller's memory: a caller must not change a buffer before the answer is there (nor after a cancelled request).
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import trio

from trivium.cluster.errors import ClusterError, Unavailable
from trivium.cluster.transport.frames import (
    DEFAULT_LIMITS,
    Limits,
    as_one,
    error_of,
    is_internal,
    status_and_text,
)
from trivium.cluster.transport.interface import Buffer, EventSource, Handler, Peer, Reply
from trivium.cluster.wire import Service

log = logging.getLogger(__name__)


class _Call:
    """One request in flight, between the requester's task and the server's."""

    __slots__ = ("abandoned", "done", "error", "reply")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.reply: Reply | None = None
        self.error: ClusterError | None = None
        self.abandoned = False

    def finish(self, reply: Reply | None, error: ClusterError | None) -> None:
        self.reply, self.error = reply, error
        if self.abandoned and reply is not None:
            reply.close()
        self.done.set()


class _Subscription:
    """A subscription's channel; its source runs in the server's nursery."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.failure: ClusterError | None = None
        self.send, self.receive = trio.open_memory_channel[bytes](0)

    async def pump(self, source: AsyncIterator[bytes], address: str) -> None:
        self.failure = Unavailable(f"{address} went away")
        async with self.send:
            with self.scope:
                try:
                    async with aclosing(source):  # type: ignore[type-var]
                        async for event in source:
                            await self.send.send(event)
                    self.failure = None
                except trio.BrokenResourceError:
                    pass
                except Exception as error:
                    if is_internal(error):
                        log.exception("an event source failed")
                    self.failure = error_of(*status_and_text(error))


class MemoryServer:
    """Serves connections of its own process. Tests stop and start it like any server."""

    def __init__(self, address: str = "memory:", *, limits: Limits = DEFAULT_LIMITS) -> None:
        self.address = address
        self._limits = limits
        self._handler: Handler | None = None
        self._events: EventSource | None = None
        self._nursery: trio.Nursery | None = None
        self._calls: set[_Call] = set()

    async def serve(
        self,
        handler: Handler,
        events: EventSource | None = None,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        self._handler, self._events = handler, events
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            for call in tuple(self._calls):
                call.finish(None, Unavailable(f"{self.address} stopped before it answered"))

    def connect(self, *, local: bool = True) -> MemoryConnection:
        return MemoryConnection(self, local=local)

    def start(self, call: _Call, peer: Peer, service: int, body: bytes, payload: memoryview) -> None:
        """Begin a request in the server's own nursery. Refused, Unavailable."""
        self._limits.check(len(body), len(payload))
        if self._nursery is None:
            raise Unavailable(f"nobody serves {self.address}")
        try:
            self._nursery.start_soon(self._handle, call, peer, service, body, payload)
        except RuntimeError:  # the nursery is closing: its tasks are being cancelled
            raise Unavailable(f"{self.address} is stopping") from None
        self._calls.add(call)

    async def _handle(self, call: _Call, peer: Peer, service: int, body: bytes, payload: memoryview) -> None:
        assert self._handler is not None
        try:
            reply = await self._handler(peer, service, body, payload)
            try:
                views = as_one(reply.payload)
                self._limits.check(len(reply.body), len(views))
            except BaseException:
                reply.close()
                raise
            reply.payload = views
            call.finish(reply, None)
        except Exception as error:
            if is_internal(error):
                log.exception("a handler failed")
            call.finish(None, error_of(*status_and_text(error)))
        finally:
            self._calls.discard(call)
            if not call.done.is_set():
                call.finish(None, Unavailable(f"{self.address} stopped before it answered"))

    def open_events(self, peer: Peer, service: int, body: bytes) -> _Subscription:
        """Begin a subscription in the server's own nursery. Unavailable."""
        if self._nursery is None or self._events is None:
            raise Unavailable(f"nobody serves events on {self.address}")
        subscription = _Subscription()
        self._nursery.start_soon(subscription.pump, self._events(peer, service, body), self.address)
        return subscription


class MemoryConnection:
    """A way to a MemoryServer."""

    def __init__(self, server: MemoryServer, *, local: bool = True) -> None:
        self.local = local
        self._server = server
        self._peer = Peer(server.address, uid=os.getuid(), gid=os.getgid(), pid=os.getpid(), local=local)
        self._closed = False

    async def request(self, service: Service, body: bytes, payload: Buffer | Sequence[Buffer] = b"") -> Reply:
        if self._closed:
            raise Unavailable("the connection was closed on this side")
        call = _Call()
        self._server.start(call, self._peer, service, body, as_one(payload))
        try:
            await call.done.wait()
        except BaseException:
            call.abandoned = True
            if call.reply is not None:
                call.reply.close()
            raise
        if call.error is not None:
            raise call.error
        assert call.reply is not None
        return call.reply

    async def subscribe(self, service: Service, body: bytes) -> AsyncIterator[bytes]:
        if self._closed:
            raise Unavailable("the connection was closed on this side")
        subscription = self._server.open_events(self._peer, service, body)
        try:
            async for event in subscription.receive:
                yield event
        finally:
            subscription.scope.cancel()
            subscription.receive.close()
        if subscription.failure is not None:
            raise subscription.failure

    async def aclose(self) -> None:
        self._closed = True
        await trio.lowlevel.checkpoint()
