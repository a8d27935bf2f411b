"""The logical digest of a database: every row of every replicated table, in key order. Equal states, equal digests,
whatever the file looks like; a flipped bit in a row shows."""

from __future__ import annotations

import hashlib
from itertools import islice

import apsw
import msgspec

from trivium.metadata import database

_encode = msgspec.msgpack.Encoder().encode
_ROWS = 500  # hashed at a time


def digest(db: apsw.Connection) -> bytes:
    """16 bytes, from the connection's current snapshot."""
    state = hashlib.blake2b(digest_size=16)
    state.update(_encode(database.schema_version(db)))
    for table, keys in tables(db):
        state.update(_encode(table))
        cursor = db.execute(f'SELECT * FROM "{table}" ORDER BY {keys}')
        while rows := list(islice(cursor, _ROWS)):
            state.update(_encode(rows))
    return state.digest()


def digest_of(path: str) -> str:
    """Of a database file that nobody writes now, in hexadecimal."""
    db = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return digest(db).hex()
    finally:
        db.close()


def tables(db: apsw.Connection) -> list[tuple[str, str]]:
    """(table, its key columns) in order of names."""
    names = [row[0] for row in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")]
    found: list[tuple[str, str]] = []
    for name in names:
        if database.is_replicated(name) and not name.startswith("sqlite_"):
            columns = [(row[5], row[1]) for row in db.execute(f'PRAGMA table_info("{name}")') if row[5]]
            found.append((name, ", ".join(f'"{column}"' for _, column in sorted(columns))))
    return found
