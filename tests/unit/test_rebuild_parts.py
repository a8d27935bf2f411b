"""The parts of a rebuild from shards: places, doubtful files, a database as a log, what is written onto drives."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from tests.fakes.metalog import MemoryMetaLog
from tests.fakes.simdisk import Crashed, SimFiles
from tests.unit.test_lostfound import inode, piece, put
from trivium.admin.datadir import ClusterFile, DataDir
from trivium.admin.errors import CommandError
from trivium.cluster import logfile, rootfile
from trivium.cluster.clock import InlineExecutor
from trivium.cluster.drivedir import DriveDir
from trivium.cluster.errors import NotFound
from trivium.cluster.model import Ballot, ClusterMap, PoolRow, Profile, Root, RootSlot
from trivium.cluster.refounddrives import DriveWriter, segment_parts
from trivium.cluster.store import Store
from trivium.cluster.wire import LogHead
from trivium.metadata import database, migrations, recovery, refoundrows, replay, schema
from trivium.metadata.digest import digest
from trivium.metadata.lostfound import Span, assemble
from trivium.metadata.records import RecordKind
from trivium.metadata.refoundlog import NotEqual, records_of
from trivium.metadata.refoundplaces import Groups, TooFewDrives, match, pool_of
from trivium.metadata.tx import Tx

D = [bytes([number]) * 16 for number in range(8)]
POOLS = (PoolRow(1, "default", 2, 1), PoolRow(2, "wide", 4, 2))


# ---- places -----------------------------------------------------------------------------------------------------


def test_every_index_gets_a_drive_that_has_it_even_when_several_want_the_same() -> None:
    assert match(3, {0: (D[0], D[1]), 1: (D[0],), 2: (D[1], D[2])}) == {0: D[1], 1: D[0], 2: D[2]}
    assert match(2, {0: (D[0],), 1: (D[0],)}) == {0: D[0]}, "one of them is missing"


def test_missing_places_are_named_on_drives_that_are_here_and_sets_share_a_group() -> None:
    groups = Groups(POOLS, 10, D[:3], [D[7]])
    place = groups.place(Profile(2, 1), {0: (D[2],), 2: (D[0],)})
    again = groups.place(Profile(2, 1), {0: (D[2],), 1: (D[1],), 2: (D[0],)})
    assert (place.missing, again.missing, place.group) == (0b010, 0, again.group)
    assert groups.made[0].drives == (D[2], D[1], D[0]) and groups.next_id == 11
    assert groups.place(Profile(2, 2), {}).missing == 0b1111 and groups.made[1].drives == (*D[:3], D[7])
    with pytest.raises(TooFewDrives):
        groups.place(Profile(4, 2), {})


def test_a_narrow_group_belongs_to_a_pool_that_is_wider() -> None:
    assert [pool_of(POOLS, Profile(*kind)) for kind in ((2, 1), (1, 1), (3, 2), (9, 3))] == [1, 1, 2, 1]


# ---- files ------------------------------------------------------------------------------------------------------


def layouts(puts: list[object], same: object = None) -> dict[str, list[tuple[int, int, int]]]:
    files = assemble(puts, same) if same else assemble(puts)  # type: ignore[arg-type]
    return {f.name: [(s.offset, s.length, s.put.key.chunk.counter if s.put else 0) for s in f.spans] for f in files}


def test_both_of_one_version_are_kept_as_whole_files() -> None:
    puts = [put(1, piece(inode(5), 0, 100, 2)), put(2, piece(inode(5), 40, 20, 3)), put(3, piece(inode(5), 50, 30, 3))]
    assert layouts(puts) == {
        "inode-5": [(0, 40, 1), (40, 10, 2), (50, 30, 3), (80, 20, 1)],
        "inode-5.other-1": [(0, 40, 1), (40, 10, 2), (50, 10, 2), (60, 20, 3), (80, 20, 1)],
    }


def test_a_later_version_ends_the_doubt() -> None:
    puts = [put(1, piece(inode(5), 0, 10, 2)), put(2, piece(inode(5), 0, 10, 2)), put(3, piece(inode(5), 0, 10, 3))]
    assert layouts(puts) == {"inode-5": [(0, 10, 3)]}
    assert not assemble(puts)[0].doubtful


def test_equal_bytes_are_no_doubt() -> None:
    seen: list[tuple[Span, Span]] = []

    def same(one: Span, other: Span) -> bool:
        seen.append((one, other))
        return True

    puts = [put(1, piece(inode(5), 0, 10, 2, at=3)), put(2, piece(inode(5), 4, 10, 2))]
    assert layouts(puts, same) == {"inode-5": [(0, 4, 1), (4, 10, 2)]}
    assert [(s.offset, s.length, s.chunk_offset) for s in seen[0]] == [(4, 6, 7), (4, 6, 0)]


# ---- a database as a log ------------------------------------------------------------------------------------------


def filled(path: Path, rows: int) -> database.apsw.Connection:
    db = database.open_writer(str(path))
    for version in migrations.pending(db):
        with db:
            migrations.migrate(db, version)
    with db:
        tx = Tx(db, now=1, seq=0)
        for number in range(rows):
            tx.run("INSERT INTO blobs (id, data) VALUES (?, ?)", number + 1, bytes([number % 256]) * 9000)
        refoundrows.raise_counter(tx, "map", 5)
        refoundrows.jump(tx)
    return db


def test_the_log_of_a_database_makes_it_from_nothing_wherever_it_begins(tmp_path: Path) -> None:
    source = filled(tmp_path / "source", 100)
    copy = database.open_writer(str(tmp_path / "copy"))
    records = list(records_of(source, copy, 1 << 40, b"h" * 16))
    assert records[0].seq == (1 << 40) + 1 and records[0].previous_hash == b"h" * 16 and len(records) > 5
    assert all(record.map_version == 5 + refoundrows.GAP and len(record.payload) < 1 << 20 for record in records)
    metalog = MemoryMetaLog(list(records))
    assert trio.run(recovery.recover, str(tmp_path / "new"), metalog, (), InlineExecutor()) == "rebuilt"
    new = database.open_reader(str(tmp_path / "new"))
    assert digest(new) == digest(source) and database.applied(new) == (records[-1].seq, records[-1].hash)
    assert trio.run(recovery.recover, str(tmp_path / "copy"), metalog, (), InlineExecutor()) == "reused"


def test_a_log_whose_beginning_was_trimmed_makes_nothing(tmp_path: Path) -> None:
    source, copy = filled(tmp_path / "source", 60), database.open_writer(str(tmp_path / "copy"))
    records = list(records_of(source, copy, 0, bytes(16)))
    metalog = MemoryMetaLog(records[schema.VERSION :])
    metalog.trimmed = schema.VERSION
    with pytest.raises(NotFound, match="trimmed"):
        trio.run(recovery.replay_log, str(tmp_path / "new"), metalog, InlineExecutor())
    assert [record.kind for record in records if replay.begins(record)] == [RecordKind.MIGRATION]


def test_a_copy_that_differs_is_noticed(tmp_path: Path) -> None:
    source, copy = filled(tmp_path / "source", 3), database.open_writer(str(tmp_path / "copy"))
    made = records_of(source, copy, 0, bytes(16))
    for _ in range(4):
        next(made)
    copy.execute("UPDATE blobs SET data = x'00'")
    with pytest.raises(NotEqual):
        list(made)


# ---- what is written onto a drive -----------------------------------------------------------------------------------


CLUSTER = b"C" * 16
HEAD = rootfile.RootHead(CLUSTER, D[1])
SEGMENT, VOLUMES, OLD = b"new-segment-0123", b"volume-segment-0", b"old-segment-0123"
BALLOT = Ballot(9, b"s" * 16)
SLOT = RootSlot(BALLOT, BALLOT, 7, Root(ClusterMap(3), (D[1],), (), ()))


def drive(seed: int) -> SimFiles:
    files = SimFiles(seed)
    Store.format(files, "/d", cluster=CLUSTER, drive=D[1], ballast=0)
    store = Store.open(files, "/d", cluster=CLUSTER)
    for segment, kind in ((OLD, 1), (VOLUMES, 2)):
        store.logs.create(LogHead(segment, kind, b"o" * 16, 0, 0, 1, bytes(16)), 1 << 16, 3)
    store.close()
    files.crash("everything")
    return files


def found(files: SimFiles) -> tuple[set[str], rootfile.Slot | None, bytes]:
    one = DriveDir.open(files, "/d")
    try:
        return set(files.paths("/d")), one.newest(), one.drive
    finally:
        one.close()


@pytest.mark.parametrize("root", ["there", "lost"])
def test_a_drive_is_settled_whenever_the_machine_stops(root: str) -> None:
    """Until the root is the new one, nothing old is lost; afterwards the new log is there."""
    head = LogHead(SEGMENT, 1, CLUSTER, 0, 0, 100, b"p" * 16)
    names = {f"log/{SEGMENT.hex()}.sealed", f"log/{VOLUMES.hex()}.open"}
    rng = random.Random(3)
    stop = 0
    done = False
    while not done:
        files = drive(stop)
        if root == "lost":
            fd = files.open_path("/d")
            files.unlink(fd, "root")
            files.sync_folder(fd)
            files.close(fd)
        writer = DriveWriter(files, "/d", "id")
        writer.stage(f"{SEGMENT.hex()}.sealed", segment_parts(CLUSTER, head, ()))
        keep = {SEGMENT.hex(), VOLUMES.hex()}
        files.crash_at = files.operations + stop
        try:
            writer.settle(HEAD, SLOT, keep)
            done = True
        except Crashed:
            pass
        files.crash(rng.choice(("random", "nothing", "everything")))
        paths, newest, _ = found(files)
        old = [path for path in paths if OLD.hex() in path]
        assert old, "the old log is kept"
        if newest is not None and newest.value == SLOT:
            assert {f"/d/{name}" for name in names} <= paths
        writer.settle(HEAD, SLOT, keep)
        writer.settle(HEAD, SLOT, keep)
        paths, newest, id = found(files)
        assert newest is not None and newest.value == SLOT and id == D[1]
        assert {path.removeprefix("/d/") for path in paths if "/log/" in path and "replaced" not in path} == names
        assert f"/d/replaced-id/log/{OLD.hex()}.open" in paths and not any("rebuild-" in path for path in paths)
        assert (root == "lost") or "/d/replaced-id/root" in paths
        store = Store.open(files, "/d", cluster=CLUSTER)
        assert store.root.read() == SLOT and store.logs.stat(SEGMENT).head == head
        store.close()
        stop += 1
    assert stop > 20


def test_staged_files_that_were_never_decided_go() -> None:
    files = drive(1)
    before = set(files.paths("/d"))
    DriveWriter(files, "/d", "one").stage("x.sealed", [b"data"])
    assert set(files.paths("/d")) > before
    DriveWriter(files, "/d", "another").unstage()
    assert set(files.paths("/d")) == before


def test_a_sealed_segment_file_verifies_whole() -> None:
    records, last = logfile.chained([logfile.LogRecord(0, 1, 1, 0, 0, bytes(16), b"p" * 100)] * 3, 7, b"p" * 16)
    head = LogHead(SEGMENT, 1, CLUSTER, 0, 0, 7, b"p" * 16)
    data = b"".join(segment_parts(CLUSTER, head, records))
    assert logfile.parse_head(data) == (CLUSTER, head)
    scan = logfile.scan(memoryview(data)[logfile.HEAD_SIZE :], SEGMENT, 7, b"p" * 16)
    assert (scan.last_seq, scan.last_hash, scan.end) == (9, last, len(data) - logfile.HEAD_SIZE)


def test_a_directory_with_a_decided_rebuild_is_refused_to_everybody_else(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    data.write(ClusterFile("00" * 16, "11" * 16, "4+2", False))
    data.rebuild.mkdir()
    assert data.read() is not None, "nothing is decided yet"
    (data.rebuild / "journal").write_text("{}")
    with pytest.raises(CommandError, match="--from-shards"):
        data.read()
    assert data.read(rebuilding=True) is not None
