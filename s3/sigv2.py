"""The older signature, only where clients still use it by default: presigned URLs and POST forms of boto3.

Pure. Source: AWS, "Signing and authenticating REST requests (AWS signature version 2)". There is no region and no
clock but the expiry; every `x-amz-*` header takes part.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from trivium.s3.errors import S3Error
from trivium.s3.sigv4 import Pairs

SUBRESOURCES = frozenset(
    (
        "accelerate",
        "acl",
        "cors",
        "defaultObjectAcl",
        "location",
        "logging",
        "partNumber",
        "policy",
        "requestPayment",
        "torrent",
        "versioning",
        "versionId",
        "versions",
        "website",
        "uploads",
        "uploadId",
        "response-content-type",
        "response-content-language",
        "response-expires",
        "response-cache-control",
        "response-content-disposition",
        "response-content-encoding",
        "delete",
        "lifecycle",
        "tagging",
        "restore",
        "storageClass",
        "notification",
        "replication",
        "analytics",
        "metrics",
        "inventory",
        "select",
        "select-type",
        "object-lock",
    )
)


@dataclass(frozen=True, slots=True)
class ClaimV2:
    access_key: str
    signature: str
    expires: str


def parse(query: Pairs, now_s: float) -> ClaimV2 | None:
    """The claim of a presigned URL that has not expired; None = it is none. S3Error."""
    values = {name: value for name, value in query if name in ("AWSAccessKeyId", "Signature", "Expires")}
    if "AWSAccessKeyId" not in values and "Signature" not in values:
        return None
    if len(values) != 3:
        raise S3Error("AccessDenied", "Query-string authentication requires the Signature, Expires and AWSAccessKeyId.")
    expires = values["Expires"]
    if not expires.isascii() or not expires.isdigit() or len(expires) > 18:
        raise S3Error("AccessDenied", "Invalid date (should be seconds since epoch).")
    if now_s > int(expires):
        raise S3Error("AccessDenied", "Request has expired.", Expires=expires)
    return ClaimV2(values["AWSAccessKeyId"], values["Signature"], expires)


def sign(secret: str, text: str) -> str:
    return base64.b64encode(hmac.digest(secret.encode(), text.encode("latin-1"), "sha1")).decode("ascii")


def string_to_sign(method: str, resource: str, query: Pairs, headers: Mapping[str, str], expires: str) -> str:
    """`resource`: /bucket/key as it was sent (still encoded)."""
    amz = sorted((name, value.strip()) for name, value in headers.items() if name.startswith("x-amz-"))
    subs = sorted(pair for pair in query if pair[0] in SUBRESOURCES)
    if subs:
        resource += "?" + "&".join(f"{name}={value}" if value else name for name, value in subs)
    lines = [method, headers.get("content-md5", ""), headers.get("content-type", ""), expires]
    return "\n".join([*lines, *(f"{name}:{value}" for name, value in amz), resource])


def verify(claim: ClaimV2, secret: str, method: str, resource: str, query: Pairs, headers: Mapping[str, str]) -> None:
    """S3Error SignatureDoesNotMatch unless the signature is right."""
    expected = sign(secret, string_to_sign(method, resource, query, headers, claim.expires))
    if not hmac.compare_digest(expected.encode(), claim.signature.encode("utf-8", "replace")):
        raise S3Error("SignatureDoesNotMatch", AWSAccessKeyId=claim.access_key, SignatureProvided=claim.signature)


def verify_policy(secret: str, policy: str, given: str) -> bool:
    """A POST form's signature: over its policy as it was sent (base64)."""
    if not policy.isascii():
        return False
    return hmac.compare_digest(sign(secret, policy).encode(), given.encode("utf-8", "replace"))
