"""One translation table: what the metadata server and the cluster answer -> errno."""

from __future__ import annotations

import errno
import os

from trivium.cluster.errors import ClusterError, NoSpace, Refused, Unavailable
from trivium.metadata.messages import MetadataError

CODES: dict[str, int] = {
    "SESSION_ENDED": errno.EIO,
    "LEASE_LOST": errno.ESTALE,
    "CHUNK_REFUSED": errno.EIO,
    "RETRY": errno.EAGAIN,
    "NoSuchKey": errno.ENOENT,
    "NoSuchBucket": errno.ENOENT,
    "BucketNotEmpty": errno.ENOTEMPTY,
    "BucketAlreadyExists": errno.EEXIST,
}
"""Codes that are no errno names; all others are looked up in `errno`."""

CLUSTER: tuple[tuple[type[ClusterError], int], ...] = (
    (NoSpace, errno.ENOSPC),
    (Unavailable, errno.ETIMEDOUT),
    (Refused, errno.EACCES),
    (ClusterError, errno.EIO),
)
"""First match counts."""


def errno_of(error: BaseException) -> int:
    """The errno that a system call gets for `error`; EIO for what nobody foresaw."""
    if isinstance(error, MetadataError):
        return CODES.get(error.code) or int(getattr(errno, error.code, errno.EIO))
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    if isinstance(error, ClusterError):
        return next(number for kind, number in CLUSTER if isinstance(error, kind))
    return errno.EIO


def failure(number: int, text: str = "") -> OSError:
    """The OSError that Filesystem raises."""
    return OSError(number, text or os.strerror(number))


def translated(error: BaseException) -> OSError:
    if isinstance(error, OSError):
        return error
    return OSError(errno_of(error), str(error))
