"""Operations on objects: put, get, head, delete, copy, attributes, tags."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import msgspec
import trio

from trivium.cluster.errors import ChunkLost, ClusterError, NotFound
from trivium.metadata.messages import (
    INLINE_MAX,
    Conditions,
    CopyObject,
    DeleteObject,
    HeadObject,
    MetadataError,
    ObjectInfo,
    ObjectMeta,
    PutObject,
    SetObjectMeta,
)
from trivium.s3 import checksums, conditions, describe
from trivium.s3.context import Operate, S3Request, Service
from trivium.s3.errors import S3Error, translate
from trivium.s3.http import Response
from trivium.s3.ingest import Received, commit, payload_of, receive
from trivium.s3.listing import iso_date, xml_answer
from trivium.s3.reader import Reader
from trivium.s3.router import check_key
from trivium.s3.xml import Malformed, Node, element, escape, parse

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
    meta = describe.meta_of(headers, limits.user_metadata_bytes)
    wanted_conditions = conditions.of_write(headers)
    payload, wanted = payload_of(request, limits.put_bytes)
    if payload.length is None or payload.length > INLINE_MAX:
        await check_before(
            service, request.bucket, request.key, wanted_conditions.if_match, wanted_conditions.if_none_match
        )
    received = await receive(service, payload, wanted, limits.put_bytes)
    return await put_received(service, request, received, wanted.algorithm, meta)


async def put_received(
    service: Service, request: S3Request, received: Received, algorithm: str, meta: ObjectMeta
) -> Response:
    meta = with_checksum(meta, algorithm, received.checksum)
    bucket, key, owner = request.bucket, request.key, request.identity.user
    guards = conditions.of_write(request.headers)
    info: ObjectInfo = await commit(
        service, received, lambda body: PutObject(bucket, key, body, received.etag, meta, guards, owner)
    )
    headers = {"ETag": f'"{info.etag or received.etag}"', **describe.checksum_headers(meta)}
    return Response(200, headers)


async def check_before(service: Service, bucket: bytes, key: bytes, if_match: str, if_none_match: str) -> None:
    """Before a large body moves: the bucket is there and the conditions hold now. The commit tests them again."""
    if not if_match and not if_none_match:
        await service.buckets.get(bucket)
        return
    try:
        info: ObjectInfo | None = await service.metadata.ask(HeadObject(bucket, key))
    except MetadataError as error:
        if error.code != "NoSuchKey":
            raise
        info = None
    if info is None and if_match:
        raise S3Error("NoSuchKey", Key=key.decode())
    if info is not None and (if_none_match or (if_match != "*" and if_match != info.etag)):
        raise S3Error("PreconditionFailed", Condition="If-None-Match" if if_none_match else "If-Match")


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
    check_version(request)
    try:
        info: ObjectInfo = await service.metadata.ask(HeadObject(request.bucket, request.key, layout, hold))
    except MetadataError as error:
        if error.code == "NoSuchKey":
            await service.authorize(request, "s3:ListBucket", request.bucket, b"")  # else it may not know: AccessDenied
            raise S3Error("NoSuchKey", Key=request.key.decode()) from None
        raise
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


async def read_document(service: Service, request: S3Request, limit: int | None = None) -> bytes:
    """A small body: checked against its digests. S3Error."""
    limit = limit or service.limits.document_bytes
    payload, wanted = payload_of(request, 1 << 62)
    if payload.length is not None and payload.length > limit:
        raise S3Error("MaxMessageLengthExceeded", MaxMessageLengthBytes=str(limit))
    data = bytearray()
    view = memoryview(bytearray(64 * 1024))
    hashes = checksums.BodyHash(wanted)
    while count := await payload.read_into(view):
        hashes.update(view[:count])
        data += view[:count]
        if len(data) > limit:
            raise S3Error("MaxMessageLengthExceeded", MaxMessageLengthBytes=str(limit))
    hashes.finish(payload.trailers.get(wanted.trailer))
    return bytes(data)


async def read_xml(service: Service, request: S3Request, root: str) -> Node:
    document = await read_document(service, request)
    if not document:
        raise S3Error("MissingRequestBodyError")
    try:
        return parse(document, root, service.limits.document_bytes)
    except Malformed as error:
        raise S3Error("MaxMessageLengthExceeded" if error.too_large else "MalformedXML") from None


def need_digest(request: S3Request) -> None:
    """Operations whose loss in transit would be harmful ask for a digest of their document."""
    headers = request.headers
    if "content-md5" in headers or "x-amz-trailer" in headers or any(name in headers for name in checksums.HEADERS):
        return
    if request.claim is not None and len(request.claim.payload) == 64:
        return
    raise S3Error("InvalidRequest", "Missing required header for this request: Content-MD5 OR x-amz-checksum-*")


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


# ---- copy ---------------------------------------------------------------------------------------------------


def copy_source(request: S3Request) -> tuple[bytes, bytes]:
    """Bucket and key of x-amz-copy-source. S3Error."""
    text = request.headers["x-amz-copy-source"]
    path, _, version = text.partition("?versionId=")
    if version and version != "null":
        raise S3Error("NoSuchVersion")
    raw = unquote_to_bytes(path.encode("latin-1"))
    bucket, slash, key = raw.lstrip(b"/").partition(b"/")
    if not bucket or not slash or not key:
        raise S3Error(
            "InvalidArgument",
            "Copy Source must mention the source bucket and key: sourcebucket/sourcekey",
            ArgumentName="x-amz-copy-source",
            ArgumentValue=text[:256],
        )
    check_key(key)
    return bucket, key


def _directive(request: S3Request, name: str) -> str:
    value = request.headers.get(name, "COPY").upper()
    if value not in ("COPY", "REPLACE"):
        raise S3Error("InvalidArgument", f"Unknown {name.removeprefix('x-amz-')}.", ArgumentName=name)
    return value


async def copy_object(service: Service, request: S3Request) -> Response:
    source_bucket, source_key = copy_source(request)
    await service.authorize(request, "s3:GetObject", source_bucket, source_key)
    headers = request.headers
    new_meta = describe.meta_of(headers, service.limits.user_metadata_bytes)
    replace, replace_tags = (
        _directive(request, "x-amz-metadata-directive"),
        _directive(request, "x-amz-tagging-directive"),
    )
    algorithm = checksums.algorithm_named(headers.get("x-amz-checksum-algorithm", ""))
    same = (source_bucket, source_key) == (request.bucket, request.key)
    changes = replace == "REPLACE" or "x-amz-storage-class" in headers or "x-amz-website-redirect-location" in headers
    if same and not changes:
        raise S3Error(
            "InvalidRequest",
            "This copy request is illegal because it is trying to copy an object to itself "
            "without changing the object's metadata, storage class, website redirect location or encryption "
            "attributes.",
        )
    guards = conditions.of_copy_source(headers)
    source: ObjectInfo = await service.metadata.ask(HeadObject(source_bucket, source_key, layout=bool(algorithm)))
    if source.size > service.limits.put_bytes:
        raise S3Error(
            "InvalidRequest",
            "The specified copy source is larger than the maximum allowable size for a copy "
            f"source: {service.limits.put_bytes}",
        )
    meta = _copied_meta(source.meta, new_meta, replace, replace_tags, headers)
    if algorithm and algorithm != source.meta.checksum_algorithm:
        hashed = checksums.hasher(algorithm)
        await Reader(service, source, 0, source.size).update(hashed.update)
        meta = with_checksum(meta, algorithm, checksums.to_base64(hashed.digest()))
    if not guards.if_match:  # what is described here is what was looked at
        guards = msgspec.structs.replace(guards, if_match=source.etag)
    (info,) = await service.metadata.call(
        CopyObject(
            source_bucket,
            source_key,
            request.bucket,
            request.key,
            meta,
            guards,
            conditions.of_write(headers),
            request.identity.user,
        )
    )
    result = [f"<LastModified>{iso_date(info.mtime)}</LastModified><ETag>&quot;{escape(info.etag)}&quot;</ETag>"]
    if meta.checksum:
        name = meta.checksum_algorithm
        result.append(
            f"<ChecksumType>{meta.checksum_type}</ChecksumType><Checksum{name}>{meta.checksum}</Checksum{name}>"
        )
    return xml_answer("CopyObjectResult", result)


def _copied_meta(
    source: ObjectMeta, new: ObjectMeta, replace: str, replace_tags: str, headers: dict[str, str]
) -> ObjectMeta:
    meta = new if replace == "REPLACE" else source
    storage_class = new.storage_class if "x-amz-storage-class" in headers else source.storage_class
    return msgspec.structs.replace(
        meta,
        tags=new.tags if replace_tags == "REPLACE" else source.tags,
        storage_class=storage_class,
        website_redirect=new.website_redirect,
        checksum_algorithm=source.checksum_algorithm,
        checksum=source.checksum,
        checksum_type=source.checksum_type,
    )


# ---- attributes, tags, ACL ----------------------------------------------------------------------------------


async def get_object_attributes(service: Service, request: S3Request) -> Response:
    known = {"ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"}
    wanted = {name.strip() for name in request.headers.get("x-amz-object-attributes", "").split(",")} - {""}
    if not wanted or wanted - known:
        raise S3Error("InvalidArgument", "Invalid attribute name specified.", ArgumentName="x-amz-object-attributes")
    info = await head(service, request)
    conditions.check_read(request.headers, info)
    meta, parts = info.meta, list[str]()
    if "ETag" in wanted:
        parts.append(element("ETag", info.etag))
    if "Checksum" in wanted and meta.checksum:
        name = meta.checksum_algorithm
        parts.append(
            f"<Checksum><Checksum{name}>{escape(meta.checksum.partition('-')[0])}</Checksum{name}>"
            f"<ChecksumType>{meta.checksum_type}</ChecksumType></Checksum>"
        )
    if "ObjectParts" in wanted and info.parts:
        parts.append(_object_parts(request, info))
    if "StorageClass" in wanted:
        parts.append(element("StorageClass", meta.storage_class))
    if "ObjectSize" in wanted:
        parts.append(element("ObjectSize", info.size))
    response = xml_answer("GetObjectAttributesResponse", parts)
    response.headers["Last-Modified"] = conditions.http_date(info.mtime)
    return response


def _header_number(request: S3Request, name: str, default: int) -> int:
    text = request.headers.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        raise S3Error("InvalidArgument", f"{name} is not a number.", ArgumentName=name)
    return int(text)


def _object_parts(request: S3Request, info: ObjectInfo) -> str:
    limit = min(1000, _header_number(request, "x-amz-max-parts", 1000))
    marker = _header_number(request, "x-amz-part-number-marker", 0)
    after = [part for part in info.parts if part.number > marker]
    page = after[:limit]
    name = info.meta.checksum_algorithm
    lines = []
    for part in page:
        checksum = f"<Checksum{name}>{escape(part.checksum)}</Checksum{name}>" if name and part.checksum else ""
        lines.append(f"<Part>{checksum}<PartNumber>{part.number}</PartNumber><Size>{part.size}</Size></Part>")
    return (
        f"<ObjectParts><TotalPartsCount>{len(info.parts)}</TotalPartsCount><PartsCount>{len(info.parts)}</PartsCount>"
        f"<PartNumberMarker>{marker}</PartNumberMarker>"
        f"<NextPartNumberMarker>{page[-1].number if page else marker}</NextPartNumberMarker>"
        f"<MaxParts>{limit}</MaxParts>"
        f"<IsTruncated>{'true' if len(after) > limit else 'false'}</IsTruncated>{''.join(lines)}</ObjectParts>"
    )


def tagging_document(tags: dict[str, str]) -> Response:
    lines = [f"<Tag><Key>{escape(key)}</Key><Value>{escape(value)}</Value></Tag>" for key, value in tags.items()]
    return xml_answer("Tagging", ["<TagSet>", *lines, "</TagSet>"])


def parse_tagging(document: bytes, limit: int) -> dict[str, str]:
    """The tags of a Tagging document. S3Error."""
    if not document:
        raise S3Error("MissingRequestBodyError")
    try:
        tag_set = parse(document, "Tagging").one("TagSet")
        if tag_set is None:
            raise S3Error("MalformedXML")
        pairs = [(tag.need("Key"), tag.need("Value")) for tag in tag_set.all("Tag")]
    except Malformed:
        raise S3Error("MalformedXML") from None
    return describe.check_tags(pairs, limit)


async def read_tagging(service: Service, request: S3Request, limit: int) -> dict[str, str]:
    return parse_tagging(await read_document(service, request), limit)


async def get_object_tagging(service: Service, request: S3Request) -> Response:
    return tagging_document((await head(service, request)).meta.tags)


async def put_object_tagging(service: Service, request: S3Request) -> Response:
    check_version(request)
    tags = await read_tagging(service, request, describe.MAX_TAGS)
    await service.metadata.call(SetObjectMeta(request.bucket, request.key, tags))
    return Response(200)


async def delete_object_tagging(service: Service, request: S3Request) -> Response:
    check_version(request)
    await service.metadata.call(SetObjectMeta(request.bucket, request.key, {}))
    return Response(204)


def acl_document(owner: str) -> Response:
    """The canned "private" ACL: the owner has full control, nobody else is named."""
    who = f"<ID>{escape(owner)}</ID><DisplayName>{escape(owner)}</DisplayName>"
    return xml_answer(
        "AccessControlPolicy",
        [
            f"<Owner>{who}</Owner><AccessControlList><Grant>"
            f'<Grantee xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="CanonicalUser">{who}</Grantee>'
            "<Permission>FULL_CONTROL</Permission></Grant></AccessControlList>"
        ],
    )


async def get_object_acl(service: Service, request: S3Request) -> Response:
    info = await head(service, request)
    return acl_document(info.owner or (request.info.owner if request.info else ""))


async def put_object_acl(service: Service, request: S3Request) -> Response:
    await head(service, request)
    await check_acl(service, request)
    return Response(200)


async def check_acl(service: Service, request: S3Request) -> None:
    """Only what leaves the ACL private is accepted. S3Error AccessControlListNotSupported."""
    describe.refuse_unsupported(request.headers)
    if "x-amz-acl" in request.headers:
        await read_document(service, request)
        return
    document = await read_xml(service, request, "AccessControlPolicy")
    grants = document.one("AccessControlList")
    owner = request.info.owner if request.info else ""
    for grant in grants.all("Grant") if grants is not None else []:
        grantee = grant.one("Grantee")
        if grantee is None or grantee.value("ID") != owner or grant.value("Permission") != "FULL_CONTROL":
            raise S3Error("AccessControlListNotSupported")


async def lock_unset(service: Service, request: S3Request) -> Response:
    await head(service, request)
    raise S3Error("NoSuchObjectLockConfiguration")


HANDLERS: dict[str, Operate] = {
    "PutObject": put_object,
    "GetObject": get_object,
    "HeadObject": head_object,
    "DeleteObject": delete_object,
    "DeleteObjects": delete_objects,
    "CopyObject": copy_object,
    "GetObjectAttributes": get_object_attributes,
    "GetObjectTagging": get_object_tagging,
    "PutObjectTagging": put_object_tagging,
    "DeleteObjectTagging": delete_object_tagging,
    "GetObjectAcl": get_object_acl,
    "PutObjectAcl": put_object_acl,
    "GetObjectRetention": lock_unset,
    "GetObjectLegalHold": lock_unset,
}
