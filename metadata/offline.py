"""A Catalog for the time before there is metadata: recovery reads dumps whose places the root names."""

from __future__ import annotations

from trivium.cluster.errors import Unavailable
from trivium.cluster.model import ChunkId, ClusterMap, Group, Placed


class OfflineCatalog:
    """Knows the root's map and nothing else; nothing can be put."""

    def __init__(self, cluster_map: ClusterMap) -> None:
        self._map = cluster_map

    @property
    def session(self) -> int:
        raise Unavailable("the metadata is being recovered")

    def map(self) -> ClusterMap:
        return self._map

    def next_counter(self) -> int:
        raise Unavailable("the metadata is being recovered")

    def settle(self, chunk: ChunkId) -> None:
        pass

    def give_up(self, chunk: ChunkId) -> None:
        pass

    def open_groups(self, pool: int) -> tuple[Group, ...]:
        return ()

    async def offer(self, pool: int, without: frozenset[bytes] = frozenset()) -> Group:
        raise Unavailable("the metadata is being recovered")

    async def locate(self, chunks: tuple[ChunkId, ...], *, fresh: bool = False) -> tuple[Placed | None, ...]:
        return (None,) * len(chunks)

    async def report(self, chunk: ChunkId, index: int, drive: bytes, what: str) -> None:
        pass
