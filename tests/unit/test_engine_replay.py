"""Replay checks for itself what SQLite would drop without a word (attack 6); recovery uses only what fits the log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import apsw
import pytest
import trio

from tests.fakes.metadata import memory_map, recover_or_form
from tests.fakes.metalog import MemoryMetaLog
from trivium.cluster.clock import InlineExecutor, TrioClock
from trivium.metadata import database, migrations, replay, schema
from trivium.metadata.digest import digest
from trivium.metadata.records import NO_HASH, RecordKind, make
from trivium.metadata.recovery import RecoveryFailed, recover
from trivium.metadata.replay import ReplayFailed


def fresh() -> apsw.Connection:
    db = apsw.Connection(":memory:")
    with db:
        migrations.step(db, 1)
        database.set_applied(db, 1, NO_HASH)
    return db


def patchset(change: str, tables: str = schema.TABLES, before: str = "") -> bytes:
    db = apsw.Connection(":memory:")
    db.execute(tables + before)
    session = apsw.Session(db, "main")
    session.attach()
    db.execute(change)
    return session.patchset()


def record(payload: bytes, version: int = 1, seq: int = 1, previous: bytes = NO_HASH):  # type: ignore[no-untyped-def]
    return make(RecordKind.PATCHSET, payload, schema=version, last_seq=seq, last_hash=previous)


INSERT = "INSERT INTO settings (name, value) VALUES ('a', x'00');"


def test_a_record_that_fits_is_applied_with_its_seq() -> None:
    db = fresh()
    made = record(patchset(INSERT))
    replay.apply_record(db, made)
    assert database.applied(db) == (2, made.hash)


@pytest.mark.parametrize(
    "payload",
    [
        patchset(
            "INSERT INTO settings VALUES ('a', x'00', 1)",
            "CREATE TABLE settings (name TEXT NOT NULL PRIMARY KEY, value BLOB, more)",
        ),
        patchset("INSERT INTO unknown VALUES (1)", "CREATE TABLE unknown (a INTEGER NOT NULL PRIMARY KEY)"),
        patchset("UPDATE settings SET value = x'01'", before=INSERT),
        patchset("DELETE FROM settings", before=INSERT),
        patchset(
            "INSERT INTO applied VALUES (1, 1, x'00')",
            "CREATE TABLE applied (one INTEGER NOT NULL PRIMARY KEY, seq, chain_hash)",
        ),
    ],
    ids=["columns", "table", "update of nothing", "delete of nothing", "applied"],
)  # fmt: skip
def test_what_does_not_fit_stops_the_replay(payload: bytes) -> None:
    db = fresh()
    before = digest(db)
    with pytest.raises(ReplayFailed):
        replay.apply_record(db, record(payload))
    assert (database.applied(db), digest(db)) == ((1, NO_HASH), before)


def test_an_insert_over_a_row_stops_the_replay() -> None:
    db = fresh()
    db.execute(INSERT)
    with pytest.raises(ReplayFailed, match="CONFLICT"):
        replay.apply_record(db, record(patchset(INSERT)))


@pytest.mark.parametrize("wrong", [{"version": 2}, {"seq": 2}, {"previous": b"x" * 16}])
def test_version_seq_and_hash_must_follow(wrong: dict[str, int]) -> None:
    with pytest.raises(ReplayFailed):
        replay.apply_record(fresh(), record(patchset(INSERT), **wrong))  # type: ignore[arg-type]


def test_every_table_can_be_replayed() -> None:
    """An explicit NOT NULL key, no other unique index, no trigger, no AUTOINCREMENT, no foreign key."""
    db = fresh()
    for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
        columns = db.execute(f'PRAGMA table_info("{name}")').fetchall()
        keys = [column for column in columns if column[5]]
        assert keys and all(column[3] for column in keys), name
        unique = [i for i in db.execute(f'PRAGMA index_list("{name}")').fetchall() if i[2] and i[3] != "pk"]
        assert not unique, name
        assert not db.execute(f'PRAGMA foreign_key_list("{name}")').fetchall()
    assert not db.execute("SELECT 1 FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    assert "AUTOINCREMENT" not in schema.TABLES.split('"""')[-1]


def recovered(tmp_path: Path, metalog: MemoryMetaLog) -> str:
    async def main() -> str:
        return await recover(str(tmp_path / "t.db"), metalog, (), InlineExecutor())

    return trio.run(main)


def formed(tmp_path: Path) -> MemoryMetaLog:
    metalog = MemoryMetaLog()

    async def main() -> None:
        await recover_or_form(str(tmp_path / "t.db"), metalog, memory_map(), TrioClock())
        last = metalog.records[-1]
        payload = patchset(INSERT)
        await metalog.append(
            make(RecordKind.PATCHSET, payload, schema=schema.VERSION, last_seq=last.seq, last_hash=last.hash)
        )

    trio.run(main)
    return metalog


def state(tmp_path: Path) -> tuple[int, bytes]:
    db = database.open_writer(str(tmp_path / "t.db"))
    try:
        return database.applied(db)[0], digest(db)
    finally:
        db.close()


def test_the_local_file_is_continued_rebuilt_when_deleted_and_never_when_it_is_of_another_history(
    tmp_path: Path,
) -> None:
    metalog = formed(tmp_path)
    assert recovered(tmp_path, metalog) == "replayed"
    wanted = state(tmp_path)
    assert recovered(tmp_path, metalog) == "reused"
    (tmp_path / "t.db").unlink()
    assert recovered(tmp_path, metalog) == "rebuilt"
    assert state(tmp_path) == wanted

    db = database.open_writer(str(tmp_path / "t.db"))
    database.set_applied(db, 2, b"x" * 16)  # record 2 of another life
    db.execute("DELETE FROM settings")
    db.close()
    assert recovered(tmp_path, metalog) == "rebuilt"
    assert state(tmp_path) == wanted

    (tmp_path / "t.db").write_bytes(b"not a database" * 1000)
    assert recovered(tmp_path, metalog) == "rebuilt"
    assert state(tmp_path) == wanted


def test_a_file_ahead_of_the_log_stops_the_recovery_and_is_kept(tmp_path: Path) -> None:
    """COMMIT follows the log: what the file has beyond it was answered, and every replica has lost it."""
    metalog = formed(tmp_path)
    recovered(tmp_path, metalog)
    before = state(tmp_path)
    del metalog.records[-1]
    with pytest.raises(RecoveryFailed, match=f"ends at record {schema.VERSION}"):
        recovered(tmp_path, metalog)
    assert state(tmp_path) == before
    (tmp_path / "t.db").rename(tmp_path / "aside")  # the operator has decided
    assert recovered(tmp_path, metalog) == "rebuilt"
    assert state(tmp_path)[0] == schema.VERSION


def test_a_damaged_log_stops_the_recovery(tmp_path: Path) -> None:
    metalog = formed(tmp_path)
    (tmp_path / "t.db").unlink()
    metalog.records[-1] = replace(metalog.records[-1], previous_hash=b"y" * 16)
    with pytest.raises(RecoveryFailed):
        recovered(tmp_path, metalog)
