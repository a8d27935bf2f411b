"""Rows of chunks: what a commit must prove before it may name one (RULES: Chunks, Collecting).

Invariants:
1. A chunk that a commit introduces was put by the committing session, which lives, and its counter is not below the
   session's logged floor.
2. Its group is a row with the same drives (digest), committed before it was offered.
3. Shards on drives that are out or removed, read in this very transaction, count as missing; k+1 must be left (all of
   them in a group narrower than its pool's profile). A drive that goes out later finds the row: repair is a query.
4. A chunk in the collector's queue is never named again. One that has a row is named again only while it has
   references, or while its putting session has not settled it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from trivium.cluster import placement
from trivium.cluster.model import ChunkId, Group, NewChunk, Placed, Ref
from trivium.metadata.messages import CHUNK_REFUSED, SESSION_ENDED, MetadataError
from trivium.metadata.schema import CHUNK_COLUMNS

if TYPE_CHECKING:
    from trivium.metadata.tx import Reader, Tx

GONE = ("out", "removed")  # reasons of drives whose shards count as missing; draining ones are present

_REFERENCED = " UNION ALL ".join(
    f"SELECT 1 FROM (SELECT 1 FROM {table} WHERE {session} = ?1 AND {counter} = ?2 AND {session} != 0 LIMIT 1)"
    for table, session, counter in CHUNK_COLUMNS
)
REFERENCED = f"SELECT EXISTS ({_REFERENCED})"
"""Whether any row names the chunk (?1, ?2): the one query, built from the schema's list."""

_PLACED = (
    "SELECT c.session, c.counter, c.nonce, c.length, c.missing, c.plan_seq, c.kind,"
    " g.id, g.pool, g.k, g.m, g.drives, g.codec"
    " FROM chunks c JOIN groups g ON g.id = c.group_id WHERE c.session = ?1 AND c.counter = ?2"
)


def split_drives(packed: bytes) -> tuple[bytes, ...]:
    """Drive ids of 16 bytes, as groups and queue rows store them."""
    return tuple(packed[i : i + 16] for i in range(0, len(packed), 16))


def group_of(reader: Reader, group: int) -> Group | None:
    row = reader.one("SELECT id, pool, k, m, drives, codec FROM groups WHERE id = ?", group)
    return None if row is None else Group(row[0], row[1], row[2], row[3], split_drives(row[4]), row[5])


def placed_of(reader: Reader, chunk: ChunkId) -> Placed | None:
    """The chunk's row joined with its group, None when there is none."""
    row = reader.one(_PLACED, chunk.session, chunk.counter)
    if row is None:
        return None
    group = Group(row[7], row[8], row[9], row[10], split_drives(row[11]), row[12])
    return Placed(chunk, row[2], row[3], row[4], row[5], group, row[6])


def locate(reader: Reader, chunks: Iterable[ChunkId]) -> tuple[Placed | None, ...]:
    return tuple(placed_of(reader, chunk) for chunk in chunks)


def is_referenced(reader: Reader, chunk: ChunkId) -> bool:
    row = reader.one(REFERENCED, chunk.session, chunk.counter)
    return row is not None and bool(row[0])


def is_queued(reader: Reader, chunk: ChunkId) -> bool:
    sql = "SELECT 1 FROM queue WHERE kind = 1 AND session = ? AND counter = ?"
    return reader.one(sql, chunk.session, chunk.counter) is not None


def introduce(tx: Tx, new: NewChunk) -> None:
    """Insert the row of a chunk that this call brings; repeating an earlier one is harmless."""
    chunk = new.chunk
    if chunk.session != tx.session:
        raise MetadataError("EPERM", f"chunk {chunk} was put by another session")
    if is_queued(tx, chunk):
        raise MetadataError(CHUNK_REFUSED, f"chunk {chunk} is being collected")
    old = tx.one("SELECT nonce FROM chunks WHERE session = ? AND counter = ?", chunk.session, chunk.counter)
    settled = chunk.counter < _floor(tx)
    if old is not None:
        _check_repeat(tx, new, old[0], settled)
        return
    if settled:
        raise MetadataError(CHUNK_REFUSED, f"chunk {chunk} is below the floor that its session has settled")
    tx.run(
        "INSERT INTO chunks (session, counter, nonce, group_id, length, missing, plan_seq, kind)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        *(chunk.session, chunk.counter, new.nonce, new.group, new.length, _missing(tx, new), tx.seq, new.kind),
    )


