"""Browser uploads: POST of multipart/form-data under a signed policy (or to a bucket that allows anybody to put)."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlsplit

from trivium.metadata.messages import Conditions, ObjectInfo, PutObject
from trivium.s3 import checksums, describe, sigv2, sigv4
from trivium.s3.access import check_users, new_owner
from trivium.s3.accounts import Accounts
from trivium.s3.attributes import parse_tagging
from trivium.s3.context import S3Request, Service
from trivium.s3.errors import S3Error
from trivium.s3.formparser import FormParser, boundary_of
from trivium.s3.http import Body, Response, Truncated
from trivium.s3.ingest import Payload, commit, receive
from trivium.s3.objects import with_checksum
from trivium.s3.router import check_key
from trivium.s3.xml import answer, element

FREE = frozenset({"x-amz-signature", "file", "policy", "awsaccesskeyid", "signature"})  # a policy need not name them
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z\Z", re.ASCII)


class FormPayload(Payload):
    """The file inside a form. Its length is known only at its end."""

    def __init__(self, body: Body, parser: FormParser) -> None:
        super().__init__(body, None, None)
        self._parser = parser

    async def read_fields(self) -> None:
        while not self._parser.in_file:
            data = await self._body.read()
            if not data:
                raise S3Error("MalformedPOSTRequest")
            self._give(self._parser.feed(data))

    def _give(self, data: bytes) -> None:
        if data:
            self._waiting.append(memoryview(data))

    async def read_into(self, view: memoryview) -> int:
        while not self._waiting:
            if self._parser.done:
                return 0
            data = await self._body.read(len(view) + 512)
            if not data:
                raise Truncated
            self._give(self._parser.feed(data))
        return self._copy(view)

    async def finish(self) -> None:
        while await self._body.read():
            pass


# ---- the policy ---------------------------------------------------------------------------------------------


def check_policy(text: str, fields: dict[str, str], bucket: str, now_s: float) -> tuple[int, int]:
    """(smallest, largest) file that the policy allows. S3Error AccessDenied, InvalidPolicyDocument."""
    try:
        document: Any = json.loads(base64.b64decode(text, validate=True))
        if not _MOMENT.match(document["expiration"]):
            raise ValueError("not in the form 2030-01-01T00:00:00.000Z")
        expires = datetime.fromisoformat(document["expiration"])
        wanted = document["conditions"]
        expires_s = expires.timestamp() if expires.tzinfo else float("nan")
    except (ValueError, TypeError, KeyError, RecursionError, binascii.Error):
        raise S3Error("InvalidPolicyDocument") from None
    if not isinstance(wanted, list) or expires_s != expires_s:
        raise S3Error("InvalidPolicyDocument")
    if now_s > expires_s:
        raise S3Error("AccessDenied", "Invalid according to Policy: Policy expired.")
    values = {**fields, "bucket": bucket}
    named: set[str] = set()
    low, high = 0, 1 << 62
    for one in wanted:
        kind, name, value = _condition(one)
        if kind == "content-length-range":
            low, high = max(low, int(name)), min(high, int(value))
            continue
        named.add(name)
        found = values.get(name, "")
        if not (found == value if kind == "eq" else found.startswith(value)):
            raise S3Error(
                "AccessDenied", f'Invalid according to Policy: Policy Condition failed: ["{kind}", "${name}"]'
            )
    extra = [
        name
        for name in fields
        if name not in named and name not in FREE and not name.startswith(("x-ignore-", "x-amz-checksum-"))
    ]
    if extra:
        raise S3Error("AccessDenied", f"Invalid according to Policy: Extra input fields: {', '.join(extra)[:200]}")
    return low, high


def _condition(one: Any) -> tuple[str, str, str]:
    """(eq | starts-with, name, value) or (content-length-range, low, high). S3Error InvalidPolicyDocument."""
    if isinstance(one, dict) and len(one) == 1:
        ((name, value),) = one.items()
        if isinstance(value, str):
            return "eq", name.lower(), value
    elif isinstance(one, list) and len(one) == 3 and isinstance(one[0], str):
        kind = one[0].lower()
        if kind == "content-length-range" and all(str(item).isascii() and str(item).isdigit() for item in one[1:]):
            return kind, str(one[1]), str(one[2])
        if kind in ("eq", "starts-with") and isinstance(one[1], str) and isinstance(one[2], str) and one[1][:1] == "$":
            return kind, one[1][1:].lower(), one[2]
    raise S3Error("InvalidPolicyDocument")


def _verifier(fields: dict[str, str], now_s: float) -> tuple[str, Callable[[str], bool]]:
    """(access key, whether the policy's signature is right under a secret). S3Error."""
    policy = fields["policy"]
    needed = "signature" if "awsaccesskeyid" in fields else "x-amz-signature"
    if needed not in fields:
        raise S3Error("InvalidArgument", f"Bucket POST must contain a field named '{needed}'.", ArgumentName=needed)
    if "awsaccesskeyid" in fields:  # signature version 2, boto3's default
        return fields["awsaccesskeyid"], lambda secret: sigv2.verify_policy(secret, policy, fields.get("signature", ""))
    if fields.get("x-amz-algorithm") != sigv4.ALGORITHM:
        raise S3Error("InvalidRequest", f"This authorization mechanism is not supported. Please use {sigv4.ALGORITHM}.")
    credential = fields.get("x-amz-credential", "")
    parts = credential.rsplit("/", 4)
    if len(parts) != 5 or not parts[0] or parts[3:] != ["s3", "aws4_request"]:
        raise S3Error("InvalidArgument", "X-Amz-Credential is malformed.", ArgumentName="X-Amz-Credential")
    try:
        stamp_s = sigv4.parse_stamp(fields.get("x-amz-date", ""))
    except ValueError:
        raise S3Error("InvalidArgument", "X-Amz-Date is malformed.", ArgumentName="X-Amz-Date") from None
    if fields["x-amz-date"][:8] != parts[1] or stamp_s - sigv4.SKEW_S > now_s:
        raise S3Error("AccessDenied", "Invalid according to Policy: the date is not that of the credential.")
    given = fields.get("x-amz-signature", "")
    return parts[0], lambda secret: sigv4.verify_policy(secret, credential, policy, given)


async def _sign_in(accounts: Accounts, request: S3Request, fields: dict[str, str], now_s: float) -> None:
    """Set the request's identity from the form. S3Error."""
    access_key, is_right = _verifier(fields, now_s)
    for _ in range(2):
        credential, cached = await accounts.credential(access_key)
        if is_right(credential.secret_key):
            request.identity = accounts.identity(credential)
            return
        accounts.forget(access_key)
        if not cached:
            break
    raise S3Error("SignatureDoesNotMatch")


# ---- the operation ------------------------------------------------------------------------------------------


async def post_object(service: Service, accounts: Accounts, request: S3Request) -> Response:
    parser = FormParser(boundary_of(request.headers.get("content-type", "")))
    payload = FormPayload(request.http.body, parser)
    await payload.read_fields()
    fields, limits = parser.fields, service.limits
    if "key" not in fields:
        raise S3Error("InvalidArgument", "Bucket POST must contain a field named 'key'.", ArgumentName="key")
    fields["key"] = fields["key"].replace("${filename}", parser.filename)  # the policy speaks of the key that is made
    now_s = service.clock.wall_ns() / 1e9
    low, high = 0, limits.put_bytes
    if "policy" in fields:
        await _sign_in(accounts, request, fields, now_s)
        low, high = check_policy(fields["policy"], fields, request.bucket.decode("utf-8", "replace"), now_s)
    key = fields["key"].encode("utf-8", "replace")
    if not key:
        raise S3Error("InvalidArgument", "User key must have a length greater than 0.", ArgumentName="key")
    check_key(key)
    request.key = key
    await accounts.authorize(request, "s3:PutObject", request.bucket, key)
    headers = {name: value for name, value in fields.items() if name != "x-amz-tagging"}
    if "acl" in fields:
        headers["x-amz-acl"] = fields["acl"]
    owner, grants = new_owner(request, headers)
    await check_users(service, grants, owner)
    meta = describe.with_grants(describe.meta_of(headers, limits.user_metadata_bytes), grants)
    if "tagging" in fields:
        meta = describe.with_tags(meta, parse_tagging(fields["tagging"].encode(), describe.MAX_TAGS))
    wanted = checksums.expected(headers, "")
    received = await receive(service, payload, wanted, min(high, limits.put_bytes))
    if not low <= received.size <= high:
        for stored in received.stored:
            service.chunks.give_up(stored)
        code = "EntityTooSmall" if received.size < low else "EntityTooLarge"
        raise S3Error(code, ProposedSize=str(received.size), MinSizeAllowed=str(low), MaxSizeAllowed=str(high))
    meta = with_checksum(meta, wanted.algorithm, received.checksum)
    bucket = request.bucket
    info: ObjectInfo = await commit(
        service,
        received,
        lambda body: PutObject(bucket, key, body, received.etag, meta, Conditions(), owner),
    )
    return _answer(request, fields, info)


def _answer(request: S3Request, fields: dict[str, str], info: ObjectInfo) -> Response:
    bucket, key = request.bucket.decode(), request.key.decode()
    location = f"http://{request.headers.get('host', '')}/{bucket}/{quote(key)}"
    headers = {"ETag": f'"{info.etag}"', "Location": location}
    target = fields.get("success_action_redirect") or fields.get("redirect", "")
    if urlsplit(target).scheme in ("http", "https"):
        joint = "&" if "?" in target else "?"
        headers["Location"] = f"{target}{joint}bucket={quote(bucket)}&key={quote(key)}&etag=%22{quote(info.etag)}%22"
        return Response(303, headers)
    if fields.get("success_action_status") == "201":
        headers["Content-Type"] = "application/xml"
        parts = [element("Location", location), element("Bucket", bucket), element("Key", key)]
        return Response(
            201, headers, answer("PostResponse", namespace="", parts=[*parts, element("ETag", f'"{info.etag}"')])
        )
    return Response(200 if fields.get("success_action_status") == "200" else 204, headers)
