"""Signature Version 4 as S3 uses it: pure functions over a request's parts, no clock, no I/O.

Forms: the Authorization header, presigned queries (at most 7 days), POST policies, and the chained signatures of
streamed bodies. Source: AWS, "Authenticating Requests (AWS Signature Version 4)".

Invariants
1. Signatures are compared in constant time, and only after everything else about the request was found well-formed.
2. `host` and every `x-amz-*` header that is present must be signed: nothing that changes the meaning of a request can
   be added to it.
3. The canonical path is the decoded path encoded again, once; the canonical query is sorted after encoding.
"""

from __future__ import annotations

import email.utils
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import quote, unquote_to_bytes

from trivium.s3.errors import S3Error

ALGORITHM = "AWS4-HMAC-SHA256"
SKEW_S = 15 * 60
MAX_EXPIRES_S = 7 * 24 * 3600
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()

UNSIGNED = "UNSIGNED-PAYLOAD"
STREAMING = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
STREAMING_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
STREAMING_UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
STREAMS = frozenset({STREAMING, STREAMING_TRAILER, STREAMING_UNSIGNED_TRAILER})

_HEX64 = re.compile(r"[0-9a-f]{64}\Z")
_STAMP = re.compile(r"[0-9]{8}T[0-9]{6}Z\Z")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_PLAIN = re.compile(r"[A-Za-z0-9._~-]*")
_SPACES = re.compile(r"  +")

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request says about its signature. `payload` is the canonical request's last line."""

    access_key: str
    date: str  # yyyymmdd of the scope
    region: str
    service: str
    signed_headers: tuple[str, ...]
    signature: str
    stamp: str  # yyyymmddThhmmssZ
    payload: str
    presigned: bool = False

    @property
    def scope(self) -> str:
        return f"{self.date}/{self.region}/{self.service}/aws4_request"


def split_query(text: str) -> list[tuple[str, str]]:
    """Decoded (name, value) pairs, as bytes in Latin-1 text so that nothing is lost."""
    if not text:
        return []
    pairs = []
    for item in text.split("&"):
        if item:
            name, _, value = item.partition("=")
            pairs.append((_decode(name), _decode(value)))
    return pairs


def _decode(text: str) -> str:
    if "+" in text:
        text = text.replace("+", " ")
    return unquote_to_bytes(text.encode("latin-1")).decode("latin-1") if "%" in text else text


def encode(text: str, safe: str = "") -> str:
    """RFC 3986 as AWS wants it, of bytes in Latin-1 text."""
    if _PLAIN.fullmatch(text):
        return text
    if len(text) <= 128:  # a credential's scope, a content type: the same in each request
        return _quoted(text, safe)
    return quote(text.encode("latin-1"), safe=f"-._~{safe}")


@lru_cache(maxsize=2048)
def _quoted(text: str, safe: str) -> str:
    return quote(text.encode("latin-1"), safe=f"-._~{safe}")


@lru_cache(maxsize=256)
def parse_stamp(text: str) -> float:
    """Seconds since the epoch of `yyyymmddThhmmssZ`. ValueError."""
    if not _STAMP.match(text):
        raise ValueError("not in the form yyyymmddThhmmssZ")
    date, hour = (int(text[:4]), int(text[4:6]), int(text[6:8])), (int(text[9:11]), int(text[11:13]), int(text[13:15]))
    return datetime(*date, *hour, tzinfo=UTC).timestamp()


def parse(headers: Mapping[str, str], query: Pairs, now_s: float) -> Claim | None:
    """The claim of a request that is well-formed, in time and not expired; None = anonymous. S3Error."""
    authorization = headers.get("authorization")
    presigned = any(name in ("X-Amz-Algorithm", "X-Amz-Signature", "X-Amz-Credential") for name, _ in query)
    if authorization is not None:
        if presigned:
            raise S3Error("InvalidArgument", "Only one auth mechanism allowed.")
        return _from_header(authorization, headers, now_s)
    if presigned:
        return _from_query(headers, query, now_s)
    return None


