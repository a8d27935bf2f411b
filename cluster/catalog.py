"""What the cluster needs to know from the metadata, stated from this side. The metadata client implements it."""

from __future__ import annotations

from typing import Protocol

from trivium.cluster.model import ChunkId, ClusterMap, Group, Placed


class Catalog(Protocol):
    """Where chunks are and where new ones may go.

    Errors of each call: Unavailable while no metadata server answers (callers wait, `--io-timeout`).
    """

    @property
    def session(self) -> int:
        """The live session under which chunk ids are made."""
        ...

    def map(self) -> ClusterMap:
        """The newest map heard."""
        ...

    def next_counter(self) -> int:
        """A counter of this session, never given twice. It is unsettled until settle() or give_up()."""
        ...

    def settle(self, chunk: ChunkId) -> None:
        """Every piece of the chunk has been committed or will never be: the floor may rise past it."""
        ...

    def give_up(self, chunk: ChunkId) -> None:
        """The put failed or its commit was refused for good: its shards may be collected at once."""
        ...

    def open_groups(self, pool: int) -> tuple[Group, ...]:
        """Groups that take new chunks now (may be empty: then offer())."""
        ...

    async def offer(self, pool: int, without: frozenset[bytes] = frozenset()) -> Group:
        """An open group that avoids the drives `without` (found not to answer). May be narrower than the profile:
        then k' = max(1, L - m) and L - k'. Raises NoSpace when no drive has room."""
        ...

    async def locate(self, chunks: tuple[ChunkId, ...], *, fresh: bool = False) -> tuple[Placed | None, ...]:
        """Rows and groups; None = there is no row. `fresh` skips caches."""
        ...

    async def report(self, chunk: ChunkId, index: int, drive: bytes, what: str) -> None:
        """A place was found "missing" or "corrupt": it is added to the row's missing list (the repair queue)."""
        ...
