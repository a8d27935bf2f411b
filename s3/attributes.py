"""What is known of an object beside its bytes: attributes, tags, lock."""

from __future__ import annotations

from trivium.metadata.messages import ObjectInfo, SetObjectMeta
from trivium.s3 import conditions, describe
from trivium.s3.context import Operate, S3Request, Service
from trivium.s3.documents import read_document
from trivium.s3.errors import S3Error
from trivium.s3.http import Response
from trivium.s3.listing import xml_answer
from trivium.s3.objects import head
from trivium.s3.xml import Malformed, element, escape, parse


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
            f"<Checksum><Checksum{name}>{escape(meta.checksum)}</Checksum{name}>"
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
    lines = [
        f"<Tag><Key>{escape(key)}</Key><Value>{escape(value)}</Value></Tag>" for key, value in sorted(tags.items())
    ]
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
    await head(service, request)
    tags = await read_tagging(service, request, describe.MAX_TAGS)
    await service.metadata.call(SetObjectMeta(request.bucket, request.key, tags))
    return Response(200)


async def delete_object_tagging(service: Service, request: S3Request) -> Response:
    await head(service, request)
    await service.metadata.call(SetObjectMeta(request.bucket, request.key, {}))
    return Response(204)


async def lock_unset(service: Service, request: S3Request) -> Response:
    await head(service, request)
    raise S3Error("NoSuchObjectLockConfiguration")


HANDLERS: dict[str, Operate] = {
    "GetObjectAttributes": get_object_attributes,
    "GetObjectTagging": get_object_tagging,
    "PutObjectTagging": put_object_tagging,
    "DeleteObjectTagging": delete_object_tagging,
    "GetObjectRetention": lock_unset,
    "GetObjectLegalHold": lock_unset,
}
