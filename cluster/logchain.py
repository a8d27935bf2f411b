"""Where a log's chain lives, and changing it safely: the seam between logs and the root or a volume's row."""

from __future__ import annotations

from typing import Protocol

import trio

from trivium.cluster.errors import Fenced, Unavailable
from trivium.cluster.logplan import Chain

RETRY_S = 0.2


class ChainStore(Protocol):
    """The root register (metadata log) or the metadata (volume logs)."""

    async def read(self) -> Chain:
        """The chain as it is now, not a cached one. Unavailable."""
        ...

    async def swap(self, expect: Chain, chain: Chain) -> None:
        """Replace `expect` by `chain`, durably. Fenced when the chain is another one or the ballot or lease has moved
        on; Unavailable: it may have happened."""
        ...


async def swap_surely(store: ChainStore, expect: Chain, chain: Chain, *, retry_s: float = RETRY_S) -> None:
    """Swap until it is known to have happened. Fenced when somebody else changed the chain."""
    while True:
        try:
            await store.swap(expect, chain)
            return
        except Fenced:
            # our own earlier attempt, in doubt then, may be what moved it
            if await _read_surely(store, retry_s) == chain:
                return
            raise
        except Unavailable:
            await trio.sleep(retry_s)


async def _read_surely(store: ChainStore, retry_s: float) -> Chain:
    while True:
        try:
            return await store.read()
        except Unavailable:
            await trio.sleep(retry_s)
