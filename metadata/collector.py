"""What nobody needs any more: planning over a transaction, no I/O. `collect_loop` carries it out.

    a chunk without references, settled --enqueue (checked again in that record)--> queue row
    queue row, no reader older than its seq --deletes to its drives--> confirmations --all--> gone

Invariants:
1. Only what a transaction finds unreferenced in that very transaction enters the queue (queue.add_chunk).
2. Steps are bounded: none holds the writer for long, each may be cut off and repeated.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from trivium.cluster.model import ChunkId, ChunkKind
from trivium.metadata import content, extents, inodes, queue, uploads, volumes
from trivium.metadata.schema import CHUNK_COLUMNS

if TYPE_CHECKING:
    from trivium.metadata.tx import Reader, Tx

STEP = 500  # rows of one step
DONE_KEPT_NS = 24 * 3600 * 1_000_000_000  # answers of completed uploads

NOT_REFERENCED = " AND ".join(
    f"NOT EXISTS (SELECT 1 FROM {table} t WHERE t.{session} = c.session AND t.{counter} = c.counter"
    f" AND t.{session} != 0)"
    for table, session, counter in CHUNK_COLUMNS
)
"""On rows c of chunks: the collector's one query, from the schema's list of columns."""


def unreferenced(reader: Reader, after: ChunkId, limit: int = STEP) -> tuple[list[ChunkId], ChunkId | None]:
    """Settled chunks that nothing names, among the next `limit` rows; where to go on, None at the end.

    Dumps are named by the root alone: they are their writer's to give up.
    """
    rows = reader.all(
        "SELECT c.session, c.counter, s.floor IS NULL OR c.counter < s.floor AS settled,"
        f" {NOT_REFERENCED} FROM chunks c LEFT JOIN sessions s ON s.id = c.session"
        " WHERE (c.session, c.counter) > (?, ?) AND c.kind != ? ORDER BY c.session, c.counter LIMIT ?",
        *(after.session, after.counter, ChunkKind.DUMP, limit),
    )
    found = [ChunkId(row[0], row[1]) for row in rows if row[2] and row[3]]
    return found, ChunkId(rows[-1][0], rows[-1][1]) if len(rows) == limit else None


def enqueue(tx: Tx, chunks: Iterable[ChunkId]) -> int:
    return sum(queue.add_chunk(tx, chunk) for chunk in chunks)


def give_up(tx: Tx, session: int, counters: Iterable[int]) -> None:
    """Ids that a heartbeat names: never to be committed. Those that were put without a row are an inventory's find."""
    for counter in counters:
        queue.add_chunk(tx, ChunkId(session, counter), given_up=True)


# ---- staged work ------------------------------------------------------------------------------------------------


def sweep(tx: Tx, limit: int = STEP) -> bool:
    """One bounded step of whatever was left for later; True while there is more."""
    return any(
        [_doomed(tx, limit), _cut(tx, limit), _unlinked(tx, limit), _removed_volumes(tx, limit), _answers(tx, limit)]
    )


def _doomed(tx: Tx, limit: int) -> bool:
    row = tx.one("SELECT content, part FROM doomed LIMIT 1")
    if row is None:
        return False
    if extents.drop_step(tx, row[0], row[1], limit):
        tx.run("DELETE FROM doomed WHERE content = ? AND part = ?", *row)
    return True


def _cut(tx: Tx, limit: int) -> bool:
    row = tx.one("SELECT ino FROM inodes WHERE cut >= 0 LIMIT 1")
    if row is None:
        return False
    inode = inodes.need(tx, row[0])
    content.own_content(tx, inode)
    content.cut_step(tx, inode, limit)
    inodes.save(tx, inode)
    return True


def _unlinked(tx: Tx, limit: int) -> bool:
    """Inodes without a name that no session holds (what the end of a session left over)."""
    rows = tx.all(
        "SELECT ino FROM inodes i WHERE nlink = 0 AND NOT EXISTS (SELECT 1 FROM held h WHERE h.ino = i.ino) LIMIT ?",
        limit,
    )
    for (ino,) in rows:
        inodes.remove_unless_held(tx, inodes.need(tx, ino))
    return bool(rows)


def _removed_volumes(tx: Tx, limit: int) -> bool:
    row = tx.one("SELECT id FROM volumes WHERE name = '' LIMIT 1")
    if row is not None:
        volumes.remove_step(tx, row[0], limit)
    return row is not None


def _answers(tx: Tx, limit: int) -> bool:
    return not uploads.expire_step(tx, tx.now - DONE_KEPT_NS, limit)


def is_idle(reader: Reader) -> bool:
    """Whether sweep() would find nothing (but for answers of uploads)."""
    row = reader.one(
        "SELECT EXISTS (SELECT 1 FROM doomed) OR EXISTS (SELECT 1 FROM inodes WHERE cut >= 0)"
        " OR EXISTS (SELECT 1 FROM volumes WHERE name = '') OR EXISTS (SELECT 1 FROM inodes i WHERE nlink = 0"
        " AND NOT EXISTS (SELECT 1 FROM held h WHERE h.ino = i.ino))"
    )
    return row is not None and not row[0]
