"""Which chunks of this session still wait for their commits, piece by piece. Pure, apart from telling the catalog.

    registered --settle / give_up of some pieces--> waiting --all pieces--> settled (any was committed)
                                                                        \\-> given up (none was)

Invariants
1. A chunk is settled only when all its pieces are: while one put of a gathered chunk has yet to commit, neither the
   settled floor nor a given-up id lets the collector at it.
2. Saying a thing twice is harmless.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from trivium.cluster.catalog import Catalog
from trivium.cluster.model import ChunkId, Piece, Placed, Ref
from trivium.cluster.pieces import Draft, Order, Written


@dataclass(slots=True)
class Unsettled:
    placed: Placed
    order: Order
    toc: dict[tuple[int, int], list[Piece]]  # (offset, size) -> the pieces there
    waiting: Counter[tuple[int, int]]
    committed: bool = False


class Ledger:
    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._chunks: dict[ChunkId, Unsettled] = {}

    def __len__(self) -> int:
        return len(self._chunks)

    def register(self, written: Written, load: Draft, order: Order) -> None:
        toc: dict[tuple[int, int], list[Piece]] = {}
        for piece, size in zip(load.toc, load.sizes, strict=True):
            toc.setdefault((piece.chunk_offset, size), []).append(piece)
        waiting = Counter({place: len(pieces) for place, pieces in toc.items()})
        self._chunks[written.new.chunk] = Unsettled(written.placed(), order, toc, waiting)

    def find(self, chunk: ChunkId) -> Unsettled | None:
        return self._chunks.get(chunk)

    def settle(self, refs: Iterable[Ref]) -> None:
        """The commit that names these refs has answered."""
        self._discharge(refs, True)

    def give_up(self, refs: Iterable[Ref]) -> None:
        """No commit will ever name these refs."""
        self._discharge(refs, False)

    def _discharge(self, refs: Iterable[Ref], committed: bool) -> None:
        for ref in refs:
            entry = self._chunks.get(ref.chunk)
            if entry is None:
                continue
            place = (ref.offset, ref.length)
            entry.waiting[place] -= 1
            if entry.waiting[place] <= 0:
                del entry.waiting[place]
            entry.committed |= committed
            if not entry.waiting:
                del self._chunks[ref.chunk]
                (self._catalog.settle if entry.committed else self._catalog.give_up)(ref.chunk)
