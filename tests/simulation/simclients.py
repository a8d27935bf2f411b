"""What clients do: objects put, copied, deleted, read; files written, cut, renamed, removed; all against the model."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Sequence

import trio

from tests.simulation.simmodel import Model, Value
from tests.simulation.test_volume import SIZE, SMALL, History, guest
from tests.simulation.world import Client
from trivium.cluster.chunks import PieceData, Stored
from trivium.cluster.errors import ClusterError
from trivium.cluster.model import CHUNK_SIZE
from trivium.fs.filesystem import Caller
from trivium.metadata.messages import (
    CHUNK_REFUSED,
    INLINE_MAX,
    Body,
    CopyObject,
    DeleteObject,
    Extent,
    GetLayout,
    HeadObject,
    ListObjects,
    MetadataError,
    ObjectMeta,
    PutObject,
)
from trivium.nbd.errors import VolumeError
from trivium.nbd.solo import SoloChunks
from trivium.nbd.volume import Volume
from trivium.nbd.volumelog import ClusterLogs

BUCKET = b"objects"
FILES = b"files"
ROOT = Caller(0, 0)
SIZES = (0, 10, 3000, INLINE_MAX, INLINE_MAX + 1, 50_000, 300_000)
IN_DOUBT = ("SESSION_ENDED", "EIO", "RETRY")


def value_of(rng: random.Random, name: bytes, size: int) -> bytes:
    stamp = b"%s %016x " % (name, rng.getrandbits(64))
    return (stamp * (size // len(stamp) + 1))[:size]


class Objects:
    """One lane of S3 requests over names of its own."""

    def __init__(self, client: Client, model: Model, lane: str, rng: random.Random) -> None:
        self.client, self.model, self.lane, self.rng = client, model, lane, rng
        self.fresh = 0

    async def run(self, count: int) -> None:
        for _ in range(count):
            dice = self.rng.random()
            if dice < 0.5:
                await self.put(self._name())
            elif dice < 0.62:
                await self.delete(self._name())
            elif dice < 0.75:
                await self.copy(self._name(), self._name())
            else:
                await check_object(self.client, self.model, self._name(frozen=True))

    def _name(self, *, frozen: bool = False) -> bytes:
        mine = [f"{self.lane}/{number}".encode() for number in range(self.fresh)]
        if not frozen:
            mine = [name for name in mine if name not in self.model.frozen]
        if len(mine) < 4 or self.rng.random() < 0.1:
            self.fresh += 1
            return f"{self.lane}/{self.fresh - 1}".encode()
        return self.rng.choice(mine)

    async def put(self, name: bytes) -> None:
        size = CHUNK_SIZE + 70_000 if self.rng.random() < 0.02 else self.rng.choice(SIZES)
        value = value_of(self.rng, name, size)
        before = self.model.values(name)
        self.model.begin(name, value)
        chunks, metadata = self.client.chunks, self.client.metadata
        stored: list[Stored] = []
        try:
            if size > INLINE_MAX:
                for offset in range(0, size, CHUNK_SIZE):
                    piece = PieceData(bytes(16), offset, 0, value[offset : offset + CHUNK_SIZE])
                    stored.append(await chunks.put(1, [piece]))
        except ClusterError:
            for one in stored:
                chunks.give_up(one)
            self.model.refuse(name, before)
            return
        etag = hashlib.md5(value).hexdigest()
        for _ in range(8):
            body = _body(value, stored)
            new = tuple(chunk for one in stored for chunk in one.chunks)
            try:
                await metadata.call(PutObject(BUCKET, name, body, etag, ObjectMeta()), chunks=new)
                for one in stored:
                    chunks.settle(one)
                self.model.answer(name, value)
                return
            except MetadataError as error:
                if error.code == CHUNK_REFUSED:
                    try:
                        stored = [await chunks.put_again(one) for one in stored]
                        continue
                    except (ClusterError, MetadataError):
                        self.model.refuse(name, before)
                        return
                if error.code not in IN_DOUBT:
                    raise
                return

    async def delete(self, name: bytes) -> None:
        self.model.begin(name, None)
        try:
            await self.client.metadata.call(DeleteObject(BUCKET, name))
        except MetadataError as error:
            if error.code not in IN_DOUBT:
                raise
            return
        self.model.answer(name, None)

    async def copy(self, source: bytes, name: bytes) -> None:
        (value,) = self.model.values(source)
        before = self.model.values(name)
        if value is None or source == name:
            return
        self.model.begin(name, value)
        try:
            await self.client.metadata.call(CopyObject(BUCKET, source, BUCKET, name))
        except MetadataError as error:
            if error.code == "NoSuchKey":
                raise AssertionError(f"{source!r} is gone") from error
            if error.code not in IN_DOUBT:
                self.model.refuse(name, before)
                raise
            return
        self.model.answer(name, value)


def _body(value: bytes, stored: Sequence[Stored]) -> Body:
    if not stored:
        return Body(len(value), value)
    extents = []
    for number, one in enumerate(stored):
        offset = number * CHUNK_SIZE
        extents.append(Extent(offset, min(CHUNK_SIZE, len(value) - offset), one.refs[0]))
    return Body(len(value), None, tuple(extents))


async def read_object(client: Client, name: bytes, bucket: bytes = BUCKET) -> Value:
    """As an S3 GET reads it; what is replaced under it is read again."""
    while True:
        try:
            info = await client.metadata.ask(HeadObject(bucket, name))
            parts: list[bytes] = []
            at = 0
            with client.metadata.reading():
                while at < info.size:
                    layout = await client.metadata.ask(GetLayout(info.ino, at, info.size - at, info.version))
                    for extent in layout.extents:
                        if extent.offset > at:
                            parts.append(bytes(extent.offset - at))
                        rows = {row.chunk: row for row in layout.placed}
                        if extent.data is not None:
                            parts.append(bytes(extent.data))
                        elif extent.ref is not None:
                            placed = rows.get(extent.ref.chunk)
                            parts.append(bytes(await client.chunks.get(extent.ref, placed=placed)))
                        else:
                            parts.append(bytes(extent.length))
                        at = extent.offset + extent.length
                    if layout.upto > at:
                        parts.append(bytes(layout.upto - at))
                        at = layout.upto
            value = b"".join(parts)[: info.size]
            assert len(value) == info.size
            return value
        except MetadataError as error:
            if error.code in ("NoSuchKey", "NoSuchBucket"):
                return None
            if error.code not in ("ESTALE", *IN_DOUBT):
                raise


async def check_object(client: Client, model: Model, name: bytes) -> None:
    """Only what the model allows, before or after: others may be changing it."""
    before = model.values(name)
    try:
        found = await read_object(client, name)
    except ClusterError as error:
        if type(error).__name__ in ("ChunkLost", "Corrupt", "NotFound"):
            raise AssertionError(f"{name!r} cannot be read: {error}") from error
        return  # Unavailable: drives are away
    if found not in before:
        model.check(name, found, client.name)


async def check_listing(client: Client, model: Model) -> None:
    listed: set[bytes] = set()
    after = b""
    while True:
        page = await client.metadata.ask(ListObjects(BUCKET, after=after, limit=7))
        listed |= {entry.key for entry in page.entries}
        if not page.truncated:
            break
        after = page.next_after
    for name, values in model.allowed.items():
        if name in listed:
            assert values != {None}, f"{name!r} was deleted and is listed"
        else:
            assert None in values, f"{name!r} is not listed"


class Files:
    """One lane of a mount's requests over names of its own. A file's value may be any state since its last flush."""

    def __init__(self, client: Client, model: Model, lane: str, rng: random.Random, parent: int) -> None:
        self.client, self.model, self.lane, self.rng, self.parent = client, model, lane, rng, parent
        self.fresh = 0
        self.now: dict[bytes, bytearray] = {}  # what this mount sees
        self.open: dict[bytes, int] = {}

    async def run(self, count: int) -> None:
        steps = (self.write, self.write, self.flush, self.truncate, self.rename, self.unlink, self.read)
        for _ in range(count):
            step = self.rng.choice(steps)
            name = self._name()
            try:
                await step(name)
            except (OSError, ClusterError, MetadataError):
                self._lose(name)  # in doubt for ever
        for name in list(self.open):
            try:
                await self.flush(name)
            except (OSError, ClusterError, MetadataError):
                self._lose(name)

    def _lose(self, name: bytes) -> None:
        self.model.frozen.add(name)
        self.now.pop(name, None)
        self.open.pop(name, None)

    def _name(self) -> bytes:
        usable = [name for name in self.now if name not in self.model.frozen or name in self.open]
        if len(usable) < 2 or (len(usable) < 5 and self.rng.random() < 0.2):
            self.fresh += 1
            return f"{self.lane}-{self.fresh - 1}".encode()
        return self.rng.choice(usable)

    async def _handle(self, name: bytes) -> int:
        if name not in self.open:
            if name not in self.now:
                self.model.begin(name, b"")
                _, handle, _ = await self.client.fs.create(self.parent, name, 0o644, os.O_RDWR, ROOT)
                self.now[name] = bytearray()
                self.model.answer(name, b"")
            else:
                inode = await self.client.fs.lookup(self.parent, name)
                handle, _ = await self.client.fs.open(inode.ino, os.O_RDWR, ROOT)
            self.open[name] = handle.fh
        return self.open[name]

    async def write(self, name: bytes) -> None:
        fh = await self._handle(name)
        data = self.now[name]
        offset = self.rng.randrange(len(data) + 1 + self.rng.choice((0, 0, 5000)))
        piece = value_of(self.rng, name, self.rng.choice((1, 100, 5000, 40_000, 90_000)))
        if offset > len(data):
            data.extend(bytes(offset - len(data)))
        data[offset : offset + len(piece)] = piece
        self.model.begin(name, bytes(data))
        await self.client.fs.contents.write(fh, offset, piece)

    async def flush(self, name: bytes) -> None:
        fh = await self._handle(name)
        await self.client.fs.contents.flush(fh)
        self.model.answer(name, bytes(self.now[name]))
        if self.rng.random() < 0.5:
            del self.open[name]
            await self.client.fs.release(fh)

    async def truncate(self, name: bytes) -> None:
        fh = await self._handle(name)
        data = self.now[name]
        size = self.rng.randrange(len(data) + 2000)
        del data[size:]
        data.extend(bytes(size - len(data)))
        self.model.begin(name, bytes(data))
        for value in self.model.values(name) - {None}:  # a write that found no room is lost, the truncate is not
            self.model.begin(name, value[:size] + bytes(max(0, size - len(value))))
        await self.client.fs.setattr(self.client.fs.contents.handle(fh).inode.ino, ROOT, size=size)

    async def rename(self, name: bytes) -> None:
        if name not in self.now:
            return
        target = self._name()
        if target == name or target in self.open or target not in self.now:
            self.fresh += 1
            target = f"{self.lane}-{self.fresh - 1}".encode()
        dirty = name in self.model.frozen
        self.model.begin(target, bytes(self.now[name]))
        for value in self.model.values(name):  # a prefix of what was written may be what is moved
            self.model.begin(target, value)
        self.model.begin(name, None)
        try:
            await self.client.fs.rename(self.parent, name, self.parent, target)
        except (OSError, ClusterError, MetadataError):
            self._lose(target)
            raise
        self.model.answer(name, None)
        self.now[target] = self.now.pop(name)
        if name in self.open:
            self.open[target] = self.open.pop(name)
        else:
            self.open.pop(target, None)
        if dirty:  # it is there, but a write that found no room may be lost: the next flush tells
            self.model.allowed[target].discard(None)
        else:
            self.model.answer(target, bytes(self.now[target]))

    async def unlink(self, name: bytes) -> None:
        if name not in self.now:
            return
        self.model.begin(name, None)
        await self.client.fs.unlink(self.parent, name)
        self.model.answer(name, None)
        del self.now[name]
        if (fh := self.open.pop(name, None)) is not None:
            await self.client.fs.release(fh)

    async def read(self, name: bytes) -> None:
        fh = await self._handle(name)
        data = self.now[name]
        offset = self.rng.randrange(len(data) + 1)
        length = self.rng.choice((10, 10_000, 200_000))
        found = bytes(await self.client.fs.contents.read(fh, offset, length))
        handle = self.client.fs.contents.handle(fh)
        untold = handle.errors != handle.inode.pending.errors  # a write found no room: the next write or flush says so
        if not self.client.ended and not untold:
            assert found == bytes(data[offset : offset + length]), f"{name!r}: the mount reads what it did not write"


class Disk:
    """A guest on the one volume of the pool; each turn takes it over from the last one, living or dead."""

    def __init__(self) -> None:
        self.history = History(bytearray(SIZE))

    async def turn(self, client: Client, rng: random.Random, count: int, *, patient: bool = False) -> None:
        try:
            volume = await self._open(client)
            async with trio.open_nursery() as nursery:
                await nursery.start(volume.run)
                self.history.settle(await volume.read(0, SIZE))
                await guest(volume, rng, self.history, count)
                if rng.random() < 0.5:
                    promised = len(self.history.operations)
                    await volume.close()
                    self.history.flushed = promised
                nursery.cancel_scope.cancel()
        except* (VolumeError, ClusterError, MetadataError):
            if patient:
                raise

    async def _open(self, client: Client) -> Volume:
        logs = ClusterLogs(client.metadata, client.nodes, random=client.random)
        chunks = SoloChunks(client.chunks)
        return await Volume.open(
            "v", metadata=client.metadata, chunks=chunks, logs=logs, takeover="break", tuning=SMALL
        )
