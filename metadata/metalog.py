"""The metadata log as the writer needs it: append one record, durable on every replica, or be told to stop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
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
        """Durable records from `from_seq` on (0: from the first that there is), in order. NotFound when they were
        trimmed."""
        ...

    async def trim(self, upto: int) -> None:
        """Records up to and including `upto` are not needed any more."""
        ...

    async def close(self) -> None: ...


class RecordLog(Protocol):
    """What this adapter uses of cluster.log.LogWriter."""

    @property
    def last_seq(self) -> int: ...

    @property
    def last_hash(self) -> bytes: ...

    async def append(self, records: Sequence[Record]) -> object: ...

    def read(self, from_seq: int) -> AsyncIterator[Record]: ...

    async def trim(self, upto: int) -> object: ...

    async def close(self) -> object: ...


class ClusterLog:
    """The cluster's replicated log as a MetaLog. Appending a record that is the last durable one is a success: so a
    caller in doubt may simply repeat itself."""

    def __init__(self, log: RecordLog) -> None:
        self._log = log

    @property
    def last_seq(self) -> int:
        return self._log.last_seq

    @property
    def last_hash(self) -> bytes:
        return self._log.last_hash

    async def append(self, record: Record) -> None:
        if record.seq == self._log.last_seq and record.hash == self._log.last_hash:
            return
        await self._log.append((record,))

    def read(self, from_seq: int) -> AsyncIterator[Record]:
        return self._log.read(from_seq)

    async def trim(self, upto: int) -> None:
        await self._log.trim(upto)

    async def close(self) -> None:
        await self._log.close()
