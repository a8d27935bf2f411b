"""The writer: one record per batch, savepoints per call, appends in doubt, the size of a record, the ways to stop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest
import trio
import trio.testing

from tests.fakes.metadata import memory_map, recover_or_form
from tests.fakes.metalog import MemoryMetaLog
from trivium.cluster.clock import Clock, InlineExecutor, SystemClock, TrioClock
from trivium.cluster.errors import Fenced, Unavailable
from trivium.metadata import database, schema
from trivium.metadata.digest import digest
from trivium.metadata.leases import LeaseTable
from trivium.metadata.messages import MetadataError
from trivium.metadata.records import RECORD_MAX, Record
from trivium.metadata.recovery import replay_log
from trivium.metadata.threads import OneThread
from trivium.metadata.tx import Tx
from trivium.metadata.writer import CommitFailed, Job, Outcome, Writer

Main = Callable[[Writer, MemoryMetaLog], Awaitable[None]]


def put(name: str, size: int = 10) -> Callable[[Tx], int]:
    def execute(tx: Tx) -> int:
        tx.run("INSERT INTO settings (name, value) VALUES (?, ?)", name, bytes(size))
        return tx.seq

    return execute


def names(writer: Writer) -> set[str]:
    rows = writer._db.execute("SELECT name FROM settings WHERE name NOT IN ('cluster', 'created')").fetchall()
    return {row[0] for row in rows}


def run(tmp_path: Path, main: Main, *, executor: Any = None, clock: Clock | None = None, replays: bool = True) -> None:
    async def outer() -> None:
        metalog = MemoryMetaLog()
        path = str(tmp_path / "trivium.db")
        await recover_or_form(path, metalog, memory_map(), TrioClock())
        db = database.open_writer(path)
        writer = Writer(db, metalog, executor=executor or InlineExecutor(), clock=clock or TrioClock())
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(writer.run)
                await main(writer, metalog)
                nursery.cancel_scope.cancel()
            if replays:
                await replay_log(str(tmp_path / "again.db"), metalog, InlineExecutor())
                again = database.open_writer(str(tmp_path / "again.db"))
                assert digest(again) == digest(db)
                again.close()
        finally:
            db.close()

    trio.run(outer, clock=trio.testing.MockClock(autojump_threshold=0))


async def submit(writer: Writer, *jobs: Callable[[Tx], Any]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    done = trio.Event()

    def finish(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if len(outcomes) == len(jobs):
            done.set()

    for job in jobs:
        writer.submit(Job(job, finish))
    await done.wait()
    return outcomes


def test_calls_that_wait_together_are_one_record(tmp_path: Path) -> None:
    async def main(writer: Writer, metalog: MemoryMetaLog) -> None:
        outcomes = await submit(writer, *(put(str(i)) for i in range(20)))
        assert [outcome.value for outcome in outcomes] == [schema.VERSION + 1] * 20
        assert len(metalog.records) == schema.VERSION + 1
        assert names(writer) == {str(i) for i in range(20)}

    run(tmp_path, main)


def test_a_refused_call_leaves_nothing_and_costs_no_record(tmp_path: Path) -> None:
    def refuse(tx: Tx) -> None:
        put("refused")(tx)
        tx.next_id("inode")
        raise MetadataError("EPERM", "no")

    def fail(tx: Tx) -> None:
        put("failed")(tx)
        raise ZeroDivisionError

    async def main(writer: Writer, metalog: MemoryMetaLog) -> None:
        (alone,) = await submit(writer, refuse)
        assert isinstance(alone.error, MetadataError) and len(metalog.records) == schema.VERSION
        outcomes = await submit(writer, put("a"), refuse, fail, put("b"))
        assert [outcome.error is None for outcome in outcomes] == [True, False, False, True]
        assert names(writer) == {"a", "b"}

    run(tmp_path, main)


def test_a_batch_is_split_before_its_record_grows_too_large(tmp_path: Path) -> None:
    async def main(writer: Writer, metalog: MemoryMetaLog) -> None:
        outcomes = await submit(writer, *(put(str(i), 300_000) for i in range(10)))
        assert all(outcome.error is None for outcome in outcomes)
        assert len(metalog.records) > schema.VERSION + 2
        assert all(len(record.payload) <= RECORD_MAX for record in metalog.records)

    run(tmp_path, main)


def test_a_call_too_large_for_a_record_is_refused_alone(tmp_path: Path) -> None:
    async def main(writer: Writer, metalog: MemoryMetaLog) -> None:
        outcomes = await submit(writer, put("a"), put("huge", RECORD_MAX + 1), put("b"))
        codes = [getattr(outcome.error, "code", None) for outcome in outcomes]
        assert codes == [None, "E2BIG", None]
        assert names(writer) == {"a", "b"}

    run(tmp_path, main)


@pytest.mark.parametrize("stored", [False, True])
def test_an_append_in_doubt_is_repeated_with_the_same_bytes(stored: bool, tmp_path: Path) -> None:
    """Attack 9: the append times out; whether it was stored or not, there is one record and nothing rolls back."""

    async def main(writer: Writer, metalog: MemoryMetaLog) -> None:
        doubts = 3

        async def doubt(record: Record) -> None:
            nonlocal doubts
            doubts -= 1
            if doubts >= 0:
                raise Unavailable("time-out")

        if stored:
            metalog.after_append = doubt
        else:
            metalog.before_append = doubt
        (outcome,) = await submit(writer, put("a"))
        assert outcome.error is None and names(writer) == {"a"}
        assert len(metalog.records) == schema.VERSION + 1

    run(tmp_path, main)


def test_fenced_answers_unknown_and_stops(tmp_path: Path) -> None:
    outcomes: list[Outcome] = []

    async def main(writer: Writer, metalog: MemoryMetaLog) -> None:
        metalog.fenced = True
        writer.submit(Job(put("a"), outcomes.append))
        writer.submit(Job(put("b"), outcomes.append))
        await trio.sleep(60)

    with pytest.raises(ExceptionGroup) as caught:
        run(tmp_path, main)
    assert caught.group_contains(Fenced)
    assert [type(outcome.error) for outcome in outcomes] == [Unavailable, Unavailable]


def test_a_commit_that_fails_after_its_append_ends_the_writer(tmp_path: Path) -> None:
    outcomes: list[Outcome] = []

    async def main(writer: Writer, metalog: MemoryMetaLog) -> None:
        async def break_the_file(record: Record) -> None:
            writer._db.execute("ROLLBACK")

        metalog.after_append = break_the_file
        writer.submit(Job(put("a"), outcomes.append))
        await trio.sleep(60)

    with pytest.raises(ExceptionGroup) as caught:
        run(tmp_path, main)
    assert caught.group_contains(CommitFailed)
    assert [type(outcome.error) for outcome in outcomes] == [Unavailable]


def test_a_full_disk_refuses_the_batch_and_the_next_succeeds(tmp_path: Path) -> None:
    def full(tx: Tx) -> None:
        tx._execute("ROLLBACK")  # as SQLite does by itself
        raise apsw.FullError("database or disk is full")

    async def main(writer: Writer, metalog: MemoryMetaLog) -> None:
        outcomes = await submit(writer, put("a"), full)
        assert [type(outcome.error).__name__ for outcome in outcomes] == ["NoSpace", "NoSpace"]
        (outcome,) = await submit(writer, put("b"))
        assert outcome.error is None and names(writer) == {"b"}

    run(tmp_path, main)


def test_time_never_runs_backwards(tmp_path: Path) -> None:
    async def main(writer: Writer, metalog: MemoryMetaLog) -> None:
        times = [(await submit(writer, lambda tx: tx.now))[0].value for _ in range(5)]
        assert times == sorted(set(times))

    run(tmp_path, main)


def test_one_thread_runs_in_order_and_carries_errors(tmp_path: Path) -> None:
    async def main() -> None:
        thread = OneThread("writer")
        seen: list[int] = []
        async with trio.open_nursery() as nursery:
            for i in range(20):
                nursery.start_soon(thread.run, seen.append, i)
        assert sorted(seen) == list(range(20))
        with pytest.raises(ZeroDivisionError):
            await thread.run(lambda: 1 / 0)
        thread.stop()

    trio.run(main)


class Elsewhere(InlineExecutor):
    """Knows whether it runs something."""

    inside = False

    async def run(self, fn: Callable[..., Any], *args: Any) -> Any:
        self.inside = True
        try:
            return await super().run(fn, *args)
        finally:
            self.inside = False


def test_a_call_that_takes_long_leaves_the_event_loop_and_happens_once(tmp_path: Path) -> None:
    elsewhere = Elsewhere()
    places: list[bool] = []
    counting = "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < ?) SELECT count(*) FROM c"

    def execute(tx: Tx, steps: int) -> int:
        places.append(elsewhere.inside)
        tx.touch(7)
        tx.run("INSERT INTO settings (name, value) VALUES (?, ?)", f"n{steps}", b"")
        row = tx.one(counting, steps)
        assert row is not None
        return int(row[0])

    async def main(writer: Writer, metalog: MemoryMetaLog) -> None:
        leases = LeaseTable()
        writer._leases = leases
        outcomes: list[Outcome] = []
        done = trio.Event()

        def finish(outcome: Outcome) -> None:
            outcomes.append(outcome)
            if len(outcomes) == 2:
                done.set()

        for steps in (10, 1_000_000):
            writer.submit(Job(partial(execute, steps=steps), finish, repeatable=True))
        await done.wait()
        assert [outcome.value for outcome in outcomes] == [10, 1_000_000]
        assert places == [False, False, True, True]  # both begin in the loop; all of the batch again elsewhere
        assert names(writer) == {"n10", "n1000000"}
        assert leases.grant(1, 7, writer.seq)  # nothing is marked as changing any more

    run(tmp_path, main, executor=elsewhere, clock=SystemClock())
