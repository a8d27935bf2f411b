"""An object's description: request headers -> ObjectMeta, and ObjectInfo -> answer headers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl

import msgspec

from trivium.metadata.messages import Grant, ObjectInfo, ObjectMeta
from trivium.s3.conditions import http_date
from trivium.s3.errors import S3Error

STORED = ("cache-control", "content-disposition", "content-encoding", "content-language", "expires")
CLASSES = frozenset(
    {
        "STANDARD",
        "REDUCED_REDUNDANCY",
        "STANDARD_IA",
        "ONEZONE_IA",
        "INTELLIGENT_TIERING",
        "GLACIER",
        "DEEP_ARCHIVE",
        "OUTPOSTS",
        "GLACIER_IR",
        "SNOW",
        "EXPRESS_ONEZONE",
    }
)
USER = "x-amz-meta-"
OVERRIDES = {f"response-{name}": name for name in (*STORED, "content-type")}
DEFAULT_TYPE = "binary/octet-stream"
MAX_TAGS = 10


def refuse_unsupported(headers: Mapping[str, str]) -> None:
    """What would change the object's protection or retention is never ignored in silence. S3Error."""
    for name in headers:
        if name.startswith(("x-amz-server-side-encryption", "x-amz-copy-source-server-side-encryption")):
            raise S3Error("NotImplemented", "Server-side encryption is not implemented.", Header=name)
        if name.startswith("x-amz-object-lock-"):
            raise S3Error("NotImplemented", "Object lock is not implemented.", Header=name)


def stored_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The standard headers that are kept; aws-chunked is of the transfer, not of the object."""
    found = {name: headers[name] for name in STORED if name in headers}
    if "aws-chunked" in found.get("content-encoding", "").lower():
        left = [item.strip() for item in found["content-encoding"].split(",")]
        left = [item for item in left if item and item.lower() != "aws-chunked"]
        if left:
            found["content-encoding"] = ", ".join(left)
        else:
            del found["content-encoding"]
    return found


def user_metadata(headers: Mapping[str, str], limit: int) -> dict[str, str]:
    found = {name[len(USER) :]: value for name, value in headers.items() if name.startswith(USER)}
    if sum(len(name) + len(value) for name, value in found.items()) > limit:
        raise S3Error("MetadataTooLarge", MaxSizeAllowed=str(limit))
    return found


def check_tags(pairs: list[tuple[str, str]], limit: int = MAX_TAGS) -> dict[str, str]:
    """A tag set by S3's rules. S3Error InvalidTag, BadRequest."""
    tags = dict(pairs)
    if len(tags) != len(pairs):
        raise S3Error("InvalidTag", "Cannot provide multiple Tags with the same key")
    if len(tags) > limit:
        raise S3Error(
            "BadRequest" if limit == MAX_TAGS else "InvalidTag", f"Object tags cannot be greater than {limit}"
        )
    for key, value in tags.items():
        if not key or len(key) > 128 or key.startswith("aws:"):
            raise S3Error("InvalidTag", "The TagKey you have provided is invalid")
        if len(value) > 256:
            raise S3Error("InvalidTag", "The TagValue you have provided is invalid")
    return tags


def header_tags(headers: Mapping[str, str]) -> dict[str, str]:
    text = headers.get("x-amz-tagging")
    if not text:
        return {}
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=1000)
    except ValueError:
        raise S3Error(
            "InvalidArgument",
            "The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL "
            "query parameters without tag name duplicates.",
            ArgumentName="x-amz-tagging",
        ) from None
    return check_tags(pairs)


def meta_of(headers: Mapping[str, str], user_limit: int) -> ObjectMeta:
    """What PUT, POST, CreateMultipartUpload and a replacing copy keep."""
    refuse_unsupported(headers)
    storage_class = headers.get("x-amz-storage-class", "STANDARD")
    if storage_class not in CLASSES:
        raise S3Error("InvalidStorageClass")
    redirect = headers.get("x-amz-website-redirect-location", "")
    if redirect and not redirect.startswith(("/", "http://", "https://")):
        raise S3Error("InvalidArgument", "The website redirect location must start with '/', 'http://' or 'https://'.")
    return ObjectMeta(
        content_type=headers.get("content-type", "") or DEFAULT_TYPE,
        headers=stored_headers(headers),
        user=user_metadata(headers, user_limit),
        tags=header_tags(headers),
        storage_class=storage_class,
        website_redirect=redirect,
    )


def with_grants(meta: ObjectMeta, grants: tuple[Grant, ...] | None) -> ObjectMeta:
    return meta if grants is None else msgspec.structs.replace(meta, grants=grants)


def with_tags(meta: ObjectMeta, tags: dict[str, str]) -> ObjectMeta:
    return msgspec.structs.replace(meta, tags=tags)


def checksum_headers(meta: ObjectMeta) -> dict[str, str]:
    if not meta.checksum:
        return {}
    return {
        f"x-amz-checksum-{meta.checksum_algorithm.lower()}": meta.checksum,
        "x-amz-checksum-type": meta.checksum_type or "FULL_OBJECT",
    }


def answer_headers(info: ObjectInfo, with_checksum: bool) -> dict[str, str]:
    """Of GET and HEAD."""
    meta = info.meta
    headers = {
        "Last-Modified": http_date(info.mtime),
        "ETag": f'"{info.etag}"',
        "Accept-Ranges": "bytes",
        "Content-Type": meta.content_type or DEFAULT_TYPE,
    }
    for name, value in meta.headers.items():
        headers[name.title()] = value
    for name, value in meta.user.items():
        headers[USER + name] = value
    if meta.storage_class != "STANDARD":
        headers["x-amz-storage-class"] = meta.storage_class
    if meta.website_redirect:
        headers["x-amz-website-redirect-location"] = meta.website_redirect
    if meta.tags:
        headers["x-amz-tagging-count"] = str(len(meta.tags))
    if with_checksum:
        headers.update(checksum_headers(meta))
    return headers


def apply_overrides(headers: dict[str, str], query: Mapping[str, str], anonymous: bool) -> None:
    """response-content-type and so on. S3Error for anonymous requests, as S3 has it."""
    for parameter, name in OVERRIDES.items():
        if parameter in query:
            if anonymous:
                raise S3Error(
                    "InvalidRequest", "Request specific response headers cannot be used for anonymous GET requests."
                )
            headers[name.title()] = query[parameter]
