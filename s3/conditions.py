"""Conditional headers and byte ranges. Pure.

A read is tested against the ObjectInfo that it will send; a write's conditions travel in its operation and are tested
in the same transaction as the change (and once before a large body moves).
"""

from __future__ import annotations

import email.utils
from collections.abc import Mapping
from functools import lru_cache

from trivium.metadata.messages import Conditions, ObjectInfo
from trivium.s3.errors import S3Error

SECOND = 1_000_000_000


def parse_date(text: str | None) -> int:
    """Nanoseconds of an HTTP date (or ISO 8601), 0 when there is none or it cannot be read: then it is ignored."""
    if not text:
        return 0
    try:
        return int(email.utils.parsedate_to_datetime(text).timestamp()) * SECOND
    except (ValueError, TypeError, OverflowError, IndexError):
        return 0


def http_date(time_ns: int) -> str:
    return _http_date(time_ns // SECOND)


@lru_cache(maxsize=4096)
def _http_date(time_s: int) -> str:
    return email.utils.formatdate(time_s, usegmt=True)


def unquote_etag(text: str) -> str:
    text = text.strip()
    if text[:2] in ("W/", "w/"):
        text = text[2:]
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] == '"' else text


def of_write(headers: Mapping[str, str]) -> Conditions:
    """The conditions of PUT, Complete and POST. S3Error NotImplemented for those that S3 does not know there."""
    if_match, if_none_match = headers.get("if-match", ""), headers.get("if-none-match", "")
    if "if-modified-since" in headers or "if-unmodified-since" in headers:
        raise S3Error("NotImplemented", Header="If-Modified-Since")
    return Conditions(if_match=unquote_etag(if_match), if_none_match=unquote_etag(if_none_match))


def of_delete(headers: Mapping[str, str]) -> Conditions:
    size = headers.get("x-amz-if-match-size", "")
    if size and not (size.isascii() and size.isdigit()):
        raise S3Error("InvalidArgument", "x-amz-if-match-size is not a number.")
    return Conditions(
        if_match=unquote_etag(headers.get("if-match", "")),
        if_size=int(size[:19]) if size else -1,
        if_mtime=parse_date(headers.get("x-amz-if-match-last-modified-time")),
    )


def of_copy_source(headers: Mapping[str, str]) -> Conditions:
    prefix = "x-amz-copy-source-if-"
    return Conditions(
        if_match=unquote_etag(headers.get(prefix + "match", "")),
        if_none_match=unquote_etag(headers.get(prefix + "none-match", "")),
        if_modified_since=parse_date(headers.get(prefix + "modified-since")),
        if_unmodified_since=parse_date(headers.get(prefix + "unmodified-since")),
    )


def check_write(guards: Conditions, etag: str | None) -> None:
    """A write's conditions against the object that is there now (None: none). The commit tests them again. S3Error."""
    if etag is None:
        if guards.if_match:
            raise S3Error("NoSuchKey")
        return
    if guards.if_match and not _matches(guards.if_match, etag):
        raise S3Error("PreconditionFailed", Condition="If-Match")
    if guards.if_none_match and _matches(guards.if_none_match, etag):
        raise S3Error("PreconditionFailed", Condition="If-None-Match")


def _matches(header: str, etag: str) -> bool:
    return any(item.strip() == "*" or unquote_etag(item) == etag for item in header.split(","))


def check_read(headers: Mapping[str, str], info: ObjectInfo) -> None:
    """S3Error PreconditionFailed (412) or NotModified (304), in the order of RFC 9110 13.2.2."""
    if_match, if_none_match = headers.get("if-match"), headers.get("if-none-match")
    mtime = info.mtime // SECOND * SECOND
    if if_match is not None:
        if not _matches(if_match, info.etag):
            raise S3Error("PreconditionFailed", Condition="If-Match")
    elif (since := parse_date(headers.get("if-unmodified-since"))) and mtime > since:
        raise S3Error("PreconditionFailed", Condition="If-Unmodified-Since")
    unchanged = False
    if if_none_match is not None:
        unchanged = _matches(if_none_match, info.etag)
    elif since := parse_date(headers.get("if-modified-since")):
        unchanged = mtime <= since
    if unchanged:
        error = S3Error("NotModified")
        error.headers = {"ETag": f'"{info.etag}"', "Last-Modified": http_date(info.mtime)}
        raise error


def parse_range(text: str | None, size: int) -> tuple[int, int] | None:
    """(first, after last) of `bytes=…`; None when the whole is to be sent: also for what cannot be read, and for
    several ranges, as S3 does. S3Error InvalidRange when nothing of it is there."""
    if text is None:
        return None
    unit, equals, spec = text.partition("=")
    first, dash, last = spec.strip().partition("-")
    first, last = first.strip(), last.strip()
    if unit.strip().lower() != "bytes" or not equals or not dash or not (first or last):
        return None
    if any(part and not (part.isascii() and part.isdigit() and len(part) <= 19) for part in (first, last)):
        return None
    if not first:
        begin, end = max(0, size - int(last)), size
    else:
        begin = int(first)
        end = min(size, int(last) + 1) if last else size
        if last and int(last) < begin:
            return None
    if begin >= size or end <= begin:
        raise S3Error("InvalidRange", ActualObjectSize=str(size), RangeRequested=text[:128])
    return begin, end
