"""What a volume needs from below, as this package sees it: metadata calls, chunks, and its log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

import trio

from trivium.cluster.chunks import PieceData, Stored
from trivium.cluster.model import ChunkKind, ClusterMap, NewChunk, Placed, Ref
from trivium.cluster.shardreader import AtHand
from trivium.metadata.messages import VolumeState


class Metadata(Protocol):
    async def call(self, *operations: Any, chunks: Sequence[NewChunk] = ()) -> tuple[Any, ...]: ...

    async def ask(self, query: Any) -> Any: ...


class ClusterMetadata(Metadata, Protocol):
    """The metadata client as volume logs need it."""

    @property
    def session(self) -> int: ...

    def map(self) -> ClusterMap: ...


class ChunkStore(Protocol):
    async def put(
        self,
        pool: int,
        pieces: Sequence[PieceData],
        *,
        kind: int = ChunkKind.DATA,
        lease: int = 0,
        reserve_class: int = 0,
    ) -> Stored: ...

    async def get(self, ref: Ref, *, placed: Placed | None = None) -> memoryview: ...

    async def at_hand(self, ref: Ref, *, placed: Placed | None = None) -> AtHand:
        """Open data shards of the chunk, which threads may read by themselves. May be none."""
        ...

    def settle(self, stored: Stored) -> None: ...

    def give_up(self, stored: Stored) -> None: ...

    async def put_again(self, stored: Stored) -> Stored: ...


class VolumeLog(Protocol):
    """The volume's own log under the lease that it was opened with. Payloads are journal.encode_record's."""

    async def append(self, payloads: Sequence[Sequence[bytes | memoryview]]) -> int:
        """Durable on all replicas. Returns the seq of the last record. Raises Fenced, NoSpace, Unavailable."""
        ...

    async def trim(self, upto: int) -> None:
        """Records up to `upto` are not needed any more."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Appends proceed while this runs."""
        ...

    async def close(self, *, empty: bool) -> list[Any]:
        """Stop writing. `empty`: nothing in it is needed any more. Answers operations for the volume's last call."""
        ...


class Logs(Protocol):
    """Opens logs."""

    async def take_over(self, state: VolumeState) -> tuple[VolumeLog, list[tuple[int, bytes | memoryview]]]:
        """Fence whoever wrote before (on the drives), and give the log with its records (seq, payload) so far."""
        ...

    def read(self, state: VolumeState) -> AsyncIterator[bytes | memoryview]:
        """The payloads that are in the log now, for a reader without lease. Fences nobody."""
        ...
