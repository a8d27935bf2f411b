"""Errors of the block face, by who must act; `plugin` translates them for the wire."""

from __future__ import annotations


class VolumeError(Exception):
    """Root of the package's errors. The text is a sentence that says what to do."""


class BadRequest(VolumeError):
    """Caller: outside of the volume. Nothing was changed."""


class ReadOnly(BadRequest):
    """Caller: a write to a read-only export."""


class Displaced(VolumeError):
    """Operator: another writer has taken the volume, or the session has ended; this process must stop."""


class Busy(VolumeError):
    """Operator: another process holds the volume's lease; the text says what can be done."""


class Full(VolumeError):
    """Caller: the pool takes no more writes. Nothing of this one was accepted; trims still work."""


class Damaged(VolumeError):
    """Operator: what was read back from the pool contradicts itself. Nothing was guessed."""
