"""Multipart uploads: parts collect in a content of their own, completing them fixes where each begins.

Invariants:
1. The upload's row names the content until it is completed or aborted; then the object's inode does, or nobody.
2. Each upload of a part gets a new part key: a replaced one's extents go without touching the new one's.
3. Completing rewrites no extents; the answer is kept in the row, so that a retry is answered alike.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from trivium.metadata import conditions, content, extents, inodes, namespace
from trivium.metadata.bucketnames import need_bucket
from trivium.metadata.listing import common_prefix, past
from trivium.metadata.messages import (
    AbortUpload,
    CompleteUpload,
    CopyPart,
    CreateUpload,
    GetUpload,
    ListParts,
    ListUploads,
    MetadataError,
    ObjectInfo,
    PartInfo,
    PartListing,
    PutPart,
    UploadInfo,
    UploadListing,
)
from trivium.metadata.objectrows import decode_meta, encode
from trivium.metadata.objects import body_extents, check_key, need_object, new_inode, publish, seek

if TYPE_CHECKING:
    from trivium.metadata.tx import Reader, Tx

PART_MIN = 5 << 20  # of every part but the last
PART_NUMBER_MAX = 10_000
LIST_MAX = 1000
decode_done = msgspec.msgpack.Decoder(ObjectInfo).decode


class Upload(NamedTuple):
    bucket: int
    key: bytes
    id: str
    content: int
    created: int
    owner: str
    meta: bytes
    done: bytes

    def info(self) -> UploadInfo:
        return UploadInfo(self.id, self.key, self.created, decode_meta(self.meta), self.owner)


_COLUMNS = "bucket, key, id, content, created, owner, meta, done"


def find(reader: Reader, bucket: bytes, key: bytes, id: str) -> Upload:
    """Also a completed one (its `done` is not empty)."""
    top = need_bucket(reader, bucket)
    row = reader.one(f"SELECT {_COLUMNS} FROM uploads WHERE bucket = ? AND key = ? AND id = ?", top, key, id)
    if row is None:
        raise MetadataError("NoSuchUpload", "the upload is not there; it was aborted or completed")
    return Upload(*row)


def need(reader: Reader, bucket: bytes, key: bytes, id: str) -> Upload:
    upload = find(reader, bucket, key, id)
    if upload.done:
        raise MetadataError("NoSuchUpload", "the upload was completed")
    return upload


def create_upload(tx: Tx, op: CreateUpload) -> UploadInfo:
    top = need_bucket(tx, op.bucket)
    check_key(op.key)
    id = f"{tx.next_id('upload'):012x}{tx.now & 0xFFFFFFFFFFFFFFFF:016x}"
    upload = Upload(top, op.key, id, tx.next_id("content"), tx.now, op.owner, encode(op.meta), b"")
    tx.run(f"INSERT INTO uploads ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", *upload)
    return upload.info()


# ---- parts ------------------------------------------------------------------------------------------------------


def put_part(tx: Tx, op: PutPart) -> PartInfo:
    upload = need(tx, op.bucket, op.key, op.upload)
    part = _new_part(tx, upload, op.number)
    used = 0
    for extent in body_extents(op.body):
        used -= extents.punch(tx, upload.content, part, extent.offset, extent.offset + extent.length)
        used += extents.lay(tx, upload.content, part, extent.offset, extent)
    return _add_part(tx, upload, part, PartInfo(op.number, op.body.size, op.etag, tx.now, op.checksum), used)


def copy_part(tx: Tx, op: CopyPart) -> PartInfo:
    upload = need(tx, op.bucket, op.key, op.upload)
    source = need_object(tx, op.source_bucket, op.source_key)
    conditions.check(op.source_conditions, source)
    length = source.size - op.offset if op.length < 0 else op.length
    if op.offset < 0 or op.offset + length > source.size:
        raise MetadataError("InvalidRange", "the range reaches beyond the end of the source")
    part = _new_part(tx, upload, op.number)
    used = content.share(tx, inodes.need(tx, source.ino), op.offset, upload.content, 0, length, part) if length else 0
    return _add_part(tx, upload, part, PartInfo(op.number, length, op.etag, tx.now, op.checksum), used)


def _new_part(tx: Tx, upload: Upload, number: int) -> int:
    """A key for the part's extents; an earlier part of the number goes."""
    if not 1 <= number <= PART_NUMBER_MAX:
        raise MetadataError("InvalidArgument", f"a part's number is 1 to {PART_NUMBER_MAX}")
    rows = tx.all("SELECT part FROM parts WHERE content = ? AND number = ?", upload.content, number)
    for (old,) in rows:
        extents.drop_part(tx, upload.content, old)
    return tx.next_id("part")


