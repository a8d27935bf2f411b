"""Applying records of the log to a database: recovery, and the independent copies that dumps are compared with.

SQLite drops what does not fit without a word (other columns, missing tables), so everything is checked here first; any
conflict stops the replay: the file is not the state that the record was made on.
"""

from __future__ import annotations

from functools import partial

import apsw

from trivium.metadata import database, migrations
from trivium.metadata.records import Record, RecordKind, decode_migration


class ReplayFailed(Exception):
    """The record does not fit the database. The local file must be rebuilt from dump and log, or the log is damaged."""


def apply_record(db: apsw.Connection, record: Record) -> None:
    """Apply one record in a transaction of its own, `applied` row included."""
    with db:
        seq, chain_hash = database.applied(db)
        if not (seq == 0 and begins(record)) and (record.seq != seq + 1 or record.previous_hash != chain_hash):
            raise ReplayFailed(f"record {record.seq} does not follow record {seq} of the database")
        if record.kind == RecordKind.MIGRATION:
            _migrate(db, record)
        elif record.kind == RecordKind.PATCHSET:
            _check_version(db, record, record.schema)
            apply_patchset(db, record.seq, bytes(record.payload))
        else:
            raise ReplayFailed(f"record {record.seq} is of an unknown kind {record.kind}")
        database.set_applied(db, record.seq, record.hash)


def begins(record: Record) -> bool:
    """Whether a log may begin with this record, whatever its seq: it makes the tables. The log of a pool that was
    rebuilt from shards does not begin with record 1."""
    return record.kind == RecordKind.MIGRATION and decode_migration(record.payload).to_version == 1


def apply_patchset(db: apsw.Connection, seq: int, patchset: bytes) -> None:
    """Inside an open transaction. Raises ReplayFailed on the first thing that does not fit."""
    if not patchset:
        return
    _check_columns(db, seq, patchset)
    conflicts: list[str] = []
    try:
        apsw.Changeset.apply(patchset, db, conflict=partial(_note_conflict, conflicts))
    except apsw.Error as error:
        raise ReplayFailed(f"record {seq}: {'; '.join(conflicts) or error}") from error
    if conflicts:
        raise ReplayFailed(f"record {seq}: {'; '.join(conflicts)}")


def _migrate(db: apsw.Connection, record: Record) -> None:
    migration = decode_migration(record.payload)
    migrations.step(db, migration.to_version)
    _check_version(db, record, record.schema)
    apply_patchset(db, record.seq, migration.patchset)


def _check_version(db: apsw.Connection, record: Record, want: int) -> None:
    have = database.schema_version(db)
    if have != want:
        raise ReplayFailed(f"record {record.seq} is of schema version {want}, the database of {have}")


def _check_columns(db: apsw.Connection, seq: int, patchset: bytes) -> None:
    columns: dict[str, int] = {}
    for change in apsw.Changeset.iter(patchset):
        name = change.name
        if name not in columns:
            if not database.is_replicated(name):
                raise ReplayFailed(f"record {seq} changes table {name}, which no record may")
            columns[name] = len(db.execute(f'PRAGMA table_info("{name}")').fetchall())
        if columns[name] != change.column_count:
            raise ReplayFailed(
                f"record {seq}: table {name} has {columns[name]} columns here, {change.column_count} in the record"
            )


def _note_conflict(conflicts: list[str], kind: int, change: apsw.TableChange) -> int:
    what = apsw.mapping_session_conflict.get(kind, str(kind))
    conflicts.append(f"{what} at a {change.op} of table {change.name}")
    return apsw.SQLITE_CHANGESET_ABORT
