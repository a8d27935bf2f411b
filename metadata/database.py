"""Opening the database file. One library (apsw) per process touches it, ever: a second one's close drops the locks."""

from __future__ import annotations

import apsw

from trivium.metadata.schema import OUTSIDE

READ_ONLY = apsw.SQLITE_OPEN_READONLY
READ_WRITE = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
STATEMENTS = 400  # cached per connection
READER_MMAP = 64 << 20  # of the file, by each reader: what is mapped counts as the process's memory
WAL_PAGES = 2000  # the writer checkpoints after 8 MiB of write-ahead log, between batches


def open_writer(path: str) -> apsw.Connection:
    db = apsw.Connection(path, flags=READ_WRITE, statementcachesize=STATEMENTS)
    db.set_busy_timeout(10_000)
    db.pragma("journal_mode", "wal")
    db.pragma("synchronous", "normal")
    db.pragma("cache_size", -65_536)
    db.pragma("temp_store", "memory")
    _keep_plans(db)
    db.wal_autocheckpoint(4 * WAL_PAGES)  # a bound for those who do not care
    return db


def open_reader(path: str) -> apsw.Connection:
    db = apsw.Connection(path, flags=READ_ONLY, statementcachesize=STATEMENTS)
    db.set_busy_timeout(10_000)
    db.pragma("query_only", True)
    db.pragma("cache_size", -32_768)
    db.pragma("mmap_size", READER_MMAP)
    _keep_plans(db)
    return db


def _keep_plans(db: apsw.Connection) -> None:
    """A statement is planned once. Otherwise (STAT4) each new value of a range's parameter compiles it again: 60 us."""
    db.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)


def record_changes(db: apsw.Connection) -> apsw.Session:
    """A recorder of what the open transaction changes in the replicated tables."""
    session = apsw.Session(db, "main")
    session.table_filter(is_replicated)
    session.attach()
    return session


def is_replicated(table: str) -> bool:
    return table not in OUTSIDE


def applied(db: apsw.Connection) -> tuple[int, bytes]:
    """(seq, hash) of the last record that the database holds; (0, zeros) when it is new."""
    try:
        row = db.execute("SELECT seq, chain_hash FROM applied WHERE one = 1").fetchone()
    except apsw.SQLError:
        return 0, bytes(16)
    return (0, bytes(16)) if row is None else (int(row[0]), bytes(row[1]))


def set_applied(db: apsw.Connection, seq: int, chain_hash: bytes) -> None:
    """In the transaction of the record itself, after its patchset was taken."""
    db.execute(
        "INSERT INTO applied (one, seq, chain_hash) VALUES (1, ?, ?)"
        " ON CONFLICT (one) DO UPDATE SET seq = excluded.seq, chain_hash = excluded.chain_hash",
        (seq, chain_hash),
    )


def schema_version(db: apsw.Connection) -> int:
    """0 for an empty database."""
    return int(db.pragma("user_version") or 0)