def _add_part(tx: Tx, upload: Upload, part: int, info: PartInfo, used: int) -> PartInfo:
    tx.run(
        "INSERT INTO parts (content, part, number, start, length, used, etag, checksum, mtime)"
        " VALUES (?, ?, ?, -1, ?, ?, ?, ?, ?)",
        *(upload.content, part, info.number, info.size, used, info.etag, info.checksum, info.mtime),
    )
    return info


# ---- the end ----------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    part: int
    number: int
    length: int
    used: int
    etag: str
    checksum: str


def complete_upload(tx: Tx, op: CompleteUpload) -> ObjectInfo:
    upload = find(tx, op.bucket, op.key, op.upload)
    if upload.done:
        return decode_done(upload.done)
    rows = tx.all("SELECT part, number, length, used, etag, checksum FROM parts WHERE content = ?", upload.content)
    have = {row[1]: Part(*row) for row in rows}
    chosen = _choose(op, have)
    conditions.check(op.conditions, seek(tx, op.bucket, op.key).stat)
    size = _fix_starts(tx, upload, chosen)
    if op.object_size not in (-1, size):
        raise MetadataError("InvalidRequest", f"the parts are {size} bytes, not {op.object_size}")
    keep = {part.part for part in chosen}
    for part in have.values():
        if part.part not in keep:
            extents.drop_part(tx, upload.content, part.part)
    info = _publish(tx, op, upload, chosen, size)
    tx.run(
        "UPDATE uploads SET content = 0, done = ? WHERE bucket = ? AND key = ? AND id = ?",
        *(encode(info), upload.bucket, upload.key, upload.id),
    )
    return info


def _choose(op: CompleteUpload, have: dict[int, Part]) -> list[Part]:
    """The parts that the client lists, checked."""
    numbers = [number for number, _, _ in op.parts]
    if not numbers:
        raise MetadataError("InvalidPart", "no part is listed")
    if any(second <= first for first, second in pairwise(numbers)):
        raise MetadataError("InvalidPartOrder", "parts are listed in ascending order, each once")
    chosen = []
    for number, etag, checksum in op.parts:
        part = have.get(number)
        if part is None or part.etag != etag.strip('"') or (checksum and part.checksum and checksum != part.checksum):
            raise MetadataError("InvalidPart", f"part {number} was not uploaded, or is another one by now")
        chosen.append(part)
    for part in chosen[:-1]:
        if part.length < PART_MIN:
            raise MetadataError("EntityTooSmall", f"part {part.number} has {part.length} bytes, less than 5 MiB")
    return chosen


def _fix_starts(tx: Tx, upload: Upload, chosen: list[Part]) -> int:
    start = 0
    for part in chosen:
        tx.run("UPDATE parts SET start = ? WHERE content = ? AND part = ?", start, upload.content, part.part)
        start += part.length
    return start


def _publish(tx: Tx, op: CompleteUpload, upload: Upload, chosen: list[Part], size: int) -> ObjectInfo:
    inode = new_inode(tx, upload.bucket)
    inode.content, inode.size, inode.used = upload.content, size, sum(part.used for part in chosen)
    meta = decode_meta(upload.meta)
    if op.checksum:
        kind = op.checksum_type or meta.checksum_type
        meta = msgspec.structs.replace(meta, checksum=op.checksum, checksum_type=kind)
    directory, rest = namespace.place(tx, upload.bucket, op.key)
    etag = _etag(chosen)
    return publish(tx, directory, rest, inode, key=op.key, etag=etag, owner=upload.owner, meta=meta)


