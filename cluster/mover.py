"""Copies or rebuilds the shards of a chunk onto another group: heal, drain, rebalance and replace are this one thing.

    places that differ or are missing -> read (copied from the index's own place, else rebuilt from k others, from any
    drive at last) -> headers under the new plan -> written over what is there -> which indices are durable now

Invariants
1. k, m, the codec and the bytes stay: another profile is another chunk (an id never means two layouts).
2. Each source is verified whole: cluster, chunk, nonce, every block. What a drive happens to have in the target place
   is never adopted, unless it was written under this plan (or a later one) and verifies.
3. Only places that differ or are missing are touched; nothing is deleted here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import trio

from trivium.cluster.background import Background
from trivium.cluster.clock import Executor
from trivium.cluster.erasure import codec_for, shard_size
from trivium.cluster.errors import ChunkLost, ClusterError, Exists, Refused, Unavailable
from trivium.cluster.model import Group, Placed
from trivium.cluster.nodes import Nodes
from trivium.cluster.pacing import Pace, unpaced
from trivium.cluster.shardfile import ShardSpec, build_header
from trivium.cluster.shardreader import ShardReader
from trivium.cluster.transport.interface import Buffer
from trivium.cluster.wire import OK, Outcome, Outcomes, PutShard, PutShards, VerifyShard

READ_LIMIT_S = 30.0
WRITE_LIMIT_S = 60.0
HEALING = 2  # reserve class


class Mover:
    def __init__(
        self,
        nodes: Nodes,
        *,
        cluster: bytes,
        executor: Executor,
        pace: Pace = unpaced,
        drives: Callable[[], Iterable[bytes]] = tuple,
        background: Background | None = None,
    ) -> None:
        """`drives`: every drive of the map, asked when the group does not have enough shards."""
        self._nodes, self._executor, self._pace = nodes, executor, pace
        self._drives = drives
        self._background = background or Background()
        self._shards = ShardReader(nodes, cluster=cluster, executor=executor)

    async def rebuild(self, placed: Placed, target: Group, plan_seq: int) -> int:
        """Bring the chunk's shards to `target` under `plan_seq`. Returns the mask of indices that are not durable
        there. Raises Refused (another profile), Unavailable (drives away), ChunkLost (k shards are nowhere)."""
        if target.profile != placed.group.profile or len(target.drives) != target.profile.width:
            raise Refused(f"chunk {placed.chunk} cannot move from {placed.group.profile} to {target.profile}")
        wanted = places_to_write(placed, target)
        if not wanted:
            return 0
        size = shard_size(placed.length, target.k)
        await self._pace(size * (len(wanted) + target.k))
        bodies, spec = await self._bodies(placed, wanted)
        spec = replace(spec, plan_seq=plan_seq)
        durable = await self._write(placed, target, {index: bodies[index] for index in wanted}, spec)
        return sum(1 << index for index in wanted if index not in durable)

    # ---- reading --------------------------------------------------------------------------------------------

    async def _bodies(self, placed: Placed, wanted: Sequence[int]) -> tuple[dict[int, Buffer], ShardSpec]:
        read = _Sources(self._shards, self._background, placed)
        copies = [index for index in wanted if self._present(placed, index)]
        await read.fetch([(placed.group.drives[index], index) for index in copies])
        lacking = [index for index in wanted if index not in read.bodies]
        if lacking or read.spec is None:
            await self._find_others(placed, read, wanted)
            profile = placed.group.profile
            rebuilt = await self._executor.run(codec_for(profile).rebuild, lacking, read.bodies)
            read.bodies.update(rebuilt)
        assert read.spec is not None
        return read.bodies, read.spec

    def _present(self, placed: Placed, index: int) -> bool:
        return not placed.missing >> index & 1 and self._nodes.is_up(placed.group.drives[index])

    async def _find_others(self, placed: Placed, read: _Sources, tried: Sequence[int]) -> None:
        """Read shards until there are k: the group's present ones, its others, then wherever they may be."""
        group = placed.group
        places = [(drive, index) for index, drive in enumerate(group.drives)]
        places.sort(key=lambda place: (not self._present(placed, place[1]), not self._nodes.is_local(place[0])))
        others = [(drive, index) for index in range(group.profile.width) for drive in self._drives()]
        queue = [place for place in dict.fromkeys((*places, *others)) if place not in read.asked]
        while len(read.bodies) < group.k:
            batch = [place for place in queue if place[1] not in read.bodies][: group.k - len(read.bodies)]
            if not batch:
                raise read.verdict(group.k)
            queue = [place for place in queue if place not in batch]
            await read.fetch(batch)

    # ---- writing --------------------------------------------------------------------------------------------

    async def _write(self, placed: Placed, target: Group, bodies: Mapping[int, Buffer], spec: ShardSpec) -> set[int]:
        messages: dict[bytes, list[int]] = {}
        for index in bodies:
            drive = target.drives[index]
            messages.setdefault(self._nodes.node_of(drive) or drive, []).append(index)
        durable: set[int] = set()

        async def send(indices: list[int]) -> None:
            outcomes = await self._send(target, indices, bodies, spec)
            for index, outcome in zip(indices, outcomes, strict=True):
                error = outcome.error()
                if error is None or (isinstance(error, Exists) and await self._is_there(placed, target, index)):
                    durable.add(index)

        async with trio.open_nursery() as nursery:
            for indices in messages.values():
                nursery.start_soon(send, indices)
        return durable

    async def _send(
        self, target: Group, indices: list[int], bodies: Mapping[int, Buffer], spec: ShardSpec
    ) -> Sequence[Outcome]:
        puts, payload = [], list[Buffer]()
        for index in indices:
            header = await self._executor.run(build_header, spec, index, bodies[index])
            length = len(header) + len(bodies[index])
            puts.append(PutShard(target.drives[index], spec.chunk, index, length, True, HEALING))
            payload += (header, bodies[index])
        request = PutShards(tuple(puts))
        joined = await self._executor.run(b"".join, payload)
        call = self._nodes.call
        try:
            reply = await self._background.within(WRITE_LIMIT_S, call, target.drives[indices[0]], request, joined)
        except ClusterError as error:
            return [Outcome.of(error)] * len(indices)
        assert isinstance(reply.answer, Outcomes)
        return reply.answer.outcomes

    async def _is_there(self, placed: Placed, target: Group, index: int) -> bool:
        """An earlier attempt under this plan wrote it (a node replaces only what was planned before)."""
        drive = target.drives[index]
        request = VerifyShard(drive, placed.chunk, index, placed.nonce)
        try:
            reply = await self._background.within(READ_LIMIT_S, self._nodes.call, drive, request)
        except ClusterError:
            return False
        return isinstance(reply.answer, Outcomes) and reply.answer.outcomes == (OK,)


