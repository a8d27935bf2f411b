"""Where chunks that this process put lately are: known without asking, even before their commit.

A stale entry costs one failed read (the chunk's row is then looked up afresh), never a wrong byte: every read verifies
the nonce.
"""

from __future__ import annotations

from collections import OrderedDict

from trivium.cluster.model import ChunkId, Placed

CAPACITY = 16_384


class PlacedCache:
    def __init__(self, capacity: int = CAPACITY) -> None:
        self._rows: OrderedDict[ChunkId, Placed] = OrderedDict()
        self._capacity = capacity

    def add(self, placed: Placed) -> None:
        self._rows[placed.chunk] = placed
        while len(self._rows) > self._capacity:
            self._rows.popitem(last=False)

    def get(self, chunk: ChunkId) -> Placed | None:
        row = self._rows.get(chunk)
        if row is not None:
            self._rows.move_to_end(chunk)
        return row

    def forget(self, chunk: ChunkId) -> None:
        self._rows.pop(chunk, None)
