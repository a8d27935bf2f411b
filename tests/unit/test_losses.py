"""What is lost is named: the right chunks, the right names, the right ranges, and nothing else."""

from __future__ import annotations

from functools import partial

from tests.fakes.metadb import DRIVES, MetaDb
from trivium.cluster.model import NewChunk, Ref
from trivium.metadata import losses
from trivium.metadata.losses import Lost
from trivium.metadata.messages import ROOT_INO, Create, Extent, Link, Write

ALL = frozenset(DRIVES)


def file(db: MetaDb, name: bytes, offset: int = 0) -> tuple[int, NewChunk]:
    new = db.new_chunk(100_000)
    entry = db.call(Create(ROOT_INO, name, 0o100644))
    db.call(Write(entry.attr.ino, (Extent(offset, 100_000, Ref(new.chunk, 0, 100_000)),)), chunks=[new])
    return entry.attr.ino, new


def missing(db: MetaDb, new: NewChunk, mask: int) -> None:
    sql = "UPDATE chunks SET missing = ? WHERE session = ? AND counter = ?"
    db.run(lambda tx: tx.run(sql, mask, new.chunk.session, new.chunk.counter))


def lost(db: MetaDb, usable: frozenset[bytes] = ALL) -> Lost:
    return db.run(partial(losses.lost_chunks, usable=usable))


def test_m_losses_are_no_loss_and_one_more_is() -> None:
    db = MetaDb()
    _, new = file(db, b"a")
    _, other = file(db, b"b")
    missing(db, new, 0b000011)
    assert lost(db) == Lost((), ())
    missing(db, new, 0b000111)
    assert lost(db) == Lost((new.chunk,), ())
    assert lost(db, ALL - set(DRIVES[:3])) == Lost((new.chunk,), (other.chunk,)), "away is not lost"
    db.run(lambda tx: tx.run("UPDATE drives SET reason = 'removed' WHERE id IN (?, ?, ?)", *DRIVES[3:]))
    assert lost(db).lost == tuple(sorted((new.chunk, other.chunk)))


def test_every_name_of_it_and_its_range_are_said() -> None:
    db = MetaDb()
    ino, new = file(db, b"a", 1_000_000)
    file(db, b"whole")
    above = db.call(Create(ROOT_INO, b"dir", 0o040755)).attr.ino
    db.call(Link(ino, above, b"second"))
    found = db.run(partial(losses.affected, chunks=[new.chunk]))
    assert [(loss.kind, loss.name, loss.ranges) for loss in found] == [
        ("file", "/a", ((1_000_000, 100_000),)),
        ("file", "/dir/second", ((1_000_000, 100_000),)),
    ]
    assert all(loss.chunks == (new.chunk,) for loss in found)
