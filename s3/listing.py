"""Listings: objects (versions 1 and 2, and versions of unversioned buckets), uploads. Order is UTF-8 bytes.

Continuation tokens are opaque to clients: the base64 of the key or common prefix that the next page begins after, so
they survive inserts, deletes and restarts.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import quote

from trivium.metadata.messages import Listing, ListObjects, ListUploads, ObjectInfo, UploadListing
from trivium.s3.context import S3Request, Service
from trivium.s3.errors import S3Error
from trivium.s3.http import Response
from trivium.s3.xml import answer, element, escape

XML = {"Content-Type": "application/xml"}
Encode = Callable[[bytes], str]


def iso_date(time_ns: int) -> str:
    moment = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ns // 1_000_000 % 1000:03d}Z"


def xml_answer(root: str, parts: list[str]) -> Response:
    return Response(200, dict(XML), answer(root, parts))


def _plain(key: bytes) -> str:
    return escape(key.decode("utf-8", "replace"))


def _url(key: bytes) -> str:
    return quote(key, safe="/*-._")


def _encoding(request: S3Request) -> tuple[Encode, str]:
    kind = request.query.get("encoding-type")
    if kind is None or kind == "":
        return _plain, ""
    if kind != "url":
        raise S3Error(
            "InvalidArgument",
            "Invalid Encoding Method specified in Request",
            ArgumentName="encoding-type",
            ArgumentValue=kind[:64],
        )
    return _url, "<EncodingType>url</EncodingType>"


def owner_element(name: str, owner: str) -> str:
    return f"<{name}><ID>{escape(owner)}</ID><DisplayName>{escape(owner)}</DisplayName></{name}>"


def _contents(entry: ObjectInfo, encode: Encode, owner: str) -> str:
    meta = entry.meta
    algorithm = ""
    if meta.checksum_algorithm:
        algorithm = f"<ChecksumAlgorithm>{meta.checksum_algorithm}</ChecksumAlgorithm>"
        if meta.checksum_type:
            algorithm += f"<ChecksumType>{meta.checksum_type}</ChecksumType>"
    return (
        f"<Contents><Key>{encode(entry.key)}</Key><LastModified>{iso_date(entry.mtime)}</LastModified>"
        f"<ETag>&quot;{escape(entry.etag)}&quot;</ETag>{algorithm}<Size>{entry.size}</Size>{owner}"
        f"<StorageClass>{escape(meta.storage_class)}</StorageClass></Contents>"
    )


def _prefixes(prefixes: tuple[bytes, ...], encode: Encode) -> str:
    return "".join(f"<CommonPrefixes><Prefix>{encode(prefix)}</Prefix></CommonPrefixes>" for prefix in prefixes)


def _text(request: S3Request, name: str) -> bytes:
    return request.query.get(name, "").encode("utf-8", "surrogateescape")


async def _page(service: Service, request: S3Request, after: bytes, limit: int) -> Listing:
    if limit == 0:
        await service.buckets.get(request.bucket)
        return Listing((), (), False)
    page: Listing = await service.metadata.ask(
        ListObjects(request.bucket, _text(request, "prefix"), _text(request, "delimiter"), after, limit)
    )
    return page


def next_after(page: Listing) -> bytes:
    """Where the next page begins: said by the server, else the last of what it sent."""
    if page.next_after:
        return page.next_after
    last_key = page.entries[-1].key if page.entries else b""
    return max(last_key, page.prefixes[-1] if page.prefixes else b"")


async def list_objects(service: Service, request: S3Request) -> Response:
    encode, encoding = _encoding(request)
    limit = request.number("max-keys", 1000, 0, 1000)
    page = await _page(service, request, _text(request, "marker"), limit)
    owner = owner_element("Owner", request.info.owner if request.info else "")
    delimiter = _text(request, "delimiter")
    parts = [
        f"<Name>{_plain(request.bucket)}</Name><Prefix>{encode(_text(request, 'prefix'))}</Prefix>"
        f"<Marker>{encode(_text(request, 'marker'))}</Marker><MaxKeys>{limit}</MaxKeys>",
        f"<Delimiter>{encode(delimiter)}</Delimiter>" if delimiter else "",
        encoding,
        f"<IsTruncated>{'true' if page.truncated else 'false'}</IsTruncated>",
    ]
    if page.truncated and delimiter:
        parts.append(f"<NextMarker>{encode(next_after(page))}</NextMarker>")
    parts += [_contents(entry, encode, owner) for entry in page.entries]
    parts.append(_prefixes(page.prefixes, encode))
    return xml_answer("ListBucketResult", parts)


def to_token(after: bytes) -> str:
    return base64.urlsafe_b64encode(b"1" + after).decode("ascii")


def from_token(token: str) -> bytes:
    """S3Error InvalidArgument when it is none of ours."""
    try:
        raw = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError, ValueError):
        raw = b""
    if raw[:1] != b"1":
        raise S3Error(
            "InvalidArgument", "The continuation token provided is incorrect", ArgumentName="continuation-token"
        )
    return raw[1:]


async def list_objects_v2(service: Service, request: S3Request) -> Response:
    encode, encoding = _encoding(request)
    limit = request.number("max-keys", 1000, 0, 1000)
    token = request.query.get("continuation-token")
    start_after = _text(request, "start-after")
    after = from_token(token) if token else start_after
    page = await _page(service, request, after, limit)
    fetch_owner = request.query.get("fetch-owner", "").lower() == "true"
    owner = owner_element("Owner", request.info.owner if request.info else "") if fetch_owner else ""
    delimiter = _text(request, "delimiter")
    parts = [
        f"<Name>{_plain(request.bucket)}</Name><Prefix>{encode(_text(request, 'prefix'))}</Prefix>",
        element("ContinuationToken", token),
        f"<StartAfter>{encode(start_after)}</StartAfter>" if start_after else "",
        f"<KeyCount>{len(page.entries) + len(page.prefixes)}</KeyCount><MaxKeys>{limit}</MaxKeys>",
        f"<Delimiter>{encode(delimiter)}</Delimiter>" if delimiter else "",
        encoding,
        f"<IsTruncated>{'true' if page.truncated else 'false'}</IsTruncated>",
        f"<NextContinuationToken>{to_token(next_after(page))}</NextContinuationToken>" if page.truncated else "",
    ]
    parts += [_contents(entry, encode, owner) for entry in page.entries]
    parts.append(_prefixes(page.prefixes, encode))
    return xml_answer("ListBucketResult", parts)


async def list_object_versions(service: Service, request: S3Request) -> Response:
    """Of a bucket that never had versions: each object is its one version, "null"."""
    encode, encoding = _encoding(request)
    limit = request.number("max-keys", 1000, 0, 1000)
    if "version-id-marker" in request.query and "key-marker" not in request.query:
        raise S3Error("InvalidArgument", "A version-id marker cannot be specified without a key marker.")
    page = await _page(service, request, _text(request, "key-marker"), limit)
    owner = owner_element("Owner", request.info.owner if request.info else "")
    delimiter = _text(request, "delimiter")
    parts = [
        f"<Name>{_plain(request.bucket)}</Name><Prefix>{encode(_text(request, 'prefix'))}</Prefix>"
        f"<KeyMarker>{encode(_text(request, 'key-marker'))}</KeyMarker>"
        f"<VersionIdMarker>{escape(request.query.get('version-id-marker', ''))}</VersionIdMarker>"
        f"<MaxKeys>{limit}</MaxKeys>",
        f"<Delimiter>{encode(delimiter)}</Delimiter>" if delimiter else "",
        encoding,
        f"<IsTruncated>{'true' if page.truncated else 'false'}</IsTruncated>",
    ]
    if page.truncated:
        parts.append(
            f"<NextKeyMarker>{encode(next_after(page))}</NextKeyMarker><NextVersionIdMarker>null</NextVersionIdMarker>"
        )
    for entry in page.entries:
        parts.append(
            f"<Version><ETag>&quot;{escape(entry.etag)}&quot;</ETag><Size>{entry.size}</Size>"
            f"<StorageClass>{escape(entry.meta.storage_class)}</StorageClass><Key>{encode(entry.key)}</Key>"
            "<VersionId>null</VersionId><IsLatest>true</IsLatest>"
            f"<LastModified>{iso_date(entry.mtime)}</LastModified>{owner}</Version>"
        )
    parts.append(_prefixes(page.prefixes, encode))
    return xml_answer("ListVersionsResult", parts)


async def list_multipart_uploads(service: Service, request: S3Request) -> Response:
    encode, encoding = _encoding(request)
    limit = request.number("max-uploads", 1000, 0, 1000)
    marker, id_marker = _text(request, "key-marker"), request.query.get("upload-id-marker", "")
    prefix, delimiter = _text(request, "prefix"), _text(request, "delimiter")
    page = UploadListing((), (), False)
    if limit:
        page = await service.metadata.ask(
            ListUploads(request.bucket, prefix, delimiter, marker, id_marker if marker else "", limit)
        )
    parts = [
        f"<Bucket>{_plain(request.bucket)}</Bucket><KeyMarker>{encode(marker)}</KeyMarker>"
        f"<UploadIdMarker>{escape(id_marker)}</UploadIdMarker><Prefix>{encode(prefix)}</Prefix>",
        f"<Delimiter>{encode(delimiter)}</Delimiter>" if delimiter else "",
        encoding,
        f"<MaxUploads>{limit}</MaxUploads><IsTruncated>{'true' if page.truncated else 'false'}</IsTruncated>",
    ]
    if page.truncated:
        last_prefix = page.prefixes[-1] if page.prefixes else b""
        last = page.uploads[-1] if page.uploads else None
        if last is not None and last.key > last_prefix:
            parts.append(
                f"<NextKeyMarker>{encode(last.key)}</NextKeyMarker>"
                f"<NextUploadIdMarker>{escape(last.id)}</NextUploadIdMarker>"
            )
        else:
            parts.append(f"<NextKeyMarker>{encode(last_prefix)}</NextKeyMarker>")
    for upload in page.uploads:
        owner = owner_element("Initiator", upload.owner) + owner_element("Owner", upload.owner)
        checksum = element("ChecksumAlgorithm", upload.meta.checksum_algorithm or None)
        checksum += element("ChecksumType", upload.meta.checksum_type or None)
        parts.append(
            f"<Upload><Key>{encode(upload.key)}</Key><UploadId>{escape(upload.id)}</UploadId>{owner}"
            f"<StorageClass>{escape(upload.meta.storage_class)}</StorageClass>"
            f"<Initiated>{iso_date(upload.created)}</Initiated>{checksum}</Upload>"
        )
    parts.append(_prefixes(page.prefixes, encode))
    return xml_answer("ListMultipartUploadsResult", parts)
