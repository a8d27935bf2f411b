"""The drives of this machine behind one node, and the ways to them from this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trivium.admin.datadir import DataDir
from trivium.admin.drivewatch import DriveWatch
from trivium.admin.processes.drives import Opened, absolute
from trivium.cluster.clock import Clock, Executor, Random
from trivium.cluster.files import FileOps
from trivium.cluster.model import ClusterMap
from trivium.cluster.node import Node
from trivium.cluster.router import Router
from trivium.cluster.transport.interface import Connection
from trivium.cluster.transport.memory import MemoryServer
from trivium.cluster.wire import NodeReport, Ping

if TYPE_CHECKING:
    from trivium.admin.processes.lead import Leader


class Substrate:
    """`first_map`: the map of a pool that is being formed; else the newest one that a drive has is the beginning."""

    def __init__(
        self,
        data: DataDir,
        cluster: bytes,
        node_id: bytes,
        opened: Opened,
        first_map: ClusterMap | None,
        *,
        files: FileOps,
        executor: Executor,
        clock: Clock,
        random: Random,
    ) -> None:
        self.data, self.cluster, self.node_id, self.opened = data, cluster, node_id, opened
        self.executor, self.clock, self.random = executor, clock, random
        self.forming = first_map is not None
        self.map = first_map or (opened.newest.map if opened.newest else ClusterMap())
        self.node = Node(
            node_id,
            opened.stores,
            files=files,
            executor=executor,
            cluster=cluster,
            make_path=lambda path: absolute(data, path),
            absent=opened.absent,
        )
        self.memory = MemoryServer("memory:node")
        self.router = Router(self._connect)
        self.watch = DriveWatch(self._ping)
        self.leader: Leader | None = None

    async def start(self, nursery: trio.Nursery) -> None:
        await nursery.start(self.memory.serve, self.node.handle)
        self.router.update(self.map)
        await self.watch.refresh()
        self.follow(self.map)

    def follow(self, cluster_map: ClusterMap) -> None:
        """Route by a new map."""
        self.map = cluster_map
        self.router.update(cluster_map, self.watch.down())

    async def stop(self) -> None:
        await self.router.aclose()
        await self.node.aclose()

    async def _connect(self, node: bytes) -> Connection:
        return self.memory.connect()

    async def _ping(self) -> NodeReport:
        reply = await self.router.call_node(self.node_id, Ping())
        assert isinstance(reply.answer, NodeReport)
        return reply.answer
