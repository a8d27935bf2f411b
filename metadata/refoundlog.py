"""A whole database as a log that makes it: the steps of the schema, then every row, in records of bounded size.

    rows of one file, table by table in key order --batches--> another file, recorded --patchsets--> records

Invariants:
1. Replaying the records on nothing makes exactly the rows: the file that they were recorded on has the same digest.
2. The first record makes the tables (replay.begins), whatever its seq; its previous hash is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apsw

from trivium.metadata import database, migrations, schema
from trivium.metadata.digest import digest, tables
from trivium.metadata.records import Record, RecordKind, encode_migration, make

BATCH_BYTES = 256 << 10  # of values in one record


class NotEqual(Exception):
    """The copy is not the database that it was made of."""


def records_of(source: apsw.Connection, copy: apsw.Connection, last_seq: int, last_hash: bytes) -> Iterator[Record]:
    """Fill the empty database `copy` with the rows of `source`; yields each record when `copy` has it. `last_seq`,
    `last_hash`: what the first record follows."""
    maker = _Maker(copy, last_seq, last_hash, _map_version(source))
    for version in range(1, schema.VERSION + 1):
        yield maker.step(version)
    for table, keys in tables(source):
        cursor = source.execute(f'SELECT * FROM "{table}" ORDER BY {keys}')
        for rows in _batches(cursor):
            yield maker.insert(table, rows)
    if digest(source) != digest(copy):
        raise NotEqual("the rows that were written to the log are not those that were found")


class _Maker:
    def __init__(self, db: apsw.Connection, last_seq: int, last_hash: bytes, map_version: int) -> None:
        self._db, self._seq, self._hash, self._map_version = db, last_seq, last_hash, map_version

    def step(self, version: int) -> Record:
        with self._db:
            payload = encode_migration(migrations.migrate(self._db, version))
            record = self._note(RecordKind.MIGRATION, payload, version)
        return record

    def insert(self, table: str, rows: list[tuple[Any, ...]]) -> Record:
        marks = ", ".join("?" * len(rows[0]))
        with self._db:
            session = database.record_changes(self._db)
            try:
                self._db.executemany(f'INSERT INTO "{table}" VALUES ({marks})', rows)
                payload = session.patchset()
            finally:
                session.close()
            record = self._note(RecordKind.PATCHSET, payload, schema.VERSION)
        return record

    def _note(self, kind: RecordKind, payload: bytes, version: int) -> Record:
        record = make(
            kind, payload, schema=version, last_seq=self._seq, last_hash=self._hash, map_version=self._map_version
        )
        database.set_applied(self._db, record.seq, record.hash)
        self._seq, self._hash = record.seq, record.hash
        return record


def _batches(cursor: Iterator[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    batch: list[tuple[Any, ...]] = []
    size = 0
    for row in cursor:
        batch.append(row)
        size += sum(len(value) if isinstance(value, (bytes, str)) else 9 for value in row)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _map_version(source: apsw.Connection) -> int:
    row = source.execute("SELECT value FROM counters WHERE name = 'map'").fetchone()
    return 0 if row is None else int(row[0])
