"""Shard, log and root files: what was written is read; any changed byte is noticed; junk raises ClusterErrors only."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.cluster import logfile, rootfile, shardfile
from trivium.cluster.errors import ClusterError, Corrupt
from trivium.cluster.logfile import LogRecord, Tail
from trivium.cluster.model import (
    BLOCK,
    Ballot,
    ChunkId,
    ClusterMap,
    DriveRow,
    Piece,
    Root,
    RootSlot,
)
from trivium.cluster.rootfile import RootHead, Slot
from trivium.cluster.shardfile import ShardSpec
from trivium.cluster.wire import LogHead

u64 = st.integers(0, (1 << 64) - 1)
u32 = st.integers(0, (1 << 32) - 1)
id16 = st.binary(min_size=16, max_size=16)
pieces = st.lists(st.builds(Piece, id16, u64, u64, u64, u32, u32, u64), max_size=90).map(tuple)


@st.composite
def shard_files(draw: st.DrawFn) -> tuple[ShardSpec, int, bytes]:
    k, m = draw(st.integers(1, 8)), draw(st.integers(0, 4))
    size = draw(st.sampled_from([0, 4096, BLOCK - 4096, BLOCK, BLOCK + 4096, 3 * BLOCK + 8192]))
    spec = ShardSpec(
        draw(id16), ChunkId(draw(u64), draw(u64)), draw(id16), k, m, "isa_l_rs_cauchy", draw(st.integers(1, 4)),
        draw(st.integers(0, k * size)), size, draw(pieces), draw(u64), draw(u64),
    )  # fmt: skip
    index = draw(st.integers(0, k + m - 1))
    body = draw(st.binary(min_size=1, max_size=64)) * size
    body = body[:size]
    return spec, index, shardfile.build_header(spec, index, body) + body


@given(shard_files())
@settings(max_examples=60, deadline=None)
def test_a_shard_says_what_was_put_into_it(shard: tuple[ShardSpec, int, bytes]) -> None:
    spec, index, data = shard
    header = shardfile.verify_file(data)
    assert header.spec == spec and header.index == index
    assert header.data_offset == shardfile.header_size(len(spec.pieces), spec.shard_size)
    assert header.data_offset % 4096 == 0


@given(shard_files(), st.data())
@settings(max_examples=150, deadline=None)
def test_any_changed_byte_of_a_shard_is_noticed(shard: tuple[ShardSpec, int, bytes], data: st.DataObject) -> None:
    _, _, good = shard
    bad = bytearray(good)
    at = data.draw(st.integers(0, len(bad) - 1))
    bad[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Corrupt):
        shardfile.verify_file(bytes(bad))


@given(shard_files(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_shard_cut_short_is_noticed(shard: tuple[ShardSpec, int, bytes], data: st.DataObject) -> None:
    _, _, good = shard
    with pytest.raises(Corrupt):
        shardfile.verify_file(good[: data.draw(st.integers(0, len(good) - 1))])


def test_a_block_of_another_put_of_the_same_shard_does_not_verify() -> None:
    body = bytes(BLOCK)
    specs = [ShardSpec(b"c" * 16, ChunkId(1, 2), n * 16, 1, 1, "isa_l_rs_cauchy", 1, 9, BLOCK) for n in (b"a", b"b")]
    mine, other = (shardfile.parse_header(shardfile.build_header(s, 0, body)) for s in specs)
    shardfile.verify_blocks(mine, 0, body)
    crossed = shardfile.ShardHeader(mine.spec, 0, mine.header_length, mine.seed, other.block_crcs)
    assert shardfile.bad_blocks(crossed, 0, body) == [0]


@given(st.binary(max_size=9000))
@settings(max_examples=100, deadline=None)
def test_junk_is_corrupt_everywhere(junk: bytes) -> None:
    for prefix in (b"", shardfile.MAGIC + b"\1\0", logfile.HEAD_MAGIC + b"\1\0", rootfile.MAGIC + b"\1\0"):
        data = (prefix + junk).ljust(4096, b"\0")
        for parse in (shardfile.verify_file, logfile.parse_head, rootfile.parse_head):
            with pytest.raises(ClusterError):
                parse(data)  # type: ignore[operator]
    with pytest.raises(Corrupt):
        rootfile.newest(b"d" * 16, junk.ljust(rootfile.FILE_SIZE, b"\0"))
    logfile.scan(junk, b"s" * 16, 1, logfile.NO_HASH)


# ---- logs ---------------------------------------------------------------------------------------------------

SEGMENT = b"S" * 16
payloads = st.lists(st.binary(max_size=300), min_size=1, max_size=6)


def records(bodies: list[bytes], first: int = 5, previous: bytes = b"p" * 16) -> tuple[list[LogRecord], bytes]:
    return logfile.chained([LogRecord(0, 1, 3, 7, 9, b"", body) for body in bodies], first, previous)


def encoded(batches: list[list[bytes]]) -> tuple[list[LogRecord], list[bytes]]:
    linked, _ = records([body for batch in batches for body in batch])
    parts, at = [], 0
    for batch in batches:
        parts.append(logfile.encode_append(linked[at : at + len(batch)], SEGMENT))
        at += len(batch)
    return linked, parts


@given(st.lists(payloads, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_a_log_reads_back_and_ends_at_zeros(batches: list[list[bytes]]) -> None:
    linked, parts = encoded(batches)
    data = b"".join(parts)
    assert len(data) % 8 == 0
    scan = logfile.scan(data + bytes(4096), SEGMENT, 5, b"p" * 16)
    assert list(scan.records) == linked and scan.end == len(data) and scan.tail is Tail.CLEAN
    assert scan.last_hash == linked[-1].hash and scan.last_seq == linked[-1].seq
    assert not logfile.scan(data, b"T" * 16, 5, b"p" * 16).records, "another segment's records do not verify"


@given(st.lists(payloads, min_size=1, max_size=4), st.data())
@settings(max_examples=200, deadline=None)
def test_any_changed_byte_ends_the_log_there(batches: list[list[bytes]], data: st.DataObject) -> None:
    linked, parts = encoded(batches)
    good = b"".join(parts)
    bad = bytearray(good + bytes(512))
    at = data.draw(st.integers(0, len(good) - 1))
    bad[at] ^= data.draw(st.integers(1, 255))
    scan = logfile.scan(bytes(bad), SEGMENT, 5, b"p" * 16)
    hit = sum(1 for offset in logfile.scan(good, SEGMENT, 5, b"p" * 16).offsets if offset <= at) - 1
    assert list(scan.records) == linked[:hit]
    # a later append is there: a hole; only the last append's bytes are behind: torn
    starts = [sum(len(p) for p in parts[:i]) for i in range(len(parts))]
    last_append = max(i for i, start in enumerate(starts) if start <= at) == len(parts) - 1
    assert scan.tail is (Tail.TORN if last_append else Tail.HOLE)
    with pytest.raises(Corrupt):
        logfile.decode_append(bytes(bad[: len(good)]), SEGMENT, 5, b"p" * 16)


@pytest.mark.parametrize("zeros", [0, 1, 65_535, 65_536, 65_537, 200_001])
@pytest.mark.parametrize("at", [None, 0, 100, 65_535, 65_536, 150_000])
def test_the_end_of_a_torn_tail_is_its_last_byte_that_is_not_zero(zeros: int, at: int | None) -> None:
    linked, _ = logfile.chained([LogRecord(0, 1, 1, 0, 0, b"", b"one")], 1, bytes(16))
    whole = logfile.encode_append(linked, b"S" * 16)
    tail = bytearray(zeros)
    if at is not None and at < zeros:
        tail[at] = 1
    scan = logfile.scan(whole + tail, b"S" * 16, 1, bytes(16))
    assert scan.end == len(whole)
    torn = at is not None and at < zeros
    assert (scan.tail, scan.tail_end) == (
        (Tail.TORN, len(whole) + at + 1) if torn and at is not None else (Tail.CLEAN, len(whole))
    )


def test_a_record_is_the_same_in_another_segment_and_another_batch() -> None:
    linked, _ = records([b"one", b"two", b"three"])
    alone = b"".join(logfile.encode_append([r], b"T" * 16) for r in linked)
    together = logfile.encode_append(linked, SEGMENT)
    a = logfile.decode_append(alone, b"T" * 16, 5).records
    b = logfile.decode_append(together, SEGMENT, 5).records
    assert [r.hash for r in a] == [r.hash for r in b] == [r.hash for r in linked]


@given(id16, st.builds(LogHead, id16, st.integers(0, 255), id16, u64, u64, u64, id16), st.data())
@settings(max_examples=60, deadline=None)
def test_a_log_head_survives_and_shows_any_change(cluster: bytes, head: LogHead, data: st.DataObject) -> None:
    good = logfile.build_head(cluster, head)
    assert logfile.parse_head(good) == (cluster, head)
    bad = bytearray(good)
    bad[data.draw(st.integers(0, len(bad) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ClusterError):
        logfile.parse_head(bytes(bad))


# ---- root ---------------------------------------------------------------------------------------------------

DRIVE = b"D" * 16
ballots = st.builds(Ballot, u64, id16)
drive_rows = st.builds(DriveRow, id16, st.text(max_size=5), id16, st.text(max_size=9), st.floats(0, 9))
roots = st.builds(
    Root,
    st.builds(ClusterMap, st.integers(0, 99), st.lists(drive_rows, max_size=3).map(tuple)),
    st.lists(id16, max_size=3).map(tuple),
    st.just(()),
    st.just(()),
)
slots = st.builds(RootSlot, ballots, ballots, st.integers(0, 1 << 40), st.none() | roots)


@given(slots, st.integers(1, 1 << 60), st.data())
@settings(max_examples=100, deadline=None)
def test_a_root_slot_survives_and_shows_any_change(value: RootSlot, generation: int, data: st.DataObject) -> None:
    good = rootfile.build_slot(DRIVE, Slot(generation, value))
    assert rootfile.parse_slot(DRIVE, good.ljust(9000, b"x")) == Slot(generation, value)
    with pytest.raises(Corrupt):
        rootfile.parse_slot(b"E" * 16, good)
    bad = bytearray(good)
    bad[data.draw(st.integers(0, len(bad) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Corrupt):
        rootfile.parse_slot(DRIVE, bytes(bad))


@given(slots, slots, st.data())
@settings(max_examples=60, deadline=None)
def test_the_newest_valid_slot_counts(old: RootSlot, new: RootSlot, data: st.DataObject) -> None:
    file = bytearray(rootfile.FILE_SIZE)
    file[: rootfile.HEAD_SIZE] = rootfile.build_head(RootHead(b"c" * 16, DRIVE))
    for generation, value in ((7, old), (8, new)):
        at = rootfile.slot_offset(generation)
        slot = rootfile.build_slot(DRIVE, Slot(generation, value))
        file[at : at + len(slot)] = slot
    assert rootfile.newest(DRIVE, bytes(file)) == Slot(8, new)
    file[rootfile.slot_offset(8) + data.draw(st.integers(0, len(slot) - 1))] ^= 64
    assert rootfile.newest(DRIVE, bytes(file)) == Slot(7, old)
    file[rootfile.slot_offset(7)] ^= 1
    with pytest.raises(Corrupt):
        rootfile.newest(DRIVE, bytes(file))
