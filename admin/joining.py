"""How a node joins a pool: it asks whose pool it is, makes its drives, serves them, and says where it is.

    node: hello -> (format its drives, first time only) -> serve -> join -----> leader: ask it back at its addresses
                                                                               -> rows of node and new drives (a record)

Invariants
1. Joining is idempotent: a node joins at each start, which brings a changed address or domain into the map.
2. The leader believes what it is told by whoever answers at the addresses as that node, not what the joiner says.
3. A drive that the map has under another node is not taken over here, and a removed one never comes back.
4. A node that has once joined over a connection with a key joins with this key only (or by the Unix socket), until the
   key is revoked. One that has none gets one by the Unix socket only, where the socket's mode says who may.
5. A node that answers at its present addresses is not moved to others: of two copies of a node the second is refused.
6. Unix paths are dialled for who came by the Unix socket only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from trivium.admin.processes.drives import DEFAULT_POOL
from trivium.cluster import rootplan
from trivium.cluster.errors import ClusterError
from trivium.cluster.identity.keys import member_id
from trivium.cluster.model import ClusterMap, DriveRow, NodeRow, PoolRow, Root
from trivium.cluster.transport.dial import UNIX, Dialer, who
from trivium.cluster.wire import NodeReport
from trivium.metadata import maprows
from trivium.metadata.messages import MetadataError
from trivium.metadata.tx import Tx

if TYPE_CHECKING:
    from trivium.admin.processes.lead import Leader

log = logging.getLogger(__name__)

HELLO, JOIN = "node_hello", "node_join"


class Joiner(msgspec.Struct, frozen=True):
    """What a node says of itself. Without a name or a domain it keeps those that it has."""

    node: bytes
    name: str
    addresses: list[str]
    domain: str
    public_key: bytes = b""  # that its connection was let in with; by the Unix socket: that it says it has
    local: bool = False  # it came by the Unix socket (the door says so, not the joiner)
    host: str = "node"  # what to call it, when nobody has said


def key_of(joiner: Joiner, old: NodeRow | None, revoked: Container[bytes] = ()) -> bytes:
    """The key that the node has from now on. MetadataError when the joiner may not be this node."""
    if old is None:
        return joiner.public_key
    key, said = old.public_key, joiner.public_key
    if not key and said and not joiner.local:
        raise MetadataError(
            "EACCES",
            f"node {old.name} has joined by the metadata server's Unix socket, without a key: start it once on that "
            "host with --connect DIR (the metadata server's directory), which gives its key to the map",
        )
    if key and member_id(key) in revoked:
        key = b""
    if key and said and key != said:
        raise MetadataError(
            "EACCES",
            f"node {joiner.name} has joined with another key before, which still counts: if that key is lost, revoke "
            f"it (trivium cluster revoke {member_id(key).hex()[:12]})",
        )
    return key or said


def settled(joiner: Joiner, cluster_map: ClusterMap) -> Joiner:
    """With the name and the domain that the node has from now on."""
    old = _row_of(cluster_map, joiner.node)
    name = joiner.name or (old.name if old is not None else joiner.host)
    domains = [row.domain for row in cluster_map.drives if row.node == joiner.node and row.reason != "removed"]
    domain = joiner.domain or next(iter(domains), f"default/{name}")
    return msgspec.structs.replace(joiner, name=name, domain=domain)


def _dialled(joiner: Joiner, addresses: Iterable[str]) -> list[str]:
    return [address for address in addresses if joiner.local or not address.startswith(f"{UNIX}:")]


async def refuse_second(dialer: Dialer, joiner: Joiner, old: NodeRow | None, report: NodeReport) -> None:
    """MetadataError when the node runs where the map says, and the joiner, elsewhere, is another process."""
    if old is None:
        return
    member = member_id(old.public_key) if old.public_key else b""
    for address in _dialled(joiner, (one for one in old.addresses if one not in joiner.addresses)):
        try:
            connection = await dialer.node(joiner.node, (address,), member)
            try:
                found = await who(connection)
            finally:
                await connection.aclose()
        except ClusterError:
            continue
        if found.process != report.process:
            raise MetadataError(
                "EEXIST",
                f"node {old.name} is running at {address}: what wants to join has a copy of its directory. Stop one of "
                "them; another host becomes a node with an empty --data of its own",
            )


async def ask_back(dialer: Dialer, joiner: Joiner, key: bytes = b"") -> NodeReport:
    """What answers at the joiner's addresses as this node, with this key. MetadataError when nobody does."""
    try:
        connection = await dialer.node(joiner.node, _dialled(joiner, joiner.addresses), member_id(key) if key else b"")
        try:
            return await who(connection, drives=True)
        finally:
            await connection.aclose()
    except ClusterError as error:
        raise MetadataError("EHOSTUNREACH", f"the node cannot be reached at its addresses: {error}") from None


def rows_of(
    joiner: Joiner, report: NodeReport, cluster_map: ClusterMap, revoked: Container[bytes] = ()
) -> tuple[NodeRow, list[DriveRow]]:
    """The node's row, and those of its drives that are new or have moved to another domain. `revoked`: members."""
    known = {row.id: row for row in cluster_map.drives}
    key = key_of(joiner, _row_of(cluster_map, joiner.node), revoked)
    rows = []
    names = {row.name for row in cluster_map.drives if row.reason != "removed"}
    for drive in sorted(report.drives, key=lambda drive: drive.path):
        old = known.get(drive.drive)
        if old is None and drive.state in ("ok", "full"):
            name = next(f"d{number}" for number in range(len(names) + 1) if f"d{number}" not in names)
            names.add(name)
            rows.append(
                DriveRow(
                    drive.drive, name, joiner.node, joiner.domain, 1.0, "", drive.path, drive.bytes_total, drive.device
                )
            )
        elif old is not None and old.node != joiner.node:
            log.warning("node %s has drive %s, which is another node's: not taken over", joiner.name, old.name)
        elif old is not None and old.reason != "removed" and old.domain != joiner.domain:
            rows.append(msgspec.structs.replace(old, domain=joiner.domain))
    return NodeRow(joiner.node, joiner.name, tuple(joiner.addresses), key), rows


