"""trivium node: the drives of one directory behind a socket, a process of its own.

    lock -> (first time: ask the pool who it is, format drives) -> open drives -> serve -> join -> ... -> stop

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

from trivium.admin import joining, logs, systemd
from trivium.admin.cli.connect import admin_call
from trivium.admin.datadir import ClusterFile, DataDir
from trivium.admin.errors import CommandError
from trivium.admin.lock import LifeLock
from trivium.admin.processes import drives
from trivium.admin.processes.stopping import stop_on_signal
from trivium.cluster.clock import ThreadExecutor
from trivium.cluster.errors import ClusterError, InUse
from trivium.cluster.files import FileOps, RealFiles
from trivium.cluster.node import Node
from trivium.cluster.transport.unix import UnixServer
from trivium.metadata.messages import MetadataError

log = logging.getLogger(__name__)

RETRY_S = 0.5
Ready = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class NodeOptions:
    data: DataDir
    connect: DataDir
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
    def called(self) -> str:
        return self.name or platform.node() or "localhost"


async def serve_node(options: NodeOptions, ready: Ready) -> int:
    """Serve until told to stop."""
    logs.configure(options.log_format, options.log_level)
    data = options.data
    if data.metadata.exists():
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
    files = RealFiles()
    cluster = options.data.read()
    fresh = cluster is None or cluster.forming
    if cluster is None or cluster.forming:
        cluster = await _begin(options, files, cluster)
    identity, node_id = bytes.fromhex(cluster.cluster), bytes.fromhex(cluster.node)
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
    server = UnixServer(str(options.socket), mode=int(options.socket_mode, 8), group=options.socket_group)
    joined = trio.Event()
    facts = {"node": cluster.node, "drives": len(opened.stores), "pid": os.getpid(), "socket": str(options.socket)}
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_on_signal, nursery.cancel_scope)
            await nursery.start(server.serve, node.handle)
            nursery.start_soon(_join, options, node_id, joined)
            if fresh:
                await joined.wait()
            log.info("node %s serves %d drives on %s", options.called, len(opened.stores), options.socket)
            systemd.notify("READY=1")
            ready(facts)
    finally:
        systemd.notify("STOPPING=1")
        with trio.CancelScope(shield=True):
            await node.aclose()


async def _begin(options: NodeOptions, files: FileOps, unfinished: ClusterFile | None) -> ClusterFile:
    """The first start: drives of the pool that answers at --connect. Nothing counts before `forming` is cleared."""
    answer = await _until_answered(options, joining.HELLO, {})
    data = options.data
    if unfinished is not None and unfinished.cluster != answer["cluster"]:
        raise CommandError(f"{data.path} was begun for another pool ({unfinished.cluster[:8]}): choose another.")
    fresh = unfinished or ClusterFile(answer["cluster"], secrets.token_hex(16), "", forming=True)
    data.write(fresh)
    there = len([path for path in data.drives.iterdir() if path.is_dir()])
    try:
        stores = drives.format_drives(data, files, bytes.fromhex(fresh.cluster), options.drives or there or 1)
    except (ClusterError, OSError) as error:
        raise CommandError(f"the drives cannot be made: {error}") from None
    for store in stores:
        store.close()
    return data.formed(fresh)


async def _join(options: NodeOptions, node: bytes, joined: trio.Event) -> None:
    said = {
        "node": node,
        "name": options.called,
        "addresses": [f"unix:{options.socket}"],
        "domain": options.domain or f"default/{options.called}",
    }
    answer = await _until_answered(options, joining.JOIN, said)
    log.info("joined the pool with %s", ", ".join(answer["drives"]) or "no drives")
    joined.set()


async def _until_answered(options: NodeOptions, command: str, arguments: dict[str, Any]) -> Any:
    """Ask the metadata server, again and again while it is away or starting."""
    said = ""
    while True:
        try:
            return await admin_call(options.connect, command, **arguments)
        except (CommandError, ClusterError, MetadataError) as error:
            if str(error) != said:
                said = str(error)
                log.warning("waiting for the pool: %s", said)
        await trio.sleep(RETRY_S)
