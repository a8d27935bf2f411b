"""Chunks: put pieces durably, get verified ranges back. The facade over writer, gatherer, reader and ledger.

    put -> [registered] --commit answered: settle--> settled
                |--never to be committed: give_up--> given up
                |--CHUNK_REFUSED: put_again--> given up, and registered under new ids

Invariants
1. Data is durable on at least k+1 drives before put answers; what is not known to be durable is in NewChunk.missing.
2. A put that fails or is cancelled gives its ids up; nothing of it can be mistaken for data.
3. A chunk is settled when all pieces in it are, whoever put them (see ledger).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import trio

from trivium.cluster.background import Background
from trivium.cluster.catalog import Catalog
from trivium.cluster.clientlatency import ClientLatency
from trivium.cluster.clock import Executor, Random
from trivium.cluster.errors import NotFound, Refused
from trivium.cluster.gather import Gatherer
from trivium.cluster.ledger import Ledger
from trivium.cluster.model import CHUNK_SIZE, ChunkId, ChunkKind, NewChunk, Placed, Ref
from trivium.cluster.nodes import Nodes
from trivium.cluster.pieces import SMALL, Draft, Order, PieceData, Stored, Written, draft, pack
from trivium.cluster.placedcache import PlacedCache
from trivium.cluster.reader import ChunkReader
from trivium.cluster.shardreader import AtHand, ShardReader
from trivium.cluster.writer import ChunkWriter

__all__ = ["Chunks", "PieceData", "Stored"]

FLIGHTS_PER_PUT = 4
FLIGHTS = 12  # of all puts of this process: bounds what waits in memory
READS_AT_ONCE = 16
SWEEP_S = 10.0


class Chunks:
    def __init__(
        self,
        catalog: Catalog,
        nodes: Nodes,
        *,
        cluster: bytes,
        random: Random,
        executor: Executor,
    ) -> None:
        self._catalog = catalog
        self.latency = ClientLatency()
        self._background = Background()
        self._ledger = Ledger(catalog)
        self._known = PlacedCache()
        self._flights = trio.CapacityLimiter(FLIGHTS)
        self._gatherers: dict[Order, Gatherer] = {}
        self._writer = ChunkWriter(
            catalog, nodes, cluster=cluster, random=random, executor=executor, background=self._background
        )
        self._shards = ShardReader(nodes, cluster=cluster, executor=executor)
        self.paces = self._shards.paces  # which drives are slow for this process
        self._reader = ChunkReader(catalog, nodes, self._shards, executor=executor, background=self._background)

    async def run(self) -> None:
        """Own what outlives calls (late answers, reports) until cancelled. Without it that work belongs to trio."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._background.run)
            while True:
                await trio.sleep(SWEEP_S)
                self._shards.sweep()

    def close(self) -> None:
        """Let go of cached descriptors."""
        self._shards.close()

    # ---- put ------------------------------------------------------------------------------------------------

    async def put(
        self,
        pool: int,
        pieces: Sequence[PieceData],
        *,
        kind: int = ChunkKind.DATA,
        lease: int = 0,
        reserve_class: int = 0,
    ) -> Stored:
        """Store pieces, each at most a chunk long. Raises NoSpace, Unavailable, Refused (a piece too long)."""
        if not pieces:
            return Stored((), ())
        order = Order(pool, int(kind), lease, reserve_class)
        began, size = trio.current_time(), sum(piece.size for piece in pieces)
        stored = await self._put(order, pieces, size)
        if not reserve_class:  # compacting and dumps are nobody's waiting
            self.latency.add("put", size, trio.current_time() - began)
        return stored

    async def _put(self, order: Order, pieces: Sequence[PieceData], size: int) -> Stored:
        limit = order.limit(self._chunk_size(order.pool))
        if size < SMALL and len(pieces) <= len(pack(pieces, limit)[0]):
            written, refs = await self._gatherer(order, limit).put(pieces, size)
            return Stored(refs, (written.new,))
        runs = pack(pieces, limit)
        if len(runs) == 1:
            return await self._put_run(runs[0], order)
        return await self._put_runs(runs, order)

    async def _put_run(self, run: Sequence[PieceData], order: Order) -> Stored:
        load = draft(run)
        written = await self._write(load, order)
        return Stored(load.refs(written.new.chunk), (written.new,))

    async def _put_runs(self, runs: Sequence[Sequence[PieceData]], order: Order) -> Stored:
        """Several chunks, a few at a time. When one fails, the others are given up."""
        done: dict[int, Stored] = {}
        waiting = iter(enumerate(runs))

        async def worker() -> None:
            for number, run in waiting:
                done[number] = await self._put_run(run, order)

        try:
            async with trio.open_nursery() as nursery:
                for _ in range(min(FLIGHTS_PER_PUT, len(runs))):
                    nursery.start_soon(worker)
        except BaseException as error:
            for stored in done.values():
                self.give_up(stored)
            raise _first(error) from None
        return _merge([done[number] for number in range(len(runs))])

    async def _write(self, load: Draft, order: Order) -> Written:
        async with self._flights:
            written = await self._writer.write(load, order)
        self._ledger.register(written, load, order)
        self._known.add(written.placed())
        return written

    def _gatherer(self, order: Order, limit: int) -> Gatherer:
        gatherer = self._gatherers.get(order)
        if gatherer is None:
            self._gatherers = {o: g for o, g in self._gatherers.items() if not g.idle}
            gatherer = Gatherer(order, limit, self._write, self._left, self._background)
            self._gatherers[order] = gatherer
        return gatherer

    def _left(self, written: Written, refs: Iterable[Ref]) -> None:
        self._ledger.give_up(refs)

    def _chunk_size(self, pool: int) -> int:
        return next((row.chunk_size for row in self._catalog.map().pools if row.id == pool), CHUNK_SIZE)

    # ---- commits --------------------------------------------------------------------------------------------

    def settle(self, stored: Stored) -> None:
        """The commit that names these refs has answered."""
        self._ledger.settle(stored.refs)

    def give_up(self, stored: Stored) -> None:
        """These refs will never be committed."""
        self._ledger.give_up(stored.refs)

    async def put_again(self, stored: Stored, refused: Collection[ChunkId] | None = None) -> Stored:
        """A commit was refused with CHUNK_REFUSED: read the bytes back (k shards suffice), put them into other
        groups under new ids, give the old ones up. refs stay in order; `refused`: only these chunks (default: all)."""
        chosen = [new.chunk for new in stored.chunks if refused is None or new.chunk in refused]
        refs = list(stored.refs)
        chunks: list[NewChunk] = [new for new in stored.chunks if new.chunk not in chosen]
        for chunk in chosen:
            places = [number for number, ref in enumerate(refs) if ref.chunk == chunk]
            again = await self._copy_staged(chunk, [refs[number] for number in places])
            for number, ref in zip(places, again.refs, strict=True):
                refs[number] = ref
            chunks.extend(again.chunks)
        self._ledger.give_up(ref for ref in stored.refs if ref.chunk in chosen)
        return Stored(tuple(refs), tuple(chunks))

    async def _copy_staged(self, chunk: ChunkId, refs: Sequence[Ref]) -> Stored:
        entry = self._ledger.find(chunk)
        if entry is None:
            raise Refused(f"chunk {chunk} is settled: there is nothing to put again")
        pieces: list[PieceData] = []
        seen: dict[tuple[int, int], int] = {}
        for ref in refs:
            place = (ref.offset, ref.length)
            toc = entry.toc[place][seen.setdefault(place, 0)]
            seen[place] += 1
            data = await self._reader.read(entry.placed, ref.offset, ref.length, staged=True)
            pieces.append(PieceData(toc.owner, toc.owner_offset, toc.version, data, toc.flags, toc.source, toc.length))
        order = entry.order
        return await self.put(order.pool, pieces, kind=order.kind, lease=order.lease, reserve_class=order.reserve_class)

    # ---- get ------------------------------------------------------------------------------------------------

    async def get(self, ref: Ref, *, placed: Placed | None = None) -> memoryview:
        """The verified bytes of `ref`. Raises NotFound (no such chunk), Unavailable, ChunkLost."""
        known = placed or self._known.get(ref.chunk) or (await self._locate((ref.chunk,)))[0]
        return await self._read(ref, known)

    async def at_hand(self, ref: Ref, *, placed: Placed | None = None) -> AtHand:
        """Open the data shards of the ref's chunk that are on this host, for threads to read: see AtHand."""
        known = placed or self._known.get(ref.chunk) or (await self._locate((ref.chunk,)))[0]
        return await self._shards.at_hand(known)

    async def get_many(
        self, refs: Sequence[Ref], placed: Iterable[Placed | None] | Mapping[ChunkId, Placed] | None = None
    ) -> list[memoryview]:
        """The bytes of several refs, in order. `placed`: rows that came with them, in any order."""
        rows = placed.values() if isinstance(placed, Mapping) else placed or ()
        known = {row.chunk: row for row in rows if row is not None}
        for ref in refs:
            if ref.chunk not in known and (row := self._known.get(ref.chunk)) is not None:
                known[ref.chunk] = row
        unknown = tuple(dict.fromkeys(ref.chunk for ref in refs if ref.chunk not in known))
        if unknown:
            known.update(zip(unknown, await self._locate(unknown), strict=True))
        if len(refs) == 1:
            return [await self._read(refs[0], known[refs[0].chunk])]
        results: dict[int, memoryview] = {}
        waiting = iter(enumerate(refs))

        async def worker() -> None:
            for number, ref in waiting:
                results[number] = await self._read(ref, known[ref.chunk])

        try:
            async with trio.open_nursery() as nursery:
                for _ in range(min(READS_AT_ONCE, len(refs))):
                    nursery.start_soon(worker)
        except BaseException as error:
            raise _first(error) from None
        return [results[number] for number in range(len(refs))]

    async def _read(self, ref: Ref, placed: Placed) -> memoryview:
        staged = self._ledger.find(ref.chunk) is not None
        began = trio.current_time()
        data = await self._reader.read(placed, ref.offset, ref.length, staged=staged)
        self.latency.add("get", ref.length, trio.current_time() - began)
        return data

    async def _locate(self, chunks: tuple[ChunkId, ...]) -> list[Placed]:
        rows = list(await self._catalog.locate(chunks))
        lacking = tuple(chunk for chunk, row in zip(chunks, rows, strict=True) if row is None)
        if lacking:
            fresh = dict(zip(lacking, await self._catalog.locate(lacking, fresh=True), strict=True))
            rows = [row or fresh[chunk] for chunk, row in zip(chunks, rows, strict=True)]
        found = []
        for chunk, row in zip(chunks, rows, strict=True):
            if row is None:
                raise NotFound(f"there is no chunk {chunk}")
            found.append(row)
        return found


def _merge(parts: Sequence[Stored]) -> Stored:
    refs = tuple(ref for part in parts for ref in part.refs)
    return Stored(refs, tuple(new for part in parts for new in part.chunks))


def _first(error: BaseException) -> BaseException:
    """The one error to raise of a group: not a cancellation, where there is another."""
    while isinstance(error, BaseExceptionGroup):
        others = [inner for inner in error.exceptions if not isinstance(inner, trio.Cancelled)]
        if not others:
            return error
        error = others[0]
    return error
