"""One QUIC connection over an engine: streams, what they still have to send, timers. No sockets.

         connect/accept                on_connected, HELLO               close, engine's end, silence
    (new) -------------> handshaking -----------------------> open ------------------------> over

Invariants
1. The engine holds at most HIGH_WATER bytes and one slice beyond: the rest stays where it is, in the buffers of whoever
   sends, and streams take turns slice by slice.
2. Whatever the engine raises ends this connection and nothing else.
3. Once over, every stream has been told, once.
4. Nothing is asked of the engine while datagrams of before still wait for the socket.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import trio

from trivium.cluster.errors import ClusterError, Unavailable
from trivium.cluster.transport.quic.address import Endpoint
from trivium.cluster.transport.quic.engine import Datagram, Engine

log = logging.getLogger(__name__)

HIGH_WATER_BYTES = 1 << 20
SLICE_BYTES = 64 << 10
CANCELLED, STOPPED, VIOLATION = 1, 2, 3  # application error codes


class Driver(Protocol):
    """Who owns the socket and the clock's alarm."""

    def transmit(self, link: Link, datagrams: Sequence[Datagram]) -> bool:
        """Send; False: they are kept and sent later, and the link gets its turn then."""
        ...

    def turn(self, link: Link) -> None:
        """Give the link its turn, now or when its datagrams are gone."""
        ...


def fresh(error: ClusterError) -> ClusterError:
    """A copy for each who is told: one exception object must not collect the tracebacks of many."""
    return type(error)(str(error))


class Stream:
    """A stream's sending half and its fate; roles derive the receiving half."""

    __slots__ = ("_drained", "_fin", "_todo", "failure", "link", "number", "received_all", "sent_all")

    def __init__(self, link: Link, number: int) -> None:
        self.link = link
        self.number = number
        self.failure: ClusterError | None = None
        self.sent_all = False
        self.received_all = False
        self._todo: deque[memoryview] = deque()
        self._fin = False
        self._drained: trio.Event | None = None

    def send(self, buffers: Sequence[memoryview], *, fin: bool) -> None:
        """Queue buffers (not copied: they must not change until they are sent)."""
        if self.failure is not None or self.sent_all:
            return
        self._todo.extend(buffer for buffer in buffers if len(buffer))
        self._fin = self._fin or fin
        self.link.want_write(self)

    async def drained(self) -> None:
        """Wait until the engine has everything. ClusterError when the stream ended before."""
        while (self._todo or (self._fin and not self.sent_all)) and self.failure is None:
            if self._drained is None:
                self._drained = trio.Event()
            await self._drained.wait()
        if self.failure is not None:
            raise fresh(self.failure)

    def write_slice(self, engine: Engine) -> bool:
        """Hand the next slice to the engine; True when there is more."""
        if self._todo:
            piece = self._todo.popleft()
            if len(piece) > SLICE_BYTES:
                self._todo.appendleft(piece[SLICE_BYTES:])
                piece = piece[:SLICE_BYTES]
            last = self._fin and not self._todo
            engine.write(self.number, piece, last)
            self.sent_all = self.sent_all or last
        elif self._fin and not self.sent_all:
            engine.write(self.number, memoryview(b""), True)
            self.sent_all = True
        if self._todo:
            return True
        self._wake_sender()
        return False

    def stop_sending(self) -> None:
        """The peer wants no more: forget what is still to be sent."""
        self._todo.clear()
        self.sent_all = True
        self._wake_sender()

    def _wake_sender(self) -> None:
        if self._drained is not None:
            self._drained.set()
            self._drained = None

    def fail(self, error: ClusterError) -> None:
        if self.failure is None:
            self.failure = error
            self._todo.clear()
            self._wake_sender()
            self.on_failed()

    def on_failed(self) -> None:
        """The stream ended before its time."""

    def on_data(self, data: bytes, fin: bool) -> None:
        """Bytes of the peer. ClusterError ends the connection."""


