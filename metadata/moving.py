"""Chunks with a plan under way: files at their new places are named by no row until the commit, and are no orphans.

Healer, drainer and rebalancer share one: it counts, for two plans of one chunk may overlap, and the end of the first
(whose commit finds the other's plan and does nothing) must not end the protection of what the second has written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from trivium.cluster.model import ChunkId


class Moving:
    def __init__(self) -> None:
        self._plans: Counter[ChunkId] = Counter()

    def __contains__(self, chunk: object) -> bool:
        return chunk in self._plans

    @contextmanager
    def of(self, chunk: ChunkId) -> Iterator[None]:
        """From before the plan until after the commit."""
        self._plans[chunk] += 1
        try:
            yield
        finally:
            self._plans[chunk] -= 1
            if not self._plans[chunk]:
                del self._plans[chunk]
