"""Volumes out of what lies on drives: their newest checkpoint, the chunks behind it, their logs. For a pool whose rows
are lost; nothing here writes to a drive.

    MAP chunks --newest index that loads--> the map as of write N, its chunks
    VOLUME chunks behind N --first write = N + 1, the highest lease--> N' ... as far as they follow each other
    log segments --head's owner, hash by hash, backwards from the newest--> the log's chain

Invariants:
1. Chunks behind the checkpoint follow each other by write number, as recovery demands; where two claim the same writes
   the one of the later lease counts (the other was never committed, or recovery would have gone on from it).
2. A cleaner's copies behind the checkpoint are left out: their sources are still there, for a source dies with a
   checkpoint only. Chunk numbers are never used twice in one volume.
3. Segments are of one chain only if each begins with the hash of the record before it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import msgspec

from trivium.cluster.errors import ChunkLost
from trivium.cluster.model import ChunkId, ChunkKind, PieceFlag, Profile, Ref, SegmentEntry
from trivium.cluster.salvage import FoundPut, Salvage
from trivium.cluster.salvagelog import SegmentCopy, SegmentFiles
from trivium.metadata.refoundrows import Enter
from trivium.metadata.tx import Tx
from trivium.metadata.volumes import decode_chain
from trivium.nbd.checkpoint import Index, decode_index, decode_part
from trivium.nbd.errors import Damaged
from trivium.nbd.journal import Table, decode_record, decode_table, table_length
from trivium.nbd.map import BLOCK
from trivium.nbd.volumelog import KIND_VOLUME

LEASE_GAP = 1 << 20  # of lease numbers: drives that are away may know higher ones
_encode = msgspec.msgpack.Encoder().encode

Chosen = Callable[[ChunkId], FoundPut | None]
"""The put that a chunk's row names; None without a row."""


@dataclass(frozen=True, slots=True)
class Part:
    """A chunk of the volume. `length`: of its data."""

    chunk: ChunkId
    length: int
    kind: int
    first: int
    last: int
    born: int


class Logged(NamedTuple):
    """A record of the volume's log: its writer's lease, its writes, its hash."""

    lease: int
    first: int
    last: int
    hash: bytes


Behind = tuple[FoundPut, Table]
"""A chunk behind the checkpoint."""


@dataclass(slots=True)
class FoundVolume:
    id: int
    size: int = 0
    upto: int = 0  # what the checkpoint covers
    checkpoint: Ref | None = None
    used: int = 0
    lease: int = 0  # the highest seen
    parts: list[Part] = field(default_factory=list)
    log: tuple[SegmentEntry, ...] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def sized(self) -> bool:
        """Whether a checkpoint says the size; else it is where the last write ends."""
        return self.checkpoint is not None


def find(salvage: Salvage, chosen: Chosen, ids: Mapping[str, bytes]) -> list[FoundVolume]:
    """Every volume that a chunk or a log segment names. `ids`: drive by path."""
    puts: dict[int, list[FoundPut]] = {}
    for chunk in sorted(salvage.puts):
        put = chosen(chunk)
        if put is not None and put.kind in (ChunkKind.VOLUME, ChunkKind.MAP) and len(put.pieces) == 1:
            puts.setdefault(int.from_bytes(put.pieces[0].owner, "little"), []).append(put)
    files = SegmentFiles(salvage.drives)
    logs: dict[int, list[SegmentCopy]] = {}
    for copy in files.copies(KIND_VOLUME):
        logs.setdefault(int.from_bytes(copy.head.owner, "little"), []).append(copy)
    return [
        _Assembly(salvage, number, puts.get(number, ()), logs.get(number, ()), ids).volume()
        for number in sorted(puts.keys() | logs.keys())
        if 0 < number < 1 << 48
    ]