class Link:
    """The half of a connection that client and server share; they derive `on_connected` and who makes streams."""

    def __init__(self, engine: Engine, remote: Endpoint, driver: Driver, clock: Callable[[], float]) -> None:
        self.engine = engine
        self.remote = remote
        self.streams: dict[int, Stream] = {}
        self.over: ClusterError | None = None
        self.heard_at = clock()
        self._clock = clock
        self._driver = driver
        self._writers: deque[Stream] = deque()
        self._closing = False
        self._turning = False
        self.ended = trio.Event()
        self.on_over: Callable[[], None] = lambda: None
        self.on_gone: Callable[[], None] = lambda: None  # nothing more will come of the engine

    # ---- what the driver calls

    def receive(self, data: bytes, segment_bytes: int, remote: Endpoint, now: float) -> None:
        if self.over is None or self._closing:
            self.heard_at = now
            with self._guard():
                self.engine.receive(data, segment_bytes, remote, now)

    def turn(self) -> None:
        """Handle what the engine has to say, then write and send what there is."""
        if self._turning:
            return
        self._turning = True
        try:
            with self._guard():
                self.engine.poll(self)
                reason = self.engine.ending() if self.over is None else None
                if reason is not None:  # the engine itself tells only after its draining period
                    self._closing = True
                    self.end(Unavailable(f"the connection ended: {reason or 'the peer closed it'}"))
                self._pump()
        finally:
            self._turning = False

    def deadline(self) -> float | None:
        """When `on_timer` wants to be called."""
        return self.engine.timer()

    def on_timer(self, now: float) -> None:
        with self._guard():
            timer = self.engine.timer()
            if timer is not None and timer <= now:
                self.engine.on_timer(now)

    def close(self, code: int, error: ClusterError, reason: str = "") -> None:
        """End the connection in an orderly way: the peer is told."""
        if self.over is None:
            self._closing = True
            with suppress(Exception):
                self.engine.close(code, (reason or str(error))[:200])
                self._driver.transmit(self, self.engine.transmit(self._clock()))
            self.end(error)

    def end(self, error: ClusterError) -> None:
        """The connection is over, whoever ended it."""
        if self.over is None:
            self.over = error
            streams, self.streams = list(self.streams.values()), {}
            self._writers.clear()
            for stream in streams:
                stream.fail(error)
            self.ended.set()
            self.on_over()

    # ---- what streams call

    def want_write(self, stream: Stream) -> None:
        if self.over is None:
            if stream not in self._writers:
                self._writers.append(stream)
            if not self._turning:
                self._driver.turn(self)

    def drop(self, stream: Stream, code: int = CANCELLED) -> None:
        """Give a stream up: nothing more is sent on it, nothing more is wanted from it."""
        if self.streams.pop(stream.number, None) is None:
            return
        with suppress(ValueError):
            self._writers.remove(stream)
        if self.over is None and not (stream.sent_all and stream.received_all):
            with self._guard():
                if not stream.sent_all:
                    self.engine.reset(stream.number, code)
                if not stream.received_all:
                    self.engine.stop(stream.number, code)
            if not self._turning:
                self._driver.turn(self)

    # ---- what the engine calls

    def on_connected(self) -> None:
        """The handshake is complete."""

    def on_data(self, number: int, data: bytes, fin: bool) -> None:
        stream = self.streams.get(number)
        if stream is not None:
            stream.received_all = stream.received_all or fin
            stream.on_data(data, fin)

    def on_reset(self, number: int) -> None:
        stream = self.streams.get(number)
        if stream is not None:
            stream.received_all = True
            stream.fail(Unavailable("the peer gave the request up"))
            self.drop(stream)

    def on_stop(self, number: int) -> None:
        stream = self.streams.get(number)
        if stream is not None:
            self.on_unwanted(stream)

    def on_unwanted(self, stream: Stream) -> None:
        """The peer wants no more of what the stream sends."""
        stream.fail(Unavailable("the peer gave the request up"))
        self.drop(stream)

    def on_closed(self, code: int, reason: str) -> None:
        self._closing = False
        self.on_gone()
        self.end(Unavailable(f"the connection ended: {reason or 'the peer closed it'}"))

    def on_cid(self, cid: bytes, issued: bool) -> None:
        """The connection is (no longer) reachable by this id."""

    # ---- inside

    def _pump(self) -> None:
        engine, writers = self.engine, self._writers
        while True:
            room = HIGH_WATER_BYTES - engine.buffered_bytes() if writers else 0
            while writers and room > 0:
                stream = writers.popleft()
                room -= SLICE_BYTES
                if stream.write_slice(engine):
                    writers.append(stream)
            datagrams = engine.transmit(self._clock())
            if not datagrams or not self._driver.transmit(self, datagrams) or not writers:
                return
            if engine.buffered_bytes() >= HIGH_WATER_BYTES:
                return

    def _guard(self) -> _Guard:
        return _Guard(self)


class _Guard:
    """Invariant 2."""

    __slots__ = ("_link",)

    def __init__(self, link: Link) -> None:
        self._link = link

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if error is None:
            return False
        if not isinstance(error, Exception):
            return False
        link = self._link
        if isinstance(error, ClusterError):
            link.close(VIOLATION, error)
        else:
            log.debug("the QUIC engine gave up a connection with %s: %r", link.remote, error)
            link.close(VIOLATION, Unavailable(f"the connection broke: {type(error).__name__}"), "protocol error")
        return True
