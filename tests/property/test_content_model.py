"""Writes, truncates, holes, appends and shared copies, inline and in chunks, plain and multipart, against bytes."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.fakes.metadb import MetaDb
from trivium.cluster.model import ChunkId, Ref
from trivium.metadata import collector, compactor, content, extents, fsck, uploads
from trivium.metadata.messages import (
    Append,
    Body,
    CloneRange,
    CompleteUpload,
    CopyObject,
    Create,
    CreateBucket,
    CreateUpload,
    Extent,
    GetAttr,
    GetLayout,
    HeadObject,
    MetadataError,
    ObjectMeta,
    PutObject,
    PutPart,
    Truncate,
    Unlink,
    Write,
    Zero,
)


class Files:
    """A few files, their bytes, and the chunks that were put."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.db = MetaDb()
        self.top = self.db.call(CreateBucket(b"bucket", "me")).ino
        self.chunks: dict[ChunkId, bytes] = {}
        self.files: dict[int, bytearray] = {}
        self.names: dict[int, bytes] = {}
        self.count = 0

    def new_name(self) -> bytes:
        self.count += 1
        return b"f%d" % self.count

    def extent(self, offset: int, length: int) -> tuple[Extent, bytes, list[object]]:
        """New bytes at a place: inline, in a chunk, or a hole."""
        kind = self.random.choice(("data", "ref", "ref", "hole"))
        if kind == "hole":
            return Extent(offset, length), bytes(length), []
        data = self.random.randbytes(length)
        if kind == "data":
            return Extent(offset, length, None, data), data, []
        before = self.random.randrange(20)
        new = self.db.new_chunk(before + length + 5)
        self.chunks[new.chunk] = bytes(before) + data + bytes(5)
        return Extent(offset, length, Ref(new.chunk, before, length)), data, [new]

    def some(self) -> int:
        return self.random.choice(sorted(self.files))

    # ---- operations ----
    def create(self) -> None:
        name = self.new_name()
        ino = self.db.call(Create(self.top, name, 0o100644)).attr.ino
        self.files[ino], self.names[ino] = bytearray(), name

    def put(self) -> None:
        name = self.new_name()
        extent, data, new = self.extent(0, self.random.randint(1, 60))
        body = Body(len(data), None, (extent,))
        ino = self.db.call(PutObject(b"bucket", name, body, "e", ObjectMeta()), new).ino
        self.files[ino], self.names[ino] = bytearray(data), name

    def multipart(self) -> None:
        name = self.new_name()
        upload = self.db.call(CreateUpload(b"bucket", name, ObjectMeta())).id
        data = bytearray()
        listed = []
        for number in sorted(self.random.sample(range(1, 9), 3)):
            for again in (True, False):  # the first upload of each part is replaced
                extent, part, new = self.extent(0, self.random.randint(1, 30))
                body = Body(len(part), None, (extent,))
                self.db.call(PutPart(b"bucket", name, upload, number, body, f"{number:032x}"), new)
                if not again and number != 8:
                    data += part
            if number != 8:
                listed.append((number, f"{number:032x}", ""))
        op = CompleteUpload(b"bucket", name, upload, tuple(listed))
        info = self.db.call(op)
        assert self.db.call(op) == info
        self.files[info.ino], self.names[info.ino] = data, name

    def copy(self) -> None:
        source, name = self.some(), self.new_name()
        ino = self.db.call(CopyObject(b"bucket", self.names[source], b"bucket", name)).ino
        self.files[ino], self.names[ino] = bytearray(self.files[source]), name

    def write(self) -> None:
        ino = self.some()
        new: list[object] = []
        laid = []
        for _ in range(self.random.randint(1, 3)):
            extent, data, more = self.extent(self.random.randrange(100), self.random.randint(1, 50))
            self.lay(ino, extent.offset, data)
            laid.append(extent)
            new += more
        self.db.call(Write(ino, tuple(laid)), new)

    def append(self) -> None:
        ino = self.some()
        extent, data, new = self.extent(0, self.random.randint(1, 20))
        self.db.call(Append(ino, (extent,)), new)
        self.lay(ino, len(self.files[ino]), data)

    def lay(self, ino: int, offset: int, data: bytes) -> None:
        file = self.files[ino]
        file.extend(bytes(max(0, offset + len(data) - len(file))))
        file[offset : offset + len(data)] = data

    def truncate(self) -> None:
        ino, size = self.some(), self.random.choice((0, 1, 5, 17, 40, 90, 150))
        file = self.files[ino]
        self.db.call(Truncate(ino, size))
        file.extend(bytes(max(0, size - len(file))))
        del file[size:]

    def zero(self) -> None:
        ino, offset, length = self.some(), self.random.randrange(100), self.random.randint(1, 50)
        self.db.call(Zero(ino, offset, length))
        end = min(offset + length, len(self.files[ino]))
        if end > offset:
            self.files[ino][offset:end] = bytes(end - offset)

    def clone(self) -> None:
        source, ino = self.some(), self.some()
        size = len(self.files[source])
        if source == ino or not size:
            return
        start = self.random.randrange(size)
        length, offset = self.random.randint(1, size - start), self.random.randrange(60)
        self.db.call(CloneRange(source, start, ino, offset, length))
        self.lay(ino, offset, bytes(self.files[source][start : start + length]))

    def unlink(self) -> None:
        if len(self.files) > 2:
            ino = self.some()
            self.db.call(Unlink(self.top, self.names.pop(ino)))
            del self.files[ino]

    def compact(self) -> None:
        """What the compactor does, with a change between reading and swapping now and then."""
        ino = self.some()
        owner = self.db.reader().one("SELECT content FROM inodes WHERE ino = ?", ino)
        assert owner is not None
        rows = compactor.inline_rows(self.db.reader(), owner[0], 100)
        if not rows:
            return
        data = b"".join(row.data for row in rows)
        new = self.db.new_chunk(len(data))
        self.chunks[new.chunk] = data
        if self.random.random() < 0.5:
            self.write()
        places = compactor.places_of(rows, Ref(new.chunk, 0, len(data)))
        self.db.run(lambda tx: compactor.swap(tx, places), chunks=[new])

    # ---- checks ----
    def read(self, ino: int) -> bytes:
        size = self.db.ask(GetAttr(ino)).size
        data = bytearray(size)
        at = 0
        while at < size:
            page = self.db.ask(GetLayout(ino, at, size))
            for extent in page.extents:
                piece = extent.data
                if extent.ref is not None:
                    ref = extent.ref
                    piece = self.chunks[ref.chunk][ref.offset : ref.offset + ref.length]
                    assert any(placed.chunk == ref.chunk for placed in page.placed)
                assert piece is not None and len(piece) == extent.length
                data[extent.offset : extent.offset + extent.length] = piece
            assert page.upto > at
            at = page.upto
        return bytes(data)

    def check(self) -> None:
        for ino, data in self.files.items():
            assert self.read(ino) == data, ino
        findings = fsck.check(self.db.reader())
        assert not findings, findings


