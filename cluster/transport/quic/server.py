"""Listens on a UDP port and serves every connection that passes the front door, the handshake and HELLO."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence

import trio

from trivium.cluster.errors import InUse, Refused, Unavailable
from trivium.cluster.transport.frames import DEFAULT_LIMITS, Limits
from trivium.cluster.transport.interface import EventSource, Handler
from trivium.cluster.transport.quic.address import PATH_DATAGRAM_BYTES, Endpoint, QuicAddress, is_loopback
from trivium.cluster.transport.quic.certificate import ServerCertificate
from trivium.cluster.transport.quic.door import Arrival, FrontDoor, destination
from trivium.cluster.transport.quic.endpoint import UdpEndpoint
from trivium.cluster.transport.quic.engine import (
    CID_BYTES,
    EngineOptions,
    default_engine,
    loopback_datagram_bytes,
    make_engine,
)
from trivium.cluster.transport.quic.hello import Verifier, welcome_everybody
from trivium.cluster.transport.quic.link import Link
from trivium.cluster.transport.quic.serving import Admitted, ServerLink, Service, let_in
from trivium.cluster.transport.quic.udp import UdpSocket

log = logging.getLogger(__name__)

IDLE_TIMEOUT_S = 20.0


class QuicServer:
    """`bind()` (or serve) takes the port; port 0 is replaced by a free one in `address`."""

    def __init__(
        self,
        address: str,
        certificate: ServerCertificate,
        *,
        engine: str | None = None,
        verify: Verifier = welcome_everybody,
        admitted: Admitted = let_in,
        limits: Limits = DEFAULT_LIMITS,
        budget_bytes: int = 64 << 20,
        datagram_bytes: int | None = None,
        offload: bool = True,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        hello_timeout_s: float = 10.0,
        retry_above: int = 64,
        max_half_open: int = 512,
        max_connections: int = 16_384,
        clock: Callable[[], float] | None = None,
    ) -> None:
        certificate.check()
        self.address = address
        self._where = QuicAddress.parse(address)
        self._certificate = certificate
        self._engine = engine or default_engine()
        self._verify = verify
        self._admitted = admitted
        self._limits = limits
        self._budget_bytes = budget_bytes
        self._datagram_bytes = datagram_bytes
        self._offload = offload
        self._idle_timeout_s = idle_timeout_s
        self._hello_timeout_s = hello_timeout_s
        self._door = FrontDoor(retry_above=retry_above, max_half_open=max_half_open, max_connections=max_connections)
        self._clock = clock or trio.current_time
        self._udp: UdpSocket | None = None
        self._endpoint: UdpEndpoint | None = None
        self._service: Service | None = None
        self._nursery: trio.Nursery | None = None
        self._by_cid: dict[bytes, ServerLink] = {}
        self._cids: dict[ServerLink, set[bytes]] = {}
        self._half_open = 0

    def certify(self, certificate: ServerCertificate) -> None:
        """Show another certificate from now on; what is open stays."""
        certificate.check()
        self._certificate = certificate

    @property
    def connections(self) -> int:
        """How many connections there are, those being opened and closed among them."""
        return len(self._cids)

    @property
    def half_open(self) -> int:
        return self._half_open

    async def bind(self) -> None:
        """Take the port: from now on `address` holds its number. InUse, Refused."""
        if self._udp is not None:
            return
        family, address = await self._where.resolve()
        udp = UdpSocket(family, offload=self._offload)
        try:
            _, port = udp.bind(address)
        except OSError as error:
            udp.close()
            if error.errno == errno.EADDRINUSE:
                raise InUse(f"another process listens on {self.address}") from error
            raise Refused(f"cannot listen on {self.address}: {error.strerror}") from error
        self._udp = udp
        self._where = self._where._replace(port=port)
        self.address = str(self._where)

    async def serve(
        self,
        handler: Handler,
        events: EventSource | None = None,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        await self.bind()
        assert self._udp is not None
        self._service = Service(
            handler,
            events,
            self._verify,
            self._limits,
            self._budget_bytes,
            hello_timeout_s=self._hello_timeout_s,
            admitted=self._admitted,
        )
        self._endpoint = UdpEndpoint(self._udp, self._take_in, self._clock)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await self._endpoint.run()
        finally:
            for link in tuple(self._cids):
                link.close(0, Unavailable(f"{self.address} stopped"), "the server stopped")
            self._by_cid.clear()
            self._cids.clear()
            self._half_open = 0
            self._udp.close()
            self._udp = self._endpoint = self._nursery = None

    # ---- datagrams

    def _take_in(self, data: bytes, segment_bytes: int, sender: Endpoint, now: float) -> Sequence[Link]:
        first = destination(data)
        if len(data) > segment_bytes and not self._same(data, segment_bytes, first):
            view = memoryview(data)
            links: list[Link] = []
            for start in range(0, len(data), segment_bytes):
                piece = bytes(view[start : start + segment_bytes])
                links += self._take_in(piece, len(piece), sender, now)
            return links
        link = self._by_cid.get(first)
        if link is None:
            link = self._admit(data[:segment_bytes], first, sender, now)
            if link is None:
                return ()
        link.receive(data, segment_bytes, sender, now)
        return (link,)

    @staticmethod
    def _same(data: bytes, segment_bytes: int, first: bytes) -> bool:
        """True when all datagrams of a batch are for one connection."""
        starts = range(segment_bytes, len(data), segment_bytes)
        if not data[0] & 0x80:  # the usual: short headers, the id behind the first byte (ids are random: no other
            end = 1 + CID_BYTES  # packet has it there by chance)
            return all(data[start + 1 : start + end] == first for start in starts)
        return all(destination(data[start : start + 26]) == first for start in starts)

    def _admit(self, data: bytes, cid: bytes, sender: Endpoint, now: float) -> ServerLink | None:
        verdict = self._door.judge(data, sender, now, half_open=self._half_open, connections=len(self._cids))
        if isinstance(verdict, bytes):
            assert self._udp is not None
            self._udp.send([(verdict, sender)])
        if not isinstance(verdict, Arrival):
            return None
        size = self._datagram_bytes
        if size is None:
            size = loopback_datagram_bytes(self._engine) if is_loopback(sender[0]) else PATH_DATAGRAM_BYTES
        options = EngineOptions(size, self._idle_timeout_s, self._certificate, *verdict)
        assert self._endpoint is not None and self._service is not None and self._nursery is not None
        engine = make_engine(self._engine, options)
        link = ServerLink(engine, sender, self._endpoint, self._clock, self._service, self._nursery, self._cid_changed)
        self._half_open += 1
        self._cids[link] = set()
        settled = False

        def settle() -> None:
            nonlocal settled
            if not settled:
                settled = True
                self._half_open -= 1

        link.on_welcome = link.on_over = settle
        link.on_gone = lambda: self._forget(link)
        for known in (cid, engine.cid):
            self._cid_changed(link, known, True)
        return link

    def _cid_changed(self, link: ServerLink, cid: bytes, issued: bool) -> None:
        cids = self._cids.get(link)
        if cids is None:
            return
        if issued:
            cids.add(cid)
            self._by_cid[cid] = link
        elif cid in cids:
            cids.discard(cid)
            self._by_cid.pop(cid, None)

    def _forget(self, link: ServerLink) -> None:
        for cid in self._cids.pop(link, ()):
            self._by_cid.pop(cid, None)
        if self._endpoint is not None:
            self._endpoint.forget(link)
