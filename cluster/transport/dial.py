"""From a node's addresses in the map to a connection: the one place that knows the schemes.

    unix:PATH (relative to the data directory, this host only)    quic:HOST:PORT and others: registered by who has them

Invariants
1. Addresses are tried in the map's order, those of this host first; the first that answers as the wanted node counts.
   A path that belongs to another host may exist here too, so whoever answers is asked who it is.
2. A node that does not answer within ANSWER_S is Unavailable: a dial never hangs.
3. Over a transport with keys a node of which the map has the key is the holder of that key, or nobody.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

import trio

from trivium.cluster.errors import ClusterError, Unavailable
from trivium.cluster.identity.keys import member_id
from trivium.cluster.model import ClusterMap
from trivium.cluster.transport.interface import Connection
from trivium.cluster.transport.unix import UnixConnection
from trivium.cluster.wire import NodeReport, Ping, Service, decode_node_answer, encode_node_request

ANSWER_S = 5.0
UNIX = "unix"


class Dial(Protocol):
    async def __call__(self, rest: str, /, member: bytes = b"") -> Connection:
        """The rest of an address, behind its scheme, to a connection. `member`: who has to answer, where there are
        keys; empty: any node of the cluster. Unavailable."""
        ...


class Dialer:
    """Connects to addresses. `directory`: what relative Unix paths are relative to; `local`: whether to use any."""

    def __init__(self, directory: str | os.PathLike[str] = "", *, local: bool = True) -> None:
        self._directory, self._local = os.fspath(directory), local
        self._schemes: dict[str, Dial] = {UNIX: self._unix}

    def register(self, scheme: str, dial: Dial) -> None:
        """Another transport joins: addresses `scheme:...` are its own."""
        self._schemes[scheme] = dial

    async def dial(self, address: str, member: bytes = b"") -> Connection:
        """A connection to whoever has this address (with keys: to this member). Unavailable."""
        scheme, colon, rest = address.partition(":")
        dial = self._schemes.get(scheme) if colon else None
        if dial is None:
            known = ", ".join(f"{name}:" for name in self._schemes)
            raise Unavailable(f"address {address!r} is of a kind that this process does not know (it knows {known})")
        return await dial(rest, member)

    async def node(self, node: bytes, addresses: Sequence[str], member: bytes = b"") -> Connection:
        """A connection to this node, by the first of its addresses that answers as it. `member`: who it is by its key
        (member_of); empty when none is known."""
        failures = []
        unix = [address for address in addresses if address.startswith(UNIX + ":")]
        others = [address for address in addresses if address not in unix]
        for address in (*unix, *others) if self._local or not others else others:
            try:
                connection = await self.dial(address, member)
                if (found := (await who(connection)).node) == node:
                    return connection
                await connection.aclose()
                failures.append(f"{address}: another node answers there ({found.hex()[:8]})")
            except ClusterError as error:
                failures.append(f"{address}: {error}")
        raise Unavailable(f"node {node.hex()[:8]}: {'; '.join(failures) or 'no address of it is known'}")

    async def _unix(self, path: str, member: bytes = b"") -> Connection:
        await trio.lowlevel.checkpoint()
        return UnixConnection(os.path.join(self._directory, path))


async def who(connection: Connection, *, drives: bool = False) -> NodeReport:
    """Who answers; with `drives` also what it has. Closes nothing. Unavailable."""
    try:
        with trio.fail_after(ANSWER_S):
            reply = await connection.request(Service.NODE, encode_node_request(Ping(drives)))
    except trio.TooSlowError:
        raise Unavailable(f"no answer within {ANSWER_S:.0f} s") from None
    answer = decode_node_answer(reply.body)
    if not isinstance(answer, NodeReport):
        raise Unavailable("whoever answers there is no node")
    return answer


def addresses_of(cluster_map: ClusterMap, node: bytes) -> tuple[str, ...]:
    return next((row.addresses for row in cluster_map.nodes if row.id == node), ())


def member_of(cluster_map: ClusterMap, node: bytes) -> bytes:
    """Whose key the node has; empty when the map does not know."""
    key = next((row.public_key for row in cluster_map.nodes if row.id == node), b"")
    return member_id(key) if key else b""