def _row_of(cluster_map: ClusterMap, node: bytes) -> NodeRow | None:
    return next((row for row in cluster_map.nodes if row.id == node), None)


class Joining:
    """The leader's side: the commands that nodes send."""

    def __init__(self, leader: Leader) -> None:
        self._leader = leader
        self._lock = trio.Lock()

    def commands(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        return {HELLO: self.hello, JOIN: self.join}

    async def hello(self, arguments: dict[str, Any]) -> Any:
        return {"cluster": self._leader.substrate.cluster.hex()}

    async def join(self, arguments: dict[str, Any]) -> Any:
        leader, substrate = self._leader, self._leader.substrate
        async with self._lock:
            joiner = settled(msgspec.convert(arguments, Joiner), leader.server.map)
            if joiner.node == substrate.node_id:
                raise MetadataError("EEXIST", "this is the metadata server's own node: choose another --data")
            revoked, old = leader.identity.trust.revoked, _row_of(leader.server.map, joiner.node)
            report = await ask_back(substrate.dialer, joiner, key_of(joiner, old, revoked))
            await refuse_second(substrate.dialer, joiner, old, report)
            cluster_map: ClusterMap = leader.server.map
            node, drives = rows_of(joiner, report, cluster_map, revoked)

            def execute(tx: Tx) -> None:
                maprows.put_node(tx, node)
                for row in drives:
                    maprows.put_drive(tx, row)

            if drives or node not in cluster_map.nodes:
                await leader.change_map(execute)
                log.info("node %s joined with %d new drives", joiner.name, len(drives))
            await substrate.watch.refresh()
            if drives:
                await leader.server.groups.renew()  # new data uses them at once
            leader.upkeep.drives_changed()
            await spread_root(leader)
        cluster_map = leader.server.map
        mine = [row for row in cluster_map.drives if row.node == joiner.node and row.reason != "removed"]
        paths = {row.id.hex(): row.path for row in mine}
        return {"drives": [row.name for row in mine], "paths": paths, "forming": False}


async def spread_root(leader: Leader) -> None:
    """Bring the root drives to as many domains as there are, one change at a time, once all of them answer."""
    watch, cluster_map = leader.substrate.watch, leader.server.map
    up = watch.usable() - watch.away()
    if not set(leader.root.root_drives) <= up:
        return
    rows = {row.id: row for row in cluster_map.drives if not row.reason and row.id in up}
    voters = leader.root.root_drives
    order = [drive for drive in voters if drive in rows] + [drive for drive in rows if drive not in voters]
    most = max(pool.m for pool in cluster_map.pools)
    wanted = rootplan.choose_root_drives([(drive, rows[drive].domain) for drive in order], 2 * most + 1)
    old, new = [d for d in voters if d not in wanted], [d for d in wanted if d not in voters]
    for gone, come in zip(old, new, strict=False):
        await leader.register.change(partial(rootplan.swap_voter, old=gone, new=come))
    for come in new[len(old) :]:
        await leader.register.change(partial(_with_voter, drive=come))


def _with_voter(root: Root, drive: bytes) -> Root:
    return msgspec.structs.replace(root, root_drives=(*root.root_drives, drive))


class Gathering:
    """A pool that is being formed from nodes: collects those that join until they bring enough drives."""

    def __init__(self, cluster: bytes, dialer: Dialer, profile: tuple[int, int], own: Iterable[DriveRow]) -> None:
        self._cluster, self._dialer = cluster, dialer
        self._own = tuple(own)
        self._pool = PoolRow(DEFAULT_POOL, "default", *profile)
        self._joined: dict[bytes, tuple[NodeRow, list[DriveRow]]] = {}
        self._lock = trio.Lock()
        self.changed = trio.Event()

    def commands(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        return {HELLO: self.hello, JOIN: self.join}

    async def hello(self, arguments: dict[str, Any]) -> Any:
        return {"cluster": self._cluster.hex()}

    async def join(self, arguments: dict[str, Any]) -> Any:
        async with self._lock:
            joiner = settled(msgspec.convert(arguments, Joiner), self.map(()))
            old = self._joined[joiner.node][0] if joiner.node in self._joined else None
            key = key_of(joiner, old)
            report = await ask_back(self._dialer, joiner, key)
            await refuse_second(self._dialer, joiner, old, report)
            self._joined.pop(joiner.node, None)
            node, drives = rows_of(joiner, report, self.map(()))
            self._joined[joiner.node] = found = msgspec.structs.replace(node, public_key=key), drives
        self.changed.set()
        return {"drives": [row.name for row in found[1]], "forming": True}

    def map(self, own_nodes: Sequence[NodeRow]) -> ClusterMap:
        """What there is so far."""
        drives = (*self._own, *(row for _, rows in self._joined.values() for row in rows))
        nodes = (*own_nodes, *(node for node, _ in self._joined.values()))
        return ClusterMap(1, drives, nodes, (self._pool,))
