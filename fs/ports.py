"""What the mount needs from below: the metadata client and the chunks, as protocols."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from trivium.cluster.model import ChunkId, NewChunk, Placed, Ref
from trivium.cluster.pieces import PieceData, Stored
from trivium.metadata.messages import Operation


class ChunkStore(Protocol):
    """Of cluster.chunks.Chunks."""

    async def put(self, pool: int, pieces: Sequence[PieceData]) -> Stored: ...
    async def put_again(self, stored: Stored) -> Stored: ...
    def settle(self, stored: Stored) -> None: ...
    def give_up(self, stored: Stored) -> None: ...
    async def get(self, ref: Ref, *, placed: Placed | None = None) -> memoryview: ...
    async def get_many(
        self, refs: Sequence[Ref], placed: Mapping[ChunkId, Placed] | None = None
    ) -> list[memoryview]: ...


class Metadata(Protocol):
    """Of metadata.client.MetadataClient."""

    @property
    def life(self) -> int: ...
    async def call(
        self, *operations: Operation, chunks: Sequence[NewChunk] = (), life: int | None = None
    ) -> tuple[Any, ...]: ...
    async def ask(self, query: Any) -> Any: ...
    async def give_back(self, inos: Sequence[int]) -> None: ...
    def reading(self) -> AbstractContextManager[None]: ...
    def leases_usable(self) -> bool: ...
    def silent_s(self) -> float: ...
    def attach(
        self,
        *,
        on_recall: Callable[[int, bytes], Awaitable[bool]],
        on_ended: Callable[[str], None],
        on_lapsed: Callable[[], None],
        open_inodes: Callable[[], Sequence[int]] = ...,
    ) -> None: ...
