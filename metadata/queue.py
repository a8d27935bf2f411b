"""The collector's queue: chunks and log segments that nothing names any more, and the drives that still hold them.

Invariants:
1. A chunk enters in a transaction that finds it without references; its row of `chunks` goes in the same one, and
   from then on a commit that names it is refused (chunkrows).
2. A row stays until each of its drives has confirmed the delete or is removed from the map.
3. The deletes carry the row's seq: a node refuses them for a shard planned later.
4. Queueing a file of a living chunk ends the plans that are under way for it: a plan that was made before could have
   written that very file, and its commit would name what this row's delete takes away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from trivium.cluster.model import ChunkId
from trivium.metadata.chunkrows import is_referenced, split_drives

if TYPE_CHECKING:
    from trivium.metadata.tx import Reader, Tx

CHUNK, SEGMENT, LEFTOVER = 1, 2, 3  # LEFTOVER: places that a living chunk has left


class Queued(NamedTuple):
    """A row, decoded. `drives` are in place order: drives[i] holds shard i of a chunk."""

    kind: int
    session: int
    counter: int
    seq: int
    drives: tuple[bytes, ...]
    segment: bytes
    pending: int

    @property
    def chunk(self) -> ChunkId:
        return ChunkId(self.session, self.counter)

    def places(self) -> list[tuple[int, bytes]]:
        """(index, drive) of those that have not confirmed."""
        return [(index, drive) for index, drive in enumerate(self.drives) if self.pending >> index & 1]


def _insert(tx: Tx, kind: int, session: int, counter: int, drives: bytes, segment: bytes, *, pending: int = -1) -> None:
    """`pending` -1: all of the drives."""
    if pending < 0:
        pending = (1 << len(drives) // 16) - 1
    tx.run(
        "INSERT INTO queue (kind, session, counter, seq, drives, segment, pending) VALUES (?, ?, ?, ?, ?, ?, ?)",
        *(kind, session, counter, tx.seq, drives, segment, pending),
    )


def is_settled(reader: Reader, chunk: ChunkId) -> bool:
    """Whether no put is still to name it: its session has ended, or has settled it."""
    row = reader.one("SELECT floor FROM sessions WHERE id = ?", chunk.session)
    return row is None or chunk.counter < int(row[0])


def add_chunk(tx: Tx, chunk: ChunkId, *, given_up: bool = False) -> bool:
    """Queue a chunk that has a row, is settled (or was given up by its session), and that nothing names."""
    row = tx.one(
        "SELECT g.drives FROM chunks c JOIN groups g ON g.id = c.group_id WHERE c.session = ? AND c.counter = ?",
        *(chunk.session, chunk.counter),
    )
    if row is None or is_referenced(tx, chunk) or not (given_up or is_settled(tx, chunk)):
        return False
    tx.run("DELETE FROM chunks WHERE session = ? AND counter = ?", chunk.session, chunk.counter)
    tx.run("DELETE FROM queue WHERE kind = 3 AND session = ? AND counter = ?", chunk.session, chunk.counter)
    _insert(tx, CHUNK, chunk.session, chunk.counter, row[0], b"")
    return True


def add_orphan(tx: Tx, chunk: ChunkId, index: int, drive: bytes) -> bool:
    """Queue one file that an inventory found, if no row puts that index there and no put is still to."""
    queued = _add_orphan(tx, chunk, index, drive)
    if queued:
        tx.run("UPDATE chunks SET plan_seq = ? WHERE session = ? AND counter = ?", tx.seq, *_key(chunk))
    return queued


def _add_orphan(tx: Tx, chunk: ChunkId, index: int, drive: bytes) -> bool:
    row = tx.one(
        "SELECT g.drives FROM chunks c JOIN groups g ON g.id = c.group_id WHERE c.session = ? AND c.counter = ?",
        *(chunk.session, chunk.counter),
    )
    if row is None and not is_settled(tx, chunk):
        return False
    if row is not None and split_drives(row[0])[index : index + 1] == (drive,):
        return False
    kind = CHUNK if row is None else LEFTOVER
    queued = tx.one(
        "SELECT kind, drives, pending FROM queue WHERE kind IN (1, 3) AND session = ? AND counter = ?", *_key(chunk)
    )
    if queued is None:
        _insert(tx, kind, *_key(chunk), bytes(16) * index + drive, b"", pending=1 << index)
        return True
    return queued[0] == kind and _add_place(tx, chunk, kind, list(split_drives(queued[1])), queued[2], index, drive)


def _add_place(tx: Tx, chunk: ChunkId, kind: int, drives: list[bytes], pending: int, index: int, drive: bytes) -> bool:
    """One more file of a chunk that is queued already (an orphan has a file on each of its drives)."""
    drives += [bytes(16)] * (index + 1 - len(drives))
    if pending >> index & 1:
        return False  # of another drive: its turn comes with a later inventory
    drives[index] = drive
    tx.run(
        "UPDATE queue SET seq = ?, drives = ?, pending = ? WHERE kind = ? AND session = ? AND counter = ?",
        *(tx.seq, b"".join(drives), pending | 1 << index, kind, *_key(chunk)),
    )
    return True


def add_places(tx: Tx, chunk: ChunkId, drives: Sequence[bytes]) -> None:
    """Queue a chunk that has no row (a dump's): its places are stated."""
    if tx.one("SELECT 1 FROM queue WHERE kind = 1 AND session = ? AND counter = ?", *_key(chunk)) is None:
        _insert(tx, CHUNK, chunk.session, chunk.counter, b"".join(drives), b"")


def _key(chunk: ChunkId) -> tuple[int, int]:
    return chunk.session, chunk.counter


def placed_again(tx: Tx, chunk: ChunkId) -> None:
    """A plan is about to place shards of a living chunk: no queued delete of an older place may hit them."""
    tx.run("DELETE FROM queue WHERE kind = 3 AND session = ? AND counter = ?", chunk.session, chunk.counter)


def left_behind(tx: Tx, chunk: ChunkId, drives: Sequence[bytes], places: int) -> None:
    """A living chunk has been placed elsewhere: its old places (bits of `places`) hold copies of an older plan, which
    go, but for those on drives that are removed. What was queued before is of places that it has now, or of orphans."""
    placed_again(tx, chunk)
    rows = tx.all("SELECT id FROM drives WHERE reason != 'removed'")
    known = {row[0] for row in rows}
    pending = sum(1 << i for i, drive in enumerate(drives) if places >> i & 1 and drive in known)
    if pending:
        _insert(tx, LEFTOVER, *_key(chunk), b"".join(drives), b"", pending=pending)


def drive_removed(tx: Tx, drive: bytes) -> None:
    """A drive left the map: nobody waits for its confirmations any more."""
    for row in tx.all("SELECT kind, session, counter, seq, drives FROM queue WHERE instr(drives, ?) > 0", drive):
        done = sum(1 << i for i, one in enumerate(split_drives(row[4])) if one == drive)
        confirm(tx, row[0], row[1], row[2], row[3], done)


def add_segment(tx: Tx, segment: bytes, drives: Sequence[bytes]) -> None:
    """Queue the files of a log segment that no chain names."""
    if drives:
        _insert(tx, SEGMENT, 0, tx.next_id("segment"), b"".join(drives), segment)


def page(reader: Reader, before_seq: int, limit: int, after: tuple[int, int, int] = (0, 0, 0)) -> list[Queued]:
    """Rows older than `before_seq`, in key order after a key."""
    rows = reader.all(
        "SELECT kind, session, counter, seq, drives, segment, pending FROM queue"
        " WHERE (kind, session, counter) > (?, ?, ?) AND seq < ? ORDER BY kind, session, counter LIMIT ?",
        *after,
        before_seq,
        limit,
    )
    return [Queued(row[0], row[1], row[2], row[3], split_drives(row[4]), row[5], row[6]) for row in rows]


def confirm(tx: Tx, kind: int, session: int, counter: int, seq: int, done: int) -> None:
    """Drives (bits) have confirmed the deletes of the row with this seq."""
    key = (kind, session, counter, seq)
    tx.run(
        "UPDATE queue SET pending = pending & ~?5 WHERE kind = ?1 AND session = ?2 AND counter = ?3 AND seq = ?4",
        *key,
        done,
    )
    sql = "DELETE FROM queue WHERE kind = ? AND session = ? AND counter = ? AND seq = ? AND pending = 0"
    tx.run(sql, *key)
