"""A chain store in memory: compare-and-swap that can doubt and refuse on request."""

from __future__ import annotations

from collections.abc import Callable

import trio

from trivium.cluster.errors import Fenced
from trivium.cluster.logplan import Chain, check_chain


class MemoryChain:
    def __init__(self) -> None:
        self.chain: Chain = ()
        self.history: list[Chain] = [()]
        self.before: Callable[[], None] | None = None  # may raise: nothing happened
        self.after: Callable[[], None] | None = None  # may raise: it happened, but the answer is lost

    async def read(self) -> Chain:
        await trio.lowlevel.checkpoint()
        return self.chain

    async def swap(self, expect: Chain, chain: Chain) -> None:
        await trio.lowlevel.checkpoint()
        if self.before is not None:
            self.before()
        if self.chain != expect:
            raise Fenced("the log's chain has moved on")
        self.chain = check_chain(chain)
        self.history.append(chain)
        if self.after is not None:
            self.after()
        await trio.lowlevel.checkpoint()