class _Assembly:
    def __init__(
        self, salvage: Salvage, number: int, puts: Iterable[FoundPut], logs: Iterable[SegmentCopy],
        ids: Mapping[str, bytes],
    ) -> None:  # fmt: skip
        self._salvage, self._ids = salvage, ids
        self._puts = {put.key.chunk: put for put in puts}
        self._logs = list(logs)
        self._owner = number.to_bytes(16, "little")
        self._numbers: set[int] = set()  # of chunks in the map
        self._records: set[Logged] = set()
        self._end = 0  # of the last write that was read, in bytes
        self.found = FoundVolume(number)

    def volume(self) -> FoundVolume:
        found = self.found
        found.lease = max([0, *(put.lease for put in self._puts.values()), *(copy.head.lease for copy in self._logs)])
        self._take_log()
        self._take_checkpoint()
        self._take_chunks()
        found.size = max(found.size, self._end, BLOCK)
        return found

    # ---- the checkpoint ---------------------------------------------------------------------------------------

    def _take_checkpoint(self) -> None:
        maps = [put for put in self._puts.values() if put.kind == ChunkKind.MAP]
        best: tuple[tuple[int, int, int], FoundPut, Index] | None = None
        for put in sorted(maps, key=lambda put: -put.pieces[0].version):
            if best is not None and put.pieces[0].version < best[0][0]:
                break
            index = self._index(put)
            order = (index.upto, put.lease, index.next_number) if index is not None else (0, 0, 0)
            if index is not None and (best is None or order > best[0]) and self._loads(index):
                best = order, put, index
        if best is not None:
            self._adopt(best[1], best[2])
        elif maps:
            self.found.notes.append("its checkpoint cannot be read: only what follows from its first write on is there")

    def _index(self, put: FoundPut) -> Index | None:
        try:
            index = decode_index(self._salvage.read(put))
        except (ChunkLost, Damaged):
            return None
        return index if index.upto == put.pieces[0].version and index.size > 0 else None

    def _loads(self, index: Index) -> bool:
        """Its pages and parts can be read; data chunks need not."""
        for chunk in chain((row[0] for row in index.parts), (row[1] for row in index.map_chunks)):
            put = self._puts.get(chunk)
            if put is None or self._salvage.rest(put).lost:
                return False
        return True

    def _adopt(self, put: FoundPut, index: Index) -> None:
        found = self.found
        found.checkpoint = Ref(put.key.chunk, 0, put.pieces[0].length)
        found.upto, found.size, found.used = index.upto, index.size, index.used_blocks * BLOCK
        rows = list(index.chunks)
        for part in index.parts:
            rows += decode_part(self._salvage.read(self._puts[part[0]])[part[1] : part[1] + part[2]])
            found.parts.append(Part(part[0], part[1] + part[2], ChunkKind.MAP, found.upto, found.upto, found.upto))
        for _, chunk, offset, length, *_ in index.map_chunks:
            found.parts.append(Part(chunk, offset + length, ChunkKind.MAP, found.upto, found.upto, found.upto))
        for number, chunk, offset, length, first, last, *_ in rows:
            self._numbers.add(number)
            found.parts.append(Part(chunk, offset + length, ChunkKind.VOLUME, first, max(first, last), found.upto))

    # ---- what was written behind it -----------------------------------------------------------------------------

    def _take_chunks(self) -> None:
        found = self.found
        known = {part.chunk for part in found.parts}
        later: dict[int, list[Behind]] = {}
        unreadable = 0
        for put in self._puts.values():
            piece = put.pieces[0]
            if put.kind != ChunkKind.VOLUME or put.key.chunk in known or piece.flags & PieceFlag.COPY:
                continue
            if piece.version > found.upto:
                table = self._table(put)
                if table is None:
                    unreadable += 1
                else:
                    later.setdefault(table.first, []).append((put, table))
        at = found.upto
        while (best := self._next(later, at)) is not None:
            put, table = best
            if table.number in self._numbers:
                found.notes.append(f"chunk {put.key.chunk} has a number that another one has: left out")
                break
            self._numbers.add(table.number)
            found.parts.append(Part(put.key.chunk, put.key.length, ChunkKind.VOLUME, table.first, table.last, 0))
            self._reach(piece[0] + piece[1] for piece in table.pieces)
            at = table.last
        beyond = sum(1 for first in later if first > at + 1)
        if beyond or unreadable:
            found.notes.append(
                f"it ends with write {at}: {beyond + unreadable} chunks of later writes are left out, for what was "
                "written before them is missing"
            )

    def _next(self, later: Mapping[int, Sequence[Behind]], at: int) -> Behind | None:
        """The chunk that goes on behind write `at`: of the latest lease, and not displaced."""
        for best in sorted(later.get(at + 1, ()), key=lambda pair: (pair[0].lease, pair[1].last), reverse=True):
            lease = best[0].lease
            builds = any(put.lease > lease for put, _ in later.get(best[1].last + 1, ()))
            if builds or not self._displaced(best[1], lease):
                return best
        return None

    def _displaced(self, table: Table, lease: int) -> bool:
        """A later lease has logged writes of this range itself: it never knew the chunk, which was not committed."""
        before = {record.hash for record in self._records if record.lease <= lease}
        return any(
            record.lease > lease
            and record.hash not in before
            and record.first <= table.last
            and record.last >= table.first
            for record in self._records
        )

    def _table(self, put: FoundPut) -> Table | None:
        """The table at the chunk's end; what lies before it may be lost."""
        found = self._salvage.rest(put)
        whole = len(found.data)
        intact = whole if not found.lost or found.lost[-1][1] < whole else 0
        start = max((last for _, last in found.lost), default=0)
        try:
            if intact - start < BLOCK or table_length(found.data[-BLOCK:]) > intact - start:
                return None
            table = decode_table(found.data[start:])
        except Damaged:
            return None
        return table if table.volume == self._owner and not table.copies else None

    def _reach(self, ends: Iterable[int]) -> None:
        self._end = max(self._end, *(end * BLOCK for end in ends), 0)

    # ---- the log --------------------------------------------------------------------------------------------------

    def _take_log(self) -> None:
        by_segment: dict[bytes, list[SegmentCopy]] = {}
        for copy in self._logs:
            by_segment.setdefault(copy.head.segment, []).append(copy)
        newest_first = sorted(by_segment.values(), key=lambda c: (c[0].head.lease, c[0].head.first_seq), reverse=True)
        entries: list[SegmentEntry] = []
        for at, copies in enumerate(newest_first):
            entries = self._chain(newest_first[at:])
            if len(entries) > 1 or any(copy.scan.records for copy in copies):
                break  # else: made ahead of a record that was never stored, or all before it was trimmed
        self.found.log = tuple(entries)
        for copy in self._logs:
            self._read_records(copy)

    def _chain(self, newest_first: list[list[SegmentCopy]]) -> list[SegmentEntry]:
        """The first of these as the open end, and what leads to it."""
        head = newest_first[0][0].head
        entries = [SegmentEntry(head.segment, self._drives(newest_first[0]), head.first_seq, None)]
        for copies in newest_first[1:]:
            before = copies[0].head
            holding = [copy for copy in copies if _holds(copy, head.first_seq - 1, head.previous_hash)]
            if holding and before.first_seq < head.first_seq:
                drives = self._drives(holding)
                entries.insert(0, SegmentEntry(before.segment, drives, before.first_seq, head.first_seq - 1))
                head = before
        return entries

    def _drives(self, copies: Iterable[SegmentCopy]) -> tuple[bytes, ...]:
        return tuple(dict.fromkeys(self._ids[copy.drive.path] for copy in copies))

    def _read_records(self, copy: SegmentCopy) -> None:
        named = any(entry.segment == copy.head.segment for entry in self.found.log)
        for record in copy.scan.records:
            try:
                decoded = decode_record(memoryview(record.payload))
            except Damaged as error:
                self.found.notes.append(f"record {record.seq} of its log: {error}")
                continue
            self._records.add(Logged(copy.head.lease, decoded.first, decoded.last, record.hash))
            if named:
                self._reach(extent[0] + extent[1] for extent in decoded.extents)


