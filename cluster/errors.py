"""Errors of the cluster, by who must act: the caller, the operator, or nobody (try again)."""

from __future__ import annotations


class ClusterError(Exception):
    """Root of the package's errors. The text is a sentence that says what to do."""


class Unavailable(ClusterError):
    """Nobody must act: the peer or too many drives are away for now; try again."""


class NotFound(ClusterError):
    """The drive has no such shard, log segment or row."""


class Exists(ClusterError):
    """A shard or segment of that name is already there; it is never overwritten by a put."""


class Corrupt(ClusterError):
    """Bytes did not verify. They were not returned."""


class ChunkLost(ClusterError):
    """Fewer than k shards of the chunk could be read from any drive. Names the chunk."""


class NoSpace(ClusterError):
    """The drive or pool takes no more data of this kind. Deletes still work."""


class DriveFailed(ClusterError):
    """Operator: the drive gave an I/O error, was wiped or unmounted, and is out of use."""


class Fenced(ClusterError):
    """The log segment is sealed, or the lease or ballot has moved on: this writer must stop."""


class Refused(ClusterError):
    """Operator or caller: the request contradicts a rule (other cluster, wrong format, not allowed)."""


class InUse(ClusterError):
    """Operator: another process holds the lock; the text names it."""
