"""Full segments become volume chunks: put side by side, committed in order, then moved from the overlay to the map."""

from __future__ import annotations

import logging

import trio

from trivium.cluster.chunks import PieceData
from trivium.cluster.errors import ClusterError, Fenced
from trivium.cluster.model import ChunkKind
from trivium.nbd.backend import VolumeLog
from trivium.nbd.buffer import Segment
from trivium.nbd.errors import Displaced
from trivium.nbd.leased import Leased

log = logging.getLogger(__name__)

PUTS = 3  # chunks in flight


class Sealer:
    """Runs on the event loop."""

    def __init__(self, held: Leased, volume_log: VolumeLog) -> None:
        self._held = held
        self._log = volume_log
        self._flying = 0
        self.committed = 0  # chunks since the last checkpoint

    @property
    def idle(self) -> bool:
        return not self._flying and not self._held.core.full

    async def run(self) -> None:
        held = self._held
        async with trio.open_nursery() as nursery:
            while True:
                changed = held.changed
                with held.core.lock:
                    waiting = [segment for segment in held.core.full if not segment.sealing]
                for segment in waiting[: PUTS - self._flying]:
                    segment.sealing = True
                    self._flying += 1
                    nursery.start_soon(self._seal, segment)
                await changed.wait()

    async def _seal(self, segment: Segment) -> None:
        held = self._held
        core = held.core
        try:
            sealed = segment.seal(held.owner)
            piece = PieceData(held.owner, 0, segment.last_write, list(sealed.buffers))
            stored = await held.put(piece, ChunkKind.VOLUME)
            await held.until(lambda: core.full[0] is segment)
            stored = await held.commit_segment(stored, segment.first_write, segment.last_write)
            core.commit(segment, sealed, stored.refs[0])
            self.committed += 1
            held.kick()
            if segment.log_seq:
                await self._trim_log(segment.log_seq)
        finally:
            self._flying -= 1
            held.kick()

    async def _trim_log(self, seq: int) -> None:
        """What it held is in a chunk whose row has committed."""
        try:
            await self._log.trim(seq)
        except Fenced as error:
            self._held.fail(Displaced(str(error)))
        except ClusterError as error:
            log.warning("volume %s: its log was not trimmed: %s", self._held.info.name, error)
