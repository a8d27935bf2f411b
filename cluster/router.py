"""Nodes over connections: which node has a drive (from the map), one connection a node, answers decoded.

Invariants
1. At most one dial per node is under way; a failed one is not remembered.
2. A drive in `down` is still called when somebody insists (healing probes it); is_up() only advises.
3. A node whose addresses have changed in the map is dialled anew; what is in flight on the old connection ends there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

import msgspec
import trio

from trivium.cluster.errors import Refused, Unavailable
from trivium.cluster.model import ClusterMap
from trivium.cluster.nodes import NodeReply
from trivium.cluster.transport.frames import as_one
from trivium.cluster.transport.interface import Buffer, Connection, Reply
from trivium.cluster.wire import NodeRequest, Service, decode_node_answer, encode_node_request

GONE = frozenset({"removed", "out"})


class Router:
    """The real Nodes. `connect(node)` gives a connection to it or raises Unavailable."""

    def __init__(self, connect: Callable[[bytes], Awaitable[Connection]]) -> None:
        self._connect = connect
        self._connections: dict[bytes, Connection] = {}
        self._dials: dict[bytes, trio.Lock] = {}
        self._node_of: dict[bytes, bytes] = {}
        self._addresses: dict[bytes, tuple[str, ...]] = {}
        self._left: list[Connection] = []  # to addresses that their nodes no longer have
        self._not_up: frozenset[bytes] = frozenset()

    def update(self, cluster_map: ClusterMap, down: Iterable[bytes] = ()) -> None:
        """Follow a new map and the drives that are known to be down."""
        self._node_of = {row.id: row.node for row in cluster_map.drives if row.reason != "removed"}
        self._not_up = frozenset(down) | {row.id for row in cluster_map.drives if row.reason in GONE}
        addresses = {row.id: row.addresses for row in cluster_map.nodes}
        for node, old in self._addresses.items():
            if addresses.get(node) != old and node in self._connections:
                self._left.append(self._connections.pop(node))
        self._addresses = addresses

    def node_of(self, drive: bytes) -> bytes | None:
        return self._node_of.get(drive)

    def is_up(self, drive: bytes) -> bool:
        return drive in self._node_of and drive not in self._not_up

    def is_local(self, drive: bytes) -> bool:
        connection = self._connections.get(self._node_of.get(drive, b""))
        return connection is not None and connection.local

    async def call(self, drive: bytes, request: NodeRequest, payload: Buffer | Sequence[Buffer] = b"") -> NodeReply:
        node = self._node_of.get(drive)
        if node is None:
            raise Unavailable(f"no node is known to hold drive {drive.hex()}")
        return await self.call_node(node, request, payload)

    async def call_node(self, node: bytes, request: NodeRequest, payload: Buffer | Sequence[Buffer] = b"") -> NodeReply:
        """For messages that concern a node and not a drive (Ping, FormatDrive)."""
        connection = self._connections.get(node) or await self._dial(node)
        try:
            reply = await connection.request(Service.NODE, encode_node_request(request), payload)
        except (Unavailable, Refused) as error:
            if getattr(connection, "broken", False):
                self._forget(node, connection)
                if isinstance(error, Refused):  # not the message: the connection
                    raise Unavailable(f"node {node.hex()[:8]} does not let this process in: {error}") from None
            raise
        return _decoded(node, reply)

    async def _dial(self, node: bytes) -> Connection:
        async with self._dials.setdefault(node, trio.Lock()):
            if node not in self._connections:
                self._connections[node] = await self._connect(node)
            return self._connections[node]

    def _forget(self, node: bytes, connection: Connection) -> None:
        if self._connections.get(node) is connection:
            del self._connections[node]

    async def aclose(self) -> None:
        while self._left:
            await self._left.pop().aclose()
        while self._connections:
            _, connection = self._connections.popitem()
            await connection.aclose()


def _decoded(node: bytes, reply: Reply) -> NodeReply:
    try:
        answer = decode_node_answer(reply.body)
    except msgspec.MsgspecError as error:
        reply.close()
        raise Unavailable(f"node {node.hex()} answered what this version does not understand: {error}") from error
    return NodeReply(answer, as_one(reply.payload), reply.fds)
