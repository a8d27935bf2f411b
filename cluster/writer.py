"""Writes one chunk: encode, send, wait, answer; another group under a new id when too few shards became durable.

One put, for one chunk:

    choose group -> new id -> encode -> send (one message per node) -> wait
       ^                                                              |-- all k+m durable ----------> answer
       |                                                              |-- bounded wait over, >= k+1 -> answer, rest
       |                                                              |                               listed missing
       +---- avoid the drives that failed <- give the id up <---------+-- k+1 out of reach
                                                                           (8 times, then Unavailable or NoSpace)

Invariants
1. An id is used for one attempt: a shard is written once, and no file of an abandoned attempt can be taken for the
   chunk's (the nonce differs, too).
2. A chunk is answered only with at least min(k+1, k+m) durable shards, all of a narrow one (placement.least, which
   its commit asks for, too); each shard not known to be durable is listed.
3. An id that is not answered is given up, once nothing of the attempt is on its way any more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from trivium.cluster.background import Background
from trivium.cluster.catalog import Catalog
from trivium.cluster.clock import Executor, Random
from trivium.cluster.erasure import codec_for, shard_size
from trivium.cluster.errors import ClusterError, NoSpace, Unavailable
from trivium.cluster.latency import Latencies, put_wait_s
from trivium.cluster.model import ChunkId, Group, NewChunk, Profile
from trivium.cluster.nodes import Nodes
from trivium.cluster.pieces import Draft, Order, Written
from trivium.cluster.placement import least, narrow
from trivium.cluster.shardfile import ShardSpec, build_headers
from trivium.cluster.wire import Outcomes, PutShard, PutShards

ATTEMPTS = 8
SUSPECT_S = 10.0  # how long a drive that did not answer is avoided where that is possible
SOLO_S = 60.0  # how long a node that left a whole message unanswered gets one message per drive
SLOWEST_BYTES_S = 4e6  # a chunk that moves more slowly than this is given up
SMALL_BYTES = 256 * 1024
ABANDON_S = 60.0


@dataclass(frozen=True, slots=True)
class Identity:
    """What one attempt writes into its shard headers."""

    cluster: bytes
    chunk: ChunkId
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """Shard files of one node, back to back: the payload of a PutShards."""

    indices: tuple[int, ...]
    lengths: tuple[int, ...]
    payload: bytes


def build_messages(
    draft: Draft, order: Order, group: Group, identity: Identity, split: Sequence[Sequence[int]]
) -> list[Message]:
    """The k+m shard files of a draft, as the messages that `split` says. Blocking (CPU).

    Joined here, in a thread: to do so on the event loop, behind the threads' turns at the GIL, held it up by 10 ms.
    """
    bodies = codec_for(group.profile).encode(draft.buffers, draft.length)
    spec = ShardSpec(
        identity.cluster,
        identity.chunk,
        identity.nonce,
        group.k,
        group.m,
        group.codec,
        order.kind,
        draft.length,
        shard_size(draft.length, group.k),
        draft.toc,
        lease=order.lease,
    )
    headers = build_headers(spec, bodies)
    return [
        Message(
            tuple(indices),
            tuple(len(headers[index]) + len(bodies[index]) for index in indices),
            b"".join([part for index in indices for part in (headers[index], bodies[index])]),
        )
        for indices in split
    ]


@dataclass(slots=True)
class _Attempt:
    """One chunk id's way to the drives."""

    chunk: ChunkId
    group: Group
    least: int  # shards that must be durable before the put answers
    pending: set[int] = field(default_factory=set)
    durable: set[int] = field(default_factory=set)
    failed: dict[int, ClusterError] = field(default_factory=dict)
    changed: trio.Event = field(default_factory=trio.Event)
    alone: set[int] = field(default_factory=set)  # indices that travel in a message of their own
    sends: int = 0
    large: bool = False  # small and large puts have latencies of their own

    @property
    def enough(self) -> bool:
        return len(self.durable) >= self.least

    @property
    def hopeless(self) -> bool:
        return len(self.durable) + len(self.pending) < self.least

    @property
    def missing(self) -> int:
        return sum(1 << index for index in range(self.group.profile.width) if index not in self.durable)

    def note(self, index: int, error: ClusterError | None) -> None:
        self.pending.discard(index)
        if error is None:
            self.durable.add(index)
        else:
            self.failed[index] = error

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class ChunkWriter:
    def __init__(
        self,
        catalog: Catalog,
        nodes: Nodes,
        *,
        cluster: bytes,
        random: Random,
        executor: Executor,
        background: Background,
    ) -> None:
        self._catalog = catalog
        self._nodes = nodes
        self._cluster = cluster
        self._random = random
        self._executor = executor
        self._background = background
        self._latencies = {False: Latencies(), True: Latencies()}  # small, large
        self._suspects: dict[bytes, float] = {}  # drive -> until when it is avoided
        self._solo: dict[bytes, float] = {}  # node -> until when its drives get a message each
        self._offered: dict[int, tuple[Group, float]] = {}  # pool -> the newest offer, and until when it is reused
        self._turn = 0

    async def write(self, draft: Draft, order: Order) -> Written:
        """Store one chunk. Raises NoSpace, or Unavailable after every group tried had too few drives that answer."""
        failed: dict[bytes, ClusterError] = {}  # drives that refused in this put
        silent: set[bytes] = set()
        for patience in range(1, ATTEMPTS + 1):
            group = await self._choose(order.pool, failed, silent, patience)
            chunk = ChunkId(self._catalog.session, self._catalog.next_counter())
            attempt = _Attempt(chunk, group, self._least(group))
            nonce = self._random.randbytes(16)
            try:
                identity = Identity(self._cluster, attempt.chunk, nonce)
                split = self._split(group.drives)
                messages = await self._executor.run(build_messages, draft, order, group, identity, split)
                self._launch(attempt, messages, order.reserve_class)
                await self._wait(attempt, sum(len(message.payload) for message in messages), patience)
            except BaseException:
                self._background.start(self._abandon, attempt)
                raise
            if attempt.enough:
                kind = order.kind
                new = NewChunk(attempt.chunk, nonce, group.id, group.digest, draft.length, attempt.missing, kind)
                return Written(new, group)
            self._background.start(self._abandon, attempt)
            silent |= self._blame(attempt)
            failed |= {group.drives[index]: error for index, error in attempt.failed.items()}
        raise _summary(list(failed.values()))

    # ---- choosing -------------------------------------------------------------------------------------------

    async def _choose(
        self, pool: int, failed: Mapping[bytes, ClusterError], silent: Collection[bytes], patience: int
    ) -> Group:
        """An open group whose drives all seem well; else one that the catalog offers without those that do not; else
        an open one where k+1 may do; else one that the catalog offers without those that are known to be gone.

        Silence is a hint (all are silent on an overloaded machine), a refusal is not: silent drives neither make the
        pool full nor, at first, a group with less parity than the pool promises."""
        groups = self._catalog.open_groups(pool)
        now = trio.current_time()
        self._suspects = {drive: until for drive, until in self._suspects.items() if until > now}
        dead = {drive for group in groups for drive in group.drives if not self._nodes.is_up(drive)} | set(failed)
        bad = dead | set(silent) | set(self._suspects)
        whole = [group for group in groups if bad.isdisjoint(group.drives)]
        if whole:
            self._turn += 1
            return whole[self._turn % len(whole)]
        offered, until = self._offered.get(pool, (None, 0.0))
        if offered is not None and until > now and bad.isdisjoint(offered.drives):
            return offered
        parity = next((row.m for row in self._catalog.map().pools if row.id == pool), 0)
        weaker: Group | None = None
        for avoided in dict.fromkeys((frozenset(bad), frozenset(dead))):
            try:
                group = await self._catalog.offer(pool, without=avoided)
            except (NoSpace, Unavailable) as error:
                why: ClusterError = error
            else:
                if group.m >= parity or patience > ATTEMPTS // 2:
                    self._offered[pool] = (group, trio.current_time() + SUSPECT_S)
                    return group
                weaker = weaker or group
            ranked = [(len(dead.intersection(g.drives)), len(bad.intersection(g.drives)), g.id, g) for g in groups]
            fit = [entry for entry in ranked if len(entry[3].drives) - entry[0] >= self._least(entry[3])]
            if fit:
                return min(fit)[3]
        if weaker is not None:
            return weaker
        raise self._no_group(pool, failed, why) from why

    def _least(self, group: Group) -> int:
        row = next((row for row in self._catalog.map().pools if row.id == group.pool), None)
        return least(group.profile, *((row.k, row.m) if row is not None else (group.k, group.m)))

    def _no_group(self, pool: int, failed: Mapping[bytes, ClusterError], error: ClusterError) -> ClusterError:
        """A pool is full only if enough drives are there to say so; else they are merely away."""
        well = {row.id for row in self._catalog.map().drives if not row.reason and self._nodes.is_up(row.id)}
        well -= {drive for drive, why in failed.items() if not isinstance(why, NoSpace)}
        row = next((row for row in self._catalog.map().pools if row.id == pool), None)
        if isinstance(error, NoSpace) and row is not None and narrow(Profile(row.k, row.m), len(well)) is None:
            return Unavailable(f"pool {row.name} takes no data while all drives but {len(well)} are away")
        return error

    def _blame(self, attempt: _Attempt) -> set[bytes]:
        """Suspect the drives that failed or whose own message got no answer; returns the latter."""
        drives = attempt.group.drives
        now = trio.current_time()
        silent = {drives[index] for index in attempt.pending if index in attempt.alone}
        for index in attempt.pending - attempt.alone:
            # one message for several drives: which of them hangs is seen when each gets its own
            self._solo[self._nodes.node_of(drives[index]) or drives[index]] = now + SOLO_S
        blamed = silent | {drives[index] for index in attempt.failed}
        self._suspects.update(dict.fromkeys(blamed, now + SUSPECT_S))
        return silent

    # ---- sending --------------------------------------------------------------------------------------------

    def _launch(self, attempt: _Attempt, messages: Sequence[Message], reserve_class: int) -> None:
        attempt.large = sum(len(message.payload) for message in messages) > SMALL_BYTES
        for message in messages:
            attempt.pending.update(message.indices)
            attempt.sends += 1
            if len(message.indices) == 1:
                attempt.alone.update(message.indices)
            self._background.start(self._send, attempt, message, reserve_class)

    def _split(self, drives: Sequence[bytes]) -> list[list[int]]:
        """Which indices travel together: one message per node, or per drive while the node is suspected."""
        now = trio.current_time()
        messages: dict[bytes, list[int]] = {}
        for index, drive in enumerate(drives):
            node = self._nodes.node_of(drive) or drive
            messages.setdefault(drive if self._solo.get(node, 0.0) > now else node, []).append(index)
        return list(messages.values())

    async def _send(self, attempt: _Attempt, message: Message, reserve_class: int) -> None:
        drives, indices = attempt.group.drives, message.indices
        began = trio.current_time()
        puts = tuple(
            PutShard(drives[index], attempt.chunk, index, length, False, reserve_class)
            for index, length in zip(indices, message.lengths, strict=True)
        )
        try:
            reply = await self._nodes.call(drives[indices[0]], PutShards(puts), message.payload)
            if not isinstance(reply.answer, Outcomes) or len(reply.answer.outcomes) != len(indices):
                raise Unavailable("a node gave an answer of the wrong kind to a put")
            for index, outcome in zip(indices, reply.answer.outcomes, strict=True):
                attempt.note(index, outcome.error())
                if outcome.status == 0:  # late, perhaps, but well
                    self._suspects.pop(drives[index], None)
            self._latencies[attempt.large].add(trio.current_time() - began)
        except ClusterError as error:
            for index in indices:
                attempt.note(index, error)
        finally:
            attempt.sends -= 1
            attempt.wake()

    async def _wait(self, attempt: _Attempt, size_bytes: int, patience: int) -> None:
        """Until all are durable; or the bounded wait is over and enough are; or enough cannot be reached."""
        began = trio.current_time()
        wait_s = put_wait_s(self._latencies[attempt.large])
        limit_s = patience * (3 * wait_s + size_bytes / SLOWEST_BYTES_S)
        while attempt.pending and not attempt.hopeless:
            until = began + (wait_s if attempt.enough else limit_s)
            with trio.move_on_at(until) as scope:
                await attempt.changed.wait()
            if scope.cancelled_caught and (attempt.enough or until >= began + limit_s):
                break
        if attempt.enough and attempt.missing:
            self._blame(attempt)

    async def _abandon(self, attempt: _Attempt) -> None:
        """Give the id up once nothing of it is on its way (a shard that lands later is an orphan, found later)."""
        with trio.move_on_after(ABANDON_S):
            while attempt.sends:
                await attempt.changed.wait()
        self._catalog.give_up(attempt.chunk)


def _summary(failures: Sequence[ClusterError]) -> ClusterError:
    full = sum(isinstance(error, NoSpace) for error in failures)
    if full and full * 2 >= len(failures):
        return NoSpace(str(next(error for error in failures if isinstance(error, NoSpace))))
    texts = sorted({str(error) for error in failures})
    return Unavailable("too few drives took the chunk: " + ("; ".join(texts) or "no answer in time"))