def _from_header(authorization: str, headers: Mapping[str, str], now_s: float) -> Claim:
    kind, _, rest = authorization.strip().partition(" ")
    if kind != ALGORITHM:
        raise S3Error("InvalidRequest", f"This authorization mechanism is not supported. Please use {ALGORITHM}.")
    fields: dict[str, str] = {}
    for item in rest.split(","):
        name, equals, value = item.strip().partition("=")
        if not equals or name in fields:
            raise S3Error("AuthorizationHeaderMalformed", "The authorization header is malformed.")
        fields[name] = value
    if fields.keys() != {"Credential", "SignedHeaders", "Signature"}:
        raise S3Error("AuthorizationHeaderMalformed", "Credential, SignedHeaders and Signature are required.")
    stamp = _header_stamp(headers)
    payload = headers.get("x-amz-content-sha256")
    if payload is None:
        raise S3Error("InvalidRequest", "Missing required header for this request: x-amz-content-sha256")
    if payload != UNSIGNED and payload not in STREAMS and not _HEX64.match(payload):
        raise S3Error(
            "InvalidArgument",
            "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, "
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER or a valid sha256 value.",
        )
    claim = _claim(fields, stamp, payload, "AuthorizationHeaderMalformed")
    if abs(parse_stamp(stamp) - now_s) > SKEW_S:
        raise S3Error("RequestTimeTooSkewed", RequestTime=stamp, MaxAllowedSkewMilliseconds=str(SKEW_S * 1000))
    _need_signed(claim, headers)
    return claim


def _header_stamp(headers: Mapping[str, str]) -> str:
    """x-amz-date, else Date; both in ISO 8601 basic form or as RFC 1123 has it."""
    text = headers.get("x-amz-date") or headers.get("date")
    if text is None:
        raise S3Error("AccessDenied", "AWS authentication requires a valid Date or x-amz-date header.")
    try:
        if not _STAMP.match(text):
            moment = email.utils.parsedate_to_datetime(text)
            text = moment.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
        parse_stamp(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        raise S3Error("AccessDenied", "AWS authentication requires a valid Date or x-amz-date header.") from None
    return text


def _from_query(headers: Mapping[str, str], query: Pairs, now_s: float) -> Claim:
    fault = "AuthorizationQueryParametersError"
    values: dict[str, str] = {}
    for name, value in query:
        if name.startswith("X-Amz-"):
            if name in values:
                raise S3Error(fault, f"{name} is given more than once.")
            values[name] = value
    needed = ("Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Signature")
    if any(f"X-Amz-{name}" not in values for name in needed):
        raise S3Error(fault, "Query-string authentication version 4 requires " + ", ".join(needed) + ".")
    if values["X-Amz-Algorithm"] != ALGORITHM:
        raise S3Error(fault, f'X-Amz-Algorithm only supports "{ALGORITHM}".')
    expires_text = values["X-Amz-Expires"]
    if not expires_text.isascii() or not expires_text.isdigit():
        raise S3Error(fault, "X-Amz-Expires should be a number.")
    expires = int(expires_text[:20])
    if not 1 <= expires <= MAX_EXPIRES_S:
        raise S3Error(fault, f"X-Amz-Expires must be between 1 and {MAX_EXPIRES_S} seconds.")
    try:
        begins = parse_stamp(values["X-Amz-Date"])
    except ValueError:
        raise S3Error(fault, "X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\".") from None
    fields = {name: values[f"X-Amz-{name}"] for name in ("Credential", "SignedHeaders", "Signature")}
    payload = headers.get("x-amz-content-sha256", UNSIGNED)
    claim = _claim(fields, values["X-Amz-Date"], payload, fault, presigned=True)
    if begins - SKEW_S > now_s:
        raise S3Error("AccessDenied", "Request is not yet valid.")
    if now_s > begins + expires:
        raise S3Error("AccessDenied", "Request has expired.", **{"X-Amz-Expires": expires_text})
    _need_signed(claim, headers)
    return claim


def _claim(fields: Mapping[str, str], stamp: str, payload: str, fault: str, presigned: bool = False) -> Claim:
    parts = fields["Credential"].rsplit("/", 4)
    if len(parts) != 5 or not parts[0] or parts[4] != "aws4_request":
        raise S3Error(fault, 'The Credential should be "<access key>/YYYYMMDD/REGION/SERVICE/aws4_request".')
    access_key, date, region, service, _ = parts
    if service != "s3":
        raise S3Error(fault, f'The credential scope names service "{service[:64]}"; this one is "s3".')
    if date != stamp[:8]:
        raise S3Error(fault, f'Invalid credential date "{date[:16]}": it is not that of the request, "{stamp[:8]}".')
    names = tuple(fields["SignedHeaders"].split(";"))
    if any(not _TOKEN.match(name) or name != name.lower() for name in names) or len(names) > 128:
        raise S3Error(fault, "SignedHeaders is not a list of header names in lower case.")
    signature = fields["Signature"]
    if not _HEX64.match(signature):
        raise S3Error("SignatureDoesNotMatch")
    return Claim(access_key, date, region, service, names, signature, stamp, payload, presigned)


def _need_signed(claim: Claim, headers: Mapping[str, str]) -> None:
    signed = set(claim.signed_headers)
    missing = [name for name in headers if name not in signed and (name == "host" or name.startswith("x-amz-"))]
    if claim.presigned:  # its value takes part in the signature as the payload line
        missing = [name for name in missing if name != "x-amz-content-sha256"]
    if missing:
        text = "There were headers present in the request which were not signed"
        raise S3Error("AccessDenied", text, HeadersNotSigned=", ".join(sorted(missing)))


# ---- signing ------------------------------------------------------------------------------------------------


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode("utf-8"), "sha256")