def _holds(copy: SegmentCopy, seq: int, record_hash: bytes) -> bool:
    number = seq - copy.head.first_seq
    return 0 <= number < len(copy.scan.records) and copy.scan.records[number].hash == record_hash


# ---- rows -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Entered:
    """A volume as it is in the rows now."""

    name: str
    size: int
    sized: bool
    notes: list[str]


def enter(tx: Tx, found: FoundVolume, entry: Enter, profile: Profile) -> Entered | None:
    """Make the rows say what was found. None: the restored state was about to remove the volume. A restored row keeps
    its name, and all of it when what was found is older."""
    row = tx.one("SELECT name, size, upto, lease FROM volumes WHERE id = ?", found.id)
    notes = list(found.notes)
    if row is not None and row[0] == "":
        return None
    lease = max(found.lease, row[3] if row is not None else 0) + LEASE_GAP
    if row is not None and row[2] > found.upto:
        notes.append(f"what is on the drives ends before write {row[2]}, which the metadata know: they are kept")
        tx.run("UPDATE volumes SET lease = ?, log = ? WHERE id = ?", lease, _encode(found.log), found.id)
        return Entered(row[0], row[1], True, notes)
    name = row[0] if row is not None else _free_name(tx, found.id)
    size = max(found.size, row[1] if row is not None else 0)
    checkpoint = found.checkpoint or Ref(ChunkId(0, 0), 0, 0)
    created = tx.now
    if row is not None:
        created = tx.all("SELECT created FROM volumes WHERE id = ?", found.id)[0][0]
        tx.run("DELETE FROM volumes WHERE id = ?", found.id)
    tx.run("DELETE FROM volume_chunks WHERE volume = ?", found.id)
    tx.run(
        "INSERT INTO volumes (id, name, size, created, lease, lease_session, upto, checkpoint_session,"
        " checkpoint_counter, checkpoint_length, used, log) VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?)",
        *(found.id, name, size, created, lease, found.upto, checkpoint.chunk.session, checkpoint.chunk.counter),
        *(checkpoint.length, found.used, _encode(found.log)),
    )
    for part in found.parts:
        entry.name_lost(part.chunk, part.length, part.kind, profile)
        tx.run(
            "INSERT INTO volume_chunks (volume, session, counter, first_write, covers_upto, born, died)"
            " VALUES (?, ?, ?, ?, ?, ?, 0)",
            *(found.id, part.chunk.session, part.chunk.counter, part.first, part.last, part.born),
        )
    return Entered(name, size, found.sized or row is not None, notes)


