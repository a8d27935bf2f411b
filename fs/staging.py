"""From bytes in memory to extents that a commit can name: inline, or references to pieces that are durable.

A put waits for drives that are away; a full pool is an error. A layer that is lost meanwhile (its session ended) is put
no further, and what was put of it is given up.
"""

from __future__ import annotations

import logging

import msgspec
import trio

from trivium.cluster.errors import ClusterError, NoSpace, Unavailable
from trivium.cluster.model import Ref
from trivium.cluster.pieces import PieceData, Stored
from trivium.fs.errors import translated
from trivium.fs.inodes import Inode
from trivium.fs.layers import INLINE_TOTAL, Layer, Run, batches
from trivium.fs.ports import ChunkStore
from trivium.metadata.messages import INLINE_MAX, Extent, MetadataError

log = logging.getLogger(__name__)

PUTS = 4  # chunks in flight
PAUSE_FIRST_S, PAUSE_MOST_S = 0.1, 2.0


class Staging:
    def __init__(self, chunks: ChunkStore, pool: int) -> None:
        self._chunks, self._pool = chunks, pool
        self._puts = trio.Semaphore(PUTS)

    async def stage(self, inode: Inode, layer: Layer) -> None:
        """Make the layer's extents, or set what it failed with."""
        while layer.staging and not layer.done:
            await layer.staged.wait()
        if layer.done:
            return
        layer.staging = True
        try:
            extents = await self._extents(inode, layer)
            if layer.failed is None:
                layer.extents = extents
        except (ClusterError, MetadataError, OSError) as error:
            layer.failed = layer.failed or translated(error)
        finally:
            if layer.lost:
                self.give_up(layer)
            layer.staging = False
            event, layer.staged = layer.staged, trio.Event()
            event.set()

    async def _extents(self, inode: Inode, layer: Layer) -> list[Extent]:
        base = layer.ranges.start if layer.append else 0
        runs = list(layer.ranges.runs())
        if layer.ranges.total <= INLINE_TOTAL and all(length <= INLINE_MAX for _, length, _ in runs):
            return [Extent(o - base, n, None, b"".join(buffers)) for o, n, buffers in runs]
        return await self._put(inode, layer, runs, base)

    async def _put(self, inode: Inode, layer: Layer, runs: list[Run], base: int) -> list[Extent]:
        extents: list[Extent] = []
        owner = inode.ino.to_bytes(8, "little") + bytes(8)
        for batch in batches(runs):
            version = inode.attr.version + 1
            pieces = [PieceData(owner, o, version, buffers) for o, _, buffers in batch]
            stored = await self._put_patiently(layer, pieces)
            layer.stored.append(stored)
            if layer.failed is not None:
                raise layer.failed
            extents += [Extent(o - base, n, ref) for (o, n, _), ref in zip(batch, stored.refs, strict=True)]
        return extents

    async def _put_patiently(self, layer: Layer, pieces: list[PieceData]) -> Stored:
        """Drives that are away for now are waited for; a full pool is not."""
        pause_s = PAUSE_FIRST_S
        while True:
            try:
                async with self._puts:
                    return await self._chunks.put(self._pool, pieces)
            except NoSpace:
                raise
            except Unavailable as error:
                log.warning("waiting for drives: %s", error)
            if layer.failed is not None:
                raise layer.failed
            await trio.sleep(pause_s)
            pause_s = min(PAUSE_MOST_S, pause_s * 2)

    async def put_again(self, batch: list[Layer]) -> None:
        """A commit refused the chunks of these layers: the same bytes go into others."""
        for layer in batch:
            refs: dict[Ref, Ref] = {}
            again = []
            for stored in layer.stored:
                fresh = await self._chunks.put_again(stored)
                refs.update(zip(stored.refs, fresh.refs, strict=True))
                again.append(fresh)
            layer.stored = again
            layer.extents = [
                msgspec.structs.replace(e, ref=refs.get(e.ref, e.ref)) if e.ref else e for e in layer.extents or ()
            ]

    def settle(self, layer: Layer) -> None:
        for stored in layer.stored:
            self._chunks.settle(stored)

    def give_up(self, layer: Layer) -> None:
        for stored in layer.stored:
            self._chunks.give_up(stored)
        layer.stored = []
