"""Rows of a database that is made from shards: what an older state leaves behind, the map, chunks, counters.

    a restored state (or planted rows) -> settle: nobody is connected -> map -> counters far beyond all that was seen
    -> chunks as they lie -> (volumes, files)

Invariants:
1. A chunk that has a row keeps its nonce: shards of another put of its id are never taken for it.
2. A chunk that the restored state had queued for deletion stays dead; every other one that is on a drive has a row.
3. No id that was ever given is given again: each counter begins GAP beyond the highest that rows or shards show.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from trivium.cluster.model import ChunkId, ChunkKind, ClusterMap, Group, Profile
from trivium.cluster.salvage import FoundPut, Salvage
from trivium.metadata import inodes, maprows
from trivium.metadata.chunkrows import is_referenced, split_drives
from trivium.metadata.refoundplaces import Groups

if TYPE_CHECKING:
    from trivium.metadata.tx import Reader, Tx

GAP = 1 << 32
"""What is added to the highest number seen: what nobody saw (names and inline contents leave no shard) was less."""
COUNTERS = (
    "inode", "content", "dirent", "blob", "part", "upload", "group", "volume", "snapshot", "pool", "segment", "map",
)  # fmt: skip
NO_NONCE = bytes(16)
SIGNED = 1 << 63

REBUILT = "rebuilt"
"""The row of `settings` that keeps the collector away until the operator has confirmed."""


@dataclass(slots=True)
class Chunks:
    """What was entered. `fresh`: chunks that no row named, in order; `short`: lack shards; `lost`: fewer than k."""

    fresh: list[FoundPut] = field(default_factory=list)
    whole: int = 0
    short: int = 0
    lost: list[ChunkId] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


# ---- what the older state leaves behind -----------------------------------------------------------------------


def settle(tx: Tx) -> None:
    """All sessions have ended, no group is open, and what was queued for places is looked for anew."""
    for table in ("sessions", "slots", "session_owners", "held"):
        tx.run(f"DELETE FROM {table}")
    for (ino,) in tx.all("SELECT ino FROM inodes WHERE nlink = 0"):
        inodes.remove(tx, inodes.need(tx, ino))
    tx.run("DELETE FROM queue WHERE kind != 1")
    tx.run("UPDATE groups SET open = 0")
    tx.run("UPDATE volumes SET lease_session = 0")
    tx.run("DELETE FROM settings WHERE name = ?", REBUILT)


def put_map(tx: Tx, cluster_map: ClusterMap) -> None:
    """The map's rows become this map."""
    for table in ("drives", "nodes", "pools"):
        tx.run(f"DELETE FROM {table}")
    for drive in cluster_map.drives:
        maprows.put_drive(tx, drive)
    for node in cluster_map.nodes:
        maprows.put_node(tx, node)
    for pool in cluster_map.pools:
        maprows.put_pool(tx, pool)
    raise_counter(tx, "map", cluster_map.version)
    raise_counter(tx, "pool", max((pool.id for pool in cluster_map.pools), default=0))


# ---- chunks -----------------------------------------------------------------------------------------------------


def read_groups(reader: Reader) -> list[Group]:
    rows = reader.all("SELECT id, pool, k, m, drives, codec FROM groups ORDER BY id")
    return [Group(id, pool, k, m, split_drives(drives), codec) for id, pool, k, m, drives, codec in rows]