@pytest.mark.parametrize("block", range(6))
def test_contents_agree_with_bytes(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "PART_MIN", 1)
    monkeypatch.setattr(content, "PAGE_EXTENTS", 3)
    monkeypatch.setattr(content, "CUT_AT_ONCE", 2)
    monkeypatch.setattr(extents, "DROP_AT_ONCE", 3)
    for seed in range(block * 8, block * 8 + 8):
        files = Files(seed)
        files.create()
        files.put()
        steps: list[Callable[[], None]] = [
            *(files.create, files.put, files.multipart, files.copy, files.write, files.write, files.write),
            *(files.append, files.truncate, files.truncate, files.zero, files.clone, files.unlink, files.compact),
        ]
        try:
            for _ in range(60):
                step = files.random.choice(steps)
                before = {ino: bytearray(data) for ino, data in files.files.items()}
                try:
                    step()
                except MetadataError as error:
                    assert error.code == "RETRY", error  # a file that is still being cut: nothing was changed
                    files.files = before
                    files.db.run(lambda tx: collector.sweep(tx, 4))
                files.check()
        except BaseException:
            print("seed", seed)
            raise
        while files.db.run(lambda tx: collector.sweep(tx, 4)):
            pass
        files.check()
        for name in list(files.names.values()):
            files.db.call(Unlink(files.top, name))
        while files.db.run(lambda tx: collector.sweep(tx, 100)):
            pass
        assert not any(files.db.count(table) for table in ("extents", "blobs", "contents", "doomed"))


def test_a_posix_write_makes_another_etag_and_keeps_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "PART_MIN", 1)
    files = Files(1)
    files.multipart()
    (ino,) = files.files
    name = files.names[ino]
    before = files.db.ask(HeadObject(b"bucket", name))
    assert before.etag.endswith(f"-{len(before.parts)}") and before.parts
    files.db.call(Write(ino, (Extent(1, 2, None, b"xy"),)))
    after = files.db.ask(HeadObject(b"bucket", name))
    assert after.etag == f"{ino:x}.{after.version}-0" and not after.parts
    files.lay(ino, 1, b"xy")
    files.check()
