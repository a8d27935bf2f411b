"""What enters the collector's queue and when, what volumes let go, and the loop that carries the deletes out."""

from __future__ import annotations

import re

import pytest
import trio

from tests.fakes.metadb import DRIVES, SESSION, MetaDb
from trivium.cluster.errors import Unavailable
from trivium.cluster.model import ChunkId, NewChunk, Ref, SegmentEntry
from trivium.cluster.nodes import NodeReply
from trivium.cluster.wire import DeleteShards, NodeRequest, Outcome, Outcomes, RemoveLog
from trivium.metadata import collector, fsck, queue, schema
from trivium.metadata.collect_loop import CollectLoop
from trivium.metadata.messages import (
    Body,
    Checkpoint,
    CloseVolume,
    CommitSegment,
    CopyObject,
    CreateBucket,
    CreateVolume,
    DeleteObject,
    Extent,
    GetVolume,
    MetadataError,
    ObjectMeta,
    OpenVolume,
    PutObject,
    RemoveVolume,
    SetVolumeLog,
)

BEGIN = ChunkId(0, 0)


def put(db: MetaDb, key: bytes, new: NewChunk, offset: int = 0, length: int = 10, *, introduce: bool = True) -> None:
    body = Body(length, None, (Extent(0, length, Ref(new.chunk, offset, length)),))
    db.call(PutObject(b"bucket", key, body, "e", ObjectMeta()), [new] if introduce else [])


def settle(db: MetaDb, floor: int) -> None:
    db.run(lambda tx: tx.run("UPDATE sessions SET floor = ? WHERE id = ?", floor, SESSION))


def collect(db: MetaDb) -> int:
    found, after = collector.unreferenced(db.reader(), BEGIN)
    assert after is None
    return db.run(lambda tx: collector.enqueue(tx, found))


def refused(db: MetaDb, operation: object, *new: NewChunk) -> str:
    with pytest.raises(MetadataError) as error:
        db.call(operation, new)
    return error.value.code


def bucket() -> MetaDb:
    db = MetaDb()
    db.call(CreateBucket(b"bucket", "me"))
    return db


def test_every_column_that_names_a_chunk_is_listed() -> None:
    listed = {(table, session) for table, session, _ in schema.CHUNK_COLUMNS}
    no_reference = {("chunks", "session"), ("queue", "session"), ("slots", "session"), ("held", "session")}
    found = set()
    for table, columns in re.findall(r"CREATE TABLE (\w+) \((.*?)\n\)", schema.ALL_TABLES, re.S):
        found |= {(table, name) for name in re.findall(r"^  (\w*session)\s", columns, re.M)}
    assert found - {("volumes", "lease_session")} == listed | no_reference
    for table, _, counter in schema.CHUNK_COLUMNS:
        columns = {row[1] for row in MetaDb().db.execute(f"PRAGMA table_info({table})")}
        assert counter in columns


def test_a_pack_waits_until_all_of_its_pieces_are_settled() -> None:
    db = bucket()
    pack = db.new_chunk(20)
    put(db, b"first", pack)
    db.call(DeleteObject(b"bucket", b"first"))
    assert collect(db) == 0  # the other piece may still be committed
    put(db, b"second", pack, 10)
    settle(db, 2)
    assert collect(db) == 0  # and was
    db.call(DeleteObject(b"bucket", b"second"))
    assert collect(db) == 1
    assert not fsck.check(db.reader())
    assert (
        refused(
            db,
            PutObject(b"bucket", b"x", Body(1, None, (Extent(0, 1, Ref(pack.chunk, 0, 1)),)), "e", ObjectMeta()),
            pack,
        )
        == "CHUNK_REFUSED"
    )


def test_a_reference_that_appears_before_the_record_keeps_the_chunk() -> None:
    db = bucket()
    new = db.new_chunk(10)
    put(db, b"a", new)
    settle(db, 2)
    db.call(CopyObject(b"bucket", b"a", b"bucket", b"b"))
    db.call(DeleteObject(b"bucket", b"a"))
    assert db.run(lambda tx: collector.enqueue(tx, [new.chunk])) == 0
    db.call(DeleteObject(b"bucket", b"b"))
    assert (
        refused(
            db, PutObject(b"bucket", b"c", Body(10, None, (Extent(0, 10, Ref(new.chunk, 0, 10)),)), "e", ObjectMeta())
        )
        == "CHUNK_REFUSED"
    )
    assert db.run(lambda tx: collector.enqueue(tx, [new.chunk])) == 1


