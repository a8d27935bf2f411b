"""Metadata and chunks for the S3 face in dictionaries: quick, strict about what the gateway owes its seams."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import msgspec
import trio

from trivium.cluster.errors import ChunkLost
from trivium.cluster.model import ChunkId, ClusterMap, Group, NewChunk, Placed, PoolRow, Ref
from trivium.cluster.pieces import PieceData, Stored
from trivium.metadata import messages as m

GROUP = Group(1, 1, 1, 0, (b"d" * 16,))


class FakeChunks:
    """Keeps bytes; knows which puts were settled and which were given up."""

    def __init__(self) -> None:
        self.data: dict[ChunkId, bytes] = {}
        self.open: set[ChunkId] = set()
        self.settled: set[ChunkId] = set()
        self.given_up: set[ChunkId] = set()
        self._counter = itertools.count(1)
        self.puts_in_flight = self.most_in_flight = 0
        self.fail_put: Exception | None = None

    async def put(self, pool: int, pieces: Sequence[PieceData]) -> Stored:
        self.puts_in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.puts_in_flight)
        try:
            await trio.lowlevel.checkpoint()
            if self.fail_put is not None:
                raise self.fail_put
            data = b"".join(b"".join(p.data) if isinstance(p.data, list) else bytes(p.data) for p in pieces)
            assert len(data) <= 4 << 20
            return self._keep(data, [p.size for p in pieces])
        finally:
            self.puts_in_flight -= 1

    def _keep(self, data: bytes, sizes: Sequence[int]) -> Stored:
        chunk = ChunkId(7, next(self._counter))
        self.data[chunk] = data
        self.open.add(chunk)
        offsets = [0, *itertools.accumulate(sizes)]
        refs = tuple(Ref(chunk, offset, size) for offset, size in zip(offsets, sizes, strict=False))
        return Stored(refs, (NewChunk(chunk, b"n" * 16, 1, GROUP.digest, len(data), 0),))

    async def get(self, ref: Ref, *, placed: Placed | None = None) -> memoryview:
        await trio.lowlevel.checkpoint()
        if ref.chunk not in self.data:
            raise ChunkLost(str(ref.chunk))
        return memoryview(self.data[ref.chunk])[ref.offset : ref.offset + ref.length]

    async def get_many(self, refs: Sequence[Ref], placed: Sequence[Placed | None]) -> list[memoryview]:
        return [await self.get(ref) for ref in refs]

    def settle(self, stored: Stored) -> None:
        self._close(stored, self.settled)

    def give_up(self, stored: Stored) -> None:
        self._close(stored, self.given_up)

    def _close(self, stored: Stored, where: set[ChunkId]) -> None:
        for chunk in stored.chunks:
            self.open.remove(chunk.chunk)
            where.add(chunk.chunk)

    async def put_again(self, stored: Stored) -> Stored:
        data = self.data[stored.chunks[0].chunk]
        self.give_up(stored)
        return self._keep(data, [ref.length for ref in stored.refs])


class _Object(msgspec.Struct):
    info: m.ObjectInfo
    body: m.Body
    extents: tuple[m.Extent, ...]


class _Upload(msgspec.Struct):
    info: m.UploadInfo
    parts: dict[int, tuple[m.PartInfo, m.Body]] = {}


class FakeMetadata:
    """Answers the S3 operations and queries."""

    session = 7

    def __init__(self, chunks: FakeChunks, credentials: Sequence[m.Credential] = ()) -> None:
        self.chunks = chunks
        self.credentials = {one.access_key: one for one in credentials}
        self.buckets: dict[bytes, m.BucketInfo] = {}
        self.objects: dict[tuple[bytes, bytes], _Object] = {}
        self.uploads: dict[str, _Upload] = {}
        self.held: list[int] = []
        self.refuse_chunks = 0  # the next so many commits are refused
        self.fail: Exception | None = None
        self.asked = 0
        self._ids = itertools.count(2)
        self._now = 1_700_000_000_000_000_000

    def map(self) -> ClusterMap:
        return ClusterMap(1, (), (), (PoolRow(1, "default", 4, 2),))

    async def call(self, *operations: Any, chunks: Sequence[NewChunk] = ()) -> tuple[Any, ...]:
        await trio.lowlevel.checkpoint()
        if self.fail is not None:
            raise self.fail
        if chunks and self.refuse_chunks:
            self.refuse_chunks -= 1
            raise m.MetadataError(m.CHUNK_REFUSED)
        self._now += 1_000_000
        return tuple(self._dispatch(operation) for operation in operations)

    async def ask(self, query: Any) -> Any:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        if self.fail is not None:
            raise self.fail
        return self._dispatch(query)

    def _dispatch(self, message: Any) -> Any:
        result = getattr(self, f"on_{type(message).__name__}")(message)
        return msgspec.msgpack.decode(  # as it would travel
            msgspec.msgpack.encode(result), type=m.RESULT_TYPES.get(type(message), type(None))
        )

    # ---- buckets and keys
    def _bucket(self, name: bytes) -> m.BucketInfo:
        if name not in self.buckets:
            raise m.MetadataError("NoSuchBucket")
        return self.buckets[name]

    def on_GetCredential(self, q: m.GetCredential) -> Any:
        if q.access_key not in self.credentials:
            raise m.MetadataError("InvalidAccessKeyId")
        return self.credentials[q.access_key]

    def on_SetCredential(self, o: m.SetCredential) -> Any:
        self.credentials[o.credential.access_key] = o.credential

    def on_UnknownUsers(self, q: m.UnknownUsers) -> Any:
        known = {credential.user for credential in self.credentials.values()}
        return tuple(user for user in q.users if user not in known)

    def on_CreateBucket(self, o: m.CreateBucket) -> Any:
        if o.name in self.buckets:
            mine = self.buckets[o.name].owner == o.owner
            raise m.MetadataError("BucketAlreadyOwnedByYou" if mine else "BucketAlreadyExists")
        self.buckets[o.name] = m.BucketInfo(o.name, next(self._ids), self._now, o.owner, o.config)
        return self.buckets[o.name]

    def on_DeleteBucket(self, o: m.DeleteBucket) -> Any:
        self._bucket(o.name)
        if any(bucket == o.name for bucket, _ in self.objects):
            raise m.MetadataError("BucketNotEmpty")
        del self.buckets[o.name]

    def on_SetBucketConfig(self, o: m.SetBucketConfig) -> Any:
        info = self._bucket(o.name)
        config = {**info.config, o.kind: o.value}
        self.buckets[o.name] = msgspec.structs.replace(
            info, config={kind: value for kind, value in config.items() if value is not None}
        )

    def on_GetBucket(self, q: m.GetBucket) -> Any:
        return self._bucket(q.name)

    def on_ListBuckets(self, q: m.ListBuckets) -> Any:
        return tuple(b for _, b in sorted(self.buckets.items()) if not q.owner or b.owner == q.owner)

    # ---- objects
    def _object(self, bucket: bytes, key: bytes) -> _Object:
        self._bucket(bucket)
        if (bucket, key) not in self.objects:
            raise m.MetadataError("NoSuchKey")
        return self.objects[bucket, key]

    def _check(self, bucket: bytes, key: bytes, c: m.Conditions, source: bool = False) -> None:
        found = self.objects.get((bucket, key))
        if c.if_none_match == "*" and found is not None:
            raise m.MetadataError("PreconditionFailed")
        if c.if_match and found is None:
            raise m.MetadataError("NoSuchKey")
        if found is None:
            return
        if c.if_match not in ("", "*", found.info.etag):
            raise m.MetadataError("PreconditionFailed")
        if c.if_none_match and c.if_none_match == found.info.etag:
            raise m.MetadataError("PreconditionFailed")

    def _store(
        self,
        bucket: bytes,
        key: bytes,
        body: m.Body,
        etag: str,
        meta: m.ObjectMeta,
        owner: str,
        parts: tuple[m.PartInfo, ...] = (),
    ) -> m.ObjectInfo:
        self._bucket(bucket)
        extents = body.extents if body.data is None else (m.Extent(0, body.size, None, body.data),) if body.data else ()
        assert sum(extent.length for extent in extents) == body.size
        info = m.ObjectInfo(key, next(self._ids), 1, body.size, etag, self._now, meta, parts, owner)
        self.objects[bucket, key] = _Object(info, body, extents)
        return info

    def on_PutObject(self, o: m.PutObject) -> Any:
        self._check(o.bucket, o.key, o.conditions)
        return self._store(o.bucket, o.key, o.body, o.etag, o.meta, o.owner)

    def _layout(self, found: _Object, offset: int, limit: int = 64) -> m.Layout:
        rest = [e for e in found.extents if e.offset + e.length > offset]
        page, more = tuple(rest[:limit]), len(rest) > limit
        placed = tuple(
            Placed(e.ref.chunk, b"n" * 16, len(self.chunks.data.get(e.ref.chunk, b"")), 0, 0, GROUP)
            for e in page
            if e.ref is not None
        )
        upto = page[-1].offset + page[-1].length if more else found.info.size
        return m.Layout(found.info.version, found.info.size, page, placed, upto)

    def on_HeadObject(self, q: m.HeadObject) -> Any:
        found = self._object(q.bucket, q.key)
        if q.hold:
            self.held.append(found.info.ino)
        return msgspec.structs.replace(found.info, layout=self._layout(found, 0)) if q.layout else found.info

    def on_GetLayout(self, q: m.GetLayout) -> Any:
        found = next((one for one in self.objects.values() if one.info.ino == q.ino), None)
        if found is None:
            raise m.MetadataError("ESTALE")
        return self._layout(found, q.offset)

    def on_Release(self, o: m.Release) -> Any:
        for ino in o.inos:
            self.held.remove(ino)

    def on_DeleteObject(self, o: m.DeleteObject) -> Any:
        self._bucket(o.bucket)
        self._check(o.bucket, o.key, o.conditions)
        return self.objects.pop((o.bucket, o.key), None) is not None

    def on_CopyObject(self, o: m.CopyObject) -> Any:
        source = self._object(o.source_bucket, o.source_key)
        self._check(o.source_bucket, o.source_key, o.source_conditions)
        self._check(o.bucket, o.key, o.conditions)
        meta = o.meta if o.meta is not None else source.info.meta
        return self._store(o.bucket, o.key, source.body, source.info.etag, meta, o.owner)

    def on_SetObjectMeta(self, o: m.SetObjectMeta) -> Any:
        found = self._object(o.bucket, o.key)
        found.info = msgspec.structs.replace(found.info, meta=msgspec.structs.replace(found.info.meta, tags=o.tags))
        return found.info

    def on_SetObjectAcl(self, o: m.SetObjectAcl) -> Any:
        found = self._object(o.bucket, o.key)
        if found.info.ino != o.ino:
            raise m.MetadataError("ESTALE")
        found.info = msgspec.structs.replace(found.info, meta=msgspec.structs.replace(found.info.meta, grants=o.grants))
        return found.info

    def on_ListObjects(self, q: m.ListObjects) -> Any:
        self._bucket(q.bucket)
        entries: list[m.ObjectInfo] = []
        prefixes: list[bytes] = []
        last = b""
        for bucket, key in sorted(self.objects):
            if bucket != q.bucket or not key.startswith(q.prefix):
                continue
            cut = key.find(q.delimiter, len(q.prefix)) if q.delimiter else -1
            name = key if cut < 0 else key[: cut + len(q.delimiter)]
            if name <= q.after or (prefixes and name == prefixes[-1]):
                continue
            if len(entries) + len(prefixes) == q.limit:
                return m.Listing(tuple(entries), tuple(prefixes), True, last)
            last = name
            if cut < 0:
                entries.append(self.objects[bucket, key].info)
            else:
                prefixes.append(name)
        return m.Listing(tuple(entries), tuple(prefixes), False)

    # ---- uploads
    def _upload(self, upload: str) -> _Upload:
        if upload not in self.uploads:
            raise m.MetadataError("NoSuchUpload")
        return self.uploads[upload]

    def on_CreateUpload(self, o: m.CreateUpload) -> Any:
        self._bucket(o.bucket)
        info = m.UploadInfo(f"up{next(self._ids)}", o.key, self._now, o.meta, o.owner)
        self.uploads[info.id] = _Upload(info, {})
        return info

    def on_GetUpload(self, q: m.GetUpload) -> Any:
        return self._upload(q.upload).info

    def on_PutPart(self, o: m.PutPart) -> Any:
        info = m.PartInfo(o.number, o.body.size, o.etag, self._now, o.checksum)
        self._upload(o.upload).parts[o.number] = (info, o.body)
        return info

    def on_CopyPart(self, o: m.CopyPart) -> Any:
        source = self._object(o.source_bucket, o.source_key)
        length = source.info.size if o.length < 0 else o.length
        assert o.offset + length <= source.info.size
        extents = []
        for e in source.extents:
            start, stop = max(e.offset, o.offset), min(e.offset + e.length, o.offset + length)
            if start < stop:
                skip = start - e.offset
                ref = None if e.ref is None else Ref(e.ref.chunk, e.ref.offset + skip, stop - start)
                data = None if e.data is None else e.data[skip : skip + stop - start]
                extents.append(m.Extent(start - o.offset, stop - start, ref, data))
        info = m.PartInfo(o.number, length, o.etag, self._now, o.checksum)
        self._upload(o.upload).parts[o.number] = (info, m.Body(length, None, tuple(extents)))
        return info

    def on_ListParts(self, q: m.ListParts) -> Any:
        upload = self._upload(q.upload)
        parts = [info for number, (info, _) in sorted(upload.parts.items()) if number > q.after]
        return m.PartListing(tuple(parts[: q.limit]), len(parts) > q.limit, upload.info)

    def on_ListUploads(self, q: m.ListUploads) -> Any:
        found = sorted((u.info.key, u.info.id) for u in self.uploads.values() if u.info.key.startswith(q.prefix))
        found = [pair for pair in found if pair > (q.key_marker, q.id_marker or "\x7f")]
        page = tuple(self.uploads[upload].info for _, upload in found[: q.limit])
        return m.UploadListing(page, (), len(found) > q.limit)

    def on_AbortUpload(self, o: m.AbortUpload) -> Any:
        self._upload(o.upload)
        del self.uploads[o.upload]

    def on_CompleteUpload(self, o: m.CompleteUpload) -> Any:
        import hashlib

        upload = self._upload(o.upload)
        self._check(o.bucket, o.key, o.conditions)
        extents, offset, parts, digests = [], 0, [], b""
        for number, etag, _ in o.parts:
            info, body = upload.parts.get(number, (None, None))
            if info is None or body is None or info.etag != etag:
                raise m.MetadataError("InvalidPart")
            for e in body.extents if body.data is None else (m.Extent(0, body.size, None, body.data),):
                extents.append(m.Extent(offset + e.offset, e.length, e.ref, e.data))
            offset += info.size
            digests += bytes.fromhex(etag)
            parts.append(info)
        if any(part.size < 5 << 20 for part in parts[:-1]):
            raise m.MetadataError("EntityTooSmall")
        if o.object_size not in (-1, offset):
            raise m.MetadataError("InvalidRequest")
        etag = f"{hashlib.md5(digests).hexdigest()}-{len(parts)}"
        meta = msgspec.structs.replace(upload.info.meta, checksum=o.checksum)
        del self.uploads[o.upload]
        body = m.Body(offset, None, tuple(extents))
        return self._store(o.bucket, o.key, body, etag, meta, upload.info.owner, tuple(parts))