def require_references(tx: Tx, chunk: ChunkId) -> None:
    if is_queued(tx, chunk) or not is_referenced(tx, chunk):
        raise MetadataError(CHUNK_REFUSED, f"chunk {chunk} has no references any more")


def add_missing(tx: Tx, chunk: ChunkId, index: int, drive: bytes) -> bool:
    """A place was found empty or corrupt: into the repair queue, if the row still puts that index on that drive."""
    placed = placed_of(tx, chunk)
    if placed is None or not 0 <= index < len(placed.group.drives) or placed.group.drives[index] != drive:
        return False
    sql = "UPDATE chunks SET missing = missing | ?1 WHERE session = ?2 AND counter = ?3 AND missing & ?1 = 0"
    return bool(tx.run(sql, 1 << index, chunk.session, chunk.counter))


def length_of(tx: Tx, chunk: ChunkId) -> int:
    row = tx.one("SELECT length FROM chunks WHERE session = ? AND counter = ?", chunk.session, chunk.counter)
    if row is None:
        raise MetadataError(CHUNK_REFUSED, f"chunk {chunk} has no row")
    return int(row[0])


def check_range(ref: Ref, length: int) -> None:
    if ref.offset < 0 or ref.length <= 0 or ref.offset + ref.length > length:
        raise MetadataError("EINVAL", f"range {ref.offset}+{ref.length} is not in chunk {ref.chunk} of {length} bytes")


def _floor(tx: Tx) -> int:
    row = tx.one("SELECT floor FROM sessions WHERE id = ?", tx.session)
    if row is None:
        raise MetadataError(SESSION_ENDED, "the session has ended")
    return int(row[0])


def _check_repeat(tx: Tx, new: NewChunk, nonce: bytes, settled: bool) -> None:
    if nonce != new.nonce:
        raise MetadataError("EINVAL", f"chunk {new.chunk} is known with another nonce")
    if settled and not is_referenced(tx, new.chunk):
        raise MetadataError(CHUNK_REFUSED, f"chunk {new.chunk} is settled and has no references any more")


def _missing(tx: Tx, new: NewChunk) -> int:
    """The missing indices to store, or a refusal."""
    group = group_of(tx, new.group)
    if group is None or group.digest != new.group_digest:
        raise MetadataError(CHUNK_REFUSED, f"group {new.group} does not have the drives that the chunk was put on")
    if len(new.nonce) != 16 or new.length <= 0 or new.missing < 0 or new.missing >> group.profile.width:
        raise MetadataError("EINVAL", f"chunk {new.chunk} is described wrongly")
    missing = new.missing | _mask_of_gone(tx, group)
    left = group.profile.width - missing.bit_count()
    if left < _needed(tx, group):
        raise MetadataError(CHUNK_REFUSED, f"only {left} shards of chunk {new.chunk} are left on drives in use")
    return missing


def _mask_of_gone(tx: Tx, group: Group) -> int:
    marks = ",".join("?" * len(group.drives))
    rows = tx.all(f"SELECT id, reason FROM drives WHERE id IN ({marks})", *group.drives)
    present = {id for id, reason in rows if reason not in GONE}
    return sum(1 << i for i, drive in enumerate(group.drives) if drive not in present)


def _needed(tx: Tx, group: Group) -> int:
    pool = tx.one("SELECT k, m FROM pools WHERE id = ?", group.pool)
    if pool is None:
        raise MetadataError(CHUNK_REFUSED, f"pool {group.pool} is gone")
    return placement.least(group.profile, *pool)
