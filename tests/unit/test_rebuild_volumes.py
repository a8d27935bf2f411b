"""Volumes put together from what lies on drives: which checkpoint, which chunks behind it, which log segments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from trivium.cluster import logfile
from trivium.cluster.errors import ChunkLost
from trivium.cluster.logfile import LogRecord
from trivium.cluster.model import ChunkId, ChunkKind, Piece, PieceFlag
from trivium.cluster.salvage import FoundPut, PutKey, Salvaged
from trivium.cluster.salvagelog import SegmentCopy
from trivium.cluster.wire import LogHead
from trivium.nbd.checkpoint import Index, encode_index
from trivium.nbd.journal import DATA, encode_record, encode_table
from trivium.nbd.map import BLOCK
from trivium.nbd.refoundvolumes import FoundVolume, _Assembly, find

VOLUME = 5
OWNER = VOLUME.to_bytes(16, "little")


@dataclass
class Shelf:
    """A Salvage of chunks that are stated."""

    puts: dict[ChunkId, FoundPut] = field(default_factory=dict)
    data: dict[ChunkId, Salvaged] = field(default_factory=dict)
    drives: tuple[()] = ()

    def rest(self, put: FoundPut) -> Salvaged:
        return self.data[put.key.chunk]

    def read(self, put: FoundPut) -> bytes:
        found = self.rest(put)
        if found.lost:
            raise ChunkLost(found.why)
        return found.data

    def _add(self, data: bytes, kind: int, version: int, lease: int, flags: int) -> ChunkId:
        chunk = ChunkId(1, len(self.puts) + 1)
        key = PutKey(chunk, b"n" * 16, 4, 2, "isa_l_rs_cauchy", len(data))
        pieces = (Piece(OWNER, 0, len(data), version, 0, flags),)
        self.puts[chunk] = FoundPut(key, kind, pieces, 0, lease=lease)
        self.data[chunk] = Salvaged(data)
        return chunk

    def chunk(self, number: int, first: int, last: int, *, lease: int = 1, flags: int = DATA) -> ChunkId:
        pieces = [(100 + number, 1, DATA, first, 0, 0)]
        table = encode_table(OWNER, number, first, last, 1, pieces)
        return self._add(bytes(BLOCK) + table, ChunkKind.VOLUME, last, lease, flags)

    def checkpoint(self, upto: int, chunks: list[tuple[int, ChunkId]], **more: Any) -> ChunkId:
        rows = [(number, chunk, 0, 2 * BLOCK, 1, upto, 1, 1) for number, chunk in chunks]
        index = Index(2, upto, 1 << 20, 50, 7, rows, more.get("maps", []), [])
        return self._add(encode_index(index), ChunkKind.MAP, upto, 1, int(PieceFlag.MAP))

    def lose(self, chunk: ChunkId, start: int, end: int) -> None:
        self.data[chunk] = Salvaged(self.data[chunk].data, ((start, end),), "gone")

    def volume(self) -> FoundVolume:
        (found,) = find(self, self.puts.get, {})  # type: ignore[arg-type]
        return found


def ranges(found: FoundVolume) -> list[tuple[int, int, int]]:
    return [(part.chunk.counter, part.first, part.last) for part in found.parts]


def test_chunks_follow_the_newest_checkpoint_that_loads() -> None:
    shelf = Shelf()
    old = shelf.chunk(1, 1, 10)
    shelf.checkpoint(5, [])
    newest = shelf.checkpoint(10, [(1, old)])
    unloadable = shelf.checkpoint(20, [], maps=[(9, ChunkId(7, 7), 0, 4096, 1, 1)])
    shelf.chunk(2, 11, 15)
    shelf.chunk(3, 16, 16)
    shelf.chunk(4, 18, 30)  # 17 is missing
    found = shelf.volume()
    assert found.checkpoint is not None and found.checkpoint.chunk == newest != unloadable
    assert (found.upto, found.size, found.used) == (10, 1 << 20, 7 * BLOCK)
    assert ranges(found) == [(1, 1, 10), (5, 11, 15), (6, 16, 16)]
    assert [part.born for part in found.parts] == [10, 0, 0]
    assert any("ends with write 16: 1 chunks of later writes" in note for note in found.notes)


def test_of_two_that_claim_the_same_writes_the_later_lease_counts() -> None:
    shelf = Shelf()
    shelf.chunk(1, 1, 10, lease=3)
    shelf.chunk(2, 11, 40, lease=3)  # put, and its writer was killed before it committed
    mine = shelf.chunk(2, 11, 20, lease=4)
    shelf.chunk(3, 21, 30, lease=4)
    found = shelf.volume()
    assert ranges(found) == [(1, 1, 10), (mine.counter, 11, 20), (4, 21, 30)] and found.lease == 4


def test_a_cleaners_copies_and_stale_chunks_are_left_out() -> None:
    shelf = Shelf()
    one = shelf.chunk(1, 1, 10)
    shelf.checkpoint(10, [(1, one)])
    shelf.chunk(7, 11, 11, flags=int(PieceFlag.COPY))
    shelf.chunk(6, 5, 9)
    assert ranges(shelf.volume()) == [(1, 1, 10)]


def test_a_chunk_whose_blocks_are_lost_keeps_its_place_when_its_table_reads() -> None:
    shelf = Shelf()
    shelf.lose(shelf.chunk(1, 1, 4), 0, BLOCK)
    torn = shelf.chunk(2, 5, 9)
    assert ranges(shelf.volume()) == [(1, 1, 4), (2, 5, 9)]
    shelf.lose(torn, BLOCK, 2 * BLOCK)
    found = shelf.volume()
    assert ranges(found) == [(1, 1, 4)] and any("left out" in note for note in found.notes)


def test_without_a_checkpoint_the_size_is_where_the_last_write_ends() -> None:
    shelf = Shelf()
    shelf.chunk(1, 1, 1)
    found = shelf.volume()
    assert found.size == 102 * BLOCK and not found.sized


# ---- logs ---------------------------------------------------------------------------------------------------------


class At:
    """A drive, as far as its path goes."""

    def __init__(self, path: str) -> None:
        self.path = path


def segment(
    name: str, lease: int, first: int, previous: bytes, count: int, *, write: int = 1
) -> tuple[list[SegmentCopy], list[LogRecord]]:
    """Copies on some drives; the second one lacks the last record. Each record holds one write, from `write` on."""
    payloads = [
        b"".join(encode_record(w, w, [(7, 2, DATA, w, 0)], memoryview(bytes(2 * BLOCK))))
        for w in range(write, write + count)
    ]
    records, _ = logfile.chained([LogRecord(0, 3, 1, 0, 0, bytes(16), p) for p in payloads], first, previous)
    head = LogHead(name.encode().ljust(16), 2, OWNER, 9, lease, first, previous)
    copies = []
    for number, path in enumerate(("a", "b")):
        kept = records[: len(records) - 1] if number and records else records
        data = logfile.encode_append(kept, head.segment) if kept else b""
        copies.append(SegmentCopy(At(path), head, logfile.scan(data, head.segment, first, previous)))  # type: ignore[arg-type]
    return copies, records


def chain(*segments: list[SegmentCopy]) -> FoundVolume:
    copies = [copy for one in segments for copy in one]
    return _Assembly(Shelf(), VOLUME, (), copies, {"a": b"a" * 16, "b": b"b" * 16}).volume()  # type: ignore[arg-type]


def test_segments_of_one_chain_follow_each_other_by_hash() -> None:
    one, records = segment("one", 1, 1, bytes(16), 4)
    two, more = segment("two", 2, 4, records[2].hash, 3)  # a takeover closed the first behind record 3
    found = chain(two, one)
    assert [(e.segment.strip(), e.first_seq, e.last_seq, len(e.drives)) for e in found.log] == [
        (b"one", 1, 3, 2), (b"two", 4, None, 2),
    ]  # fmt: skip
    assert found.size == 9 * BLOCK and found.lease == 2 and len(more) == 3


def test_a_replica_without_the_last_record_is_not_named_for_it() -> None:
    one, records = segment("one", 1, 1, bytes(16), 4)
    two, _ = segment("two", 2, 5, records[3].hash, 1)
    assert [entry.drives for entry in chain(one, two).log] == [(b"a" * 16,), (b"a" * 16, b"b" * 16)]


@pytest.mark.parametrize("lease", [1, 2])
def test_a_segment_made_ahead_of_a_record_that_was_never_stored_does_not_hide_the_log(lease: int) -> None:
    one, _ = segment("one", 1, 1, bytes(16), 4)
    ahead, _ = segment("ahead", lease, 9, b"?" * 16, 0)
    assert [entry.segment.strip() for entry in chain(one, ahead).log] == [b"one"]


def test_a_segment_of_another_chain_is_left_out() -> None:
    other, _ = segment("other", 1, 1, b"x" * 16, 5)
    two, _ = segment("two", 2, 4, b"y" * 16, 3)
    assert [entry.segment.strip() for entry in chain(other, two).log] == [b"two"]


# ---- chunks against logs --------------------------------------------------------------------------------------------


def merged(shelf: Shelf, *segments: list[SegmentCopy]) -> FoundVolume:
    copies = [copy for one in segments for copy in one]
    assembly = _Assembly(shelf, VOLUME, shelf.puts.values(), copies, {"a": b"a" * 16, "b": b"b" * 16})  # type: ignore[arg-type]
    return assembly.volume()


def test_a_chunk_that_was_never_committed_gives_way_to_what_the_next_lease_logged() -> None:
    """Its writer was killed, the next one went on behind what the log had: those numbers are other writes."""
    shelf = Shelf()
    shelf.chunk(1, 1, 10, lease=1)
    shelf.chunk(2, 11, 40, lease=1)
    first, records = segment("one", 1, 1, bytes(16), 10, write=11)
    second, _ = segment("two", 2, 11, records[-1].hash, 5, write=21)
    assert ranges(merged(shelf, first, second)) == [(1, 1, 10)]
    assert ranges(merged(shelf, first)) == [(1, 1, 10), (2, 11, 40)], "accepted, and nothing contradicts it"


def test_a_committed_chunk_stays_beside_copies_of_its_records() -> None:
    shelf = Shelf()
    shelf.chunk(1, 1, 10, lease=1)
    first, records = segment("one", 1, 1, bytes(16), 10)
    copies, _ = segment("two", 2, 9, records[7].hash, 2, write=9)  # what not all replicas had, taken over unchanged
    behind, _ = segment("three", 2, 11, records[-1].hash, 3, write=11)
    assert ranges(merged(shelf, first, copies, behind)) == [(1, 1, 10)]
    shelf.chunk(2, 11, 13, lease=2)  # then the first segment was trimmed
    assert ranges(merged(shelf, copies, behind)) == [(1, 1, 10), (2, 11, 13)]
