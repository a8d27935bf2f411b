"""The metadata client: one session, calls that are executed once, queries, the cluster's Catalog.

    connecting --Welcome--> live --T/2 without an answer--> lapsed (leases unused, calls wait) --answer--> live
                             `--SESSION_ENDED / Ended--> ended (on_ended; unflushed data is lost) --Hello--> live anew

Invariants:
1. A call keeps (session, slot, number) until it is answered: sent again after a lost connection it is executed once.
2. A lease is usable for T/2 from the sending of the last answered heartbeat, by a clock that runs during suspension,
   and only for the server life (incarnation) that granted it.
3. An answer whose lease was recalled while it travelled comes without the lease.
4. A chunk counter is given once; the floor rises only past counters that were settled or given up.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import msgspec
import trio

from trivium.cluster.clock import Clock, Random
from trivium.cluster.errors import ClusterError, Unavailable
from trivium.cluster.model import ChunkId, ClusterMap, Group, NewChunk, Placed
from trivium.cluster.transport.interface import Connection
from trivium.cluster.wire import Service
from trivium.metadata import granting, lifelock, messages
from trivium.metadata.counters import Counters
from trivium.metadata.messages import RETRY, SESSION_ENDED, MetadataError

RETRY_FIRST_S = 0.01
RETRY_MOST_S = 0.5
LOCATED_MAX = 20_000  # rows in the locate cache

HOLDS_MAX = 4096  # inodes in a heartbeat

OnRecall = Callable[[int, bytes], Awaitable[bool]]


async def _nothing_held(ino: int, name: bytes) -> bool:
    return False


class MetadataClient:
    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        *,
        client: str,
        random: Random,
        clock: Clock,
        on_recall: OnRecall | None = None,
        on_ended: Callable[[str], None] | None = None,
        on_lapsed: Callable[[], None] | None = None,
        open_inodes: Callable[[], Sequence[int]] | None = None,
        io_timeout: float | None = None,
        slots: int = 16,
        run_directory: str | None = None,
    ) -> None:
        """`on_recall(ino, name)` flushes and drops what is cached; `on_lapsed()` drops all that leases allowed to be
        cached (T/2 without an answer, or a restarted server); `on_ended(why)` as well, and dirty data is lost.
        `open_inodes()`: what a restarted server must keep for handles here; from then on the caller gives it back.
        `io_timeout`: seconds that requests wait for an absent server (None: for ever). `run_directory`: the data
        directory, where a lock proves this session's life to a server on the same host."""
        self._connect = connect
        self._client = client
        self._random = random
        self._clock = clock
        self._on_recall = on_recall or _nothing_held
        self._on_ended = on_ended or (lambda why: None)
        self._on_lapsed = on_lapsed or (lambda: None)
        self._open_inodes = open_inodes or (lambda: ())
        self._io_timeout = io_timeout
        self._run_directory = run_directory
        self._connection: Connection | None = None
        self._connecting = trio.Lock()
        self._slot_count = slots
        self._numbers: list[int] = []
        self._free_slots: list[int] = []
        self._slot_waiters = trio.lowlevel.ParkingLot()
        self._welcome: messages.Welcome | None = None
        self._live = trio.Event()
        self._beat_now = trio.Event()
        self._renew = trio.Event()  # the session has ended: say Hello again
        self._why_ended = ""
        self._over = trio.Event()  # this life is over
        self.life = 0  # sessions that have ended so far; `call(life=…)` sends nothing under a later one
        self._incarnation = b""
        self._holds: list[int] = []  # open inodes that the present server has not been told of
        self._told = trio.Event()  # set while there are none: a Release must not overtake them
        self.latencies: Callable[[], tuple[tuple[str, int, float], ...]] = tuple  # of this client's chunk calls
        self._answered_s = float("-inf")  # boot time at which the last answered heartbeat was sent
        self._beat_s = float("-inf")  # the same, whether or not leases came with it
        self._lapsed = True
        self._map = ClusterMap()
        self._groups: tuple[Group, ...] = ()
        self._placed: dict[ChunkId, Placed] = {}
        self._counters = Counters()
        self._recalls_seen: list[int] = []  # inodes, in the order of their recalls, while queries are in flight
        self._asking = 0
        self._nursery: trio.Nursery | None = None
        self._lock_fd = -1
        self._lock_path = ""
        self._readers: dict[object, int] = {}  # running reads -> seq at which they began
        self.down: frozenset[bytes] = frozenset()
        self.seq = 0
        self.grant = b""  # the newest: what HELLO and Present show to nodes
        self.on_grant: Callable[[int, bytes], None] = lambda session, grant: None  # hears of each
        self.on_key: Callable[[int, int], None] = lambda newest, retired: None  # which keys of the cluster count
        self._guest = b""
        self.trouble = ""  # why the newest request that nobody answered failed
        self.on_map: Callable[[ClusterMap, frozenset[bytes]], None] | None = None

    def attach(
        self,
        *,
        on_recall: OnRecall,
        on_ended: Callable[[str], None],
        on_lapsed: Callable[[], None],
        open_inodes: Callable[[], Sequence[int]] = lambda: (),
    ) -> None:
        """Who caches: for owners that are made after their client. Before the first lease is asked for."""
        self._on_recall, self._on_ended, self._on_lapsed = on_recall, on_ended, on_lapsed
        self._open_inodes = open_inodes

    # ---- life -----------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a session alive until cancelled; a new one follows when it ends. Goodbye at the end."""
        started = False
        try:
            while True:
                await self._hello()
                if not started:
                    task_status.started()
                    started = True
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(self._heartbeats)
                    nursery.start_soon(self._watch_lapse)
                    nursery.start_soon(self._events)
                    await self._renew.wait()
                    nursery.cancel_scope.cancel()
                self._forget_session()
                self._on_ended(self._why_ended)
        finally:
            self._nursery = None
            with trio.move_on_after(1) as scope:
                scope.shield = True
                await self._goodbye()
            self._drop_life_lock()

    async def _hello(self) -> None:
        hello = messages.Hello(self._client, socket.gethostname(), os.getpid(), self._guest)
        sent_s = self._clock.boot_s()
        answer = await self._request(hello, wait_for_ever=True)
        if isinstance(answer, messages.Failed):  # somebody who may do nothing here: asking again does not help
            raise MetadataError(answer.code, answer.text)
        assert isinstance(answer, messages.Welcome)
        self._welcome = answer
        self._numbers = [0] * self._slot_count
        self._free_slots = list(reversed(range(self._slot_count)))
        self._counters = Counters()
        self._renew = trio.Event()
        self._incarnation = answer.incarnation
        self._holds = []
        self._told.set()
        self._granted(answer.session, answer.grant)
        self._answered(sent_s)
        self._heard(answer.cluster_map, answer.groups, frozenset(), answer.seq)
        self._take_life_lock(answer)
        self._live.set()
        self._slot_waiters.unpark_all()

    def _take_life_lock(self, welcome: messages.Welcome) -> None:
        if self._run_directory is not None and welcome.run_lock:
            self._lock_path = os.path.join(self._run_directory, welcome.run_lock)
            with contextlib.suppress(OSError):  # only a faster proof of death is lost
                self._lock_fd = lifelock.take(self._lock_path)

    def _drop_life_lock(self) -> None:
        if self._lock_fd >= 0:
            lifelock.release(self._lock_path, self._lock_fd)
            self._lock_fd = -1

    def _forget_session(self) -> None:
        self.life += 1
        self._over.set()
        self._over = trio.Event()
        self._told.set()
        self._nursery = None
        self._drop_life_lock()
        self._live = trio.Event()
        self._welcome = None
        self._lapsed = True
        self._placed.clear()
        self._slot_waiters.unpark_all()

    def _ended(self, session: int, why: str) -> None:
        if self._welcome is not None and self._welcome.session == session and not self._renew.is_set():
            self._why_ended = why
            self._lapsed = True
            self._renew.set()

    async def _goodbye(self) -> None:
        if self._welcome is not None and self._connection is not None:
            goodbye = messages.Goodbye(self._welcome.session)
            with contextlib.suppress(ClusterError):
                await self._connection.request(Service.METADATA, messages.encode(goodbye))
        if self._connection is not None:
            await self._connection.aclose()

    # ---- heartbeats and events ------------------------------------------------------------------------------

    async def _heartbeats(self) -> None:
        assert self._welcome is not None
        period_s = self._welcome.timeout_s / 8
        session = self._welcome.session
        while True:
            with trio.move_on_after(period_s):
                await self._beat_now.wait()
            self._beat_now = trio.Event()
            while await self._heartbeat(session, period_s):
                if self._told.is_set():
                    self._told = trio.Event()
                self._holds = list(self._open_inodes())

    async def _watch_lapse(self) -> None:
        """Mark the moment at which leases must not be used any more."""
        while True:
            left_s = self._lease_left_s()
            if left_s <= 0 and not self._lapsed:
                self._lapse()
            await trio.sleep(max(left_s, 0.25))

    async def _heartbeat(self, session: int, patience_s: float) -> bool:
        """One heartbeat. True: send another at once (what an earlier server granted has just been dropped)."""
        sent_s = self._clock.boot_s()
        given_up = self._counters.take_given_up()
        holds, left = tuple(self._holds[:HOLDS_MAX]), self._holds[HOLDS_MAX:]
        beat = messages.Heartbeat(
            session,
            self._counters.floor,
            given_up,
            self._oldest_read_seq(),
            b"" if left else self._incarnation,  # the new server goes on once it knows all of them
            holds,
            self.latencies(),
            self._counters.top,
            self._guest,
        )
        with trio.move_on_after(max(patience_s, self._lease_left_s())) as scope:  # _watch_lapse looks at the time
            answer = await self._send(beat)
        if scope.cancelled_caught or isinstance(answer, Unavailable):
            self._counters.put_back_given_up(given_up)
            if self._lease_left_s() <= 0 and not self._lapsed:
                self._lapse()
            return False
        if isinstance(answer, messages.Failed):
            if answer.code == SESSION_ENDED:
                self._ended(session, answer.text)
            return False
        assert isinstance(answer, messages.Pulse)
        self._granted(session, answer.grant)
        self.on_key(answer.key_generation, answer.retired)
        self._heard(answer.cluster_map, answer.groups, frozenset(answer.down), answer.seq)
        if answer.incarnation != self._incarnation:
            self._lapse()
            self._incarnation = answer.incarnation
            return True
        self._holds = left
        if left:
            return await self._heartbeat(session, patience_s)
        self._told.set()
        self._answered(sent_s)
        return False

    def be_guest(self, member: bytes) -> None:
        """A process of the server's own host wants grants for this key: the next heartbeat brings one."""
        self._guest = member
        self._beat_now.set()

    def _granted(self, session: int, grant: bytes) -> None:
        self.grant = grant
        self.on_grant(session, grant)

    def _answered(self, sent_s: float) -> None:
        self._answered_s = self._beat_s = sent_s
        self._lapsed = False

    def _lapse(self) -> None:
        self._lapsed = True
        self._answered_s = float("-inf")
        self._recalls_seen.append(-1)  # answers on their way lose their leases
        self._on_lapsed()

    def _heard(
        self, cluster_map: ClusterMap | None, groups: tuple[Group, ...], down: frozenset[bytes], seq: int
    ) -> None:
        changed = down != self.down or (cluster_map is not None and cluster_map != self._map)
        if cluster_map is not None:
            self._map = cluster_map
        self.down = down
        self._groups = groups
        self.seq = max(self.seq, seq)
        if changed and self.on_map is not None:
            self.on_map(self._map, down)

    async def _events(self) -> None:
        assert self._welcome is not None
        session = self._welcome.session
        body = messages.encode(messages.Events(session))
        pause_s = RETRY_FIRST_S
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    connection = await self._connected()
                    async for event in connection.subscribe(Service.METADATA, body):
                        pause_s = RETRY_FIRST_S
                        self._event(nursery, session, messages.decode_event(event))
                except ClusterError:
                    pass
                await trio.sleep(pause_s)
                pause_s = min(RETRY_MOST_S, pause_s * 2)
                self._beat_now.set()  # a server that restarted waits for those who may hold leases of its earlier life

    def _event(self, nursery: trio.Nursery, session: int, event: messages.Event) -> None:
        if isinstance(event, messages.Ended):
            self._ended(session, event.why)
        else:
            if self._asking:
                self._recalls_seen.append(event.ino)
            nursery.start_soon(self._recall, session, event)

    async def _recall(self, session: int, recall: messages.Recall) -> None:
        held = await self._on_recall(recall.ino, recall.name)
        await self._request(messages.Recalled(session, recall.recall, held), wait_for_ever=True)

    # ---- requests -------------------------------------------------------------------------------------------

    async def call(self, *operations: Any, chunks: Sequence[NewChunk] = (), life: int | None = None) -> tuple[Any, ...]:
        """Execute all of the operations or none, once. Answers their values in order. MetadataError; Unavailable
        only after `io_timeout` (the outcome is then unknown). `life`: SESSION_ENDED when the session of that life has
        ended (a call without it may go out under the next one)."""
        with _limit(self._io_timeout):
            if not self._told.is_set():
                await self._told.wait()
            slot = await self._take_slot(life)
        assert self._welcome is not None
        session = self._welcome.session
        with self._listening() as start:
            try:
                self._numbers[slot] += 1
                request = messages.Call(session, slot, self._numbers[slot], operations, tuple(chunks))
                answer = await self._request(request)
            except BaseException:
                self._lose_slot(session, slot, self._numbers[slot])
                raise
            self._give_slot(session, slot)
            self._raise_if_failed(session, answer)
            assert isinstance(answer, messages.Results)
            self.seq = max(self.seq, answer.seq)
            values = [_typed(operation, value) for operation, value in zip(operations, answer.values, strict=True)]
            leased = granting.made(operations)
            if leased is not None:
                values[leased] = self._check_lease(operations[leased], values[leased], session, start)
            return tuple(values)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[int]:
        """Recalls are remembered while answers that may carry leases are on their way; from where."""
        self._asking += 1
        try:
            yield len(self._recalls_seen)
        finally:
            self._asking -= 1
            if not self._asking:
                self._recalls_seen.clear()

    async def ask(self, query: Any) -> Any:
        """Answer of one query, typed. MetadataError; Unavailable after `io_timeout`. Asked again under the next session
        when this one turns out to have ended."""
        life = self.life
        try:
            return await self._ask(query)
        except MetadataError as error:
            if error.code != SESSION_ENDED:
                raise
        if self.life == life:
            with _limit(self._io_timeout):
                await self._over.wait()
        return await self._ask(query)

    async def _ask(self, query: Any) -> Any:
        await self._until_live()
        assert self._welcome is not None
        session = self._welcome.session
        with self._listening() as start:
            answer = await self._request(messages.Ask(session, query))
            self._raise_if_failed(session, answer)
            assert isinstance(answer, messages.Results)
            value = _typed(query, answer.values[0])
            if granting.wanted(query):
                value = self._check_lease(query, value, session, start)
            return value

    def _check_lease(self, query: Any, value: Any, session: int, start: int) -> Any:
        seen = set(self._recalls_seen[start:])
        ended = self._welcome is None or self._welcome.session != session
        if not self.leases_usable() or ended or -1 in seen:
            return granting.mark(query, value, lambda ino: False)
        return granting.strip(query, value, seen) if seen else value

    async def admin(self, command: str, **arguments: Any) -> Any:
        answer = await self._request(messages.Admin(command, arguments))
        self._raise_if_failed(0, answer)
        assert isinstance(answer, messages.AdminAnswer)
        return answer.value

    async def give_back(self, inos: Sequence[int]) -> None:
        """Return leases unasked (forgotten inodes)."""
        await self._until_live()
        await self._request(messages.Return(self.session, tuple(inos)))

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Around a read that takes a while: what its layout names is not collected before it ends (or 15 minutes)."""
        key = object()
        self._readers[key] = max(1, self.seq)
        try:
            yield
        finally:
            del self._readers[key]

    def _oldest_read_seq(self) -> int:
        return min(self._readers.values(), default=0)

    def leases_usable(self) -> bool:
        """Whether leases may still be relied upon: ask before each use of something cached."""
        return not self._lapsed and self._lease_left_s() > 0

    def silent_s(self) -> float:
        """Since when the server has not answered: the age of the last answered heartbeat (inf: none in this life)."""
        return self._clock.boot_s() - self._beat_s

    def _lease_left_s(self) -> float:
        if self._welcome is None:
            return 0.0
        return self._answered_s + self._welcome.timeout_s / 2 - self._clock.boot_s()

    async def _until_live(self) -> None:
        if not self._live.is_set():
            with _limit(self._io_timeout):
                await self._live.wait()

    async def _request(self, request: Any, *, wait_for_ever: bool = False) -> Any:
        """Send until answered; waits while nobody answers or the server is not ready."""
        timeout_s = None if wait_for_ever else self._io_timeout
        pause_s = RETRY_FIRST_S
        with _limit(timeout_s):
            while True:
                answer = await self._send(request)
                not_ready = isinstance(answer, messages.Failed) and answer.code == RETRY
                if not isinstance(answer, Unavailable) and not not_ready:
                    return answer
                await trio.sleep(pause_s * (0.5 + self._random.random()))
                pause_s = min(RETRY_MOST_S, pause_s * 2)

    async def _send(self, request: Any) -> Any:
        """The decoded answer, or (not raised) Unavailable."""
        connection: Connection | None = None
        try:
            connection = await self._connected()
            reply = await connection.request(Service.METADATA, messages.encode(request))
            return messages.decode_answer(reply.body)
        except Unavailable as error:
            self.trouble = str(error)
            if connection is not None and self._connection is connection:
                self._connection = None
                await connection.aclose()
            return error

    async def _connected(self) -> Connection:
        if self._connection is None:
            async with self._connecting:
                if self._connection is None:
                    self._connection = await self._connect()
        return self._connection

    def _raise_if_failed(self, session: int, answer: Any) -> None:
        if isinstance(answer, messages.Failed):
            if answer.code == SESSION_ENDED:
                self._ended(session, answer.text)
            raise MetadataError(answer.code, answer.text, answer.index)

    # ---- slots ----------------------------------------------------------------------------------------------

    async def _take_slot(self, life: int | None) -> int:
        while True:
            if life is not None and life != self.life:
                raise MetadataError(SESSION_ENDED, "the session has ended; what it had not flushed is lost")
            if self._welcome is None or not self._live.is_set():
                await self._until_live()
            elif self._free_slots:
                return self._free_slots.pop()
            else:
                await self._slot_waiters.park()

    def _give_slot(self, session: int, slot: int) -> None:
        if self._welcome is not None and self._welcome.session == session:
            self._free_slots.append(slot)
            self._slot_waiters.unpark()

    def _lose_slot(self, session: int, slot: int, number: int) -> None:
        """The call was given up without an answer. Its slot is free again once the number is known to be used up."""
        if self._nursery is not None and self._welcome is not None and self._welcome.session == session:
            with contextlib.suppress(RuntimeError):  # the session is ending with its last tasks: so do its slots
                self._nursery.start_soon(self._use_up, session, slot, number)

    async def _use_up(self, session: int, slot: int, number: int) -> None:
        """An empty call of the same number: answered by what the given-up one did, or, when that never arrived,
        executed in its place, so that a late copy of it is refused."""
        await self._request(messages.Call(session, slot, number, ()), wait_for_ever=True)
        self._give_slot(session, slot)

    # ---- Catalog --------------------------------------------------------------------------------------------

    @property
    def session(self) -> int:
        if self._welcome is None:
            raise Unavailable("there is no session yet")
        return self._welcome.session

    @property
    def cluster(self) -> bytes:
        """The cluster's id, as the server said it at the last Hello."""
        if self._welcome is None:
            raise Unavailable("there is no session yet")
        return self._welcome.cluster

    def map(self) -> ClusterMap:
        return self._map

    def next_counter(self) -> int:
        return self._counters.next()

    def settle(self, chunk: ChunkId) -> None:
        if self._welcome is not None and chunk.session == self._welcome.session:
            self._counters.settle(chunk.counter)

    def give_up(self, chunk: ChunkId) -> None:
        if self._welcome is not None and chunk.session == self._welcome.session:
            self._counters.give_up(chunk.counter)

    def open_groups(self, pool: int) -> tuple[Group, ...]:
        return tuple(group for group in self._groups if group.pool == pool)

    async def offer(self, pool: int, without: frozenset[bytes] = frozenset()) -> Group:
        await self._until_live()
        answer = await self._request(messages.Offer(self.session, pool, tuple(sorted(without))))
        self._raise_if_failed(self.session, answer)
        assert isinstance(answer, messages.Offered)
        others = tuple(g for g in self._groups if g.id != answer.group.id and without.isdisjoint(g.drives))
        self._groups = (*others, answer.group)
        return answer.group

    async def locate(self, chunks: tuple[ChunkId, ...], *, fresh: bool = False) -> tuple[Placed | None, ...]:
        wanted = [chunk for chunk in chunks if fresh or chunk not in self._placed]
        found: dict[ChunkId, Placed | None] = {}
        if wanted:
            rows = await self.ask(messages.Locate(tuple(dict.fromkeys(wanted))))
            found = dict(zip(dict.fromkeys(wanted), rows, strict=True))
            self._remember(found)
        return tuple(found[chunk] if chunk in found else self._placed[chunk] for chunk in chunks)

    def _remember(self, found: dict[ChunkId, Placed | None]) -> None:
        if len(self._placed) + len(found) > LOCATED_MAX:
            self._placed.clear()
        for chunk, placed in found.items():
            if placed is None:
                self._placed.pop(chunk, None)
            else:
                self._placed[chunk] = placed

    async def report(self, chunk: ChunkId, index: int, drive: bytes, what: str) -> None:
        await self._until_live()
        self._placed.pop(chunk, None)
        await self._request(messages.Report(self.session, chunk, index, drive, what))


def _typed(request: Any, value: Any) -> Any:
    wanted = messages.RESULT_TYPES.get(type(request))
    return value if wanted is None else msgspec.convert(value, wanted)


def _limit(timeout_s: float | None) -> Any:
    """Unavailable instead of waiting longer than that."""
    return _Limit(timeout_s)


class _Limit:
    def __init__(self, timeout_s: float | None) -> None:
        self._scope = trio.CancelScope() if timeout_s is None else trio.move_on_after(timeout_s)

    def __enter__(self) -> None:
        self._scope.__enter__()

    def __exit__(self, *exc: Any) -> None:
        self._scope.__exit__(*exc)
        if self._scope.cancelled_caught:
            raise Unavailable("the metadata server did not answer in time")
