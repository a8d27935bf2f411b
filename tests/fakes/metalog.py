"""A metadata log in memory. Durable for as long as the object lives; can doubt, fail and fence on request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from trivium.cluster.errors import Fenced, NotFound, Refused
from trivium.metadata.records import NO_HASH, Record


class MemoryMetaLog:
    """`shared` records survive the writer that appended them: pass `reopen()` to the next server."""

    def __init__(self, records: list[Record] | None = None) -> None:
        self.records: list[Record] = records if records is not None else []
        self.trimmed = 0
        self.fenced = False
        self.before_append: Callable[[Record], Awaitable[None]] | None = None  # may raise: not stored
        self.after_append: Callable[[Record], Awaitable[None]] | None = None  # may raise: stored, but in doubt

    @property
    def last_seq(self) -> int:
        return self.records[-1].seq if self.records else 0

    @property
    def last_hash(self) -> bytes:
        return self.records[-1].hash if self.records else NO_HASH

    async def append(self, record: Record) -> None:
        await trio.lowlevel.checkpoint()
        if self.fenced:
            raise Fenced("somebody else leads")
        if self.before_append is not None:
            await self.before_append(record)
        if self.records and self.records[-1] == record:
            return  # equal bytes again
        if record.seq != self.last_seq + 1 or record.previous_hash != self.last_hash:
            raise Refused(f"record {record.seq} does not follow {self.last_seq}")
        self.records.append(record)
        if self.after_append is not None:
            await self.after_append(record)

    async def read(self, from_seq: int) -> AsyncIterator[Record]:
        from_seq = from_seq or (self.records[0].seq if self.records else 1)
        if from_seq <= self.trimmed:
            raise NotFound(f"records up to {self.trimmed} were trimmed")
        for record in tuple(self.records):
            if record.seq >= from_seq:
                await trio.lowlevel.checkpoint()
                yield record

    async def trim(self, upto: int) -> None:
        self.trimmed = max(self.trimmed, upto)
        while len(self.records) > 1 and self.records[0].seq <= upto:
            del self.records[0]

    async def close(self) -> None:
        pass

    def reopen(self) -> MemoryMetaLog:
        """What the next writer sees; this one is fenced."""
        self.fenced = True
        log = MemoryMetaLog(self.records)
        log.trimmed = self.trimmed
        return log