def keep(tx: Tx, files: SegmentFiles, ids: Mapping[str, bytes]) -> dict[int, Entered]:
    """The restored rows are the newest state: volumes stay as they are, their logs are where their segments lie now."""
    copies: dict[bytes, list[SegmentCopy]] = {}
    for copy in files.copies(KIND_VOLUME):
        copies.setdefault(copy.head.segment, []).append(copy)
    kept = {}
    for id, name, size, log in tx.all("SELECT id, name, size, log FROM volumes WHERE name != ''"):
        notes: list[str] = []
        log_now = tuple(_now(entry, copies.get(entry.segment, ()), ids, notes) for entry in decode_chain(log))
        tx.run("UPDATE volumes SET log = ?, lease = lease + ? WHERE id = ?", _encode(log_now), LEASE_GAP, id)
        kept[id] = Entered(name, size, True, notes)
    return kept


def _now(
    entry: SegmentEntry, copies: Iterable[SegmentCopy], ids: Mapping[str, bytes], notes: list[str]
) -> SegmentEntry:
    """On the drives that hold it as far as it counts; unchanged when none is here: one of them may come back."""
    wanted = entry.last_seq or 0
    drives = tuple(dict.fromkeys(ids[copy.drive.path] for copy in copies if copy.scan.last_seq >= wanted))
    if not drives:
        notes.append(f"segment {entry.segment.hex()} of its log is on none of the drives")
        return entry
    return SegmentEntry(entry.segment, drives, entry.first_seq, entry.last_seq)


def forget_logs(tx: Tx, found: Collection[int]) -> list[str]:
    """Volumes of the restored state of which nothing was found on the drives have no log; answers their names."""
    rows = tx.all("SELECT id, name, log FROM volumes WHERE name != '' ORDER BY id")
    lost = [(id, name) for id, name, log in rows if id not in found and log != _encode(())]
    for id, _ in lost:
        tx.run("UPDATE volumes SET log = ? WHERE id = ?", _encode(()), id)
    return [name for _, name in lost]


def _free_name(tx: Tx, number: int) -> str:
    name, count = f"volume-{number}", 1
    while tx.one("SELECT 1 FROM volumes WHERE name = ?", name) is not None:
        count += 1
        name = f"volume-{number}.{count}"
    return name
