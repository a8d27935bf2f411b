"""CopyObject, and what x-amz-copy-source means. No data moves; a new checksum reads the source once."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

import msgspec

from trivium.metadata.messages import CopyObject, HeadObject, MetadataError, ObjectInfo, ObjectMeta
from trivium.s3 import checksums, conditions, describe
from trivium.s3.access import Access, check_users, new_owner
from trivium.s3.context import Operate, S3Request, Service
from trivium.s3.errors import S3Error
from trivium.s3.http import Response
from trivium.s3.listing import iso_date, xml_answer
from trivium.s3.objects import with_checksum
from trivium.s3.reader import Reader
from trivium.s3.router import check_key
from trivium.s3.xml import escape


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


async def head_source(
    service: Service, request: S3Request, access: Access, bucket: bytes, key: bytes, *, layout: bool
) -> ObjectInfo:
    """The object that is copied, and it may be read. S3Error, MetadataError."""
    try:
        source: ObjectInfo = await service.metadata.ask(HeadObject(bucket, key, layout))
    except MetadataError as error:
        if error.code == "NoSuchKey":
            await service.authorize(request, "s3:ListBucket", bucket, key)  # else it may not know: AccessDenied
        raise
    access.check(source)
    return source


def _directive(request: S3Request, name: str) -> str:
    value = request.headers.get(name, "COPY").upper()
    if value not in ("COPY", "REPLACE"):
        raise S3Error("InvalidArgument", f"Unknown {name.removeprefix('x-amz-')}.", ArgumentName=name)
    return value


async def copy_object(service: Service, request: S3Request) -> Response:
    source_bucket, source_key = copy_source(request)
    access = await service.authorize(request, "s3:GetObject", source_bucket, source_key)
    headers = request.headers
    owner, grants = new_owner(request, headers)
    await check_users(service, grants, owner)
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
    source = await head_source(service, request, access, source_bucket, source_key, layout=bool(algorithm))
    if source.size > service.limits.put_bytes:
        raise S3Error(
            "InvalidRequest",
            "The specified copy source is larger than the maximum allowable size for a copy "
            f"source: {service.limits.put_bytes}",
        )
    meta = _copied_meta(source.meta, new_meta, replace, replace_tags, headers)
    meta = msgspec.structs.replace(meta, grants=grants)  # an ACL is never copied
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
            owner,
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


HANDLERS: dict[str, Operate] = {"CopyObject": copy_object}
