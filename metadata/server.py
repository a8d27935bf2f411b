"""The metadata server: sessions, calls, queries, groups, commands, over any transport.

    opening (recovery) -> grace (sessions of an earlier life drop what they cached, or end) -> serving -> stopped

Invariants:
1. Nothing is answered from the log's or database's state before recovery is done (RETRY).
2. A session's end is durable before its leases go to others, before it is told, before its slots are forgotten.
3. After Fenced or a failed COMMIT nothing is answered any more: `run` raises, the process ends.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, assert_never

import trio

from trivium.cluster.clock import Clock, Executor, Random
from trivium.cluster.identity.access import Access
from trivium.cluster.model import ClusterMap
from trivium.cluster.transport.interface import Peer, Reply
from trivium.metadata import chunkrows, database, endings, granting, groups, inodes, lifelock, maprows, messages, rights
from trivium.metadata.calls import LOST, Calls, Operations
from trivium.metadata.diskroom import DiskRoom
from trivium.metadata.groups import OpenGroups
from trivium.metadata.leases import LeaseTable
from trivium.metadata.messages import RETRY, Failed, MetadataError, encode
from trivium.metadata.metalog import MetaLog
from trivium.metadata.readers import Readers
from trivium.metadata.recalls import Recalls
from trivium.metadata.sessions import Session, SessionTable, load
from trivium.metadata.tx import Reader, Tx
from trivium.metadata.writer import Writer

log = logging.getLogger(__name__)

TIMEOUT_S = 20.0  # T
PROOFS, PROOF_PAUSE_S = 4, 0.05  # looks for a proof of death: a process that was killed closes its files one by one
Queries = Mapping[type, Callable[[Reader, Any], Any]]
AdminCommand = Callable[[dict[str, Any]], Awaitable[Any]]
DONE = encode(messages.Done())
FEW_ROWS = frozenset(
    {
        messages.Lookup,
        messages.GetAttr,
        messages.GetLayout,
        messages.ListXattrs,
        messages.HeadObject,
        messages.GetBucket,
        messages.GetCredential,
        messages.GetVolume,
        messages.Locate,
    }
)
"""Queries that are answered in the event loop."""


class MetadataServer:
    def __init__(
        self,
        path: str,
        metalog: MetaLog,
        *,
        cluster: bytes,
        operations: Operations,
        queries: Queries,
        clock: Clock,
        random: Random,
        executor: Executor,
        writer_executor: Executor,
        timeout_s: float = TIMEOUT_S,
        on_session_end: Callable[[Tx, int], bool] = endings.release,
        unfit: Callable[[], frozenset[bytes]] = frozenset,
        down: Callable[[], frozenset[bytes]] = frozenset,
        fill: Callable[[], Mapping[bytes, float]] = dict,
        proof_of_death: Callable[[int], bool] = lambda session: False,
        bury: Callable[[int], None] = lambda session: None,
        admin_allowed: Callable[[Peer], bool] = lambda peer: True,
        entitled: Callable[[], bool] = lambda: True,
        readers: int = 2,
        room: DiskRoom | None = None,
    ) -> None:
        """`path`: the database file, recovered and at least formed. `on_session_end` drops what a session held,
        in steps.
        `unfit`: drives that take no new shards; `down`: drives to tell clients of; `fill`: how full
        drives are, 0 to 1; all from memory."""
        self._path = path
        self._log = metalog
        self._cluster = cluster
        self._operations = operations
        self._queries = {messages.Locate: lambda r, q: chunkrows.locate(r, q.chunks), **queries}
        self._clock = clock
        self._random = random
        self._executor = executor
        self._writer_executor = writer_executor
        self._on_session_end = on_session_end
        self._unfit = unfit
        self._down = down
        self._fill = fill
        self._proof_of_death = proof_of_death
        self._bury = bury
        self._admin_allowed = admin_allowed
        self._room = room
        self._entitled = entitled  # the leader's lease: asked before each answer
        self.incarnation = random.randbytes(8)
        self.map = ClusterMap()
        self.sessions = SessionTable(timeout_s)
        self.leases = LeaseTable()
        self.recalls = Recalls(self.leases, timeout_s=timeout_s, on_silent=self.end_session)
        self.readers = Readers(path, executor=executor, clock=clock, count=readers)
        self.admin_commands: dict[str, AdminCommand] = {"engine": self._engine_status}
        self.called_s = float("-inf")  # when a client last changed something
        self.on_latencies: Callable[[int, tuple[tuple[str, int, float], ...]], None] = lambda session, samples: None
        self.issue_grant: Callable[[Access, int], bytes] | None = None  # set by who holds a metadata server's key
        self.key_generation = 0  # of the cluster's newest key
        self.key_retired = 0  # and of the newest that counts no more
        self.issue_guest_grant: Callable[[bytes, int], bytes] | None = None
        self.on_session_gone: Callable[[int], None] = lambda session: None  # its end is durable: close connections
        self._grace_over = trio.Event()
        self._suspected: dict[int, int] = {}  # sessions that may have died just now: how often to look for a proof
        self._alarm = trio.Event()
        self._serving = False
        self.writer: Writer
        self.groups: OpenGroups
        self._calls: Calls

    # ---- life -----------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Raises Fenced, CommitFailed: the process must end."""
        db = await self._writer_executor.run(database.open_writer, self._path)
        try:
            self.writer = Writer(
                db,
                self._log,
                executor=self._writer_executor,
                clock=self._clock,
                leases=self.leases,
                map_version=lambda: self.map.version,
                free_ballast=self._room.free_ballast if self._room is not None else lambda: False,
            )
            async with trio.open_nursery() as nursery:
                self._calls = Calls(
                    self.writer,
                    self.leases,
                    self.recalls,
                    self._operations,
                    nursery=nursery,
                    grace_over=lambda: self._grace_over,
                    refusal=self._room.refusal if self._room is not None else lambda operations: None,
                    may_lease=self.sessions.may_lease,
                )
                self.groups = OpenGroups(self.writer, cluster_map=lambda: self.map, unfit=self._unfit, fill=self._fill)
                await nursery.start(self.readers.run)
                await self._load()
                nursery.start_soon(self.writer.run)
                nursery.start_soon(self._watch)
                self._check_grace()
                await self.groups.refresh()
                self._serving = True
                task_status.started()
        finally:
            self._serving = False
            with trio.CancelScope(shield=True):
                await self._writer_executor.run(db.close)

    async def _load(self) -> None:
        def read(reader: Reader) -> tuple[Any, ...]:
            return (
                maprows.read_map(reader),
                groups.read_open(reader),
                reader.all("SELECT id, client, host, started, floor, leased FROM sessions"),
                reader.all("SELECT session, slot, number, result FROM slots"),
                dict(reader.all("SELECT session_id, member FROM session_owners")),
            )

        (self.map, open_groups, session_rows, slot_rows, owners), _ = await self.readers.read(read)
        self.groups.load(open_groups)
        now = self._clock.boot_s()
        for id, client, host, started, floor, leased in session_rows:
            session = Session(id, client, host, started, floor, bool(leased), heard=now)
            session.member = owners.get(id, b"")
            load(session, [row[1:] for row in slot_rows if row[0] == id], LOST)
            self.sessions.add(session)
            self._suspect(id)  # whoever died together with the server's earlier life holds up nobody
        self.leases.await_reclaim(s.id for s in self.sessions.all() if s.leased)

    async def _watch(self) -> None:
        """End sessions that are silent or dead, keep groups open."""
        rotated = self._clock.boot_s()
        while True:
            now = self._clock.boot_s()
            for session in self.sessions.expired(now):
                await self.end_session(session.id, f"it was silent for {self.sessions.timeout_s:.0f} s")
            for id in self._suspects(now):
                if await self._executor.run(self._proof_of_death, id):
                    await self.end_session(id, "its process has died")
                    await self._executor.run(self._bury, id)
            await self.groups.refresh()
            if now - rotated >= groups.ROTATE_PAUSE_S:
                rotated = now
                await self.groups.rotate(self._read_rows)
            with trio.move_on_after(PROOF_PAUSE_S if self._suspected else self.sessions.timeout_s / 16):
                await self._alarm.wait()
            self._alarm = trio.Event()

    def _suspects(self, now_s: float) -> set[int]:
        silent = {s.id for s in self.sessions.all() if not s.ending and now_s - s.heard > self.sessions.timeout_s / 4}
        suspected = set(self._suspected)
        self._suspected = {id: left - 1 for id, left in self._suspected.items() if left > 1}
        return silent | suspected | self.leases.unreclaimed

    def _suspect(self, session: int) -> None:
        """Its events have no reader any more: as a rule the process has just died, or is about to reconnect."""
        if self.sessions.is_live(session):
            self._suspected[session] = PROOFS
            self._alarm.set()

    def _check_grace(self) -> None:
        if not self.leases.unreclaimed:
            self._grace_over.set()

    async def end_session(self, id: int, why: str) -> None:
        """End a session by record, then let its leases go. Returns when it has ended, whoever ended it."""
        if not self.sessions.end(id):
            return await self.sessions.until_gone(id)

        def execute(tx: Tx) -> bool:
            more = self._on_session_end(tx, id)
            tx.touched.clear()  # nobody can reach an inode that only this session held
            if not more:
                tx.run("DELETE FROM held WHERE session = ?", id)
                tx.run("DELETE FROM slots WHERE session = ?", id)
                tx.run("DELETE FROM session_owners WHERE session_id = ?", id)
                tx.run("DELETE FROM sessions WHERE id = ?", id)
            return more

        while await self.writer.do(execute):
            pass
        log.info("session %016x has ended: %s", id, why)
        self.on_session_gone(id)
        self.sessions.remove(id)
        self.recalls.ended(id, why)
        self._check_grace()

    async def change_map(self, execute: Callable[[Tx], Any]) -> Any:
        """Run a transaction that changes rows of the map; its version grows and everybody hears of it."""

        def execute_and_read(tx: Tx) -> tuple[Any, ClusterMap]:
            value = execute(tx)
            maprows.bump(tx)
            return value, maprows.read_map(tx)

        value, cluster_map = await self.writer.do(execute_and_read)
        if cluster_map.version > self.map.version:
            self.map = cluster_map
        await self.groups.refresh()
        return value

    # ---- transport handlers ---------------------------------------------------------------------------------

    async def handle(self, peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
        try:
            return Reply(await self._answer(peer, body))
        except MetadataError as error:
            return Reply(encode(Failed(error.code, error.text, error.index)))

    async def events(self, peer: Peer, service: int, body: bytes) -> AsyncIterator[bytes]:
        session = messages.decode_events(body).session
        access = rights.access_of(peer)
        foreign = access is not None and self.sessions.owner(session) != access.member
        if foreign or not self.sessions.is_live(session):
            yield encode(messages.Ended("the session is not known"))
            return
        try:
            async for event in self.recalls.stream(session):
                yield event
        finally:
            self._suspect(session)

    async def _answer(self, peer: Peer, body: bytes) -> bytes:
        if not self._serving or self.writer.failed:
            raise MetadataError(RETRY, "the metadata server is not serving")
        if not self._entitled():
            raise MetadataError(RETRY, "a majority of the root drives has not confirmed this server of late")
        request = messages.decode_request(body)
        rights.check(
            peer,
            request,
            pools=(pool.id for pool in self.map.pools),
            owner=self.sessions.owner,
            pool_of=self.groups.pool_of,
        )
        match request:
            case messages.Call():
                self.called_s = trio.current_time()
                return await self._calls.call(self.sessions.get(request.session), request, len(body))
            case messages.Ask():
                return await self._ask(self.sessions.get(request.session), request.query)
            case messages.Heartbeat():
                return await self._heartbeat(peer, request)
            case messages.Offer():
                self.sessions.get(request.session)
                return encode(messages.Offered(await self.groups.offer(request.pool, frozenset(request.without))))
            case messages.Recalled():
                self.recalls.answered(request.session, request.recall)
                return DONE
            case messages.Return():
                for ino in request.inos:
                    self.leases.drop(request.session, ino)
                return DONE
            case messages.Report():
                return await self._report(request)
            case messages.Hello():
                return await self._hello(peer, request)
            case messages.Goodbye():
                await self.end_session(request.session, "it said goodbye")
                return DONE
            case messages.Admin():
                return await self._admin(peer, request)
            case _:
                assert_never(request)

    async def _hello(self, peer: Peer, hello: messages.Hello) -> bytes:
        id = self._random.getrandbits(63) or 1
        heard = self._clock.boot_s()
        insert = "INSERT INTO sessions (id, client, host, started, floor, leased) VALUES (?, ?, ?, ?, 1, 0)"

        access = rights.access_of(peer)
        member = b"" if access is None else access.member

        def execute(tx: Tx) -> int:
            tx.run(insert, id, hello.client, hello.host, tx.now)
            if member:
                tx.run("INSERT INTO session_owners (session_id, member) VALUES (?, ?)", id, member)
            return tx.now

        started = await self.writer.do(execute)
        session = Session(id, hello.client, hello.host, started, heard=heard, map_version=self.map.version)
        session.member = member
        self.sessions.add(session)
        welcome = messages.Welcome(
            session=id,
            cluster=self._cluster,
            cluster_map=self.map,
            groups=self.groups.offered(),
            timeout_s=self.sessions.timeout_s,
            seq=self.writer.seq,
            run_lock=lifelock.path_of(id) if peer.local else "",
            incarnation=self.incarnation,
            grant=self._granted(peer, id, hello.guest),
        )
        return encode(welcome)

    def _granted(self, peer: Peer, session: int, guest: bytes) -> bytes:
        """What the client shows to nodes; empty for a local one that calls none on other hosts."""
        access = rights.access_of(peer)
        if access is None and guest and peer.local and self.issue_guest_grant is not None:
            return self.issue_guest_grant(guest, session)
        return b"" if access is None or self.issue_grant is None else self.issue_grant(access, session)

    async def _heartbeat(self, peer: Peer, beat: messages.Heartbeat) -> bytes:
        session = self.sessions.get(beat.session)
        session.heard = self._clock.boot_s()
        session.oldest_read_seq = beat.oldest_read_seq
        if beat.latencies:
            self.on_latencies(beat.session, beat.latencies)
        session.beats, session.top = session.beats + 1, beat.top
        if beat.floor > session.floor or beat.given_up:
            await self._settled(session, beat)
        if beat.holds:
            await self._keep_open(session, beat.holds)
        if beat.incarnation == self.incarnation:
            self.leases.reclaimed(session.id)
            self._check_grace()
        cluster_map = self.map if session.map_version != self.map.version else None
        session.map_version = self.map.version
        pulse = messages.Pulse(
            seq=self.writer.seq,
            map_version=self.map.version,
            groups=self.groups.offered(),
            cluster_map=cluster_map,
            down=tuple(sorted(self._down())),
            incarnation=self.incarnation,
            grant=self._granted(peer, session.id, beat.guest),
            key_generation=self.key_generation,
            retired=self.key_retired,
        )
        return encode(pulse)

    async def _keep_open(self, session: Session, inos: tuple[int, ...]) -> None:
        """What was open while the server was away outlives the changes that wait for the end of the grace."""

        def execute(tx: Tx) -> None:
            if tx.one("SELECT 1 FROM sessions WHERE id = ?", session.id) is None:
                return
            for ino in inos:
                inodes.hold_if_there(tx, ino, session.id)

        await self.writer.do(execute)

    async def _settled(self, session: Session, beat: messages.Heartbeat) -> None:
        def execute(tx: Tx) -> None:
            tx.run("UPDATE sessions SET floor = ?1 WHERE id = ?2 AND floor < ?1", beat.floor, session.id)
            endings.give_up(tx, session.id, beat.given_up)

        await self.writer.do(execute)
        session.floor = max(session.floor, beat.floor)

    async def _ask(self, session: Session, query: Any) -> bytes:
        handler = self._queries.get(type(query))
        if handler is None:
            raise MetadataError("ENOSYS", f"{type(query).__name__} is not known here")

        def read(reader: Reader) -> Any:
            return handler(reader, query)

        value, seq = await self.readers.read(read, here=type(query) in FEW_ROWS)
        if granting.wanted(query):
            value, seq = await self._grant(session, query, read, value, seq)
        if isinstance(query, messages.HeadObject) and query.hold:
            await self._hold(session, value)
        return encode(messages.Results((value,), seq))

    async def _read_rows(self, read: Callable[[Reader], Any]) -> Any:
        value, _ = await self.readers.read(read)
        return value

    async def _hold(self, session: Session, info: messages.ObjectInfo) -> None:
        """A streamed GET is an open handle, unless the first page of its layout says everything."""
        layout = info.layout
        if layout is not None and layout.upto >= info.size:
            return

        def execute(tx: Tx) -> None:
            if tx.one("SELECT 1 FROM sessions WHERE id = ?", session.id) is None:  # nobody would release it
                raise MetadataError(messages.SESSION_ENDED, "the session has ended")
            if inodes.load(tx, info.ino) is None:
                raise MetadataError(RETRY, "the object was replaced meanwhile")
            inodes.hold(tx, info.ino, session.id)

        await self.writer.do(execute)

    async def _grant(
        self, session: Session, query: Any, read: Callable[[Reader], Any], value: Any, seq: int
    ) -> tuple[Any, int]:
        """Note the leases of an answer; where something has changed since its snapshot, read once more."""
        if not session.leased:
            await self._mark_leased(session)
        grants: dict[int, bool | None] = {}
        for _ in range(2):
            if not self.sessions.is_live(session.id):  # it ended while its question was answered: nobody would give
                return granting.mark(query, value, lambda ino: False), seq  # such a lease back, and changes wait for it
            grants = {ino: self.leases.grant(session.id, ino, seq) for ino in granting.inodes(query, value)}
            if None not in grants.values():
                break
            value, seq = await self.readers.read(read, here=type(query) in FEW_ROWS)
        return granting.mark(query, value, lambda ino: grants.get(ino) is True), seq

    async def _mark_leased(self, session: Session) -> None:
        def execute(tx: Tx) -> None:
            tx.run("UPDATE sessions SET leased = 1 WHERE id = ?", session.id)

        await self.writer.do(execute)
        session.leased = True

    async def _report(self, report: messages.Report) -> bytes:
        self.sessions.get(report.session)
        await self.writer.do(lambda tx: chunkrows.add_missing(tx, report.chunk, report.index, report.drive))
        return DONE

    async def _admin(self, peer: Peer, admin: messages.Admin) -> bytes:
        if not self._admin_allowed(peer):
            raise MetadataError("EPERM", "commands are for the user that the metadata server runs as")
        command = self.admin_commands.get(admin.command)
        if command is None:
            raise MetadataError("ENOSYS", f"there is no command {admin.command}")
        return encode(messages.AdminAnswer(await command(rights.command_of(peer, admin))))

    async def _engine_status(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {
            "seq": self.writer.seq,
            "batches": self.writer.batches,
            "calls": self.writer.calls,
            "queries": self.readers.queries,
            "hops": self.readers.hops,
            "sessions": [
                {"id": f"{s.id:016x}", "client": s.client, "host": s.host, "started": s.started, "floor": s.floor}
                for s in self.sessions.all()
            ],
            "groups": len(self.groups.offered()),
            "map_version": self.map.version,
        }
