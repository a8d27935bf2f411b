"""trivium node: the drives of one directory behind a socket, a process of its own.

    lock -> (first time: join the cluster, ask whose pool it is, format drives) -> open drives -> serve -> join -> stop

A node that has drives needs nobody to start: it opens and serves them, so that a cold metadata server finds the root on
them, and joins (its address may have changed) as soon as one answers. It keeps nothing but its drives and DIR/cluster,
so kill -9 costs it nothing.
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from trivium.admin import joining, listening, logs, systemd
from trivium.admin.cli.connect import admin_call
from trivium.admin.datadir import ClusterFile, DataDir, default_data_dir
from trivium.admin.errors import CommandError
from trivium.admin.lock import LifeLock
from trivium.admin.processes import drives
from trivium.admin.processes.nodedoor import NodeDoor
from trivium.admin.processes.stopping import stop_on_signal
from trivium.admin.tokenjoin import join_and_store
from trivium.cluster.clock import Clock, SystemClock, ThreadExecutor
from trivium.cluster.errors import ClusterError, InUse, NotFound, Unavailable
from trivium.cluster.files import FileOps, RealFiles
from trivium.cluster.identity import keyfiles, statements
from trivium.cluster.identity.keyfiles import Identity
from trivium.cluster.identity.member import Member
from trivium.cluster.identity.statements import Certificate, Role
from trivium.cluster.node import Node
from trivium.cluster.transport.unix import UnixServer
from trivium.metadata.messages import MetadataError
from trivium.metadata.reach import Reach, Way

log = logging.getLogger(__name__)

FORMING_S = 2.0  # between joins while the pool is being formed
RETRY_S = 0.5
RENEW_AGAIN_S = 10.0
Ready = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class NodeOptions:
    data: DataDir
    connect: DataDir | None = None  # None: as the key file says, else the pool in the default directory
    join: str = ""
    listen: tuple[str, int] | None = None
    advertise: str = ""
    drives: int | None = None
    domain: str = ""
    name: str = ""
    socket_mode: str = "0600"
    socket_group: str | None = None
    log_format: str = "text"
    log_level: str = "info"

    @property
    def socket(self) -> Path:
        return self.data.run / "node.sock"

    @property
    def key_file(self) -> Path:
        return self.data.keys / "node"

    @property
    def pool(self) -> DataDir:
        """Where the metadata server is."""
        own = self.key_file
        if self.connect is None:
            return self.data if own.exists() else DataDir(default_data_dir().absolute())
        reach = self.connect.reach
        if reach.addresses:
            return DataDir(self.data.path, Reach(self.data.path, reach.addresses, reach.identity or own))
        if not reach.local and reach.identity is None and own.exists():  # a client's directory: a node is no client
            return self.data
        return self.connect

    @property
    def called(self) -> str:
        return self.name or platform.node() or "localhost"


async def serve_node(options: NodeOptions, ready: Ready) -> int:
    """Serve until told to stop."""
    logs.configure(options.log_format, options.log_level)
    data = options.data
    if data.metadata.exists() and not data.is_nodes:
        raise CommandError(
            f"{data.path} holds a metadata server: what runs there serves its drives, too. Choose another --data."
        )
    data.refuse_foreign()
    for directory in (data.path, data.run, data.drives):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        lock = LifeLock(data.run / "node.lock", str(data.path))
    except InUse as error:
        raise CommandError(str(error), 5) from None
    try:
        await _serve(options, ready)
    finally:
        lock.close()
    return 0


async def _serve(options: NodeOptions, ready: Ready) -> None:
    files, clock = RealFiles(), SystemClock()
    cluster = options.data.read()
    fresh = cluster is None or cluster.forming
    own = await _own_key(options)
    if cluster is None or cluster.forming:
        cluster = await _begin(options, files, cluster, own)
    identity, node_id = bytes.fromhex(cluster.cluster), bytes.fromhex(cluster.node)
    if own is not None and own.cluster != identity:
        raise CommandError(
            f"{options.key_file} is of cluster {own.cluster.hex()[:8]}, the drives in {options.data.path} belong to "
            f"{cluster.cluster[:8]}: put the right key there, or choose another --data."
        )
    try:
        opened = drives.open_drives(options.data, files, identity, node_id, strangers=True)
    except InUse as error:
        raise CommandError(str(error), 5) from None
    for path, reason in opened.reasons.items():
        log.warning("nothing is served from %s: %s", path, reason)
    node = Node(
        node_id,
        opened.stores,
        files=files,
        executor=ThreadExecutor(24),
        cluster=identity,
        make_path=lambda path: drives.absolute(options.data, path),
        absent=opened.absent,
    )
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_on_signal, nursery.cancel_scope)
            member = Member(own, clock) if own is not None else None
            door = NodeDoor(node, member, options.data.keys)
            addresses = await _listen(options, door, member, nursery)
            if member is not None:
                nursery.start_soon(_keep_certified, options, door, member, clock)
            joined = trio.Event()
            nursery.start_soon(_join, options, node, addresses, own, joined)
            if fresh:
                await joined.wait()
            log.info("node %s serves %d drives on %s", options.called, len(opened.stores), ", ".join(addresses))
            systemd.notify("READY=1")
            facts = {"node": cluster.node, "drives": len(opened.stores), "pid": os.getpid(), "addresses": addresses}
            ready(facts)
    finally:
        systemd.notify("STOPPING=1")
        with trio.CancelScope(shield=True):
            await node.aclose()


async def _own_key(options: NodeOptions) -> Identity | None:
    """The key in DIR/keys/node, made by --join when there is none; None for a node of this host alone."""
    path = options.key_file
    if options.join and not path.exists():
        await _join_cluster(options, path)
    try:
        own = keyfiles.load_identity(path)
    except NotFound:
        return None
    if not own.tls or Role.NODE not in statements.peek(Certificate, own.statement).roles:
        raise CommandError(f"{path} is no node's key: make a token with `trivium cluster token create --role node`.")
    return own


async def _join_cluster(options: NodeOptions, path: Path) -> None:
    """Wait for a metadata server; a token that does not count is an error."""
    said = ""
    while True:
        try:
            joined, made = await join_and_store(options.connect, options.join, options.called, path.parent)
            break
        except Unavailable as error:
            if str(error) != said:
                said = str(error)
                log.warning("waiting for the metadata server: %s", said)
            await trio.sleep(RETRY_S)
    if made != path:
        raise CommandError("this token is for a client: make one with `trivium cluster token create --role node`.")
    log.info("joined cluster %s as %s", joined.cluster.hex()[:8], joined.name)


async def _listen(
    options: NodeOptions, door: NodeDoor, member: Member | None, nursery: trio.Nursery
) -> list[str]:
    """Serve on the Unix socket and, with a key, over QUIC. Answers the addresses for the map, local ones first."""
    server = UnixServer(str(options.socket), mode=int(options.socket_mode, 8), group=options.socket_group)
    await nursery.start(server.serve, door.handle)
    addresses = [f"unix:{options.socket}"]
    if member is None:
        if options.listen is not None:
            raise CommandError(
                f"to listen, a node needs a key: there is none at {options.key_file}. Get a token from the operator "
                "(trivium cluster token create --role node) and give it with --join TOKEN."
            )
        return addresses
    quic = await listening.listen(member, options.listen or ("0.0.0.0", listening.NODE_PORT), needs_grant=True)
    await nursery.start(quic.serve, door.handle)
    addresses.append(listening.told(quic, options.advertise, options.pool.reach.addresses or member.identity.addresses))
    return addresses


async def _keep_certified(options: NodeOptions, door: NodeDoor, member: Member, clock: Clock) -> None:
    """Have a newer key of the cluster certify this node."""
    while True:
        await door.outdated.wait()
        reach = Reach(options.data.path, options.pool.reach.addresses, options.key_file)
        try:
            await Way(reach, clock, member).renew_certificate(member)
            log.info("certified by generation %d of the cluster's key", member.certificate.generation)
            door.outdated = trio.Event()
        except ClusterError as error:
            log.warning("%s", error)
            await trio.sleep(RENEW_AGAIN_S)


async def _begin(
    options: NodeOptions, files: FileOps, unfinished: ClusterFile | None, own: Identity | None
) -> ClusterFile:
    """The first start: whose drives will these be? Make them, and remember it."""
    data = options.data
    cluster = own.cluster.hex() if own else (await _until_answered(options, joining.HELLO, {}))["cluster"]
    if unfinished is not None and unfinished.cluster != cluster:
        raise CommandError(f"{data.path} was begun for another pool ({unfinished.cluster[:8]}): choose another.")
    fresh = unfinished or ClusterFile(cluster, secrets.token_hex(16), "", forming=True)
    data.write(fresh)
    try:
        stores = drives.format_drives(data, files, bytes.fromhex(fresh.cluster), options.drives, default=1)
    except (ClusterError, OSError) as error:
        raise CommandError(f"the drives cannot be made: {error}") from None
    for store in stores:
        store.close()
    return data.formed(fresh)


async def _join(
    options: NodeOptions, node: Node, addresses: list[str], own: Identity | None, joined: trio.Event
) -> None:
    """Say where this node is. Drives that lie elsewhere than in DIR/drives are known only to the map: open them too."""
    said = {
        "node": node.node_id,
        "name": options.name,
        "host": options.called,
        "addresses": addresses,
        "domain": options.domain,
        "public_key": own.key.public.raw if own is not None else b"",  # by the Unix socket there is nobody else to say
    }
    while (answer := await _until_answered(options, joining.JOIN, said))["forming"]:
        joined.set()  # and asked again: a metadata server that stops before the pool is formed remembers nobody
        await trio.sleep(FORMING_S)
    for drive, path in answer.get("paths", {}).items():
        await node.open_drive(bytes.fromhex(drive), path)
    log.info("joined the pool with %s", ", ".join(answer["drives"]) or "no drives")
    joined.set()


async def _until_answered(options: NodeOptions, command: str, arguments: dict[str, Any]) -> Any:
    """Ask the metadata server, again and again while it is away or starting."""
    said = ""
    while True:
        try:
            return await admin_call(options.pool, command, **arguments)
        except (CommandError, ClusterError, MetadataError) as error:
            if str(error) != said:
                said = str(error)
                log.warning("waiting for the pool: %s", said)
        await trio.sleep(RETRY_S)
