"""Conditions of S3 requests, tested in the transaction of the change (RFC 9110's precedence)."""

from __future__ import annotations

from trivium.metadata.messages import Conditions, MetadataError
from trivium.metadata.objectrows import Stat, etag_of

SECOND = 1_000_000_000


def check(conditions: Conditions, stat: Stat | None, *, missing: str = "NoSuchKey") -> None:
    """Raises PreconditionFailed, or `missing` when a match is asked of an object that is not there."""
    if stat is None:
        wants_one = conditions.if_match or conditions.if_size >= 0 or conditions.if_mtime
        if wants_one and missing:
            raise MetadataError(missing, "there is no such object")
        return
    if not (_matches(conditions, stat) and _differs(conditions, stat) and _is_as_stated(conditions, stat)):
        raise MetadataError("PreconditionFailed", "the object is not as the conditions say")


def names(etags: str, etag: str) -> bool:
    """Whether a header's list of etags (quoted or not, or `*`) names this one."""
    return any(one.strip().removeprefix("W/").strip('"') in ("*", etag) for one in etags.split(","))


def _matches(conditions: Conditions, stat: Stat) -> bool:
    if conditions.if_match:
        return names(conditions.if_match, etag_of(stat))
    since = conditions.if_unmodified_since
    return not since or stat.mtime // SECOND <= since // SECOND


def _differs(conditions: Conditions, stat: Stat) -> bool:
    if conditions.if_none_match:
        return not names(conditions.if_none_match, etag_of(stat))
    since = conditions.if_modified_since
    return not since or stat.mtime // SECOND > since // SECOND


def _is_as_stated(conditions: Conditions, stat: Stat) -> bool:
    if conditions.if_size >= 0 and conditions.if_size != stat.size:
        return False
    return not conditions.if_mtime or conditions.if_mtime // SECOND == stat.mtime // SECOND
