"""A body goes out: the extents of a range, fetched a few ahead of the client, from one generation of the object.

Invariants
1. Everything sent comes from one (inode, version): pages of the layout are asked for by version, and a large read
   holds the inode, so that deleting or replacing the object meanwhile does not end it.
2. At most `read_ahead` batches are in memory; the next is fetched only when the client has taken one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from trivium.cluster.model import ChunkId, Placed, Ref
from trivium.cluster.transport.interface import Buffer
from trivium.metadata.messages import Extent, GetLayout, Layout, ObjectInfo, Release
from trivium.s3.context import Service
from trivium.s3.http import Send

BATCH_BYTES = 4 << 20
BATCH_SEGMENTS = 64
MANY_STREAMS = 32
ZEROS = memoryview(bytes(1 << 20))


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive bytes of a read: from a chunk, from the row, or zeros."""

    length: int
    ref: Ref | None = None
    placed: Placed | None = None
    data: memoryview | None = None


def cut(layout: Layout, begin: int, end: int) -> list[Segment]:
    """The segments of [begin, end), which the layout covers. Gaps are zeros. Pure."""
    rows = {placed.chunk: placed for placed in layout.placed}
    segments: list[Segment] = []
    position = begin
    for extent in layout.extents:
        start, stop = max(position, extent.offset), min(end, extent.offset + extent.length)
        if start >= stop:
            continue
        if start > position:
            segments.append(Segment(start - position))
        segments.append(_slice(extent, start - extent.offset, stop - start, rows))
        position = stop
    if position < end:
        segments.append(Segment(end - position))
    return segments


def _slice(extent: Extent, skip: int, length: int, rows: dict[ChunkId, Placed]) -> Segment:
    if extent.data is not None:
        return Segment(length, data=memoryview(extent.data)[skip : skip + length])
    if extent.ref is None:
        return Segment(length)
    ref = Ref(extent.ref.chunk, extent.ref.offset + skip, length)
    return Segment(length, ref, rows.get(ref.chunk))


@dataclass(slots=True)
class _Batch:
    segments: list[Segment]
    ready: trio.Event = field(default_factory=trio.Event)
    buffers: list[Buffer] = field(default_factory=list)


class Reader:
    """One read of [begin, end) of an opened object."""

    def __init__(self, service: Service, info: ObjectInfo, begin: int, end: int, *, held: bool = False) -> None:
        self._service, self._info, self._position, self._end = service, info, begin, end
        self._held = held
        self._segments: deque[Segment] = deque()
        if info.layout is not None and begin < end:
            self._take(info.layout)

    def _take(self, layout: Layout) -> None:
        upto = min(self._end, layout.upto if layout.upto < layout.size else self._end)
        if upto > self._position:
            self._segments.extend(cut(layout, self._position, upto))
            self._position = upto

    async def _more(self) -> bool:
        if self._segments:
            return True
        if self._position >= self._end:
            return False
        before = self._position
        length = self._end - before
        self._take(await self._service.metadata.ask(GetLayout(self._info.ino, before, length, self._info.version)))
        if self._position == before:
            raise ValueError("the metadata server answered an empty layout")
        return True

    async def _next_batch(self) -> list[Segment]:
        batch: list[Segment] = []
        size = 0
        while len(batch) < BATCH_SEGMENTS and size < BATCH_BYTES and await self._more():
            segment = self._segments.popleft()
            if segment.data is None and segment.ref is None and segment.length > len(ZEROS):
                self._segments.appendleft(Segment(segment.length - len(ZEROS)))
                segment = Segment(len(ZEROS))
            batch.append(segment)
            size += segment.length
        return batch

    async def _fetch(self, segments: list[Segment]) -> list[Buffer]:
        wanted = [(segment.ref, segment.placed) for segment in segments if segment.ref is not None]
        chunks = self._service.chunks
        if len(wanted) == 1:
            found = [await chunks.get(wanted[0][0], placed=wanted[0][1])]
        elif wanted:
            found = await chunks.get_many([ref for ref, _ in wanted], [placed for _, placed in wanted])
        else:
            found = []
        found.reverse()
        buffers: list[Buffer] = []
        for segment in segments:
            if segment.ref is not None:
                buffer: Buffer = found.pop()
            else:
                buffer = segment.data if segment.data is not None else ZEROS[: segment.length]
            if len(buffer) != segment.length:
                raise ValueError(f"{len(buffer)} bytes instead of {segment.length}")
            buffers.append(buffer)
        return buffers

    async def first(self) -> list[Buffer] | None:
        """All of a small read, before its answer begins (so that an error is still an error); None when large."""
        batch = await self._next_batch()
        if self._segments or self._position < self._end:
            self._segments.extendleft(reversed(batch))
            return None
        return await self._fetch(batch)

    async def stream(self, send: Send) -> None:
        """Everything, to `send`, with read-ahead."""
        self._service.streams += 1
        try:
            await self._stream(send)
        finally:
            self._service.streams -= 1

    async def _stream(self, send: Send) -> None:
        async with trio.open_nursery() as nursery:
            window: deque[_Batch] = deque()
            while True:
                # many slow clients must not hold many megabytes each
                ahead = self._service.limits.read_ahead if self._service.streams <= MANY_STREAMS else 1
                while len(window) < ahead:
                    segments = await self._next_batch()
                    if not segments:
                        break
                    batch = _Batch(segments)
                    window.append(batch)
                    nursery.start_soon(self._fill, batch)
                if not window:
                    return
                head = window.popleft()
                await head.ready.wait()
                for buffer in head.buffers:
                    await send(buffer)

    async def _fill(self, batch: _Batch) -> None:
        batch.buffers = await self._fetch(batch.segments)
        batch.ready.set()

    async def update(self, take: Callable[[Buffer], None]) -> None:
        """Everything, to a hash in a thread."""

        async def send(data: Buffer) -> None:
            await self._service.executor.run(take, data)

        await self.stream(send)

    async def finish(self) -> None:
        """Give the handle back."""
        if self._held:
            self._held = False
            await self._service.metadata.call(Release((self._info.ino,)))
