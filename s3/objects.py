"""Operations on objects: put, get, head, delete."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import trio

from trivium.cluster.errors import ChunkLost, ClusterError, NotFound
from trivium.metadata.messages import (
    INLINE_MAX,
    Conditions,
    DeleteObject,
    HeadObject,
    MetadataError,
    ObjectInfo,
    ObjectMeta,
    PutObject,
)
from trivium.s3 import checksums, conditions, describe
from trivium.s3.access import check_users, new_owner
from trivium.s3.context import Operate, S3Request, Service
from trivium.s3.documents import need_digest, read_xml
from trivium.s3.errors import S3Error, translate
from trivium.s3.http import Response
from trivium.s3.ingest import Received, commit, payload_of, receive
from trivium.s3.listing import xml_answer
from trivium.s3.reader import Reader
from trivium.s3.router import check_key
from trivium.s3.xml import Malformed, Node, element, escape

HOLD_BYTES = 4 << 20  # reads above this hold the inode: they may last longer than the object


def check_version(request: S3Request) -> None:
    """Buckets have no versions yet: the only one of an object is "null"."""
    version = request.query.get("versionId")
    if version is not None and version != "null":
        raise S3Error("NoSuchVersion", Key=request.key.decode(), VersionId=version[:64])


def object_headers(info: ObjectInfo) -> dict[str, str]:
    return {"ETag": f'"{info.etag}"', **describe.checksum_headers(info.meta)}


def with_checksum(meta: ObjectMeta, algorithm: str, checksum: str) -> ObjectMeta:
    return msgspec.structs.replace(
        meta, checksum_algorithm=algorithm, checksum=checksum, checksum_type=checksums.FULL_OBJECT if checksum else ""
    )


# ---- put ----------------------------------------------------------------------------------------------------


async def put_object(service: Service, request: S3Request) -> Response:
    headers, limits = request.headers, service.limits
    owner, grants = new_owner(request, headers)
    await check_users(service, grants, owner)
    meta = describe.with_grants(describe.meta_of(headers, limits.user_metadata_bytes), grants)
    wanted_conditions = conditions.of_write(headers)
    payload, wanted = payload_of(request, limits.put_bytes)
    if payload.length is None or payload.length > INLINE_MAX:
        await check_before(service, request.bucket, request.key, wanted_conditions)
    received = await receive(service, payload, wanted, limits.put_bytes)
    return await put_received(service, request, received, wanted.algorithm, meta, owner)


async def put_received(
    service: Service, request: S3Request, received: Received, algorithm: str, meta: ObjectMeta, owner: str
) -> Response:
    meta = with_checksum(meta, algorithm, received.checksum)
    bucket, key = request.bucket, request.key
    guards = conditions.of_write(request.headers)
    info: ObjectInfo = await commit(
        service, received, lambda body: PutObject(bucket, key, body, received.etag, meta, guards, owner)
    )
    headers = {"ETag": f'"{info.etag or received.etag}"', **describe.checksum_headers(meta)}
    return Response(200, headers)


async def check_before(service: Service, bucket: bytes, key: bytes, guards: Conditions) -> None:
    """Before a large body moves: the bucket is there and the conditions hold now. The commit tests them again."""
    if not guards.if_match and not guards.if_none_match:
        await service.buckets.get(bucket)
        return
    try:
        info: ObjectInfo | None = await service.metadata.ask(HeadObject(bucket, key))
    except MetadataError as error:
        if error.code != "NoSuchKey":
            raise
        info = None
    conditions.check_write(guards, None if info is None else info.etag)


# ---- get ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Opened:
    """An object and the range of it that was asked for."""

    info: ObjectInfo
    begin: int
    end: int
    status: int
    headers: dict[str, str]


def select(request: S3Request, info: ObjectInfo) -> Opened:
    """Conditions, range or part, and headers of GET and HEAD. Pure. S3Error."""
    conditions.check_read(request.headers, info)
    part_text = request.query.get("partNumber")
    range_text = request.headers.get("range")
    if part_text is not None and range_text is not None:
        raise S3Error("InvalidRequest", "Cannot specify both Range header and partNumber query parameter")
    if part_text is not None:
        chosen: tuple[int, int] | None = part_range(request.number("partNumber", -1, 1, 10_000), info)
    else:
        chosen = conditions.parse_range(range_text, info.size)
    wants_checksum = request.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED"
    headers = describe.answer_headers(info, wants_checksum and (chosen is None or chosen == (0, info.size)))
    describe.apply_overrides(headers, request.query, request.identity.anonymous)
    if part_text is not None and info.parts:
        headers["x-amz-mp-parts-count"] = str(len(info.parts))
        part = info.parts[int(part_text) - 1]
        if wants_checksum and part.checksum:
            headers[f"x-amz-checksum-{info.meta.checksum_algorithm.lower()}"] = part.checksum
            headers["x-amz-checksum-type"] = info.meta.checksum_type
    if chosen is None:
        return Opened(info, 0, info.size, 200, headers)
    begin, end = chosen
    if end > begin:
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{info.size}"
    return Opened(info, begin, end, 206, headers)


def part_range(number: int, info: ObjectInfo) -> tuple[int, int]:
    if not info.parts:
        if number == 1:
            return 0, info.size
        raise S3Error("InvalidPartNumber")
    begin = 0
    for position, part in enumerate(info.parts, 1):
        if position == number:
            return begin, begin + part.size
        begin += part.size
    raise S3Error("InvalidPartNumber", ActualPartCount=str(len(info.parts)), PartNumberRequested=str(number))


async def head(service: Service, request: S3Request, *, layout: bool = False, hold: bool = False) -> ObjectInfo:
    """The object, and the requester may act on it; with `hold` the caller checks that. S3Error, MetadataError."""
    check_version(request)
    try:
        info: ObjectInfo = await service.metadata.ask(HeadObject(request.bucket, request.key, layout, hold))
    except MetadataError as error:
        if error.code == "NoSuchKey":
            await service.authorize(
                request, "s3:ListBucket", request.bucket, request.key
            )  # else it may not know: AccessDenied
            raise S3Error("NoSuchKey", Key=request.key.decode()) from None
        raise
    if request.access is not None and not hold:
        request.access.check(info)
    return info


async def head_object(service: Service, request: S3Request) -> Response:
    describe_only = await head(service, request)
    opened = select(request, describe_only)
    return Response(opened.status, opened.headers, length=opened.end - opened.begin)


async def get_object(service: Service, request: S3Request) -> Response:
    for attempt in (1, 2):
        info = await head(service, request, layout=True)
        opened = select(request, info)
        if opened.end - opened.begin > HOLD_BYTES:
            return await _get_large(service, request)
        reader = Reader(service, info, opened.begin, opened.end)
        try:
            buffers = await reader.first()
        except (ChunkLost, NotFound, MetadataError) as error:
            # replaced and collected between the look and the read: look once more
            if attempt == 2:
                raise
            if isinstance(error, MetadataError) and error.code != "ESTALE":
                raise
            continue
        if buffers is None:
            return await _get_large(service, request)
        if len(buffers) == 1:
            return Response(opened.status, opened.headers, buffers[0])
        return Response(opened.status, opened.headers, b"".join(buffers))
    raise AssertionError("unreachable")


async def _get_large(service: Service, request: S3Request) -> Response:
    info = await head(service, request, layout=True, hold=True)
    reader = Reader(service, info, 0, 0, held=True)
    try:
        if request.access is not None:
            request.access.check(info)
        opened = select(request, info)
    except BaseException:
        with trio.CancelScope(shield=True):
            await reader.finish()
        raise
    reader = Reader(service, info, opened.begin, opened.end, held=True)
    return Response(opened.status, opened.headers, b"", reader.stream, opened.end - opened.begin, reader.finish)


# ---- delete -------------------------------------------------------------------------------------------------


async def delete_object(service: Service, request: S3Request) -> Response:
    check_version(request)
    await service.metadata.call(DeleteObject(request.bucket, request.key, conditions.of_delete(request.headers)))
    return Response(204)


async def delete_objects(service: Service, request: S3Request) -> Response:
    need_digest(request)
    document = await read_xml(service, request, "Delete")
    wanted = document.all("Object")
    if not 1 <= len(wanted) <= 1000:
        raise S3Error("MalformedXML")
    quiet = (document.value("Quiet") or "").lower() == "true"
    lines: list[str] = [""] * len(wanted)
    limiter = trio.CapacityLimiter(8)

    async def one(index: int, node: Node) -> None:
        async with limiter:
            lines[index] = await _delete_one(service, request, node, quiet)

    async with trio.open_nursery() as nursery:
        for index, node in enumerate(wanted):
            nursery.start_soon(one, index, node)
    return xml_answer("DeleteResult", lines)


async def _delete_one(service: Service, request: S3Request, node: Node, quiet: bool) -> str:
    """Its line of the answer: every failure is told, none ends the rest."""
    key_text, version = "", ""
    try:
        key_text = node.need("Key")
        version = node.value("VersionId") or ""
        key = key_text.encode()
        if not key:
            raise S3Error("MalformedXML")
        check_key(key)
        if version not in ("", "null"):
            raise S3Error("NoSuchVersion")
        await service.authorize(request, "s3:DeleteObject", request.bucket, key)
        size = node.value("Size")
        guard = Conditions(
            if_match=conditions.unquote_etag(node.value("ETag") or ""),
            if_size=int(size) if size else -1,
            if_mtime=conditions.parse_date(node.value("LastModifiedTime")),
        )
        await service.metadata.call(DeleteObject(request.bucket, key, guard))
    except (S3Error, MetadataError, ClusterError, Malformed, ValueError) as error:
        if isinstance(error, MetadataError) and error.code == "NoSuchBucket":
            raise
        known = error if isinstance(error, S3Error) else S3Error("MalformedXML")
        if isinstance(error, (MetadataError, ClusterError)):
            known = translate(error)
        return (
            f"<Error><Key>{escape(key_text)}</Key>{element('VersionId', version or None)}"
            f"<Code>{known.code}</Code><Message>{escape(known.message)}</Message></Error>"
        )
    if quiet:
        return ""
    return f"<Deleted><Key>{escape(key_text)}</Key>{element('VersionId', version or None)}</Deleted>"


HANDLERS: dict[str, Operate] = {
    "PutObject": put_object,
    "GetObject": get_object,
    "HeadObject": head_object,
    "DeleteObject": delete_object,
    "DeleteObjects": delete_objects,
}
