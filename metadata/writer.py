"""The one writer: calls that wait together become one transaction, one log record, one COMMIT.

    queue -> BEGIN IMMEDIATE -> a savepoint per call -> patchset -> append (durable) -> applied row, COMMIT -> answers

Invariants:
1. A call is answered with success only after its record is durable in the log and committed here.
2. A refused call leaves nothing behind: its savepoint is rolled back, the patchset compares rows, not statements.
3. A record is never rolled back once its append has begun: an append in doubt is repeated with the same bytes until
   it is durable or this writer is fenced. Then nothing is answered (the outcome is unknown) and nothing is served.
4. A COMMIT that fails after its append ends the process: log and file differ until recovery has run.
5. One batch is in flight; `seq` of the next record is known before its calls run.
6. A payload is at most RECORD_MAX: the call that would overflow a batch begins the next one; alone, it is refused.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import apsw
import trio

from trivium.cluster.clock import Clock, Executor
from trivium.cluster.errors import ClusterError, Fenced, NoSpace, Unavailable
from trivium.cluster.model import ChunkId, NewChunk
from trivium.metadata import database, replay
from trivium.metadata.messages import MetadataError
from trivium.metadata.metalog import MetaLog
from trivium.metadata.records import RECORD_MAX, Record, RecordKind, make
from trivium.metadata.tx import Tx

log = logging.getLogger(__name__)

BATCH_CALLS = 256
BATCH_BYTES = 512 * 1024  # of requests; patchsets are about as large
COMMIT_HERE_BYTES = 16 * 1024  # patchsets up to this are committed in the event loop (about 50 us)
HERE_CALLS, HERE_BYTES = 32, 256 * 1024  # batches up to this begin in the event loop
HERE_S = 0.004  # what takes longer there is rolled back and runs again on the thread
HERE_STEPS = 5000  # of SQLite's machine, between looks at the clock
RETRY_S = 0.2  # between appends of a record in doubt

Touched = set[tuple[int, bytes]]


class CommitFailed(Exception):
    """The log has a record that the database could not commit. The process must end; a start recovers."""


@dataclass(slots=True)
class Outcome:
    """How a job ended. Exactly one of: value; error; conflicts (leases that stand in its way: recall, submit again)."""

    value: Any = None
    error: Exception | None = None
    conflicts: Collection[tuple[int, bytes]] = ()
    touched: Touched = field(default_factory=set)
    seq: int = 0


@dataclass(slots=True)
class Job:
    """One call: `execute` runs in a savepoint, in the event loop or on the writer thread, `finish` in the loop after
    COMMIT."""

    execute: Callable[[Tx], Any]
    finish: Callable[[Outcome], None]
    session: int = 0
    chunks: Mapping[ChunkId, NewChunk] = field(default_factory=dict)
    size: int = 256  # of the request in bytes
    repeatable: bool = False  # `execute` changes nothing but the database: it may be rolled back and run again


class LeaseCheck:
    """What the writer asks of the lease table; thread-safe by being atomic dictionary look-ups. Here: no leases."""

    def begin(self, session: int, touched: Touched) -> Collection[tuple[int, bytes]]:
        """Mark as changing (no lease is granted on it until `end`); answers leases of others that stand in the way.
        When there are some, nothing is marked."""
        return ()

    def end(self, touched: Touched, seq: int) -> None:
        """The change is visible as of record `seq` (0: it never will be). Never runs beside `begin`."""


@dataclass(slots=True)
class _Batch:
    jobs: list[Job]
    outcomes: list[Outcome]
    patchset: bytes


class Writer:
    def __init__(
        self,
        db: apsw.Connection,
        metalog: MetaLog,
        *,
        executor: Executor,
        clock: Clock,
        leases: LeaseCheck | None = None,
        map_version: Callable[[], int] = lambda: 0,
        free_ballast: Callable[[], bool] = lambda: False,
    ) -> None:
        """`executor` runs one function at a time (this writer never asks for two). `free_ballast`: make room on a full
        disk, if there is any left to make."""
        self._db = db
        self._log = metalog
        self._executor = executor
        self._clock = clock
        self._leases = leases if leases is not None else LeaseCheck()
        self._map_version = map_version
        self._free_ballast = free_ballast
        self._queue: deque[Job] = deque()
        self._wake = trio.Event()
        self._failure: Exception | None = None
        self._now = 0
        self._wal_pages = 0
        self._hurry_until = 0.0
        db.set_wal_hook(self._on_wal)
        db.set_progress_handler(self._takes_long, HERE_STEPS)
        self.seq = metalog.last_seq  # of the last record that is durable and committed
        self.schema = database.schema_version(db)
        self.batches = 0
        self.logged_bytes = 0  # of records, in this life
        self.calls = 0

    # ---- for callers --------------------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Queue a job; its `finish` is called once, always."""
        if self._failure is not None:
            job.finish(Outcome(error=Unavailable("this metadata server has stopped")))
            return
        self._queue.append(job)
        self._wake.set()

    async def do(
        self, execute: Callable[[Tx], Any], *, session: int = 0, chunks: Mapping[ChunkId, NewChunk] | None = None
    ) -> Any:
        """Run one transaction of the server's own; answers its value once durable, raises its error.

        The caller's cancellation abandons the answer, not the transaction.
        """
        done = trio.Event()
        outcomes: list[Outcome] = []

        def finish(outcome: Outcome) -> None:
            outcomes.append(outcome)
            done.set()

        self.submit(Job(execute, finish, session, chunks or {}))
        await done.wait()
        outcome = outcomes[0]
        if outcome.error is not None:
            raise outcome.error
        assert not outcome.conflicts, "the server's own transactions touch nothing that is leased"
        return outcome.value

    @property
    def failed(self) -> bool:
        return self._failure is not None

    # ---- the loop -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until cancelled. Raises Fenced, CommitFailed: the process must stop serving."""
        try:
            while True:
                while not self._queue:
                    self._wake = trio.Event()
                    await self._wake.wait()
                await self._serve(self._take())
        except BaseException as error:
            self._fail(error)
            raise

    def _take(self) -> list[Job]:
        jobs: list[Job] = []
        size = 0
        queue = self._queue
        while queue and len(jobs) < BATCH_CALLS and (not jobs or size + queue[0].size <= BATCH_BYTES):
            job = queue.popleft()
            size += job.size
            jobs.append(job)
        return jobs

    async def _serve(self, jobs: list[Job]) -> None:
        try:
            batch = self._apply_here(jobs) if _may_run_here(jobs) else None
            if batch is None:
                batch = await self._executor.run(self._apply, jobs)
        except BaseException as error:
            for job in jobs:
                job.finish(Outcome(error=_as_refusal(error)))
            if isinstance(error, apsw.Error):
                return  # rolled back, nothing was appended: the next batch may succeed
            raise
        for job in reversed(jobs[len(batch.jobs) :]):
            self._queue.appendleft(job)
        try:
            if batch.patchset:
                await self._make_durable(batch)
        except BaseException:
            for job in batch.jobs:
                job.finish(Outcome(error=Unavailable("the metadata server lost its log; the outcome is unknown")))
            raise
        self._answer(batch)
        if self._wal_pages > database.WAL_PAGES:
            self._wal_pages = 0
            await self._executor.run(self._checkpoint)

    def _apply_here(self, jobs: list[Job]) -> _Batch | None:
        """In the event loop: a hop to the thread and back costs more than some statements, and the thread gives the
        interpreter's lock away at each of them. None: it would take long; nothing has happened."""
        self._hurry_until = self._clock.boot_s() + HERE_S
        try:
            return self._apply(jobs)
        except apsw.InterruptError:
            return None
        finally:
            self._hurry_until = 0.0

    def _takes_long(self) -> bool:
        return self._hurry_until != 0.0 and self._clock.boot_s() > self._hurry_until

    def _answer(self, batch: _Batch) -> None:
        self.batches += 1
        self.calls += len(batch.jobs)
        for job, outcome in zip(batch.jobs, batch.outcomes, strict=True):
            if outcome.touched:
                self._leases.end(outcome.touched, outcome.seq)
            job.finish(outcome)

    async def _make_durable(self, batch: _Batch) -> None:
        record = make(
            RecordKind.PATCHSET,
            batch.patchset,
            schema=self.schema,
            last_seq=self._log.last_seq,
            last_hash=self._log.last_hash,
            map_version=self._map_version(),
        )
        await append(self._log, record)
        if len(batch.patchset) <= COMMIT_HERE_BYTES:
            self._commit(record)  # no sync, no checkpoint: cheaper than the hop to the thread
        else:
            await self._executor.run(self._commit, record)
        self.seq = record.seq
        self.logged_bytes += len(batch.patchset)

    def _fail(self, error: BaseException) -> None:
        self._failure = error if isinstance(error, Exception) else Unavailable("the metadata server is stopping")
        while self._queue:
            self._queue.popleft().finish(Outcome(error=Unavailable("this metadata server has stopped")))

    # ---- on the writer thread, or between two awaits of the loop --------------------------------------------

    def _apply(self, jobs: list[Job]) -> _Batch:
        """BEGIN, run as many of the jobs as fit one record, take the patchset. Without one the transaction ends."""
        db = self._db
        seq = self._log.last_seq + 1
        self._now = now = max(self._now + 1, self._clock.wall_ns())
        outcomes: list[Outcome] = []
        db.execute("BEGIN IMMEDIATE")
        try:
            session = database.record_changes(db)
            try:
                session.config(apsw.SQLITE_SESSION_OBJCONFIG_SIZE, True)
                self._run_jobs(jobs, outcomes, session, now, seq)
                patchset = b"" if session.is_empty else session.patchset()
            finally:
                session.close()
            if len(patchset) > RECORD_MAX:
                assert len(outcomes) == 1, "the bound on a batch's changes holds for its patchset"
                self._retract(outcomes)
                outcomes[:] = [Outcome(error=MetadataError("E2BIG", "the call changes more than one record may hold"))]
                patchset = b""
            if not patchset:
                db.execute("ROLLBACK")
        except BaseException:
            self._retract(outcomes)
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return _Batch(jobs[: len(outcomes)], outcomes, patchset)

    def _run_jobs(self, jobs: list[Job], outcomes: list[Outcome], session: apsw.Session, now: int, seq: int) -> None:
        for job in jobs:
            outcome = self._run_job(job, now, seq)
            outcomes.append(outcome)  # before anything can fail: the caller retracts what it marked
            if outcome.error is None and len(outcomes) > 1 and session.changeset_size > RECORD_MAX:
                self._db.execute("ROLLBACK TO job")
                self._db.execute("RELEASE job")
                self._retract([outcomes.pop()])
                break
            self._db.execute("RELEASE job")

    def _run_job(self, job: Job, now: int, seq: int) -> Outcome:
        """Run one job in savepoint `job`, which stays open for the caller."""
        db = self._db
        db.execute("SAVEPOINT job")
        tx = Tx(db, now=now, seq=seq, session=job.session, chunks=job.chunks)
        try:
            value = job.execute(tx)
            conflicts = self._leases.begin(job.session, tx.touched) if tx.touched else ()
            if not conflicts:
                return Outcome(value=value, touched=tx.touched, seq=seq)
            outcome = Outcome(conflicts=conflicts)
        except (MetadataError, ClusterError) as error:
            outcome = Outcome(error=error)
        except apsw.InterruptError:
            raise
        except apsw.Error:
            if not db.in_transaction:  # SQLite rolled everything back (disk full): the whole batch is refused
                raise
            log.exception("an operation failed in SQL")
            outcome = Outcome(error=ClusterError("internal error in an operation"))
        except Exception:
            log.exception("an operation failed")
            outcome = Outcome(error=ClusterError("internal error in an operation"))
        db.execute("ROLLBACK TO job")
        return outcome

    def _retract(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.touched:
                self._leases.end(outcome.touched, 0)

    def _on_wal(self, db: apsw.Connection, name: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def _checkpoint(self) -> None:
        """Fold the write-ahead log into the file, as far as readers let it, between batches."""
        try:
            self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.FullError:  # the write-ahead log holds it; tried again after the next batch
            self._free_ballast()

    def _commit(self, record: Record) -> None:
        try:
            try:
                database.set_applied(self._db, record.seq, record.hash)
                self._db.execute("COMMIT")
            except apsw.FullError:
                if not self._free_ballast():
                    raise
                self._commit_again(record)
        except BaseException as error:
            raise CommitFailed(f"record {record.seq} is in the log, but the database refused it: {error}") from error

    def _commit_again(self, record: Record) -> None:
        """After a COMMIT that met a full disk, which may have rolled back: the record says what it was."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        replay.apply_record(self._db, record)


async def append(metalog: MetaLog, record: Record) -> None:
    """Append until durable; the same bytes again while in doubt. Raises Fenced only."""
    while True:
        try:
            await metalog.append(record)
            return
        except Fenced:
            raise
        except ClusterError as error:
            log.warning("append of record %d is in doubt, trying again: %s", record.seq, error)
            await trio.sleep(RETRY_S)


def _may_run_here(jobs: list[Job]) -> bool:
    return (
        len(jobs) <= HERE_CALLS and all(job.repeatable for job in jobs) and sum(job.size for job in jobs) <= HERE_BYTES
    )


def _as_refusal(error: BaseException) -> Exception:
    if isinstance(error, apsw.FullError):
        return NoSpace("the metadata server's disk is full; only deletes are accepted")
    if not isinstance(error, Exception):
        return Unavailable("the metadata server is stopping")
    return ClusterError(f"internal error: {error}")
