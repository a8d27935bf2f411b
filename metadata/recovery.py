"""Before serving: the database file that the log says there must be.

    file fits the log? --yes--> apply the records behind it
         `--no--> rebuild beside it: newest dump that reads whole (or nothing) + the log from there --> rename over it

Invariants:
1. The local file is reused only if its (seq, hash) is a record's of the chain: the log goes on from exactly there.
2. A rebuilt file replaces the old one by rename after it is complete and durable; a crash starts over.
3. A conflict, a gap or a hash that does not fit stops the recovery: nothing is skipped, nothing is guessed.
4. COMMIT follows the log. So a file that is ahead of the log shows that the log has lost what was answered: refused.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import apsw

from trivium.cluster.clock import Executor
from trivium.cluster.errors import ClusterError, NotFound
from trivium.metadata import database, replay
from trivium.metadata.metalog import MetaLog
from trivium.metadata.records import Record
from trivium.metadata.replay import ReplayFailed

BATCH_BYTES = 8 << 20  # records applied in one hop to the thread


@dataclass(frozen=True, slots=True)
class DumpSource:
    """A dump that may be restored: it holds everything up to record `seq`, whose hash is `chain_hash`."""

    seq: int
    chain_hash: bytes
    restore: Callable[[str], Awaitable[None]]  # write the database file to this path, verified


class RecoveryFailed(Exception):
    """Operator: neither the local file nor any dump fits the log. The sentence says what was tried."""


async def recover(path: str, metalog: MetaLog, dumps: Sequence[DumpSource], executor: Executor) -> str:
    """Make `path` the state at the end of the log. Answers what was done: "reused", "replayed", "rebuilt", "new"."""
    done = await _reuse(path, metalog, executor)
    if done is None:
        if metalog.last_seq == 0:
            await executor.run(_remove, path)
            return "new"
        await _rebuild(path, metalog, dumps, executor)
        done = "rebuilt"
    return done


async def replay_log(path: str, metalog: MetaLog, executor: Executor, *, upto: int | None = None) -> int:
    """Apply what the log has behind the file's own seq (not beyond `upto`); answers how many records. Ends at the
    log's end unless told. ReplayFailed, NotFound (trimmed)."""
    db = await executor.run(database.open_writer, path)
    try:
        seq, _ = database.applied(db)
        count = 0
        batch: list[Record] = []
        size = 0
        async for record in metalog.read(seq + 1 if seq else 0):
            if not seq and not count and not replay.begins(record):
                raise NotFound(f"the log begins with record {record.seq}: what was before it was trimmed")
            if upto is not None and record.seq > upto:
                break
            batch.append(record)
            size += len(record.payload)
            count += 1
            if size >= BATCH_BYTES:
                await executor.run(_apply, db, batch)
                batch, size = [], 0
        await executor.run(_apply, db, batch)
        if upto is None and database.applied(db) != (metalog.last_seq, metalog.last_hash):
            raise ReplayFailed("the database does not end where the log does")
        return count
    finally:
        await executor.run(db.close)


# ---- inside -------------------------------------------------------------------------------------------------


async def _reuse(path: str, metalog: MetaLog, executor: Executor) -> str | None:
    """Try the local file; None when it must be rebuilt."""
    try:
        state = await executor.run(_state, path)
    except apsw.Error:
        return None
    if state is None or state[0] == 0:
        return None
    if state[0] > metalog.last_seq > 0:
        raise RecoveryFailed(
            f"the log on the drives ends at record {metalog.last_seq}, but {path} holds everything up to {state[0]}: "
            "records that were answered are missing from the log. Bring back the drives that have them; "
            f"or move {path} away, and what only it holds is given up"
        )
    if state == (metalog.last_seq, metalog.last_hash):
        return "reused"
    try:
        await replay_log(path, metalog, executor)
    except (ReplayFailed, NotFound, apsw.Error):
        return None
    return "replayed"


async def _rebuild(path: str, metalog: MetaLog, dumps: Sequence[DumpSource], executor: Executor) -> None:
    tried: list[str] = []
    beside = path + ".rebuild"
    for dump in sorted(dumps, key=lambda dump: -dump.seq):
        await executor.run(_remove, beside)
        try:
            await dump.restore(beside)
            await executor.run(_check_dump, beside, dump)
            await replay_log(beside, metalog, executor)
        except (ClusterError, ReplayFailed, apsw.Error) as error:
            tried.append(f"dump of record {dump.seq}: {error}")
            continue
        await executor.run(_move, beside, path)
        return
    await executor.run(_remove, beside)
    try:
        await replay_log(beside, metalog, executor)
    except (NotFound, ReplayFailed, apsw.Error) as error:
        tried.append(f"the log alone: {error}")
        raise RecoveryFailed("the metadata could not be rebuilt: " + "; ".join(tried)) from error
    await executor.run(_move, beside, path)


def _state(path: str) -> tuple[int, bytes] | None:
    if not os.path.exists(path):
        return None
    db = database.open_writer(path)
    try:
        return database.applied(db)
    finally:
        db.close()


def _apply(db: apsw.Connection, records: list[Record]) -> None:
    """All of them or none: one transaction, each record in a savepoint of it."""
    with db:
        for record in records:
            replay.apply_record(db, record)


def _check_dump(path: str, dump: DumpSource) -> None:
    db = database.open_writer(path)
    try:
        if database.applied(db) != (dump.seq, dump.chain_hash):
            raise ReplayFailed("the restored file is not the state that the root names")
    finally:
        db.close()


def _remove(path: str) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        if os.path.exists(path + suffix):
            os.unlink(path + suffix)


def _move(source: str, target: str) -> None:
    """The source has no open connection: its write-ahead log is folded in. Durable when it returns."""
    db = database.open_writer(source)
    db.pragma("wal_checkpoint(TRUNCATE)")
    db.close()
    _remove(target)
    fd = os.open(source, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(source, target)
    folder = os.open(os.path.dirname(target) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
