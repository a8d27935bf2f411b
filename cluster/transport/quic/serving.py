"""The server's half of a connection: HELLO first, then a stream per request, all within the announced budget.

Invariants
1. Before the welcome the peer may use one stream, MAX_HELLO_BYTES and `hello_timeout_s`; anything more ends it.
2. Requests being received or served, with the answers reserved for them, count against the budget. A peer that passes
   what was announced is broken or hostile: its connection ends.
3. An answer beyond its reserve waits until the connection's other such answers are sent, and no handler begins
   meanwhile; subscriptions send no more than the subscriber has confirmed, a window ahead.
4. A handler that has begun runs to its end, whether its requester still waits or not; at most `streams` of a connection
   run at once, those of abandoned requests among them.
5. A stranger (Admission.stranger) has one request of STRANGER_LIMITS, stays half-open, and goes after its answer or
   STRANGER_S.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

import msgspec
import trio

from trivium.cluster.errors import ClusterError, Refused, Unavailable
from trivium.cluster.transport.frames import (
    CREDIT,
    DEFAULT_LIMITS,
    END,
    EVENTS,
    HELLO,
    Head,
    Limits,
    as_views,
    frame,
    is_internal,
    status_and_text,
)
from trivium.cluster.transport.interface import EventSource, Handler, Peer, Reply
from trivium.cluster.transport.quic.address import Endpoint, QuicAddress
from trivium.cluster.transport.quic.assembly import Frame, FrameReader
from trivium.cluster.transport.quic.budget import Budget
from trivium.cluster.transport.quic.engine import Engine
from trivium.cluster.transport.quic.hello import (
    MAX_HELLO_BYTES,
    STRANGER_LIMITS,
    STRANGER_S,
    Verifier,
    Welcome,
    welcome_everybody,
)
from trivium.cluster.transport.quic.link import VIOLATION, Driver, Link, Stream, fresh
from trivium.cluster.wire import HEAD

log = logging.getLogger(__name__)

MAX_ERROR_TEXT_BYTES = 4096
LINGER_S = 1.0

Admitted = Callable[[Peer, Callable[[str], None]], Callable[[], None]]
"""(peer, close) -> gone: hears of each connection that was let in, may end it with a reason, and hears of its end."""


def let_in(peer: Peer, close: Callable[[str], None]) -> Callable[[], None]:
    return lambda: None


@dataclass(frozen=True, slots=True)
class Service:
    """What all connections of a server share."""

    handler: Handler
    events: EventSource | None = None
    verify: Verifier = welcome_everybody
    limits: Limits = DEFAULT_LIMITS
    budget_bytes: int = 64 << 20
    streams: int = 96  # the engines allow a peer 100 at once
    reserve_bytes: int = 512 << 10
    hello_timeout_s: float = 10.0
    admitted: Admitted = let_in


@dataclass(slots=True)
class _Account:
    """A connection's bytes (invariant 2)."""

    total: int
    taken: int = 0
    over: Budget = field(init=False)  # answers beyond their reserve

    def __post_init__(self) -> None:
        self.over = Budget(self.total)


class ServerStream(Stream):
    """A request's stream."""

    __slots__ = ("_reader", "cost", "credit", "more_credit", "started", "waiting")

    def __init__(self, link: ServerLink, number: int, limits: Limits) -> None:
        super().__init__(link, number)
        self._reader = FrameReader(limits, self._accept)
        self.cost = 0
        self.started = False
        self.credit = 0
        self.more_credit = trio.Event()
        self.waiting: trio.CancelScope | None = None  # of a request whose handler has not begun

    def _accept(self, head: Head) -> None:
        if self.started:
            if not head.flags & CREDIT or head.body_bytes or head.payload_bytes:
                raise Violation("a second message on a request's stream")
            return
        link = self.link
        assert isinstance(link, ServerLink)
        self.cost = link.charge(head)

    def on_data(self, data: bytes, fin: bool) -> None:
        link = self.link
        assert isinstance(link, ServerLink)
        try:
            frames = self._reader.feed(data) if data else []
        except Refused as error:
            if isinstance(error, Violation):
                raise
            link.refuse(self, error)
            return
        for whole in frames:
            if self.started:
                self.credit += whole.head.reserve
                self.more_credit.set()
            else:
                self.started = True
                link.begin(self, whole)
        if fin and not self.started and not self._reader.failed:
            raise Violation("a stream that ended within its request")

    def on_failed(self) -> None:
        self.more_credit.set()
        link = self.link
        assert isinstance(link, ServerLink)
        link.settle(self)
        if self.waiting is not None:
            self.waiting.cancel()

    async def spend(self, size_bytes: int) -> None:
        """Wait until the subscriber has room (one event of any size may go when it has taken everything)."""
        while self.credit <= 0 and self.failure is None:
            self.more_credit = trio.Event()
            await self.more_credit.wait()
        if self.failure is not None:
            raise fresh(self.failure)
        self.credit -= size_bytes