def places_to_write(placed: Placed, target: Group) -> list[int]:
    """Indices whose place in `target` is another one, or whose shard is missing."""
    return [
        index
        for index, drive in enumerate(target.drives)
        if drive != placed.group.drives[index] or placed.missing >> index & 1
    ]


class _Sources:
    """Verified whole shards of one chunk, as they are found."""

    def __init__(self, shards: ShardReader, background: Background, placed: Placed) -> None:
        self._shards, self._background, self._placed = shards, background, placed
        self.bodies: dict[int, Buffer] = {}
        self.spec: ShardSpec | None = None
        self.asked: set[tuple[bytes, int]] = set()
        self._errors: list[ClusterError] = []

    async def fetch(self, places: Sequence[tuple[bytes, int]]) -> None:
        async with trio.open_nursery() as nursery:
            for drive, index in places:
                nursery.start_soon(self._fetch, drive, index)

    async def _fetch(self, drive: bytes, index: int) -> None:
        self.asked.add((drive, index))
        try:
            header, body = await self._background.within(
                READ_LIMIT_S, self._shards.read_file, drive, self._placed, index
            )
        except ClusterError as error:
            self._errors.append(error)
            return
        self.bodies[index] = body
        self.spec = self.spec or header.spec

    def verdict(self, k: int) -> ClusterError:
        chunk = self._placed.chunk
        if any(isinstance(error, Unavailable) for error in self._errors):
            return Unavailable(
                f"chunk {chunk}: only {len(self.bodies)} of {k} shards can be read while drives are away"
            )
        return ChunkLost(f"chunk {chunk}: only {len(self.bodies)} of the {k} shards needed are on any drive")