class Enter:
    """Makes the rows of chunks say what lies on the drives."""

    def __init__(self, tx: Tx, salvage: Salvage, ids: Mapping[str, bytes], groups: Groups) -> None:
        """`ids`: drive by path."""
        self._tx, self._salvage, self._ids, self._groups = tx, salvage, ids, groups
        self.done = Chunks()

    def run(self, salvaging: bool = True) -> Chunks:
        """`salvaging`: chunks that no row names get one; else they are what the newest state left behind."""
        tx = self._tx
        dead = {ChunkId(*row) for row in tx.all("SELECT session, counter FROM queue WHERE kind = 1")}
        known = self._known_rows()
        for chunk, puts in sorted(self._salvage.puts.items()):
            if not salvaging or chunk in known or chunk in dead or not _storable(chunk):
                continue
            put = best(puts.values())
            if put.kind != ChunkKind.DUMP:
                if len(puts) > 1:
                    self.done.notes.append(f"chunk {chunk} was put {len(puts)} times: the one with most shards counts")
                self._insert(put)
                self.done.fresh.append(put)
        self._write_groups()
        return self.done

    def _known_rows(self) -> set[ChunkId]:
        """Rows of the restored state: placed where their shards are now."""
        tx = self._tx
        known = set()
        sql = "SELECT session, counter, nonce, group_id FROM chunks"
        for session, counter, nonce, group in tx.all(sql):
            chunk = ChunkId(session, counter)
            put = self._salvage.find(chunk, nonce)
            if put is None and not is_referenced(tx, chunk):
                tx.run("DELETE FROM chunks WHERE session = ? AND counter = ?", session, counter)
                continue
            known.add(chunk)
            if put is None:
                self._lose(chunk, group)
                continue
            place, missing = self._place(put)
            tx.run(
                "UPDATE chunks SET group_id = ?, missing = ?, plan_seq = max(plan_seq, ?)"
                " WHERE session = ? AND counter = ?",
                *(place, missing, put.plan_seq, session, counter),
            )
        return known

    def _lose(self, chunk: ChunkId, group: int) -> None:
        row = self._tx.one("SELECT k + m FROM groups WHERE id = ?", group)
        mask = (1 << (row[0] if row else 1)) - 1
        sql = "UPDATE chunks SET missing = ? WHERE session = ? AND counter = ?"
        self._tx.run(sql, mask, chunk.session, chunk.counter)
        self.done.lost.append(chunk)

    def _place(self, put: FoundPut) -> tuple[int, int]:
        key = put.key
        places = {
            index: tuple(dict.fromkeys(self._ids[drive.path] for _, drive in found))
            for index, found in put.places.items()
        }
        place = self._groups.place(Profile(key.k, key.m, key.codec), places)
        lacking = place.missing.bit_count()
        if key.k + key.m - lacking < key.k:
            self.done.lost.append(key.chunk)
        elif lacking:
            self.done.short += 1
        else:
            self.done.whole += 1
        return place.group, place.missing

    def _insert(self, put: FoundPut) -> None:
        group, missing = self._place(put)
        insert_chunk(self._tx, put.key.chunk, put.key.nonce, group, put.key.length, missing, put.plan_seq, put.kind)

    def name_lost(self, chunk: ChunkId, length: int, kind: int, profile: Profile) -> None:
        """A chunk that something names and of which no drive has a shard: a row that says so."""
        if self._tx.one("SELECT 1 FROM chunks WHERE session = ? AND counter = ?", chunk.session, chunk.counter) is None:
            place = self._groups.place(profile, {})
            insert_chunk(self._tx, chunk, NO_NONCE, place.group, length, place.missing, 0, kind)
            self._write_groups()
            self.done.lost.append(chunk)

    def _write_groups(self) -> None:
        for group in self._groups.made:
            self._tx.run(
                "INSERT INTO groups (id, pool, k, m, drives, codec, open) VALUES (?, ?, ?, ?, ?, ?, 0)",
                *(group.id, group.pool, group.k, group.m, b"".join(group.drives), group.codec),
            )
        self._groups.made.clear()
        raise_counter(self._tx, "group", self._groups.next_id - 1)


def insert_chunk(
    tx: Tx, chunk: ChunkId, nonce: bytes, group: int, length: int, missing: int, plan_seq: int, kind: int
) -> None:
    tx.run(
        "INSERT INTO chunks (session, counter, nonce, group_id, length, missing, plan_seq, kind)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        *(chunk.session, chunk.counter, nonce, group, length, missing, plan_seq, kind),
    )


def best(puts: Iterable[FoundPut]) -> FoundPut:
    """Of several puts of one id, which normal work never leaves behind: whole before short, then the newest plan."""
    return max(puts, key=lambda put: (put.complete, len(put.places), put.plan_seq, put.key.nonce))


def _storable(chunk: ChunkId) -> bool:
    return 0 < chunk.session < SIGNED and 0 < chunk.counter < SIGNED


# ---- counters -----------------------------------------------------------------------------------------------------


def raise_counter(tx: Tx, name: str, least: int) -> None:
    """The next id is beyond `least`."""
    row = tx.one("SELECT value FROM counters WHERE name = ?", name)
    if row is None:
        tx.run("INSERT INTO counters (name, value) VALUES (?, ?)", name, least)
    elif row[0] < least:
        tx.run("UPDATE counters SET value = ? WHERE name = ?", least, name)


def see_owners(tx: Tx, puts: Iterable[FoundPut]) -> None:
    """Inodes, contents and volumes that tables of contents name have been given."""
    highest: dict[str, int] = {}
    for put in puts:
        for counter, number in owners_of(put):
            highest[counter] = max(highest.get(counter, 0), number)
    for counter, number in highest.items():
        raise_counter(tx, counter, number)


def owners_of(put: FoundPut) -> Iterator[tuple[str, int]]:
    """(counter, number) of what a put's pieces belong to. What may be an inode may be a content too."""
    for piece in put.pieces:
        number = int.from_bytes(piece.owner[:8], "little")
        if put.kind == ChunkKind.DATA and 0 < number < 1 << 48:
            yield "inode", number
            yield "content", number
            yield "part", min(int.from_bytes(piece.owner[8:], "little"), (1 << 48) - 1)
        elif put.kind in (ChunkKind.VOLUME, ChunkKind.MAP) and number < 1 << 48:
            yield "volume", number


def jump(tx: Tx) -> None:
    """Every counter far beyond what anybody may remember; before anything new is given a number."""
    for name in COUNTERS:
        row = tx.one("SELECT value FROM counters WHERE name = ?", name)
        raise_counter(tx, name, (row[0] if row else 0) + GAP)


def mark(tx: Tx, note: str) -> None:
    """Nothing is deleted from drives until the operator confirms."""
    tx.run("INSERT INTO settings (name, value) VALUES (?, ?)", REBUILT, msgspec.msgpack.encode(note))


def unconfirmed(reader: Reader) -> str:
    """What was rebuilt and not yet confirmed; "" when nothing is."""
    row = reader.one("SELECT value FROM settings WHERE name = ?", REBUILT)
    return "" if row is None else msgspec.msgpack.decode(row[0], type=str)


def confirm(tx: Tx) -> bool:
    return bool(tx.run("DELETE FROM settings WHERE name = ?", REBUILT))