class Violation(Refused):
    """The peer broke the protocol: its connection ends."""


class ServerLink(Link):
    """One client's connection."""

    def __init__(
        self,
        engine: Engine,
        remote: Endpoint,
        driver: Driver,
        clock: Callable[[], float],
        service: Service,
        nursery: trio.Nursery,
        cid_changed: Callable[[ServerLink, bytes, bool], None],
    ) -> None:
        super().__init__(engine, remote, driver, clock)
        self.peer: Peer | None = None
        self._service = service
        self._nursery = nursery
        self._cid_changed = cid_changed
        self._account = _Account(service.budget_bytes)
        self._running = trio.Semaphore(service.streams)
        self._calm = trio.Event()
        self._calm.set()
        self._oversized = 0
        self._hello_bytes = 0
        self._until: float | None = clock() + service.hello_timeout_s  # None: as long as it likes
        self._limits = Limits(MAX_HELLO_BYTES, 0)
        self._stranger = False
        self._asked = False  # a stranger its one request
        self._dropped: set[int] = set()
        self.on_welcome: Callable[[], None] = lambda: None
        self._gone: Callable[[], None] = lambda: None  # tells who heard that this connection was let in

    # ---- what the engine calls

    def on_cid(self, cid: bytes, issued: bool) -> None:
        self._cid_changed(self, cid, issued)

    def on_data(self, number: int, data: bytes, fin: bool) -> None:
        if number in self._dropped:
            if fin:
                self._dropped.discard(number)
            return
        if self.over is not None:
            return
        stream = self.streams.get(number)
        if stream is None:
            stream = self._open(number)
        if self.peer is None:
            self._hello_bytes += len(data)
            if self._hello_bytes > MAX_HELLO_BYTES + HEAD.size:
                raise Violation("more than a HELLO before the welcome")
        stream.received_all = stream.received_all or fin
        stream.on_data(data, fin)

    def on_reset(self, number: int) -> None:
        self._dropped.discard(number)
        super().on_reset(number)

    def _open(self, number: int) -> ServerStream:
        if number & 3:
            raise Violation("a stream of a kind that is not used")
        if self.peer is None and (number or self.streams):
            raise Violation("a request before the welcome")
        if self._stranger:
            if self._asked:
                raise Violation("a stranger has one request")
            self._asked = True
        stream = ServerStream(self, number, self._limits)
        self.streams[number] = stream
        return stream

    def deadline(self) -> float | None:
        timer = self.engine.timer()
        if self._until is None or self.over is not None:
            return timer
        return self._until if timer is None else min(timer, self._until)

    def on_timer(self, now: float) -> None:
        if self._until is not None and self.over is None and now >= self._until:
            late = "no HELLO in time" if self.peer is None else "a stranger has had its time"
            self.close(VIOLATION, Refused(late), late)
            return
        super().on_timer(now)

    def drop(self, stream: Stream, code: int = 1) -> None:
        if stream.number in self.streams and not stream.received_all:
            self._dropped.add(stream.number)
        super().drop(stream, code)

    # ---- what streams call

    def charge(self, head: Head) -> int:
        """Invariant 2; returns what must be given back."""
        if self.peer is None:
            if not head.flags & HELLO:
                raise Violation("a request before the welcome")
            return 0
        if head.flags & HELLO:
            raise Violation("a second HELLO")
        account = self._account
        reserve = head.reserve or self._service.reserve_bytes
        cost = min(HEAD.size + head.body_bytes + head.payload_bytes + reserve, account.total)
        if account.taken + cost > account.total:
            raise Violation("requests beyond the announced budget")
        account.taken += cost
        return cost

    def settle(self, stream: Stream) -> None:
        assert isinstance(stream, ServerStream)
        self._account.taken -= stream.cost
        stream.cost = 0

    def refuse(self, stream: ServerStream, error: ClusterError) -> None:
        """Answer a request that is not taken in, and want no more of it."""
        stream.started = True
        self._nursery.start_soon(self._answer_error, stream, error)

    def begin(self, stream: ServerStream, request: Frame) -> None:
        if self.peer is None:
            self._nursery.start_soon(self._greet, stream, request)
        elif request.head.flags & EVENTS:
            if self._stranger:
                raise Violation("a stranger has no subscriptions")
            self._nursery.start_soon(self._push, stream, request)
        else:
            self._nursery.start_soon(self._handle, stream, request)

    # ---- tasks

    async def _greet(self, stream: ServerStream, request: Frame) -> None:
        service = self._service
        address = str(QuicAddress(*self.remote))
        try:
            admission = await service.verify(self.engine.binding(), request.body, address)
        except Exception as error:
            if is_internal(error):
                log.exception("the verifier failed")
            await self._answer_error(stream, error)
            await self._let_go("not admitted")
            return
        if self.over is not None:
            return
        self.peer = Peer(address, local=False, attributes=dict(admission.attributes))
        self._stranger = admission.stranger
        self._until = self._clock() + STRANGER_S if admission.stranger else None
        self._limits = STRANGER_LIMITS if admission.stranger else service.limits
        if not admission.stranger:
            self.on_welcome()
        self._gone = service.admitted(self.peer, self._turn_away)
        if self.over is not None:  # turned away at once
            self._gone()
            return
        welcome = Welcome(
            service.budget_bytes,
            1 if admission.stranger else service.streams,
            *self._limits,
            service.reserve_bytes,
            admission.answer,
        )
        await self._send(stream, frame(0, msgspec.msgpack.encode(welcome), (), limits=DEFAULT_LIMITS))

    async def _let_go(self, why: str) -> None:
        """Let the last answer arrive (the client goes by itself), then close."""
        with trio.move_on_after(LINGER_S):
            await self.ended.wait()
        self.close(VIOLATION, Refused(why), why)

    async def _handle(self, stream: ServerStream, request: Frame) -> None:
        head = request.head
        with trio.CancelScope() as stream.waiting:
            await self._calm.wait()
            await self._running.acquire()
            stream.waiting = None
        if stream.waiting is not None:  # given up before its turn came
            return
        try:
            if stream.failure is not None:
                return
            assert self.peer is not None
            try:
                reply = await self._service.handler(self.peer, head.service, request.body, request.payload)
            except Exception as error:
                if is_internal(error):
                    log.exception("a handler failed")
                await self._answer_error(stream, error)
                return
            del request
            await self._answer(stream, reply, head.reserve or self._service.reserve_bytes)
        finally:
            self._running.release()
            self.settle(stream)
            if self._stranger:
                self._nursery.start_soon(self._let_go, "a stranger has had its answer")

    async def _answer(self, stream: ServerStream, reply: Reply, reserve: int) -> None:
        reply.close()  # descriptors are for the same host: over the network a handler answers with payload
        views = as_views(reply.payload)
        try:
            buffers = frame(0, reply.body, views, limits=self._service.limits)
        except Refused as error:
            await self._answer_error(stream, error)
            return
        beyond = sum(map(len, buffers)) - reserve
        if beyond <= 0 or stream.failure is not None:
            await self._send(stream, buffers)
            return
        self._oversized += 1
        self._calm = trio.Event() if self._calm.is_set() else self._calm
        try:
            taken = await self._account.over.take(beyond)
            try:
                await self._send(stream, buffers)
            finally:
                self._account.over.give(taken)
        finally:
            self._oversized -= 1
            if not self._oversized:
                self._calm.set()

    async def _send(self, stream: ServerStream, buffers: list[memoryview]) -> None:
        """An answer, whole. A requester that went away is no error here."""
        try:
            stream.send(buffers, fin=True)
            with suppress(ClusterError):
                await stream.drained()
        finally:
            self.drop(stream)

    async def _answer_error(self, stream: ServerStream, error: Exception) -> None:
        status, text = status_and_text(error)
        await self._send(stream, frame(0, text[:MAX_ERROR_TEXT_BYTES], (), status=status, limits=DEFAULT_LIMITS))
        self.settle(stream)

    async def _push(self, stream: ServerStream, request: Frame) -> None:
        """A subscription's events, until its source ends or the subscriber goes."""
        assert self.peer is not None
        try:
            if self._service.events is None:
                await self._answer_error(stream, Refused("this server has no events"))
                return
            stream.credit = request.head.reserve
            source = self._service.events(self.peer, request.head.service, request.body)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, stream, nursery.cancel_scope)
                try:
                    async with aclosing(source):  # type: ignore[type-var]
                        async for event in source:
                            await stream.spend(HEAD.size + len(event))
                            stream.send(frame(0, event, (), limits=self._service.limits), fin=False)
                            await stream.drained()
                    await self._send(stream, frame(0, b"", (), flags=END, limits=DEFAULT_LIMITS))
                except Exception as error:
                    if stream.failure is None:
                        if is_internal(error):
                            log.exception("an event source failed")
                        await self._answer_error(stream, error)
                nursery.cancel_scope.cancel()
        finally:
            self.settle(stream)
            self.drop(stream)

    async def _watch(self, stream: ServerStream, scope: trio.CancelScope) -> None:
        """End a subscription whose subscriber has gone, though no event comes."""
        while stream.failure is None:
            stream.more_credit = trio.Event() if stream.more_credit.is_set() else stream.more_credit
            await stream.more_credit.wait()
        scope.cancel()

    def _turn_away(self, reason: str) -> None:
        """The peer is not welcome any more."""
        self.close(VIOLATION, Unavailable(reason), reason)

    def end(self, error: ClusterError) -> None:
        first = self.over is None
        super().end(error if isinstance(error, Unavailable) else Unavailable(str(error)))
        if first:
            self._gone()
