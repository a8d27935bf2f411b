"""The compactor moves inline and sparse data into new chunks, and nothing that changed meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import trio

from tests.fakes.metadb import MetaDb
from trivium.cluster.chunks import PieceData, Stored
from trivium.cluster.model import ChunkId, NewChunk, Ref
from trivium.metadata import compactor, fsck
from trivium.metadata.compact_loop import CompactLoop
from trivium.metadata.messages import Create, CreateBucket, Extent, GetLayout, Write


class DictChunks:
    def __init__(self, db: MetaDb) -> None:
        self.db = db
        self.data: dict[ChunkId, bytes] = {}
        self.during_put: Callable[[], None] = lambda: None

    async def put(self, pool: int, pieces: Sequence[PieceData], **more: object) -> Stored:
        data = b"".join(bytes(piece.data) for piece in pieces)  # type: ignore[arg-type]
        new = self.db.new_chunk(len(data))
        self.data[new.chunk] = data
        refs, at = [], 0
        for piece in pieces:
            refs.append(Ref(new.chunk, at, len(piece.data)))
            at += len(piece.data)
        self.during_put()
        return Stored(tuple(refs), (new,))

    async def get(self, ref: Ref) -> bytes:
        return self.data[ref.chunk][ref.offset : ref.offset + ref.length]

    def settle(self, stored: Stored) -> None: ...

    give_up = settle


def start() -> tuple[MetaDb, DictChunks, CompactLoop, int]:
    db = MetaDb()
    chunks = DictChunks(db)
    top = db.call(CreateBucket(b"bucket", "me")).ino
    ino = db.call(Create(top, b"f", 0o100644)).attr.ino

    async def read(run: Callable[[Any], Any]) -> Any:
        return run(db.reader())

    async def commit(execute: Callable[[Any], Any], new: Sequence[NewChunk]) -> Any:
        return db.run(execute, chunks=new)

    return db, chunks, CompactLoop(read, commit, chunks, pool=lambda: 1), ino  # type: ignore[arg-type]


def test_many_inline_extents_become_one_chunk_but_for_what_changed_meanwhile() -> None:
    db, chunks, loop, ino = start()
    for i in range(compactor.INLINE_EXTENTS):
        db.call(Write(ino, (Extent(10 * i, 10, None, b"%010d" % i),)))
    chunks.during_put = lambda: db.call(Write(ino, (Extent(25, 10, None, b"new bytes!"),)))
    trio.run(loop.round)
    extents = db.ask(GetLayout(ino, 0, 60)).extents
    assert [(e.offset, e.data) for e in extents if e.data is not None] == [
        *((20, b"00000"), (25, b"new bytes!"), (35, b"00003")),
    ]
    assert loop.moved == compactor.INLINE_EXTENTS - 2
    assert not fsck.check(db.reader())


def test_the_rest_of_a_sparse_chunk_is_written_anew() -> None:
    db, chunks, loop, ino = start()
    old = db.new_chunk(100)
    chunks.data[old.chunk] = bytes(range(100))
    db.call(Write(ino, (Extent(0, 100, Ref(old.chunk, 0, 100)),)), [old])
    db.call(Write(ino, (Extent(20, 60, None, b"x" * 60),)))
    trio.run(loop.round)
    refs = [e.ref for e in db.ask(GetLayout(ino, 0, 100)).extents if e.ref is not None]
    assert all(ref.chunk != old.chunk for ref in refs)
    read = b"".join(chunks.data[ref.chunk][ref.offset : ref.offset + ref.length] for ref in refs)
    assert read == bytes(range(20)) + bytes(range(80, 100))
    assert not fsck.check(db.reader())
