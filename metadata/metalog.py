"""The metadata log as the writer needs it: append one record, durable on every replica, or be told to stop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from trivium.metadata.records import Record


class MetaLog(Protocol):
    """One writer. Errors of append: Fenced = somebody else leads, stop; any other ClusterError = in doubt, the same
    record may be appended again (and nothing else may)."""

    @property
    def last_seq(self) -> int:
        """Of the last durable record; 0 when there is none."""
        ...

    @property
    def last_hash(self) -> bytes:
        """Hash of that record."""
        ...

    async def append(self, record: Record) -> None: ...

    def read(self, from_seq: int) -> AsyncIterator[Record]:
        """Durable records from `from_seq` on, in order. NotFound when they were trimmed."""
        ...

    async def trim(self, upto: int) -> None:
        """Records up to and including `upto` are not needed any more."""
        ...

    async def close(self) -> None: ...
