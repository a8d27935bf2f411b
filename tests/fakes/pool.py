"""A pool for tests of chunks: catalog, drives in memory and Chunks, under a mock clock."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import trio
from trio.testing import MockClock

from tests.fakes.catalog import FakeCatalog, simple_map
from tests.fakes.dictnodes import DictNodes
from trivium.cluster.chunks import Chunks, PieceData, Stored
from trivium.cluster.clock import InlineExecutor
from trivium.cluster.mover import Mover

CLUSTER = b"C" * 16
OWNER = b"o" * 16


class Pool:
    def __init__(
        self, drives: int = 6, profile: tuple[int, int] = (4, 2), *, hosts: int = 0, local: bool = False, seed: int = 1
    ) -> None:
        """Each drive is a host of its own unless `hosts` says otherwise."""
        self.map = simple_map(drives, profile, hosts=hosts or drives)
        self.catalog = FakeCatalog(self.map)
        self.nodes = DictNodes(self.map, local=local)
        self.random = random.Random(seed)
        self.chunks = self.client()
        self.mover = Mover(
            self.nodes,
            cluster=CLUSTER,
            executor=InlineExecutor(),
            drives=lambda: [row.id for row in self.catalog.map().drives],
        )

    def client(self) -> Chunks:
        """Another client's view: nothing cached."""
        return Chunks(
            self.catalog, self.nodes, cluster=CLUSTER, random=random.Random(self.random.random()),
            executor=InlineExecutor(),
        )  # fmt: skip

    @property
    def ids(self) -> list[bytes]:
        return [row.id for row in self.map.drives]

    def random_bytes(self, size: int) -> bytes:
        return self.random.randbytes(size)

    async def put(self, data: bytes, *, commit: bool = True) -> Stored:
        stored = await self.chunks.put(1, [PieceData(OWNER, 0, 1, data)])
        if commit:
            self.catalog.commit(stored)
            self.chunks.settle(stored)
        return stored

    async def get(self, stored: Stored) -> bytes:
        """As a client that knows nothing yet reads it."""
        parts = await self.client().get_many(stored.refs)
        return b"".join(parts)


def run(main: Callable[[], Awaitable[object]], *, limit_s: float = 3600) -> None:
    """Run under a clock that jumps whenever all tasks sleep."""

    async def bounded() -> None:
        with trio.fail_after(limit_s):
            await main()

    trio.run(bounded, clock=MockClock(autojump_threshold=0))