def test_an_orphan_is_a_place_that_no_row_names() -> None:
    db = bucket()
    new = db.new_chunk(10)
    stray = ChunkId(SESSION, 77)
    put(db, b"a", new)
    assert not db.run(lambda tx: queue.add_orphan(tx, new.chunk, 2, DRIVES[2]))  # its own place
    assert not db.run(lambda tx: queue.add_orphan(tx, stray, 0, DRIVES[0]))  # may still be committed
    assert db.run(lambda tx: queue.add_orphan(tx, new.chunk, 2, DRIVES[5]))  # left behind by healing
    assert not db.call(DeleteObject(b"bucket", b"x"))
    put(db, b"b", new, introduce=False)  # the chunk itself lives on
    db.run(lambda tx: queue.placed_again(tx, new.chunk))
    assert not queue.page(db.reader(), 1 << 60, 10)
    settle(db, 100)
    assert db.run(lambda tx: queue.add_orphan(tx, stray, 3, DRIVES[0]))
    (row,) = queue.page(db.reader(), 1 << 60, 10)
    assert row.places() == [(3, DRIVES[0])]
    db.run(lambda tx: queue.drive_removed(tx, DRIVES[0]))
    assert not queue.page(db.reader(), 1 << 60, 10)


def test_an_orphan_is_queued_with_all_of_its_files() -> None:
    """One inventory is enough for a put that died with all of its shards on the drives."""
    db = MetaDb()
    stray = ChunkId(SESSION, 77)
    settle(db, 100)
    assert db.run(lambda tx: queue.add_orphan(tx, stray, 3, DRIVES[0]))
    assert db.run(lambda tx: queue.add_orphan(tx, stray, 0, DRIVES[1]))
    assert db.run(lambda tx: queue.add_orphan(tx, stray, 4, DRIVES[2]))
    assert not db.run(lambda tx: queue.add_orphan(tx, stray, 4, DRIVES[3]))  # that place's turn comes later
    (row,) = queue.page(db.reader(), 1 << 60, 10)
    assert row.places() == [(0, DRIVES[1]), (3, DRIVES[0]), (4, DRIVES[2])]
    for index, _ in row.places():
        db.run(lambda tx, bit=1 << index, row=row: queue.confirm(tx, *row[:4], bit))
    assert not queue.page(db.reader(), 1 << 60, 10)


@pytest.mark.parametrize("extents", [2, 500])
def test_a_copy_costs_the_same_whatever_the_size(extents: int) -> None:
    """Copying shares the content: a few rows in the record, not one for each extent (attack 41)."""
    db = bucket()
    new = db.new_chunk(10 * extents)
    parts = tuple(Extent(10 * i, 10, Ref(new.chunk, 10 * i, 10)) for i in range(extents))
    db.call(PutObject(b"bucket", b"x", Body(10 * extents, None, parts), "e", ObjectMeta()), [new])
    before = db.db.total_changes()
    db.call(CopyObject(b"bucket", b"x", b"bucket", b"y"))
    assert db.db.total_changes() - before < 12


# ---- volumes ----------------------------------------------------------------------------------------------------


