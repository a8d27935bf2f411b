"""A client's way to one QUIC server: one connection, reused by all requests, made anew when it broke.

    (none) --request--> dialing --pinned, welcome--> open --break, silence--> (none)
                           |  failure: all who wait are told            aclose: closed for good

Invariants
1. Nothing but the handshake is sent before the server's certificate fits a pin; nothing but HELLO before the welcome.
2. A request counts its own bytes and the answer reserved for it against the server's budget before the first byte goes.
3. A request is sent once. When the connection breaks before the answer it is Unavailable, executed or not.
4. A connection that hears nothing for `silence_s`, although it asks by keep-alive, is broken.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import suppress

import msgspec
import trio

from trivium.cluster.errors import ClusterError, Refused, Unavailable
from trivium.cluster.transport.frames import (
    CREDIT,
    DEFAULT_LIMITS,
    END,
    EVENTS,
    HELLO,
    Limits,
    as_views,
    error_of,
    frame,
)
from trivium.cluster.transport.interface import Buffer, Reply
from trivium.cluster.transport.quic.address import PATH_DATAGRAM_BYTES, Endpoint, QuicAddress, is_loopback
from trivium.cluster.transport.quic.assembly import Frame, FrameReader
from trivium.cluster.transport.quic.budget import Budget
from trivium.cluster.transport.quic.certificate import ServerCheck, pinned
from trivium.cluster.transport.quic.endpoint import UdpEndpoint
from trivium.cluster.transport.quic.engine import (
    Engine,
    EngineOptions,
    default_engine,
    loopback_datagram_bytes,
    make_engine,
)
from trivium.cluster.transport.quic.hello import MAX_WELCOME_BYTES, ClientHello, Welcome, no_hello
from trivium.cluster.transport.quic.link import VIOLATION, Driver, Link, Stream, fresh
from trivium.cluster.transport.quic.udp import UdpSocket
from trivium.cluster.wire import HEAD, Service

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
KEEPALIVE_S = 4.0
SILENCE_S = 12.0
IDLE_TIMEOUT_S = 30.0
EVENT_WINDOW_BYTES = 256 << 10


class ClientStream(Stream):
    """A request's or a subscription's stream: frames of the server, in order."""

    __slots__ = ("_frames", "_news", "_reader")

    def __init__(self, link: Link, number: int, limits: Limits) -> None:
        super().__init__(link, number)
        self._reader = FrameReader(limits, lambda head: None)
        self._frames: list[Frame] = []
        self._news = trio.Event()

    def on_data(self, data: bytes, fin: bool) -> None:
        if data:
            self._frames += self._reader.feed(data)
        if self._frames or fin:
            self._news.set()

    def on_failed(self) -> None:
        self._news.set()

    async def next_frame(self) -> Frame:
        """Unavailable when there will be none."""
        while not self._frames:
            if self.failure is not None:
                raise fresh(self.failure)
            if self.received_all:
                raise Unavailable("the server ended the answer before it was whole")
            self._news = trio.Event()
            await self._news.wait()
        return self._frames.pop(0)


class ClientLink(Link):
    """The client's half: pins, HELLO, the server's announcements."""

    def __init__(
        self, engine: Engine, remote: Endpoint, driver: Driver, clock: Callable[[], float], check: ServerCheck
    ) -> None:
        super().__init__(engine, remote, driver, clock)
        self.connected = trio.Event()
        self._check = check
        self._pinged_at = self.heard_at
        self.keepalive_s = KEEPALIVE_S
        self.silence_s = SILENCE_S

    def on_connected(self) -> None:
        try:
            self._check(self.engine.peer_certificate() or b"")
        except (Refused, ValueError) as error:
            where = f"{self.remote[0]} port {self.remote[1]}"
            self.close(VIOLATION, Refused(f"the server at {where} is not believed: {error}"), "not pinned")
            return
        self.connected.set()

    def end(self, error: ClusterError) -> None:
        super().end(error)
        self.connected.set()

    def on_unwanted(self, stream: Stream) -> None:
        stream.stop_sending()  # the answer, an early refusal, is on its way

    def open(self, limits: Limits) -> ClientStream:
        if self.over is not None:
            raise fresh(self.over)
        stream = ClientStream(self, self.engine.open_stream(), limits)
        self.streams[stream.number] = stream
        return stream

    def deadline(self) -> float | None:
        if self.over is not None:
            return None
        alarm = min(max(self.heard_at, self._pinged_at) + self.keepalive_s, self.heard_at + self.silence_s)
        timer = self.engine.timer()
        return alarm if timer is None else min(alarm, timer)

    def on_timer(self, now: float) -> None:
        if self.over is None and now >= self.heard_at + self.silence_s:
            self.close(0, Unavailable(f"{self.remote[0]} port {self.remote[1]} has been silent for "
                                      f"{self.silence_s:g} s"), "silence")
            return
        if self.over is None and now >= max(self.heard_at, self._pinged_at) + self.keepalive_s:
            self._pinged_at = now
            with self._guard():
                self.engine.ping()
        super().on_timer(now)


class _Route:
    """One connection and its task, from dialing to its end. Requesters wait for `ready`."""

    def __init__(self) -> None:
        self.ready = trio.Event()
        self.gone = trio.Event()
        self.scope = trio.CancelScope()
        self.failure: ClusterError | None = None
        self.link: ClientLink | None = None
        self.welcome = Welcome(0, 0, 0, 0, 0)
        self.budget = Budget(0)
        self.slots = Budget(0)

    @property
    def usable(self) -> bool:
        return self.failure is None and (self.link is None or self.link.over is None)

    def fail(self, error: ClusterError) -> None:
        if self.failure is None:
            self.failure = error
        self.ready.set()


class QuicConnection:
    """A client's way to the server at `address`. Background tasks live as long as the connection is open."""

    local = False

    def __init__(
        self,
        address: str,
        server: Collection[bytes] | ServerCheck,
        *,
        engine: str | None = None,
        hello: ClientHello = no_hello,
        limits: Limits = DEFAULT_LIMITS,
        datagram_bytes: int | None = None,
        offload: bool = True,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        keepalive_s: float = KEEPALIVE_S,
        silence_s: float = SILENCE_S,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """`server`: pins of which its key must have one, or what looks at its certificate."""
        self._check = server if callable(server) else pinned(server)
        self.address = QuicAddress.parse(address)
        self._engine = engine or default_engine()
        self._hello = hello
        self._limits = limits
        self._datagram_bytes = datagram_bytes
        self._offload = offload
        self._connect_timeout_s = connect_timeout_s
        self._keepalive_s = keepalive_s
        self._silence_s = silence_s
        self._clock = clock or trio.current_time
        self._route: _Route | None = None
        self._closed = False

    @property
    def connected(self) -> bool:
        """There is a connection now that has passed HELLO."""
        route = self._route
        return route is not None and route.ready.is_set() and route.usable

    @property
    def broken(self) -> bool:
        """The last attempt was refused: another address of this peer may do, this connection does not mend itself."""
        route = self._route
        return route is not None and isinstance(route.failure, Refused)

    async def request(
        self, service: Service, body: bytes, payload: Buffer | Sequence[Buffer] = b"", *, reserve: int = 0
    ) -> Reply:
        """`reserve`: the largest answer (body and payload) there may be; 0 takes the server's usual one."""
        views = as_views(payload)
        frame(service, body, views, limits=self._limits)
        route, link = await self._open()
        buffers = self._framed(route, service, body, views, 0, reserve)
        room = sum(map(len, buffers)) + (reserve or route.welcome.reserve_bytes)
        slot = await route.slots.take(1)
        try:
            taken = await route.budget.take(room)
            try:
                return await self._exchange(link, buffers)
            finally:
                route.budget.give(taken)
        finally:
            route.slots.give(slot)

    async def _exchange(self, link: ClientLink, buffers: list[memoryview]) -> Reply:
        stream = link.open(self._limits)
        try:
            stream.send(buffers, fin=True)
            answer = await stream.next_frame()
        finally:
            link.drop(stream)
        if answer.head.status:
            raise error_of(answer.head.status, answer.body)
        return Reply(answer.body, answer.payload)

    def _framed(
        self, route: _Route, service: int, body: bytes, views: Sequence[memoryview], flags: int, reserve: int = 0
    ) -> list[memoryview]:
        limits = Limits(route.welcome.body_bytes, route.welcome.payload_bytes)
        return frame(service, body, views, flags=flags, limits=limits, reserve=reserve)

    async def subscribe(self, service: Service, body: bytes) -> AsyncIterator[bytes]:
        route, link = await self._open()
        buffers = self._framed(route, service, body, (), EVENTS, EVENT_WINDOW_BYTES)
        slot = await route.slots.take(1)
        stream = link.open(self._limits)
        unconfirmed = 0
        try:
            stream.send(buffers, fin=False)
            while True:
                event = await stream.next_frame()
                if event.head.status:
                    raise error_of(event.head.status, event.body)
                if event.head.flags & END:
                    return
                yield event.body
                unconfirmed += HEAD.size + len(event.body)
                if unconfirmed >= EVENT_WINDOW_BYTES // 2:
                    stream.send([memoryview(HEAD.pack(0, 0, service, 0, CREDIT, unconfirmed))], fin=False)
                    unconfirmed = 0
        finally:
            link.drop(stream)
            route.slots.give(slot)

    async def _open(self) -> tuple[_Route, ClientLink]:
        """The connection, made when there is none. Unavailable, Refused."""
        if self._closed:
            raise Unavailable("the connection was closed on this side")
        route = self._route
        if route is None or not route.usable:
            route = self._route = _Route()
            trio.lowlevel.spawn_system_task(self._run, route, name=f"connection to {self.address}")
        await route.ready.wait()
        if route.failure is not None:
            raise fresh(route.failure)
        assert route.link is not None
        if route.link.over is not None:
            raise fresh(route.link.over)
        return route, route.link

    async def _run(self, route: _Route) -> None:
        """A connection's life. It runs as a system task: nothing may escape."""
        udp: UdpSocket | None = None
        try:
            with route.scope:
                family, remote = await self.address.resolve()
                udp = UdpSocket(family, offload=self._offload)
                udp.connect(remote)
                await self._drive(route, udp, remote)
        except ClusterError as error:
            route.fail(error)
        except OSError as error:
            route.fail(Unavailable(f"nobody answers at {self.address}: {error.strerror or error}"))
        except Exception as error:
            log.exception("the connection to %s failed", self.address)
            route.fail(Unavailable(f"the connection to {self.address} failed: {type(error).__name__}"))
        finally:
            ending = route.failure or Unavailable(f"the connection to {self.address} was closed")
            route.fail(ending)
            if route.link is not None:
                route.link.close(0, ending, "closed")
            if udp is not None:
                udp.close()
            route.gone.set()

    async def _drive(self, route: _Route, udp: UdpSocket, remote: Endpoint) -> None:
        size = self._datagram_bytes
        if size is None:
            size = loopback_datagram_bytes(self._engine) if is_loopback(remote[0]) else PATH_DATAGRAM_BYTES
        engine = make_engine(self._engine, EngineOptions(size, IDLE_TIMEOUT_S))
        touched: list[Link] = []

        def take_in(data: bytes, segment_bytes: int, sender: Endpoint, now: float) -> Sequence[Link]:
            touched[0].receive(data, segment_bytes, remote, now)
            return touched

        endpoint = UdpEndpoint(udp, take_in, self._clock)
        link = ClientLink(engine, remote, endpoint, self._clock, self._check)
        link.keepalive_s, link.silence_s = self._keepalive_s, self._silence_s
        touched.append(link)
        engine.connect(remote, self._clock())
        failure: ClusterError | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(endpoint.run)
                nursery.start_soon(_cancel_after, link.ended, nursery.cancel_scope)
                endpoint.turn(link)
                await self._greet(route, link)
                route.link = link
                route.ready.set()
            failure = link.over
        except BaseExceptionGroup as group:
            failure = _cause(group, self.address)
            link.close(0, failure, "closed")
            rest = group.split(Exception)[1]
            if rest is not None:  # cancelled: that an error came at the same time is nobody's business any more
                raise rest from None
        finally:
            failure = failure or link.over
            link.close(0, failure or Unavailable("the connection was closed on this side"), "closed")
        if failure is not None:
            raise failure

    async def _greet(self, route: _Route, link: ClientLink) -> None:
        with trio.move_on_after(self._connect_timeout_s) as patience:
            await link.connected.wait()
            if link.over is not None:
                raise link.over
            proof = await self._hello(link.engine.binding())
            stream = link.open(Limits(MAX_WELCOME_BYTES, 0))
            try:
                stream.send(frame(0, proof, (), flags=HELLO, limits=self._limits), fin=True)
                answer = await stream.next_frame()
            finally:
                link.drop(stream)
            if answer.head.status:
                raise error_of(answer.head.status, answer.body)
            with suppress(msgspec.MsgspecError):
                route.welcome = msgspec.msgpack.decode(answer.body, type=Welcome)
            if route.welcome.budget_bytes <= 0 or route.welcome.streams <= 0:
                raise Unavailable(f"{self.address} sent no welcome that can be read")
            route.budget, route.slots = Budget(route.welcome.budget_bytes), Budget(route.welcome.streams)
        if patience.cancelled_caught:
            raise Unavailable(f"{self.address} did not answer within {self._connect_timeout_s:g} s")

    async def aclose(self) -> None:
        """Close the connection; requests in flight are Unavailable."""
        self._closed = True
        route, self._route = self._route, None
        if route is not None:
            route.scope.cancel()
            await route.gone.wait()
        else:
            await trio.lowlevel.checkpoint()


async def _cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _cause(group: BaseExceptionGroup[BaseException], address: QuicAddress) -> ClusterError:
    """The one reason in a nursery's group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ClusterError):
        return error
    if isinstance(error, OSError):
        return Unavailable(f"nobody answers at {address}: {error.strerror or error}")
    if isinstance(error, Exception):
        log.error("the connection to %s failed", address, exc_info=error)
    return Unavailable(f"the connection to {address} failed: {type(error).__name__}")



