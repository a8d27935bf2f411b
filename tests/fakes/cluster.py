"""Formatted drives and nodes in a line, reached through a `Nodes` that calls the handlers directly.

    nodes = sim_nodes(6)                       # six drives on SimFiles, one node, calls run in the event loop
    nodes = real_nodes(tmp_path, 6)            # six directories, threads
    await nodes.call(nodes.drives[0], Ping())
    nodes.down.add(drive)                      # Unavailable; nodes.crash() / nodes.restart() for all of the machine
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from tests.fakes.simdisk import SimFiles
from trivium.cluster import wire
from trivium.cluster.clock import Executor, InlineExecutor, ThreadExecutor
from trivium.cluster.errors import Unavailable
from trivium.cluster.files import FileOps, RealFiles
from trivium.cluster.model import ClusterMap, DriveRow, NodeRow, PoolRow
from trivium.cluster.node import Node
from trivium.cluster.nodes import NodeReply
from trivium.cluster.store import Store
from trivium.cluster.transport.interface import Buffer, Peer
from trivium.cluster.wire import NodeRequest, Service

CLUSTER = b"C" * 16
PEER = Peer("test", local=True)


def drive_id(number: int) -> bytes:
    return b"drive" + number.to_bytes(11, "big")


def node_id(number: int) -> bytes:
    return b"node" + number.to_bytes(12, "big")


class FakeNodes:
    """`Nodes` without a transport. Bodies are encoded and decoded as on the wire unless `encode` is False."""

    def __init__(
        self, files: FileOps, paths: dict[bytes, str], owners: dict[bytes, bytes], executor: Executor, *, local: bool
    ) -> None:
        self.files = files
        self.paths, self.owners = paths, owners
        self.drives = tuple(paths)
        self.down: set[bytes] = set()
        self.local = local
        self.encode = True
        self.before: Callable[[bytes, NodeRequest], None] | None = None  # may raise: a fault on the way to the drive
        self.after: Callable[[bytes, NodeRequest], None] | None = None  # may raise: the answer is lost
        self.delay_s = 0.0
        self.calls: list[NodeRequest] = []
        self.executor = executor
        self.nodes: dict[bytes, Node] = {}
        self.start()

    def start(self) -> None:
        """Open every drive and make the nodes anew (after `stop` or a crash)."""
        for node in dict.fromkeys(self.owners.values()):
            stores = [
                Store.open(self.files, path, cluster=CLUSTER)
                for drive, path in self.paths.items()
                if self.owners[drive] == node
            ]
            self.nodes[node] = Node(node, stores, files=self.files, executor=self.executor, cluster=CLUSTER)

    def stop(self) -> None:
        """Close the drives, as at the end of a process."""
        for node in self.nodes.values():
            for store in node.stores.values():
                store.close()
        self.nodes.clear()

    def crash(self, keep: str = "random") -> None:
        """Power loss of the (simulated) machine, then a restart of all nodes."""
        assert isinstance(self.files, SimFiles)
        self.nodes.clear()
        self.files.crash(keep)
        self.start()

    def store(self, drive: bytes) -> Store:
        return self.nodes[self.owners[drive]].stores[drive]

    def map(self, k: int = 4, m: int = 2) -> ClusterMap:
        """A cluster map of these drives, each node a host of its own, with pool 1."""
        rows = tuple(
            DriveRow(d, f"d{i}", self.owners[d], f"/{self.owners[d].hex()}", 1.0, path=self.paths[d])
            for i, d in enumerate(self.drives)
        )
        nodes = tuple(NodeRow(n, f"n{i}") for i, n in enumerate(dict.fromkeys(self.owners.values())))
        return ClusterMap(1, rows, nodes, (PoolRow(1, "default", k, m),))

    async def __aenter__(self) -> FakeNodes:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.stop()

    # ---- Nodes ----------------------------------------------------------------------------------------------

    async def call(
        self, drive: bytes, request: NodeRequest, payload: Buffer | Sequence[Buffer] = b""
    ) -> NodeReply:
        if self.before is not None:
            self.before(drive, request)
        if self.delay_s:
            await trio.sleep(self.delay_s)
        node = self.nodes.get(self.owners.get(drive, b""))
        if node is None or drive in self.down:
            raise Unavailable(f"drive {drive.hex()} is away")
        self.calls.append(request)
        flat = payload if isinstance(payload, bytes | bytearray | memoryview) else b"".join(payload)
        if self.encode:
            body = wire.encode_node_request(request)
            reply = await node.handle(PEER, Service.NODE, body, memoryview(flat))
        else:
            reply = await node.call(PEER, request, memoryview(flat))
        if self.after is not None:
            self.after(drive, request)
        data = reply.payload
        joined = data if isinstance(data, bytes | bytearray | memoryview) else b"".join(data)
        return NodeReply(wire.decode_node_answer(reply.body), memoryview(joined), reply.fds)

    def node_of(self, drive: bytes) -> bytes | None:
        return self.owners.get(drive)

    def is_up(self, drive: bytes) -> bool:
        return drive in self.owners and drive not in self.down

    def is_local(self, drive: bytes) -> bool:
        return self.local and drive in self.owners


def sim_nodes(
    drives: int = 6, *, nodes: int = 1, seed: int = 0, files: SimFiles | None = None, local: bool = False
) -> FakeNodes:
    """Drives on one simulated machine, dealt to `nodes` nodes in turn. Runs in the event loop, deterministically."""
    files = files or SimFiles(seed)
    paths = {drive_id(i): f"/drives/d{i}" for i in range(drives)}
    return _formatted(files, paths, nodes, InlineExecutor(), local)


def real_nodes(tmp_path: Path, drives: int = 6, *, nodes: int = 1, threads: int = 16, local: bool = True) -> FakeNodes:
    """Drives in directories under `tmp_path`, worker threads. Call inside trio.run."""
    paths = {drive_id(i): os.path.join(str(tmp_path), f"d{i}") for i in range(drives)}
    return _formatted(RealFiles(), paths, nodes, ThreadExecutor(threads), local)


def _formatted(files: FileOps, paths: dict[bytes, str], nodes: int, executor: Executor, local: bool) -> FakeNodes:
    for drive, path in paths.items():
        Store.format(files, path, cluster=CLUSTER, drive=drive, ballast=4096)
    owners = {drive: node_id(i % nodes) for i, drive in enumerate(paths)}
    return FakeNodes(files, paths, owners, executor, local=local)
