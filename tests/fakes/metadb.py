"""A metadata database in memory for tests of operations: each call is a savepoint, as in the real writer.

db = MetaDb()
db.call(Create(ROOT_INO, b"a", 0o100644))      # answers of one list of operations, all or nothing
db.ask(Lookup(ROOT_INO, b"a"))
chunk = db.new_chunk(length)                   # a NewChunk of this session; pass as chunks=[…]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import apsw

from trivium.cluster.model import ChunkId, ClusterMap, DriveRow, Group, NewChunk, PoolRow
from trivium.metadata import forming, schema
from trivium.metadata.operations import OPERATIONS, QUERIES
from trivium.metadata.tx import Reader, Tx

SESSION = 7
T = TypeVar("T")
DRIVES = tuple(bytes([n]) * 16 for n in range(1, 7))
GROUP = Group(1, 1, 4, 2, DRIVES)


class MetaDb:
    def __init__(self) -> None:
        self.db = apsw.Connection(":memory:", statementcachesize=400)
        self.db.execute(schema.ALL_TABLES)
        self.now = 1_700_000_000_000_000_000
        self.seq = 1
        self.counter = 0
        drives = tuple(
            DriveRow(id, f"d{n}", b"n" * 16, f"h{n}", 1.0, bytes_total=1 << 40) for n, id in enumerate(DRIVES)
        )
        seed = forming.Seed(b"C" * 16, ClusterMap(1, drives, (), (PoolRow(1, "main", 4, 2),)))
        self.run(lambda tx: forming.plant(tx, seed))
        self.run(self._group)
        self.start_session(SESSION)

    @staticmethod
    def _group(tx: Tx) -> None:
        tx.run(
            "INSERT INTO groups (id, pool, k, m, drives, codec, open) VALUES (1, 1, 4, 2, ?, ?, 1)",
            *(b"".join(DRIVES), GROUP.codec),
        )

    def start_session(self, session: int) -> None:
        sql = "INSERT INTO sessions (id, client, host, started, floor, leased) VALUES (?, 'test', '', 0, 1, 0)"
        self.run(lambda tx: tx.run(sql, session))

    def run(self, step: Callable[[Tx], T], *, chunks: Iterable[NewChunk] = (), session: int = SESSION) -> T:
        """One savepoint: what `step` did stays, unless it raises."""
        self.seq += 1
        self.now += 1_000_000_007
        tx = Tx(self.db, now=self.now, seq=self.seq, session=session, chunks={new.chunk: new for new in chunks})
        self.db.execute("SAVEPOINT one")
        try:
            answer = step(tx)
        except BaseException:
            self.db.execute("ROLLBACK TO one")
            self.db.execute("RELEASE one")
            raise
        self.db.execute("RELEASE one")
        self.touched = tx.touched
        return answer

    def calls(self, *operations: Any, chunks: Iterable[NewChunk] = (), session: int = SESSION) -> list[Any]:
        def step(tx: Tx) -> list[Any]:
            return [OPERATIONS[type(operation)](tx, operation) for operation in operations]

        return self.run(step, chunks=chunks, session=session)

    def call(self, operation: Any, chunks: Iterable[NewChunk] = (), session: int = SESSION) -> Any:
        return self.calls(operation, chunks=chunks, session=session)[0]

    def reader(self) -> Reader:
        return Reader(self.db, now=self.now, seq=self.seq)

    def ask(self, query: Any) -> Any:
        return QUERIES[type(query)](self.reader(), query)

    def new_chunk(self, length: int, session: int = SESSION) -> NewChunk:
        self.counter += 1
        return NewChunk(ChunkId(session, self.counter), b"n" * 16, 1, GROUP.digest, length, 0)

    def count(self, table: str) -> int:
        return int(self.db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
