"""Method, host, path and query become an operation, a bucket and a key. Pure.

The operations' names are AWS's own (botocore's service-2.json); they are also what metrics count by.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from trivium.s3.errors import S3Error

MAX_KEY = 1024
_BUCKET = re.compile(rb"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z")
_ADDRESS = re.compile(rb"\d+\.\d+\.\d+\.\d+\Z")

# subresource -> (GET, PUT, DELETE, POST); "" where S3 has no such operation
_BUCKET_SUB: dict[str, tuple[str, str, str, str]] = {
    "accelerate": ("GetBucketAccelerateConfiguration", "PutBucketAccelerateConfiguration", "", ""),
    "acl": ("GetBucketAcl", "PutBucketAcl", "", ""),
    "analytics": (
        "GetBucketAnalyticsConfiguration",
        "PutBucketAnalyticsConfiguration",
        "DeleteBucketAnalyticsConfiguration",
        "",
    ),
    "cors": ("GetBucketCors", "PutBucketCors", "DeleteBucketCors", ""),
    "delete": ("", "", "", "DeleteObjects"),
    "encryption": ("GetBucketEncryption", "PutBucketEncryption", "DeleteBucketEncryption", ""),
    "intelligent-tiering": (
        "GetBucketIntelligentTieringConfiguration",
        "PutBucketIntelligentTieringConfiguration",
        "DeleteBucketIntelligentTieringConfiguration",
        "",
    ),
    "inventory": (
        "GetBucketInventoryConfiguration",
        "PutBucketInventoryConfiguration",
        "DeleteBucketInventoryConfiguration",
        "",
    ),
    "lifecycle": ("GetBucketLifecycleConfiguration", "PutBucketLifecycleConfiguration", "DeleteBucketLifecycle", ""),
    "location": ("GetBucketLocation", "", "", ""),
    "logging": ("GetBucketLogging", "PutBucketLogging", "", ""),
    "metrics": (
        "GetBucketMetricsConfiguration",
        "PutBucketMetricsConfiguration",
        "DeleteBucketMetricsConfiguration",
        "",
    ),
    "notification": ("GetBucketNotificationConfiguration", "PutBucketNotificationConfiguration", "", ""),
    "object-lock": ("GetObjectLockConfiguration", "PutObjectLockConfiguration", "", ""),
    "ownershipControls": (
        "GetBucketOwnershipControls",
        "PutBucketOwnershipControls",
        "DeleteBucketOwnershipControls",
        "",
    ),
    "policy": ("GetBucketPolicy", "PutBucketPolicy", "DeleteBucketPolicy", ""),
    "policyStatus": ("GetBucketPolicyStatus", "", "", ""),
    "publicAccessBlock": ("GetPublicAccessBlock", "PutPublicAccessBlock", "DeletePublicAccessBlock", ""),
    "replication": ("GetBucketReplication", "PutBucketReplication", "DeleteBucketReplication", ""),
    "requestPayment": ("GetBucketRequestPayment", "PutBucketRequestPayment", "", ""),
    "session": ("CreateSession", "", "", ""),
    "tagging": ("GetBucketTagging", "PutBucketTagging", "DeleteBucketTagging", ""),
    "uploads": ("ListMultipartUploads", "", "", ""),
    "versioning": ("GetBucketVersioning", "PutBucketVersioning", "", ""),
    "versions": ("ListObjectVersions", "", "", ""),
    "website": ("GetBucketWebsite", "PutBucketWebsite", "DeleteBucketWebsite", ""),
}

_OBJECT_SUB: dict[str, tuple[str, str, str, str]] = {
    "acl": ("GetObjectAcl", "PutObjectAcl", "", ""),
    "attributes": ("GetObjectAttributes", "", "", ""),
    "legal-hold": ("GetObjectLegalHold", "PutObjectLegalHold", "", ""),
    "renameObject": ("", "RenameObject", "", ""),
    "restore": ("", "", "", "RestoreObject"),
    "retention": ("GetObjectRetention", "PutObjectRetention", "", ""),
    "select": ("", "", "", "SelectObjectContent"),
    "tagging": ("GetObjectTagging", "PutObjectTagging", "DeleteObjectTagging", ""),
    "torrent": ("GetObjectTorrent", "", "", ""),
    "uploads": ("", "", "", "CreateMultipartUpload"),
}

_METHODS = {"GET": 0, "PUT": 1, "DELETE": 2, "POST": 3}


@dataclass(frozen=True, slots=True)
class Place:
    """What a request is about. `virtual`: the bucket came from the host name."""

    bucket: bytes
    key: bytes
    virtual: bool = False


def is_bucket_name(name: bytes) -> bool:
    """S3's rules for general purpose buckets."""
    return (
        _BUCKET.match(name) is not None
        and b".." not in name
        and b".-" not in name
        and b"-." not in name
        and not _ADDRESS.match(name)
        and not name.startswith((b"xn--", b"sthree-", b"amzn-s3-demo-"))
        and not name.endswith((b"-s3alias", b"--ol-s3", b".mrap", b"--x-s3", b"--table-s3"))
    )


