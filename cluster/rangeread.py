"""Reads block ranges of a chunk's data shards from a set of places, rebuilding what is late, bad or missing.

    own ranges --all arrive--> done
        |-- one fails, or one is later than the hedge --> degraded: the union of the ranges still lacking is read
        |                                                 from others, too
    degraded --own range arrives after all, or k shards' bytes of the union--> done
        |-- each further hedge interval --> others are asked instead of those that are late
        |-- every place has failed, or the time limit is over --> Exhausted (with what each place said)

Invariants
1. Each contribution was verified as a shard of this very put (chunk, nonce), so a rebuild never mixes puts.
2. Tasks read into memory of their own: one that ends late touches nothing that was returned.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import trio

from trivium.cluster.background import Background
from trivium.cluster.clock import Executor
from trivium.cluster.erasure import codec_for
from trivium.cluster.errors import ClusterError, Corrupt, NotFound, Unavailable
from trivium.cluster.latency import hedge_wait_s
from trivium.cluster.model import Placed
from trivium.cluster.ranges import Blocks
from trivium.cluster.shardreader import ShardReader

LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Source:
    """A place that may hold a shard."""

    drive: bytes
    index: int


class Exhausted(Exception):
    """Fewer than k shards could be had from the places asked."""

    def __init__(self, failures: Mapping[Source, ClusterError], silent: Iterable[Source]) -> None:
        super().__init__(f"{len(failures)} places failed")
        self.failures = dict(failures)
        self.silent = frozenset(silent)

    @property
    def bad(self) -> dict[Source, ClusterError]:
        """Places that answered that they do not have it, or not intact."""
        return {s: e for s, e in self.failures.items() if isinstance(e, NotFound | Corrupt)}


class RangeRead:
    """One use: construct, `run`, then look at `failures`."""

    def __init__(
        self,
        shards: ShardReader,
        placed: Placed,
        wanted: Mapping[int, Blocks],
        sources: Iterable[Source],
        *,
        executor: Executor,
        background: Background,
        trusted: Iterable[int] = (),
        width: int = 0,
    ) -> None:
        """`sources`: places in the order of preference. `trusted`: indices whose own place is asked first, before
        anything is rebuilt. `width`: how many places are asked at once when degraded (0: as many as needed)."""
        self.failures: dict[Source, ClusterError] = {}
        self._shards, self._placed = shards, placed
        self._wanted = dict(wanted)
        self._queue = deque(sources)
        self._executor, self._background = executor, background
        self._trusted = frozenset(trusted)
        self._width = width
        self._k = placed.group.k
        self._got: dict[int, tuple[Blocks, memoryview]] = {}
        self._flying: dict[Source, Blocks] = {}
        self._row: Blocks | None = None
        self._late: set[Source] = set()  # asked, and not counted on any more
        self._send, self._receive = trio.open_memory_channel[tuple[Source, Blocks, memoryview | ClusterError]](math.inf)

    async def run(self) -> dict[int, memoryview]:
        """The bytes of each wanted range. Raises Exhausted."""
        hedge_s = hedge_wait_s(self._shards.latencies)
        with self._receive:
            self._ask_own()
            with trio.move_on_after(LIMIT_S):
                while lacking := self._lacking():
                    if len(self._flying) < len(lacking) or self.failures:
                        self._degrade(lacking)
                    if self._row is not None:
                        if len(covering := self._covering(self._row)) >= self._k:
                            await self._rebuild(lacking, covering, self._row)
                            break
                        self._ask_others(self._row, len(covering))
                    if not self._flying:
                        break
                    await self._next(lacking, hedge_s)
        if self._lacking():
            raise Exhausted(self.failures, {*self._flying, *self._queue})
        return {index: self._got[index][0].cut(self._got[index][1], blocks) for index, blocks in self._wanted.items()}

    def _lacking(self) -> list[int]:
        return [i for i, blocks in self._wanted.items() if i not in self._got or not self._got[i][0].covers(blocks)]

    def _covering(self, row: Blocks) -> dict[int, memoryview]:
        return {i: blocks.cut(data, row) for i, (blocks, data) in self._got.items() if blocks.covers(row)}

    def _ask_own(self) -> None:
        rest: deque[Source] = deque()
        for source in self._queue:
            if source.index in self._wanted and source.index in self._trusted:
                self._ask(source, self._wanted[source.index])
            else:
                rest.append(source)
        self._queue = rest

    def _degrade(self, lacking: list[int]) -> None:
        """From now on others are read. The union covers everything that lacks now, so that it never has to grow."""
        if self._row is None:
            row = self._wanted[lacking[0]]
            for index in lacking[1:]:
                row = row.union(self._wanted[index])
            self._row = row
            again = [s for s in self._flying if not self._flying[s].covers(row)]
            again += [
                Source(self._placed.group.drives[i], i)
                for i, (blocks, _) in self._got.items()
                if not blocks.covers(row)
            ]
            self._queue.extend(again)  # last: they may be late for all of it

    def _ask_others(self, row: Blocks, have: int) -> None:
        flying = sum(blocks.covers(row) and source not in self._late for source, blocks in self._flying.items())
        need = max(self._k - have, self._width) - flying
        while need > 0 and self._queue:
            source = self._queue.popleft()
            if source.index in self._got and self._got[source.index][0].covers(row):
                continue
            self._ask(source, row)
            need -= 1

    def _ask(self, source: Source, blocks: Blocks) -> None:
        self._flying[source] = blocks
        self._background.start(self._fetch, source, blocks)

    async def _fetch(self, source: Source, blocks: Blocks) -> None:
        result: memoryview | ClusterError = Unavailable("the read was broken off")
        try:
            result = await self._shards.read(source.drive, self._placed, source.index, blocks)
        except ClusterError as error:
            result = error
        finally:
            with contextlib.suppress(trio.BrokenResourceError):  # nobody waits for it any more
                self._send.send_nowait((source, blocks, result))

    async def _next(self, lacking: list[int], hedge_s: float) -> None:
        """The next answer; when there is none within the hedge, read others (or one more of them)."""
        with trio.move_on_after(hedge_s) as scope:
            source, blocks, result = await self._receive.receive()
        if scope.cancelled_caught:
            self._late.update(self._flying)
            self._degrade(lacking)
            return
        if self._flying.get(source) == blocks:
            del self._flying[source]
        if isinstance(result, ClusterError):
            self.failures[source] = result
        elif source.index not in self._got or blocks.covers(self._got[source.index][0]):
            self._got[source.index] = (blocks, result)

    async def _rebuild(self, lacking: list[int], covering: dict[int, memoryview], row: Blocks) -> None:
        chosen = dict(list(covering.items())[: self._k])
        rebuilt = await self._executor.run(codec_for(self._placed.group.profile).rebuild, lacking, chosen)
        for index, data in rebuilt.items():
            self._got[index] = (row, memoryview(data))