def test_a_volume_from_creation_to_removal() -> None:
    db = MetaDb()
    info = db.call(CreateVolume("disk", 1 << 30))
    assert refused(db, CreateVolume("disk", 1 << 30)) == "EEXIST"
    assert refused(db, CreateVolume("odd", 1000)) == "EINVAL"
    state = db.call(OpenVolume("disk"))
    assert (state.lease, state.chunks, state.log, state.checkpoint) == (1, (), (), None)
    first = SegmentEntry(b"s" * 16, DRIVES[:3], 1)
    db.call(SetVolumeLog(info.id, 1, (), (first,)))
    assert refused(db, SetVolumeLog(info.id, 1, (), (first,))) == "ESTALE"
    one, two, map_one, map_two = (db.new_chunk(4096) for _ in range(4))
    db.call(CommitSegment(info.id, 1, one.chunk, 1, 5), [one])
    db.call(CommitSegment(info.id, 1, two.chunk, 6, 9), [two])
    settle(db, 10)
    db.call(Checkpoint(info.id, 1, 5, Ref(map_one.chunk, 0, 4096), used=4096), [_unsettled(db, map_one)])
    assert [c.born for c in db.call(OpenVolume("disk", read_only=True)).chunks] == [5, 0]
    closed = SegmentEntry(b"s" * 16, DRIVES[:2], 1, 4)
    second = SegmentEntry(b"t" * 16, DRIVES[:3], 5)
    db.call(SetVolumeLog(info.id, 1, (first,), (closed, second)))
    op = Checkpoint(info.id, 1, 9, Ref(map_two.chunk, 0, 4096), (one.chunk,), (second,), 4096)
    db.call(op, [_unsettled(db, map_two)])
    settle(db, 10)
    kinds = [(row.kind, row.segment[:1]) for row in queue.page(db.reader(), 1 << 60, 10)]
    # the dead chunk and the older checkpoint; a replica that left the chain, and the trimmed segment
    assert sorted(kinds) == [(1, b""), (1, b""), (2, b"s"), (2, b"s")]
    assert collect(db) == 0
    assert refused(db, RemoveVolume("disk")) == "EBUSY"
    db.call(CloseVolume(info.id, 1))
    db.call(RemoveVolume("disk"))
    assert not fsck.check(db.reader())
    assert db.count("volumes") == db.count("volume_chunks") == db.count("chunks") == 0


def _unsettled(db: MetaDb, new: NewChunk) -> NewChunk:
    settle(db, new.chunk.counter)
    return new


def test_a_displaced_writer_commits_nothing() -> None:
    db = MetaDb()
    db.start_session(8)
    info = db.call(CreateVolume("disk", 4096))
    db.call(OpenVolume("disk"))
    with pytest.raises(MetadataError) as error:
        db.call(OpenVolume("disk"), session=8)
    assert error.value.code == "EBUSY"
    assert db.call(OpenVolume("disk", takeover="break"), session=8).lease == 2
    new = db.new_chunk(4096)
    assert refused(db, CommitSegment(info.id, 1, new.chunk, 1, 1), new) == "LEASE_LOST"
    assert refused(db, Checkpoint(info.id, 2, 1, None)) == "LEASE_LOST"  # the number, but not the session
    assert db.count("chunks") == 0
    assert db.ask(GetVolume("disk")).lease_session == 8


# ---- the loop ---------------------------------------------------------------------------------------------------


class Deletes:
    """Nodes that confirm deletes, one of them away for a while."""

    def __init__(self) -> None:
        self.away = {DRIVES[0]}
        self.shards: set[tuple[bytes, int]] = set()
        self.logs: set[bytes] = set()

    async def call(self, drive: bytes, request: NodeRequest, payload: object = b"") -> NodeReply:
        if drive in self.away:
            raise Unavailable("the node is away")
        if isinstance(request, RemoveLog):
            self.logs.add(request.drive)
            return NodeReply(Outcomes((Outcome(),)))
        assert isinstance(request, DeleteShards)
        self.shards |= {(one.drive, one.index) for one in request.deletes}
        return NodeReply(Outcomes(tuple(Outcome() for _ in request.deletes)))

    def node_of(self, drive: bytes) -> bytes:
        return drive

    def is_up(self, drive: bytes) -> bool:
        return drive not in self.away

    is_local = is_up


def test_deletes_wait_for_readers_and_for_drives_that_are_away() -> None:
    db = bucket()
    new = db.new_chunk(10)
    put(db, b"a", new)
    settle(db, 2)
    oldest = db.seq
    db.call(DeleteObject(b"bucket", b"a"))
    nodes = Deletes()

    class Writer:
        async def do(self, execute: object) -> object:
            return db.run(execute)  # type: ignore[arg-type]

    async def read(run: object) -> object:
        return run(db.reader())  # type: ignore[operator]

    readers = [oldest]
    loop = CollectLoop(Writer(), read, nodes, oldest_read_seq=lambda: readers[0])  # type: ignore[arg-type]
    trio.run(loop.round)
    assert db.count("queue") == 1 and not nodes.shards
    readers[0] = 0
    trio.run(loop.round)
    assert len(nodes.shards) == 5 and db.count("queue") == 1
    nodes.away.clear()
    trio.run(loop.round)
    assert nodes.shards == {(drive, index) for index, drive in enumerate(DRIVES)}
    assert db.count("queue") == db.count("chunks") == 0