def _etag(chosen: list[Part]) -> str:
    """md5 of the parts' md5s, and how many."""
    try:
        raw = b"".join(bytes.fromhex(part.etag) for part in chosen)
    except ValueError:
        raw = "".join(part.etag for part in chosen).encode()
    return f"{hashlib.md5(raw, usedforsecurity=False).hexdigest()}-{len(chosen)}"


def abort_upload(tx: Tx, op: AbortUpload) -> None:
    _remove(tx, need(tx, op.bucket, op.key, op.upload))


def _remove(tx: Tx, upload: Upload) -> None:
    tx.run("DELETE FROM uploads WHERE bucket = ? AND key = ? AND id = ?", upload.bucket, upload.key, upload.id)
    if upload.content:
        extents.drop(tx, upload.content)


def abort_all(tx: Tx, bucket: int) -> None:
    """The bucket goes, and what was begun in it."""
    for row in tx.all(f"SELECT {_COLUMNS} FROM uploads WHERE bucket = ?", bucket):
        _remove(tx, Upload(*row))


def expire_step(tx: Tx, before: int, limit: int = 100) -> bool:
    """Forget answers of uploads completed long ago (by when they began); True when none is left."""
    sql = f"SELECT {_COLUMNS} FROM uploads WHERE content = 0 AND created < ? LIMIT ?"
    rows = tx.all(sql, before, limit)
    for row in rows:
        _remove(tx, Upload(*row))
    return len(rows) < limit


# ---- looking ----------------------------------------------------------------------------------------------------


def get_upload(reader: Reader, query: GetUpload) -> UploadInfo:
    return need(reader, query.bucket, query.key, query.upload).info()


def list_parts(reader: Reader, query: ListParts) -> PartListing:
    upload = need(reader, query.bucket, query.key, query.upload)
    limit = max(0, min(query.limit, LIST_MAX))
    rows = reader.all(
        "SELECT number, length, etag, mtime, checksum FROM parts WHERE content = ? AND number > ?"
        " ORDER BY number LIMIT ?",
        *(upload.content, query.after, limit + 1),
    )
    return PartListing(tuple(PartInfo(*row) for row in rows[:limit]), len(rows) > limit, upload.info())


def list_uploads(reader: Reader, query: ListUploads) -> UploadListing:
    top = need_bucket(reader, query.bucket)
    limit = max(0, min(query.limit, LIST_MAX))
    found: list[UploadInfo] = []
    prefixes: list[bytes] = []
    key, id = _uploads_start(query)
    while key is not None and (upload := _next_upload(reader, top, key, id)) is not None:
        if not upload.key.startswith(query.prefix):
            break
        if len(found) + len(prefixes) >= limit:
            return UploadListing(tuple(found), tuple(prefixes), True)
        rolled = common_prefix(upload.key, query.prefix, query.delimiter)
        if rolled:
            prefixes.append(rolled)
            key, id = past(rolled), ""
        else:
            found.append(upload.info())
            key, id = upload.key, upload.id
    return UploadListing(tuple(found), tuple(prefixes), False)


def _uploads_start(query: ListUploads) -> tuple[bytes | None, str]:
    """Where to begin: after (key, id), or after all uploads of the marker's key."""
    marker = query.key_marker
    if not marker or marker < query.prefix:
        return query.prefix, ""
    if marker.startswith(query.prefix) and common_prefix(marker, query.prefix, query.delimiter) == marker:
        return past(marker), ""
    return (marker, query.id_marker) if query.id_marker else (marker + b"\0", "")


def _next_upload(reader: Reader, bucket: int, key: bytes, id: str) -> Upload | None:
    row = reader.one(
        f"SELECT {_COLUMNS} FROM uploads WHERE bucket = ?1 AND (key, id) > (?2, ?3) AND content != 0"
        " ORDER BY key, id LIMIT 1",
        *(bucket, key, id),
    )
    return None if row is None else Upload(*row)
