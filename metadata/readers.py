"""Reading: queries on snapshots of their own, never behind the writer.

Queries that wait at the same moment share one hop to a thread and one snapshot. A hop costs ten look-ups, so what
looks at a few rows (`here`) is read in the event loop, where nothing may take longer than HERE_S: then it is given up
and asked again on a thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import apsw
import trio

from trivium.cluster.clock import Clock, Executor
from trivium.metadata import database
from trivium.metadata.tx import Reader

T = TypeVar("T")
HOP_QUERIES = 64
HERE_S = 0.002  # a read in the event loop that takes longer goes to a thread
HERE_STEPS = 2000  # of SQLite's machine, between looks at the clock


@dataclass(slots=True)
class _Query:
    run: Callable[[Reader], Any]
    done: trio.Event = field(default_factory=trio.Event)
    value: Any = None
    seq: int = 0
    error: Exception | None = None


class Readers:
    """`count` read-only connections of one database file; `executor` must allow as many threads."""

    def __init__(self, path: str, *, executor: Executor, clock: Clock, count: int = 2) -> None:
        self._executor = executor
        self._clock = clock
        self._path = path
        self._count = count
        self._queue: deque[_Query] = deque()
        self._parked = trio.lowlevel.ParkingLot()
        self._here: apsw.Connection | None = None
        self._here_until = float("inf")
        self.queries = 0
        self.hops = 0

    async def read(self, run: Callable[[Reader], T], *, here: bool = False) -> tuple[T, int]:
        """`run`'s answer and the seq of the snapshot that it saw. Raises what `run` raises. `here`: it looks at a few
        rows and may run twice; then there may be no checkpoint."""
        if here and self._here is not None:
            try:
                return self._read_here(self._here, run)
            except apsw.InterruptError:
                pass
        query = _Query(run)
        self._queue.append(query)
        self._parked.unpark()
        await query.done.wait()
        if query.error is not None:
            raise query.error
        return query.value, query.seq

    def _read_here(self, db: apsw.Connection, run: Callable[[Reader], T]) -> tuple[T, int]:
        self._here_until = self._clock.boot_s() + HERE_S
        try:
            db.execute("BEGIN")
            seq, _ = database.applied(db)
            self.queries += 1
            return run(Reader(db, now=self._clock.wall_ns(), seq=seq)), seq
        finally:
            self._here_until = float("inf")
            if db.in_transaction:
                db.execute("COMMIT")

    def _takes_long(self) -> bool:
        return self._here_until != float("inf") and self._clock.boot_s() > self._here_until

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        here = database.open_reader(self._path)
        here.set_progress_handler(self._takes_long, HERE_STEPS)
        self._here = here
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(self._count):
                    nursery.start_soon(self._serve)
                task_status.started()
        finally:
            self._here = None
            here.close()

    async def _serve(self) -> None:
        db = database.open_reader(self._path)
        try:
            while True:
                while not self._queue:
                    await self._parked.park()
                queries = [self._queue.popleft() for _ in range(min(len(self._queue), HOP_QUERIES))]
                with trio.CancelScope(shield=True):
                    await self._executor.run(self._hop, db, queries)
                self.hops += 1
                self.queries += len(queries)
                for query in queries:
                    query.done.set()
        finally:
            db.close()

    def _hop(self, db: apsw.Connection, queries: list[_Query]) -> None:
        try:
            db.execute("BEGIN")
            seq, _ = database.applied(db)
            reader = Reader(db, now=self._clock.wall_ns(), seq=seq)
        except apsw.Error as error:
            for query in queries:
                query.error = error
            return
        try:
            for query in queries:
                query.seq = seq
                try:
                    query.value = query.run(reader)
                except Exception as error:
                    query.error = error
        finally:
            db.execute("COMMIT")