def host_bucket(host: str, domains: tuple[str, ...]) -> str:
    """The bucket of a virtual-host style name, "" for path style."""
    name = host.lower()
    if name.startswith("["):
        return ""
    name = name.partition(":")[0].rstrip(".")
    for domain in domains:
        if name.endswith("." + domain):
            return name[: -len(domain) - 1]
    return ""


def locate(path: str, host: str, domains: tuple[str, ...]) -> Place:
    """Bucket and key of a raw (still encoded) path. S3Error InvalidURI, KeyTooLongError."""
    if not path.startswith("/"):
        if path.startswith(("http://", "https://")):  # absolute form, as sent to proxies
            path = "/" + path.split("/", 3)[3] if path.count("/") > 2 else "/"
        else:
            raise S3Error("InvalidURI")
    bucket_text = host_bucket(host, domains)
    if bucket_text:
        bucket, raw_key, virtual = bucket_text.encode("latin-1"), path[1:], True
    else:
        raw_bucket, _, raw_key = path[1:].partition("/")
        bucket, virtual = unquote_to_bytes(raw_bucket.encode("latin-1")), False
    key = unquote_to_bytes(raw_key.encode("latin-1")) if raw_key else b""
    check_key(key)
    return Place(bucket, key, virtual)


def check_key(key: bytes) -> None:
    """S3Error unless the key is UTF-8 of at most 1,024 bytes."""
    if len(key) > MAX_KEY:
        raise S3Error("KeyTooLongError", Size=str(len(key)), MaxSizeAllowed=str(MAX_KEY))
    try:
        key.decode()
    except UnicodeDecodeError:
        raise S3Error("InvalidURI", "The key is not UTF-8.") from None


def operation(method: str, place: Place, query: Mapping[str, str], headers: Mapping[str, str]) -> str:
    """The operation's name. S3Error MethodNotAllowed, NotImplemented."""
    if not place.bucket:
        if method in ("GET", "HEAD"):
            return "ListBuckets"
        raise S3Error("MethodNotAllowed", Method=method, ResourceType="SERVICE")
    name = _object(method, query, headers) if place.key else _bucket(method, query)
    if not name:
        raise S3Error("MethodNotAllowed", Method=method, ResourceType="OBJECT" if place.key else "BUCKET")
    return name


def _sub(table: Mapping[str, tuple[str, str, str, str]], method: str, query: Mapping[str, str]) -> str | None:
    """None when the query names no subresource."""
    for name in query:
        if name in table:
            index = _METHODS.get("GET" if method == "HEAD" else method)
            return "" if index is None else table[name][index]
    return None


def _bucket(method: str, query: Mapping[str, str]) -> str:
    if method == "HEAD":
        return "HeadBucket"
    found = _sub(_BUCKET_SUB, method, query) if query else None
    if found is not None:
        return found
    if method == "GET":
        return "ListObjectsV2" if query.get("list-type") == "2" else "ListObjects"
    return {"PUT": "CreateBucket", "DELETE": "DeleteBucket", "POST": "PostObject"}.get(method, "")


def _object(method: str, query: Mapping[str, str], headers: Mapping[str, str]) -> str:
    if method == "HEAD":
        return "HeadObject"
    found = _sub(_OBJECT_SUB, method, query) if query else None
    if found is not None:
        return found
    copy = "x-amz-copy-source" in headers
    if "uploadId" in query:
        if method == "PUT":
            return "UploadPartCopy" if copy else "UploadPart"
        return {"GET": "ListParts", "POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload"}.get(method, "")
    if method == "PUT":
        return "CopyObject" if copy else "PutObject"
    return {"GET": "GetObject", "DELETE": "DeleteObject"}.get(method, "")
