"""A UDP socket and the tasks that serve it: read everything there is, one turn per touched connection, one timer.

Invariants
1. Datagrams that the socket does not take wait in order, at most those of one turn per connection; a connection with
   waiting datagrams is not asked for more.
2. A batch is bounded, so that other tasks get their turn however much arrives.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence

import trio

from trivium.cluster.transport.quic.address import Endpoint
from trivium.cluster.transport.quic.engine import Datagram
from trivium.cluster.transport.quic.link import Link
from trivium.cluster.transport.quic.udp import UdpSocket

BATCH_READS = 32

Route = Callable[[bytes, int, Endpoint, float], Sequence[Link]]
"""(data, datagram size, sender, now) -> the connections that took it in and want a turn."""


class UdpEndpoint:
    """Drives the connections of one socket."""

    def __init__(self, udp: UdpSocket, route: Route, clock: Callable[[], float]) -> None:
        self._udp = udp
        self._route = route
        self._clock = clock
        self._waiting: deque[Sequence[Datagram]] = deque()
        self._blocked = trio.Event()
        self._starved: dict[int, Link] = {}
        self._timers: list[tuple[float, int, Link]] = []
        self._tie = itertools.count()
        self._due: dict[int, float] = {}
        self._sleeping_until = float("-inf")
        self._earlier = trio.Event()

    def transmit(self, link: Link, datagrams: Sequence[Datagram]) -> bool:
        if not self._waiting:
            datagrams = self._udp.send(datagrams)
            if not datagrams:
                return True
        elif not datagrams:
            return True
        self._waiting.append(datagrams)
        self._starved[id(link)] = link
        self._blocked.set()
        return False

    def turn(self, link: Link) -> None:
        """A connection's turn; while its datagrams wait it has none (its time comes when they are gone)."""
        if id(link) not in self._starved:
            link.turn()
        self.schedule(link)

    def schedule(self, link: Link) -> None:
        """Note when the connection's timer wants to run."""
        deadline = link.deadline()
        if deadline is None:
            self._due.pop(id(link), None)
            return
        if deadline < self._due.get(id(link), float("inf")):  # a later one is looked at when the earlier one rings
            self._due[id(link)] = deadline
            heapq.heappush(self._timers, (deadline, next(self._tie), link))
            if deadline < self._sleeping_until:
                self._earlier.set()

    def forget(self, link: Link) -> None:
        self._due.pop(id(link), None)
        self._starved.pop(id(link), None)

    async def run(self) -> None:
        """Until cancelled. OSError: nobody listens where a connected socket sends to."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write)
            nursery.start_soon(self._tick)
            await self._read()

    async def _read(self) -> None:
        receive = self._udp.receive
        while True:
            await self._udp.wait_readable()
            touched: dict[int, Link] = {}
            for _ in range(BATCH_READS):
                got = receive()
                if got is None:
                    break
                for link in self._route(*got, self._clock()):
                    touched[id(link)] = link
            for link in touched.values():
                self.turn(link)

    async def _write(self) -> None:
        while True:
            await self._blocked.wait()
            await self._udp.wait_writable()
            while self._waiting:
                rest = self._udp.send(self._waiting[0])
                if rest:
                    self._waiting[0] = rest
                    break
                self._waiting.popleft()
            if not self._waiting:
                self._blocked = trio.Event()
                starved, self._starved = list(self._starved.values()), {}
                for link in starved:
                    self.turn(link)

    async def _tick(self) -> None:
        while True:
            now = self._clock()
            while self._timers and self._timers[0][0] <= now:
                deadline, _, link = heapq.heappop(self._timers)
                if self._due.get(id(link)) == deadline:
                    del self._due[id(link)]
                    link.on_timer(now)
                    self.turn(link)
            self._earlier = trio.Event()
            self._sleeping_until = self._timers[0][0] if self._timers else float("inf")
            with trio.move_on_after(max(0.0, self._sleeping_until - self._clock())):
                await self._earlier.wait()
            self._sleeping_until = float("-inf")
