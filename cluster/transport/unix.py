"""The transport of one host: Unix stream sockets.

A pooled socket per request in flight (no multiplexing, so no head-of-line blocking and no flow control of our own) and
a socket of its own for each subscription. All sockets of one client's Connection share one Peer at the server.

Invariants
1. A socket returns to the pool only after a complete answer; a cancelled or failed request closes its socket.
2. A request is sent a second time only when it cannot have arrived whole (a pooled socket whose server had gone).
3. Whatever a peer sends, the server closes at most that peer's socket.
4. A handler that has begun runs to its end, whether its requester still waits or not.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress

import trio

from trivium.cluster.errors import ClusterError, Refused, Unavailable
from trivium.cluster.transport import unix_address
from trivium.cluster.transport.frames import (
    DEFAULT_LIMITS,
    END,
    EVENTS,
    FD_COUNT,
    GREETING,
    MAX_FDS,
    Limits,
    as_views,
    error_of,
    frame,
    is_internal,
    status_and_text,
)
from trivium.cluster.transport.interface import Buffer, EventSource, Handler, Peer, Reply
from trivium.cluster.transport.stream import Closed, FrameIn, FrameStream, tune
from trivium.cluster.wire import Service

log = logging.getLogger(__name__)

_CREDENTIALS = struct.Struct("3i")
BACKLOG = 512
CONNECT_WAIT_S = 10.0
LINGER_S = 2.0
FAIR_FRAMES = 16


class UnixConnection:
    """A client's way to the process that listens on `path`. Sockets are made when they are needed."""

    local = True

    def __init__(
        self, path: str, *, limits: Limits = DEFAULT_LIMITS, max_sockets: int = 256, max_idle: int = 32
    ) -> None:
        self._path = path
        self._limits = limits
        self._identity = os.urandom(16)
        self._idle: list[FrameStream] = []
        self._max_idle = max_idle
        self._max_sockets = max_sockets
        self._in_use = 0
        self._room = trio.lowlevel.ParkingLot()
        self._closed = False

    async def request(self, service: Service, body: bytes, payload: Buffer | Sequence[Buffer] = b"") -> Reply:
        buffers = frame(service, body, as_views(payload), limits=self._limits)
        while self._in_use >= self._max_sockets:
            await self._room.park()
        self._in_use += 1
        try:
            return await self._exchange(buffers)
        finally:
            self._in_use -= 1
            self._room.unpark()

    async def _exchange(self, buffers: list[memoryview]) -> Reply:
        stream = await self._send(buffers)
        try:
            answer = await stream.receive(self._limits)
        except OSError as error:
            stream.close()
            raise Unavailable(f"{self._path} broke off: {error.strerror}") from error
        except BaseException:
            stream.close()
            raise
        if answer.head.flags & END:
            stream.close()  # the server gives this socket up
        else:
            self._keep(stream)
        return _reply(answer)

    async def _send(self, buffers: list[memoryview]) -> FrameStream:
        while True:
            pooled = bool(self._idle)
            stream = self._idle.pop() if pooled else await self._dial()
            try:
                await stream.send(buffers)
                return stream
            except OSError as error:
                gone = error.errno in (errno.EPIPE, errno.ECONNRESET)
                if gone and not pooled:
                    return stream  # it may have answered with an error before it closed
                stream.close()
                if gone:
                    continue  # invariant 2: a frame that did not arrive whole is never executed
                raise Unavailable(f"{self._path} broke off: {error.strerror}") from error
            except BaseException:
                stream.close()
                raise

    async def _dial(self) -> FrameStream:
        if self._closed:
            raise Unavailable("the connection was closed on this side")
        give_up = trio.current_time() + CONNECT_WAIT_S
        while True:
            try:
                sock = unix_address.connect_now(self._path)
                break
            except OSError as error:
                if error.errno != errno.EAGAIN or trio.current_time() > give_up:
                    raise Unavailable(f"nobody answers on {self._path}: {error.strerror}") from error
            await trio.sleep(0.005)
        tune(sock)
        stream = FrameStream(sock, takes_fds=True)
        greeting = frame(0, self._identity, (), flags=GREETING, limits=self._limits)
        try:
            await stream.send(greeting)
        except OSError as error:
            stream.close()
            raise Unavailable(f"{self._path} broke off: {error.strerror}") from error
        except BaseException:
            stream.close()
            raise
        return stream

    def _keep(self, stream: FrameStream) -> None:
        if self._closed or len(self._idle) >= self._max_idle:
            stream.close()
        else:
            self._idle.append(stream)

    async def subscribe(self, service: Service, body: bytes) -> AsyncIterator[bytes]:
        stream = await self._dial()
        try:
            await stream.send(frame(service, body, (), flags=EVENTS, limits=self._limits))
            while True:
                event = await stream.receive(self._limits)
                event.close()
                if event.head.status:
                    raise error_of(event.head.status, event.body)
                if event.head.flags & END:
                    return
                yield event.body
        except OSError as error:
            raise Unavailable(f"{self._path} broke off: {error.strerror}") from error
        finally:
            stream.close()

    async def aclose(self) -> None:
        """Close idle sockets; requests in flight finish and close theirs."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()
        await trio.lowlevel.checkpoint()


def _reply(answer: FrameIn) -> Reply:
    if answer.head.status:
        answer.close()
        raise error_of(answer.head.status, answer.body)
    if answer.head.flags & FD_COUNT != len(answer.fds):
        answer.close()
        raise Unavailable("descriptors were lost on the way (is this process out of file descriptors?)")
    return Reply(answer.body, answer.payload, answer.fds)


class UnixServer:
    """Listens on a path. `bind()` (or serve) takes the path; it is given back when serve() ends."""

    def __init__(
        self,
        path: str,
        *,
        mode: int = 0o600,
        group: str | int | None = None,
        limits: Limits = DEFAULT_LIMITS,
        max_connections: int = 4096,
    ) -> None:
        self.address = f"unix:{path}"
        self._path = path
        self._mode = mode
        self._group = group
        self._limits = limits
        self._max_connections = max_connections
        self._listener: socket.socket | None = None
        self._identity = (0, 0)
        self._peers: dict[tuple[int, int, bytes], tuple[Peer, list[int]]] = {}

    async def bind(self) -> None:
        """Take the path; from now on clients can connect and wait. InUse, Refused."""
        if self._listener is None:
            self._listener = await unix_address.listen(self._path, mode=self._mode, group=self._group, backlog=BACKLOG)
            status = os.lstat(self._path)
            self._identity = (status.st_dev, status.st_ino)

    def unbind(self) -> None:
        if self._listener is not None:
            if self._listener.fileno() >= 0:
                unix_address.remove_own(self._path, self._identity)
                trio.lowlevel.notify_closing(self._listener)
                self._listener.close()
            self._listener = None

    async def serve(
        self,
        handler: Handler,
        events: EventSource | None = None,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        await self.bind()
        assert self._listener is not None
        room = trio.Semaphore(self._max_connections)
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    await room.acquire()
                    sock = await self._accept(self._listener)
                    nursery.start_soon(self._serve_socket, sock, handler, events, room)
        finally:
            self.unbind()

    async def _accept(self, listener: socket.socket) -> socket.socket:
        while True:
            try:
                return listener.accept()[0]
            except BlockingIOError:
                await trio.lowlevel.wait_readable(listener)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ECONNABORTED):
                    raise
                log.error("cannot accept a connection on %s: %s", self._path, error)
                await trio.sleep(0.1)

    async def _serve_socket(
        self, sock: socket.socket, handler: Handler, events: EventSource | None, room: trio.Semaphore
    ) -> None:
        stream = FrameStream(sock, takes_fds=False)
        key: tuple[int, int, bytes] | None = None
        try:
            tune(sock)
            pid, uid, gid = _CREDENTIALS.unpack(
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
            greeting = await stream.receive(self._limits)
            if not greeting.head.flags & GREETING:
                raise Refused("the first message on a socket must be the greeting")
            key = (pid, uid, greeting.body)
            peer = self._peer(key, gid)
            served = 0
            while await self._serve_frame(stream, peer, handler, events):
                served += 1
                if served % FAIR_FRAMES == 0:  # a frame that is there already and is answered at once waits for nothing
                    await trio.lowlevel.checkpoint()
        except Closed:
            pass
        except (OSError, Unavailable) as error:
            log.debug("a connection on %s ended: %s", self._path, error)
        except ClusterError as error:
            await _refuse(stream, error)
        finally:
            stream.close()
            room.release()
            if key is not None:
                self._forget(key)

    def _peer(self, key: tuple[int, int, bytes], gid: int) -> Peer:
        """The one Peer of all sockets of a client's Connection."""
        known = self._peers.get(key)
        if known is None:
            known = self._peers[key] = (Peer(self.address, uid=key[1], gid=gid, pid=key[0]), [0])
        known[1][0] += 1
        return known[0]

    def _forget(self, key: tuple[int, int, bytes]) -> None:
        count = self._peers[key][1]
        count[0] -= 1
        if not count[0]:
            del self._peers[key]

    async def _serve_frame(self, stream: FrameStream, peer: Peer, handler: Handler, events: EventSource | None) -> bool:
        """One request or one subscription; False when the socket is used up."""
        request = await stream.receive(self._limits)
        if request.head.flags & EVENTS:
            await self._push(stream, peer, request, events)
            return False
        try:
            reply = await handler(peer, request.head.service, request.body, request.payload)
        except Exception as error:
            if is_internal(error):
                log.exception("a handler failed")
            await _send_error(stream, error)
            return True
        try:
            await self._send_reply(stream, reply)
        finally:
            reply.close()
        return True

    async def _send_reply(self, stream: FrameStream, reply: Reply) -> None:
        try:
            if len(reply.fds) > MAX_FDS:
                raise Refused(f"an answer may carry {MAX_FDS} descriptors, not {len(reply.fds)}")
            buffers = frame(0, reply.body, as_views(reply.payload), flags=len(reply.fds), limits=self._limits)
        except Refused as error:
            await _send_error(stream, error)
        else:
            await stream.send(buffers, reply.fds)

    async def _push(self, stream: FrameStream, peer: Peer, request: FrameIn, events: EventSource | None) -> None:
        """Send a subscription's events until its source ends or the client closes."""
        if events is None:
            raise Refused("this server has no events")
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                with suppress(OSError, ClusterError):
                    await stream.wait_end()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            try:
                async with aclosing(events(peer, request.head.service, request.body)) as source:  # type: ignore[type-var]
                    async for event in source:
                        await stream.send(frame(0, event, (), limits=self._limits))
                await stream.send(frame(0, b"", (), flags=END, limits=self._limits))
            except (BrokenPipeError, ConnectionResetError):
                pass
            except Exception as error:
                if is_internal(error):
                    log.exception("an event source failed")
                await _send_error(stream, error)
            nursery.cancel_scope.cancel()


async def _send_error(stream: FrameStream, error: Exception, flags: int = 0) -> None:
    status, text = status_and_text(error)
    with suppress(BrokenPipeError, ConnectionResetError):
        await stream.send(frame(0, text[:65536], (), status=status, flags=flags, limits=DEFAULT_LIMITS))


async def _refuse(stream: FrameStream, error: ClusterError) -> None:
    """Answer a frame that is not taken, then read on for a while, so that the sender gets to see the answer."""
    with suppress(OSError, ClusterError), trio.move_on_after(LINGER_S):
        await _send_error(stream, error, END)
        stream.sock.shutdown(socket.SHUT_WR)
        await stream.drain()
