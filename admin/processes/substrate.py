"""The drives of this process behind a node in its memory, the nodes of other processes, and the ways to all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import trio

from trivium.admin.datadir import DataDir
from trivium.admin.membership import Membership
from trivium.admin.processes.drives import Opened, absolute
from trivium.cluster.clock import Clock, Executor, Random
from trivium.cluster.files import FileOps
from trivium.cluster.liveness import T_S
from trivium.cluster.model import ClusterMap
from trivium.cluster.node import Node
from trivium.cluster.router import Router
from trivium.cluster.transport.dial import Dialer, addresses_of, member_of
from trivium.cluster.transport.interface import Connection
from trivium.cluster.transport.memory import MemoryServer

if TYPE_CHECKING:
    from trivium.admin.processes.lead import Leader


class Substrate:
    """`first_map`: the map of a pool that is being formed; else the newest one that a drive has is the beginning.
    `hints`: addresses of nodes, beside those in the map; `on_map` hears of each new map; `t_s`: T."""

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
        dialer: Dialer | None = None,
        hints: Mapping[bytes, tuple[str, ...]] | None = None,
        on_map: Callable[[ClusterMap], None] = lambda cluster_map: None,
        t_s: float = T_S,
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
        self.dialer = dialer or Dialer(data.path)
        self.hints = dict(hints or {})
        self.on_map, self.t_s = on_map, t_s
        self.router = Router(self._connect)
        self.watch = Membership(self._connect, node_id, clock, t_s=t_s)
        self.watch.on_change = lambda: self.router.update(self.map, self.watch.down())
        self.leader: Leader | None = None

    async def start(self, nursery: trio.Nursery) -> None:
        await nursery.start(self.memory.serve, self.node.handle)
        self.router.update(self.map)
        self.watch.follow(self.map)
        await self.watch.refresh()
        self.follow(self.map)

    def follow(self, cluster_map: ClusterMap) -> None:
        """Route by a new map."""
        changed, self.map = cluster_map != self.map, cluster_map
        if changed:
            self.watch.follow(cluster_map)
            self.on_map(cluster_map)
        self.router.update(cluster_map, self.watch.down())

    async def stop(self) -> None:
        await self.router.aclose()
        await self.node.aclose()

    async def _connect(self, node: bytes) -> Connection:
        """This process's own node is called, nothing is sent; the others are dialled."""
        if node == self.node_id:
            return self.memory.connect()
        addresses = dict.fromkeys((*addresses_of(self.map, node), *self.hints.get(node, ())))
        return await self.dialer.node(node, tuple(addresses), member_of(self.map, node))
