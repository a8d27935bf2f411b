"""Every parser of what lies on a drive, fed with damaged files of its own kind: it answers, or refuses with an error of
its own class, and never with anything else. Mutations: bits, cuts, zeros, splices, repeated stretches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.cluster import CLUSTER
from tests.fakes.shards import shard_file
from tests.fakes.simdisk import SimFiles
from trivium.cluster import logfile, rootfile, shardfile
from trivium.cluster.drivedir import DriveDir
from trivium.cluster.driveverify import verify
from trivium.cluster.errors import ClusterError, Corrupt, Refused
from trivium.cluster.logfile import LogRecord
from trivium.cluster.model import Ballot, ChunkId, ClusterMap, Group, Placed, Root, RootSlot
from trivium.cluster.store import Store
from trivium.cluster.wire import LogHead, PutShard
from trivium.metadata import dump
from trivium.nbd import checkpoint, journal
from trivium.nbd.errors import Damaged

DRIVE, SEGMENT = b"D" * 16, b"S" * 16
CHUNK = ChunkId(7, 0x1234)
HEAD = LogHead(SEGMENT, 1, bytes(16), 0, 0, 1, bytes(16))


def root_file() -> bytes:
    ballot = Ballot(3, b"s" * 16)
    slot = RootSlot(ballot, ballot, 9, Root(ClusterMap(4), (DRIVE,), (), ()))
    file = bytearray(rootfile.FILE_SIZE)
    file[: rootfile.HEAD_SIZE] = rootfile.build_head(rootfile.RootHead(CLUSTER, DRIVE))
    for generation in (1, 2):
        built = rootfile.build_slot(DRIVE, rootfile.Slot(generation, slot))
        at = rootfile.slot_offset(generation)
        file[at : at + len(built)] = built
    return bytes(file)


def log_records() -> bytes:
    linked, _ = logfile.chained([LogRecord(0, 1, 1, 0, 0, b"", b"x" * n) for n in (1, 200, 33)], 1, bytes(16))
    return logfile.encode_append(linked, SEGMENT)


def volume_record() -> bytes:
    return b"".join(journal.encode_record(5, 7, [(0, 1, 1, 5, 0), (9, 4, 4, 7, 0)], memoryview(bytes(4096))))


def map_index() -> bytes:
    rows = [(1, CHUNK, 0, 4096, 1, 2, 1, 1)]
    return checkpoint.encode_index(checkpoint.Index(2, 9, 4096, 3, 1, rows, [(2, CHUNK, 0, 4096, 1, 1)], [(0, 9)]))


def dump_index() -> bytes:
    placed = Placed(CHUNK, b"n" * 16, 10, 0, 0, Group(1, 1, 1, 0, (DRIVE,)))
    return dump._encode(dump.Index(3, b"h" * 16, b"d" * 16, 10, (dump.Part(placed, b"p" * 16),)))


FORMATS: dict[str, tuple[bytes, Callable[[bytes], object], tuple[type[Exception], ...]]] = {
    "shard header": (shard_file(CHUNK, 0), shardfile.parse_header, (Corrupt,)),
    "shard": (shard_file(CHUNK, 0), shardfile.verify_file, (Corrupt,)),
    "log head": (logfile.build_head(CLUSTER, HEAD), logfile.parse_head, (Corrupt, Refused)),
    "log records": (log_records(), lambda data: logfile.scan(data, SEGMENT, 1, bytes(16)), ()),
    "log append": (log_records(), lambda data: logfile.decode_append(data, SEGMENT, 1), (Corrupt,)),
    "root head": (root_file(), rootfile.parse_head, (Corrupt, Refused)),
    "root slot": (root_file()[rootfile.HEAD_SIZE :], lambda data: rootfile.parse_slot(DRIVE, data), (Corrupt,)),
    "root": (root_file(), lambda data: rootfile.newest(DRIVE, data), (Corrupt,)),
    "dump index": (dump_index(), dump.decode_index, (Corrupt,)),
    "volume record": (volume_record(), journal.decode_record, (Damaged,)),
    "volume table": (volume_record().ljust(8192, b"\1"), journal.decode_table, (Damaged,)),
    "volume footer": (bytes(4096), journal.table_length, (Damaged,)),
    "checkpoint": (map_index(), checkpoint.decode_index, (Damaged,)),
    "checkpoint part": (checkpoint.encode_part([(1, CHUNK, 0, 4096, 1, 2, 1, 1)]), checkpoint.decode_part, (Damaged,)),
}


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """`good` after one to four mutations, mostly near its beginning, where the fields are."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        size = max(len(data), 1)
        at = draw(st.one_of(st.integers(0, min(size, 200) - 1), st.integers(0, size - 1)))
        how = draw(st.sampled_from(("bit", "cut", "zeros", "junk", "repeat")))
        length = draw(st.integers(1, 64))
        if how == "bit" and data:
            data[min(at, len(data) - 1)] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del data[at:]
        elif how == "zeros":
            data[at : at + length] = bytes(length)
        elif how == "junk":
            data[at : at + length] = draw(st.binary(min_size=length, max_size=length))
        else:
            data[at:at] = data[max(0, at - length) : at]
    return bytes(data)


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_is_an_answer_or_an_error_of_the_right_class(name: str, data: st.DataObject) -> None:
    good, parse, allowed = FORMATS[name]
    bad = data.draw(damaged(good))
    with suppress(*allowed):
        parse(bad)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_drive_with_any_damaged_file_is_verified_to_the_end(data: st.DataObject) -> None:
    files = SimFiles(1)
    Store.format(files, "/d", cluster=CLUSTER, drive=DRIVE, ballast=4096)
    store = Store.open(files, "/d", cluster=CLUSTER)
    shard = shard_file(CHUNK, 0)
    store.shards.write(PutShard(DRIVE, CHUNK, 0, len(shard)), memoryview(shard))
    store.logs.create(HEAD, 64 << 10, 0)
    store.logs.append(SEGMENT, 1, memoryview(log_records()))
    store.close()
    path = data.draw(st.sampled_from([p for p in files.paths("/d") if not p.endswith(("ballast", "holder"))]))
    good = files.contents(path)
    bad = data.draw(damaged(good))
    files.replace(path, bad)
    drive = DriveDir.open(files, "/d")
    faults = verify(drive).faults
    assert faults or bad == good or _only_unused(path, good, bad), path
    drive.close()
    with suppress(ClusterError):
        Store.open(files, "/d", cluster=CLUSTER).close()


def _only_unused(path: str, good: bytes, bad: bytes) -> bool:
    """The change lies behind a root slot's CRC, which nothing reads; or an open log segment merely ends earlier, as
    after a crash: what is missing is known from the chain and the other replicas, not from the file."""
    if path.endswith(".open") and good.startswith(bad.rstrip(b"\0")):
        return True
    if not path.endswith("root") or len(good) != len(bad):
        return False
    start = rootfile.slot_offset(1)
    used = start + 64 + int.from_bytes(good[start + 56 : start + 60], "little")
    first = rootfile.slot_offset(2)
    same_head = good[: rootfile.HEAD_SIZE] == bad[: rootfile.HEAD_SIZE]
    return same_head and good[start:used] == bad[start:used] and good[first:start] == bad[first:start]
