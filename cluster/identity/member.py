"""One process as a member of its cluster over QUIC: what it shows, whom it believes, who is connected to it.

    key file --> TLS certificate of its server, HELLO of its connections
    trust    --> servers that it talks to, peers that it lets in; a revoked one loses its open connections
    grant    --> shown to nodes in HELLO, and presented anew while connections to them are open

Invariants:
1. Nothing is sent to a server before its certificate is signed by a key of the cluster that is trusted here, and names
   the wanted role; a connection to a node stays with the member whose key the map has, else that it first met.
2. A peer that was let in is in `connections` until its connection is gone.
"""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from trivium.cluster.clock import Clock
from trivium.cluster.errors import ClusterError, Refused
from trivium.cluster.identity import certificates, hello, messages, statements
from trivium.cluster.identity.access import ATTRIBUTE, Access
from trivium.cluster.identity.keyfiles import Identity
from trivium.cluster.identity.keys import PrivateKey
from trivium.cluster.identity.refusals import NotAdmitted, Reason
from trivium.cluster.identity.registry import Connections
from trivium.cluster.identity.statements import Certificate, Role
from trivium.cluster.identity.tokens import PIN_BYTES, JoinToken
from trivium.cluster.identity.trust import Trust
from trivium.cluster.transport.interface import Connection, Peer
from trivium.cluster.transport.quic import Admission, QuicConnection, QuicServer, ServerCertificate
from trivium.cluster.transport.quic.address import SCHEME
from trivium.cluster.transport.quic.certificate import ServerCheck
from trivium.cluster.wire import Service

METADATA_KEEPALIVE_S, METADATA_SILENCE_S = 1.0, 3.0  # a session does not outlast a server that came back at once
PRESENT_S = 5.0  # for one node to take a newer grant


class Member:
    def __init__(
        self,
        identity: Identity,
        clock: Clock,
        *,
        trust: Trust | None = None,
        connections: Connections | None = None,
        engine: str | None = None,
    ) -> None:
        self.trust = trust or Trust(identity.cluster, clock)
        self.connections = connections if connections is not None else Connections(self.trust)
        self.grant = b""  # the newest, of a client's session
        self.engine = engine
        self._servers: list[QuicServer] = []
        self._nodes: weakref.WeakSet[QuicConnection] = weakref.WeakSet()
        self.identity: Identity
        self.adopt(identity)

    def adopt(self, identity: Identity) -> None:
        """Show this from now on: the same key, perhaps certified anew."""
        for generation, pem in identity.anchors:
            self.trust.pin(generation, certificates.public_of(pem))
        self.identity = identity
        for server in self._servers:
            server.certify(self._tls())

    @property
    def certificate(self) -> Certificate:
        """What the cluster said of it, as its own file has it."""
        return statements.peek(Certificate, self.identity.statement)

    @property
    def outdated(self) -> bool:
        """The cluster has a newer key than the one that signed its certificate."""
        return self.certificate.generation < max(self.trust.anchors)

    # ---- as a client ----------------------------------------------------------------------------------------

    def metadata(self, address: str) -> QuicConnection:
        """A way to the metadata server at `address` (quic:HOST:PORT)."""
        return QuicConnection(
            address,
            self._believes(Role.METADATA),
            engine=self.engine,
            hello=self._hello(),
            keepalive_s=METADATA_KEEPALIVE_S,
            silence_s=METADATA_SILENCE_S,
        )

    async def dial(self, rest: str, member: bytes = b"") -> Connection:
        """For a Dialer: a way to the node at HOST:PORT. `member`: whose key it has, when that is known."""
        await trio.lowlevel.checkpoint()
        check = _same_member(self._believes(Role.NODE), member)
        found = QuicConnection(SCHEME + rest, check, engine=self.engine, hello=self._hello(with_grant=True))
        self._nodes.add(found)
        return found

    async def present(self) -> None:
        """Show the newest grant on every open connection to a node."""
        message = messages.encode(messages.Present(self.grant))
        async with trio.open_nursery() as nursery:
            for connection in list(self._nodes):
                if connection.connected:
                    nursery.start_soon(_present, connection, message)

    def _believes(self, role: Role) -> Callable[[bytes], bytes]:
        """Checks a server's certificate; answers its member."""

        def check(der: bytes) -> bytes:
            found = certificates.verify_server(der, self.trust.anchors.values(), role)
            if found.cluster != self.identity.cluster:
                raise NotAdmitted(Reason.OTHER_CLUSTER, "it belongs to another cluster")
            self.trust.check_member(found.member)
            return found.member

        return check

    def _hello(self, *, with_grant: bool = False) -> Callable[[bytes], Awaitable[bytes]]:
        async def said(binding: bytes) -> bytes:
            await trio.lowlevel.checkpoint()
            own, grant = self.identity, self.grant if with_grant else b""
            return hello.answer(own.key, binding, own.cluster, own.statement, grant)

        return said

    # ---- as a server ----------------------------------------------------------------------------------------

    def server(self, address: str, *, needs_grant: bool = False, joiners: bool = False) -> QuicServer:
        """Listens at `address`. `needs_grant`: a pure node; `joiners`: a metadata server, to which strangers come."""
        admission = hello.Admission(self.trust, needs_grant=needs_grant, joiners=joiners)

        async def verify(binding: bytes, said: bytes, address: str) -> Admission:
            await trio.lowlevel.checkpoint()
            access = admission.access(binding, said)
            return Admission({ATTRIBUTE: access}, stranger=access.certificate is None)

        made = QuicServer(address, self._tls(), engine=self.engine, verify=verify, admitted=self._admitted)
        self._servers.append(made)
        return made

    def _admitted(self, peer: Peer, close: Callable[[str], None]) -> Callable[[], None]:
        access = peer.attributes[ATTRIBUTE]
        assert isinstance(access, Access)
        return self.connections.enter(access, close)

    def _tls(self) -> ServerCertificate:
        if not self.identity.tls:
            raise NotAdmitted(Reason.MISSING_RIGHT, "this key is a client's: nobody may listen with it")
        return ServerCertificate(self.identity.tls, self.identity.key.private_pem())


def stranger(address: str, token: JoinToken, key: PrivateKey, engine: str | None = None) -> QuicConnection:
    """A joiner's way to a metadata server of the cluster whose key the token pins."""
    cluster = b""

    def check(der: bytes) -> None:
        nonlocal cluster
        issuer = certificates.claimed_issuer(der)
        if issuer.fingerprint[:PIN_BYTES] != token.pin:
            raise NotAdmitted(
                Reason.UNKNOWN_KEY, "it has not the cluster's key that the token was made with: nothing was sent to it"
            )
        cluster = certificates.verify_server(der, [issuer], Role.METADATA).cluster

    async def said(binding: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return hello.answer(key, binding, cluster)

    return QuicConnection(address, check, engine=engine, hello=said)


def _same_member(check: Callable[[bytes], bytes], first: bytes = b"") -> ServerCheck:
    """A node's address may go to another node: this connection does not follow it there. `first`: who is meant."""

    def same(der: bytes) -> None:
        nonlocal first
        found = check(der)
        if first and found != first:
            raise Refused("another member of the cluster answers there now")
        first = found

    return same


async def _present(connection: QuicConnection, message: bytes) -> None:
    with suppress(ClusterError), trio.move_on_after(PRESENT_S):
        await connection.request(Service.IDENTITY, message)
