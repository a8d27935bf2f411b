"""Gathers small puts that meet in flight into one chunk: one set of syncs, many pieces.

    idle --put--> flying (it alone, at once)      puts that come now wait in the queue, in order
    flying --landed--> idle | flying (the queue, up to a chunk's size)
    queue >= 1 MiB and fewer than FLIGHTS in flight --> one more flight at once

Invariants
1. A put that finds nothing in flight starts at once: no delay at depth 1.
2. A put's pieces stay together, in order, in one chunk.
3. A cancelled put leaves the queue; once it flies it is landed all the same and its share is given up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio

from trivium.cluster.background import Background
from trivium.cluster.errors import ClusterError, Unavailable
from trivium.cluster.model import MIB, Ref
from trivium.cluster.pieces import MAX_PIECES, Draft, Order, PieceData, Written, draft

FLIGHTS = 4
EAGER_BYTES = MIB


@dataclass(slots=True, eq=False)
class Share:
    """One put's part of a gathered chunk."""

    pieces: Sequence[PieceData]
    size: int
    landed: trio.Event = field(default_factory=trio.Event)
    written: Written | None = None
    refs: tuple[Ref, ...] = ()
    error: ClusterError | None = None
    left: bool = False  # the caller was cancelled


class Gatherer:
    """The small puts of one order (pool, kind, lease, reserve class)."""

    def __init__(
        self,
        order: Order,
        limit: int,
        write: Callable[[Draft, Order], Awaitable[Written]],
        abandoned: Callable[[Written, tuple[Ref, ...]], None],
        background: Background,
    ) -> None:
        self._order = order
        self._limit = limit
        self._write = write
        self._abandoned = abandoned
        self._background = background
        self._queue: deque[Share] = deque()
        self._queued_bytes = 0
        self._flights = 0

    @property
    def idle(self) -> bool:
        return not self._flights and not self._queue

    async def put(self, pieces: Sequence[PieceData], size: int) -> tuple[Written, tuple[Ref, ...]]:
        share = Share(pieces, size)
        self._queue.append(share)
        self._queued_bytes += size
        self._take_off()
        try:
            await share.landed.wait()
        except trio.Cancelled:
            self._leave(share)
            raise
        if share.error is not None:
            raise type(share.error)(*share.error.args)  # one per caller: tracebacks must not mix
        assert share.written is not None
        return share.written, share.refs

    def _take_off(self) -> None:
        """Start what may start now. Decides synchronously; the flights do the I/O."""
        while self._queue and (not self._flights or (self._flights < FLIGHTS and self._queued_bytes >= EAGER_BYTES)):
            self._flights += 1
            self._background.start(self._fly, self._board())

    def _board(self) -> list[Share]:
        shares: list[Share] = []
        size = pieces = 0
        while self._queue:
            share = self._queue[0]
            if shares and (size + share.size > self._limit or pieces + len(share.pieces) > MAX_PIECES):
                break
            size += share.size
            pieces += len(share.pieces)
            self._queued_bytes -= share.size
            shares.append(self._queue.popleft())
        return shares

    async def _fly(self, shares: list[Share]) -> None:
        try:
            load = draft([piece for share in shares for piece in share.pieces])
            self._land(shares, load, await self._write(load, self._order))
        except ClusterError as error:
            for share in shares:
                share.error = error
        except BaseException:
            for share in shares:
                share.error = Unavailable("the put was broken off")
            raise
        finally:
            self._flights -= 1
            for share in shares:
                share.landed.set()
            self._take_off()

    def _land(self, shares: list[Share], load: Draft, written: Written) -> None:
        refs = load.refs(written.new.chunk)
        at = 0
        for share in shares:
            share.written, share.refs = written, refs[at : at + len(share.pieces)]
            at += len(share.pieces)
        for share in shares:
            if share.left:
                self._abandoned(written, share.refs)

    def _leave(self, share: Share) -> None:
        if share in self._queue:
            self._queue.remove(share)
            self._queued_bytes -= share.size
        elif share.written is not None:
            self._abandoned(share.written, share.refs)
        else:
            share.left = True
