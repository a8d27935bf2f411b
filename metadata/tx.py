"""What operations and queries see of the database: a transaction of the writer, a snapshot of a reader.

Invariants:
1. A Tx lives on the writer thread, inside one savepoint of one batch; what it did vanishes when the call is refused.
2. `seq` is the seq of the record that the batch becomes: it may be stored (queue rows, plan_seq).
3. Time is `now`, ids come from `next_id`, nothing else is random: SQL in an operation never asks for time or
   random() (replay only applies rows, but a refused and repeated call must not see time run backwards).
4. Every column that names a chunk is written only after `use_chunk` (or copied from a row that has it).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import apsw

from trivium.cluster.model import ChunkId, NewChunk, Ref
from trivium.metadata import chunkrows

Row = tuple[Any, ...]


class Reader:
    """One read transaction. `seq` is the last record that it shows, `now` the time it began."""

    __slots__ = ("_execute", "now", "seq", "session")

    def __init__(self, db: apsw.Connection, *, now: int, seq: int, session: int = 0) -> None:
        self._execute = db.execute
        self.now = now
        self.seq = seq
        self.session = session

    def one(self, sql: str, *args: Any) -> Row | None:
        """The first row, or None."""
        return self._execute(sql, args).fetchone()

    def all(self, sql: str, *args: Any) -> list[Row]:
        return self._execute(sql, args).fetchall()


class Tx(Reader):
    """One call's part of the batch. Operations raise messages.MetadataError to refuse the whole call."""

    __slots__ = ("_admitted", "_db", "chunks", "created", "touched")

    def __init__(
        self,
        db: apsw.Connection,
        *,
        now: int,
        seq: int,
        session: int = 0,
        chunks: Mapping[ChunkId, NewChunk] | None = None,
    ) -> None:
        super().__init__(db, now=now, seq=seq, session=session)
        self._db = db
        self.chunks: Mapping[ChunkId, NewChunk] = chunks if chunks is not None else {}
        self.touched: set[tuple[int, bytes]] = set()
        self.created = 0  # inode that the last Create of this list made or found: what `ino` 0 means
        self._admitted: set[ChunkId] = set()

    def run(self, sql: str, *args: Any) -> int:
        """Execute one changing statement; answers how many rows it changed."""
        self._execute(sql, args)
        return self._db.changes()

    def next_id(self, counter: str) -> int:
        """The next id of a counter (from 1). A refused call's ids are given to the next; a committed one never is."""
        row = self.one("SELECT value FROM counters WHERE name = ?", counter)  # half the cost of RETURNING
        if row is None:
            self.run("INSERT INTO counters (name, value) VALUES (?, 1)", counter)
            return 1
        value = int(row[0]) + 1
        self.run("UPDATE counters SET value = ?2 WHERE name = ?1", counter, value)
        return value

    def touch(self, ino: int, name: bytes = b"") -> None:
        """The call changes this inode or, with `name`, this entry of directory `ino` (and the directory's times).

        Other sessions' leases on it are recalled before the call commits. Cheap; call it for every change.
        """
        self.touched.add((ino, name))

    def use_chunk(self, ref: Ref) -> None:
        """A row is about to name this chunk: it is introduced by this call, or it must have references already.

        Raises MetadataError CHUNK_REFUSED (put it again), EINVAL (the range is not in the chunk).
        """
        chunk = ref.chunk
        if chunk not in self._admitted:
            new = self.chunks.get(chunk)
            if new is not None:
                chunkrows.introduce(self, new)
            else:
                chunkrows.require_references(self, chunk)
            self._admitted.add(chunk)
        new = self.chunks.get(chunk)
        length = new.length if new is not None else chunkrows.length_of(self, chunk)
        chunkrows.check_range(ref, length)
