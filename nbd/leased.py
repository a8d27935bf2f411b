"""A volume under a lease, as all of its background parts see it: calls that may have to wait, wake-ups, the end.

serving --LEASE_LOST, SESSION_ENDED, Fenced, damage--> failed: whoever asks gets the reason, for ever
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import trio

from trivium.cluster.chunks import PieceData, Stored
from trivium.cluster.errors import Fenced, NoSpace, Unavailable
from trivium.cluster.model import MIB, VOLUME_CHUNK_SIZE, ChunkKind, NewChunk
from trivium.metadata.messages import (
    CHUNK_REFUSED,
    LEASE_LOST,
    SESSION_ENDED,
    CommitSegment,
    MetadataError,
    VolumeState,
)
from trivium.nbd.backend import ChunkStore, Metadata
from trivium.nbd.core import VolumeCore
from trivium.nbd.errors import Damaged, Displaced, VolumeError
from trivium.nbd.recovery import volume_owner

log = logging.getLogger(__name__)
T = TypeVar("T")

CACHE_BYTES = 256 * MIB
RESERVE_CLASS = 1  # of what only moves data that was accepted already


@dataclass(frozen=True, slots=True)
class Tuning:
    """Sizes that simulations make small."""

    cache_bytes: int = CACHE_BYTES
    segment_bytes: int = VOLUME_CHUNK_SIZE
    checkpoint_chunks: int = 16  # sealed chunks between checkpoints, at least
    index_rows: int = 16_384  # of the chunk table in one chunk (about 0.8 MiB)
    clean_min_blocks: int = 256  # a cleaning must free as much
    clean_period_s: float = 5.0


DEFAULTS = Tuning()


class Leased:
    """Runs on the event loop."""

    def __init__(
        self, state: VolumeState, core: VolumeCore, metadata: Metadata, chunks: ChunkStore, pool: int, tuning: Tuning
    ) -> None:
        self.info = state.info
        self.lease = state.lease
        self.owner = volume_owner(state.info.id)
        self.core = core
        self.metadata = metadata
        self.chunks = chunks
        self.pool = pool
        self.tuning = tuning
        self.changed = trio.Event()
        self.space_short = False  # the pool has no room for client data: writes stay refused

    # ---- waiting and failing --------------------------------------------------------------------------------

    def kick(self) -> None:
        """Something has changed: everybody who waits looks again."""
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.check()
            await self.changed.wait()

    def check(self) -> None:
        if self.core.failed is not None:
            raise self.core.failed

    def fail(self, error: VolumeError) -> None:
        """Nothing is served from here on; what was not durable is lost and said so."""
        if self.core.failed is None:
            log.error("volume %s: %s", self.info.name, error)
            self.core.failed = error
        self.kick()

    def out_of_space(self, error: NoSpace) -> None:
        if not self.core.no_space:
            log.warning("volume %s takes no writes: %s", self.info.name, error)
        self.core.no_space = str(error) or "the pool is full"
        self.kick()

    def has_space(self) -> None:
        if self.core.no_space and not self.space_short:
            log.warning("volume %s takes writes again", self.info.name)
            self.core.no_space = ""
            self.kick()

    async def keep_trying(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Until it works: the pool may be away or full for a while. Fails the volume when it never can again."""
        pause_s = 0.05
        while True:
            try:
                result = await attempt()
            except NoSpace as error:
                self.out_of_space(error)
            except Unavailable as error:
                log.warning("volume %s waits: %s", self.info.name, error)
            except Fenced as error:
                self.fail(Displaced(str(error)))
            else:
                self.has_space()
                return result
            self.check()
            await trio.sleep(pause_s)
            pause_s = min(2.0, pause_s * 2)

    # ---- calls ----------------------------------------------------------------------------------------------

    async def call(self, *operations: Any, chunks: Sequence[NewChunk] = ()) -> tuple[Any, ...]:
        try:
            return await self.metadata.call(*operations, chunks=chunks)
        except MetadataError as error:
            if error.code in (LEASE_LOST, SESSION_ENDED):
                self.fail(Displaced(f"volume {self.info.name}: this writer's lease is over ({error.text})"))
                raise (self.core.failed or Damaged("the volume has failed")) from error
            raise

    async def put(self, piece: PieceData, kind: ChunkKind) -> Stored:
        """One piece as a chunk of its own, however long it takes."""
        return await self.keep_trying(
            partial(self.chunks.put, self.pool, [piece], kind=kind, lease=self.lease, reserve_class=RESERVE_CLASS)
        )

    async def commit_segment(self, stored: Stored, first_write: int, last_write: int) -> Stored:
        """Commit a volume chunk's row; the data goes to another group when that is asked for."""
        while True:
            operation = CommitSegment(self.info.id, self.lease, stored.refs[0].chunk, first_write, last_write)
            try:
                await self.keep_trying(partial(self.call, operation, chunks=stored.chunks))
            except MetadataError as error:
                if error.code != CHUNK_REFUSED:
                    raise
                stored = await self.keep_trying(partial(self.chunks.put_again, stored))
                continue
            self.chunks.settle(stored)
            return stored