@lru_cache(maxsize=1024)
def signing_key(secret: str, date: str, region: str, service: str) -> bytes:
    key = _hmac(b"AWS4" + secret.encode("utf-8"), date)
    return _hmac(_hmac(_hmac(key, region), service), "aws4_request")


def canonical_query(query: Pairs) -> str:
    pairs = sorted((encode(name), encode(value)) for name, value in query if name != "X-Amz-Signature")
    return "&".join(f"{name}={value}" for name, value in pairs)


def canonical_request(method: str, path: str, query: Pairs, headers: Mapping[str, str], claim: Claim) -> bytes:
    """`path` is canonical already; header values are Latin-1 text."""
    lines = [method, path, canonical_query(query)]
    for name in claim.signed_headers:
        value = headers.get(name, "").strip()
        lines.append(f"{name}:{_SPACES.sub(' ', value) if '  ' in value else value}")
    lines += ["", ";".join(claim.signed_headers), claim.payload]
    return "\n".join(lines).encode("latin-1")


def canonical_path(raw: str) -> str:
    return encode(unquote_to_bytes(raw.encode("latin-1")).decode("latin-1"), "/") or "/"


def signature(secret: str, claim: Claim, canonical: bytes) -> str:
    text = f"{ALGORITHM}\n{claim.stamp}\n{claim.scope}\n{hashlib.sha256(canonical).hexdigest()}"
    return _hmac(signing_key(secret, claim.date, claim.region, claim.service), text).hex()


def verify(claim: Claim, secret: str, method: str, raw_path: str, query: Pairs, headers: Mapping[str, str]) -> None:
    """S3Error SignatureDoesNotMatch unless the signature is right."""
    path = canonical_path(raw_path)
    expected = signature(secret, claim, canonical_request(method, path, query, headers, claim))
    if hmac.compare_digest(expected, claim.signature):
        return
    if path != raw_path:  # some clients sign the path as they send it
        expected = signature(secret, claim, canonical_request(method, raw_path, query, headers, claim))
        if hmac.compare_digest(expected, claim.signature):
            return
    raise S3Error("SignatureDoesNotMatch", AWSAccessKeyId=claim.access_key, SignatureProvided=claim.signature)


def verify_policy(secret: str, credential: str, policy: str, given: str) -> bool:
    """A POST form's signature: over its policy as it was sent (base64)."""
    _, date, region, service, _ = credential.rsplit("/", 4)
    expected = _hmac(signing_key(secret, date, region, service), policy).hex()
    return hmac.compare_digest(expected.encode(), given.encode("utf-8", "replace"))


class ChunkSigner:
    """The chain of signatures of a streamed body: each covers the one before it."""

    def __init__(self, secret: str, claim: Claim) -> None:
        self._key = signing_key(secret, claim.date, claim.region, claim.service)
        self._prefix = f"{claim.stamp}\n{claim.scope}\n"
        self._previous = claim.signature

    def check_chunk(self, sha256_hex: str, given: str) -> bool:
        text = f"{ALGORITHM}-PAYLOAD\n{self._prefix}{self._previous}\n{EMPTY_SHA256}\n{sha256_hex}"
        return self._check(text, given)

    def check_trailer(self, trailer: bytes, given: str) -> bool:
        """`trailer`: its canonical lines, each ended by a line feed."""
        digest = hashlib.sha256(trailer).hexdigest()
        return self._check(f"{ALGORITHM}-TRAILER\n{self._prefix}{self._previous}\n{digest}", given)

    def _check(self, text: str, given: str) -> bool:
        expected = _hmac(self._key, text).hex()
        if not hmac.compare_digest(expected.encode(), given.encode("utf-8", "replace")):
            return False
        self._previous = expected
        return True
