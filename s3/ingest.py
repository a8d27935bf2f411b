"""A body comes in: pieces are put while the next ones arrive, hashes run beside them, one commit makes them exist.

Invariants
1. Nothing is visible before the commit; what was put for a body that failed, was cut off or did not match its
   checksums is given up.
2. When the commit's outcome is unknown its chunks are neither settled nor given up: they may be referenced.
3. At most `pieces_in_flight` pieces of a request are in memory, plus the one that arrives.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import trio

from trivium.cluster.pieces import PieceData, Stored
from trivium.metadata.messages import CHUNK_REFUSED, INLINE_MAX, Body, Extent, MetadataError, Operation
from trivium.s3 import chunked, sigv4
from trivium.s3.checksums import HEADERS as checksum_headers
from trivium.s3.checksums import BodyHash, Expected, expected
from trivium.s3.context import S3Request, Service
from trivium.s3.errors import S3Error
from trivium.s3.http import Body as HttpBody
from trivium.s3.http import Truncated

HASH_INLINE = 64 * 1024  # smaller ones are not worth a thread
REPUTS = 4


class Payload:
    """The object's bytes in a request's body, aws-chunked or plain. `length` None: known only at the end."""

    def __init__(self, body: HttpBody, length: int | None, decoder: chunked.AwsChunked | None) -> None:
        self._body, self.length, self._decoder = body, length, decoder
        self._waiting: list[memoryview] = []

    @property
    def trailers(self) -> dict[str, str]:
        return self._decoder.trailers if self._decoder else {}

    async def read_into(self, view: memoryview) -> int:
        if self._decoder is None:
            return await self._body.read_into(view)
        while not self._waiting:
            data = await self._body.read(len(view) + 512)
            if not data:
                if not self._decoder.done:
                    raise Truncated
                return 0
            self._waiting = self._decoder.feed(memoryview(data))
        return self._copy(view)

    def _copy(self, view: memoryview) -> int:
        first = self._waiting[0]
        count = min(len(first), len(view))
        view[:count] = first[:count]
        if count == len(first):
            self._waiting.pop(0)
        else:
            self._waiting[0] = first[count:]
        return count

    async def fill(self, view: memoryview) -> int:
        """As much of `view` as the body still has."""
        filled = 0
        while filled < len(view) and (count := await self.read_into(view[filled:])):
            filled += count
        return filled

    async def finish(self) -> None:
        """Read what follows the last byte (trailers). S3Error when more payload does."""
        if await self.read_into(memoryview(bytearray(1))):
            raise S3Error("IncompleteBody", "The body is longer than announced.")


def payload_of(request: S3Request, limit: int, *, of_object: bool = False) -> tuple[Payload, Expected]:
    """How this request's body is to be read and checked; `of_object`: its checksums are not the body's. S3Error."""
    headers = request.headers
    if of_object:
        headers = {name: value for name, value in headers.items() if name not in checksum_headers}
    kind = headers.get("x-amz-content-sha256", sigv4.UNSIGNED)
    if request.claim is not None:
        kind = request.claim.payload
    wanted = expected(headers, kind)
    length = request.http.body.length
    decoder = None
    if kind in sigv4.STREAMS:
        text = headers.get("x-amz-decoded-content-length", "")
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise S3Error("MissingContentLength", "x-amz-decoded-content-length is missing or not a number.")
        length = int(text)
        signed = kind in (sigv4.STREAMING, sigv4.STREAMING_TRAILER)
        if signed and request.claim is None:
            raise S3Error("AccessDenied", "A body with signed chunks needs a signed request.")
        if (kind == sigv4.STREAMING) == bool(wanted.trailer) and kind != sigv4.STREAMING_UNSIGNED_TRAILER:
            raise S3Error("InvalidRequest", "x-amz-trailer does not go with x-amz-content-sha256.")
        signer = sigv4.ChunkSigner(request.secret, request.claim) if signed and request.claim else None
        decoder = chunked.AwsChunked(length, signer, wanted.trailer)
    elif wanted.trailer:
        raise S3Error("InvalidRequest", "A trailer needs a chunked body.")
    elif length is None and "transfer-encoding" not in headers:
        raise S3Error("MissingContentLength")
    if length is not None and length > limit:
        raise S3Error("EntityTooLarge", ProposedSize=str(length), MaxSizeAllowed=str(limit))
    return Payload(request.http.body, length, decoder), wanted


@dataclass(slots=True)
class Received:
    """A body that is durable but not committed (`stored`), or small enough to travel in the commit (`data`)."""

    size: int
    etag: str
    checksum: str
    data: bytes | None = None
    stored: list[Stored] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def body(self) -> Body:
        if self.data is not None:
            return Body(self.size, self.data)
        extents, offset = [], 0
        for stored, size in zip(self.stored, self.sizes, strict=True):
            extents.append(Extent(offset, size, stored.refs[0]))
            offset += size
        return Body(self.size, None, tuple(extents))


async def receive(service: Service, payload: Payload, wanted: Expected, limit: int) -> Received:
    """Read, hash and store a body. Raises S3Error, Truncated, ClusterError; then nothing is left behind."""
    hashes = BodyHash(wanted)
    first = bytearray(min(service.limits.piece_bytes, INLINE_MAX + 1 if payload.length is None else payload.length))
    filled = await payload.fill(memoryview(first))
    if filled <= INLINE_MAX and (filled < len(first) or filled == payload.length):
        if payload.length is not None and filled != payload.length:
            raise Truncated
        await payload.finish()
        data = bytes(first[:filled])
        hashes.update(data)
        etag, checksum = hashes.finish(payload.trailers.get(wanted.trailer))
        return Received(filled, etag, checksum, data)
    return await _Intake(service, payload, hashes, limit).run(first, filled)


class _Intake:
    """One large body on its way in."""

    def __init__(self, service: Service, payload: Payload, hashes: BodyHash, limit: int) -> None:
        self._service, self._payload, self._hashes, self._limit = service, payload, hashes, limit
        self._slots = trio.CapacityLimiter(service.limits.pieces_in_flight)
        # the inode is made by the commit; until then one tag says which pieces belong together (lost+found reads it)
        self._owner = bytes(8) + secrets.token_bytes(8)
        self._stored: dict[int, Stored] = {}
        self._sizes: list[int] = []
        self._size = 0

    async def run(self, first: bytearray, filled: int) -> Received:
        try:
            return await self._run(first, filled)
        except BaseException as error:
            for stored in self._stored.values():
                self._service.chunks.give_up(stored)
            if isinstance(error, BaseExceptionGroup):
                raise first_cause(error) from None
            raise

    async def _run(self, first: bytearray, filled: int) -> Received:
        payload = self._payload
        async with trio.open_nursery() as nursery:
            to_hash, from_body = trio.open_memory_channel[memoryview](1)
            nursery.start_soon(self._hash, from_body)
            async with to_hash:
                buffer = await self._complete_first(first, filled)
                while len(buffer):
                    await self._take(nursery, to_hash, buffer)
                    buffer = await self._next_piece()
                await payload.finish()
        etag, checksum = self._hashes.finish(payload.trailers.get(self._hashes.expected.trailer))
        ordered = [self._stored[index] for index in range(len(self._sizes))]
        return Received(self._size, etag, checksum, None, ordered, self._sizes)

    async def _complete_first(self, first: bytearray, filled: int) -> memoryview:
        """The length may be unknown: then the first look was small."""
        piece_bytes = self._service.limits.piece_bytes
        if self._payload.length is not None or filled < len(first):
            if self._payload.length is not None and filled < len(first):
                raise Truncated
            return memoryview(first)[:filled]
        whole = bytearray(piece_bytes)
        whole[:filled] = first
        filled += await self._payload.fill(memoryview(whole)[filled:])
        return memoryview(whole)[:filled]

    async def _next_piece(self) -> memoryview:
        wanted = self._service.limits.piece_bytes
        if self._payload.length is not None:
            wanted = min(wanted, self._payload.length - self._size)
        buffer = bytearray(wanted)
        filled = await self._payload.fill(memoryview(buffer))
        if self._payload.length is not None and filled != wanted:
            raise Truncated
        return memoryview(buffer)[:filled]

    async def _take(
        self, nursery: trio.Nursery, to_hash: trio.MemorySendChannel[memoryview], buffer: memoryview
    ) -> None:
        index, offset = len(self._sizes), self._size
        self._sizes.append(len(buffer))
        self._size += len(buffer)
        if self._size > self._limit:
            raise S3Error("EntityTooLarge", MaxSizeAllowed=str(self._limit))
        token = object()
        await self._slots.acquire_on_behalf_of(token)
        try:
            await self._service.pieces.acquire_on_behalf_of(token)
        except BaseException:
            self._slots.release_on_behalf_of(token)
            raise
        nursery.start_soon(self._put, index, offset, buffer, token)
        await to_hash.send(buffer)

    async def _put(self, index: int, offset: int, buffer: memoryview, token: object) -> None:
        try:
            piece = PieceData(self._owner, offset, 0, buffer)
            self._stored[index] = await self._service.chunks.put(self._service.pool, [piece])
        finally:
            self._service.pieces.release_on_behalf_of(token)
            self._slots.release_on_behalf_of(token)

    async def _hash(self, source: trio.MemoryReceiveChannel[memoryview]) -> None:
        async with source:
            async for buffer in source:
                if len(buffer) <= HASH_INLINE:
                    self._hashes.update(buffer)
                else:
                    await self._service.executor.run(self._hashes.update, buffer)


def first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first, of what a nursery wrapped up."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            return first_cause(error)
        if not isinstance(error, trio.Cancelled):
            return error
    return group.exceptions[0]


async def commit(service: Service, received: Received, make: Callable[[Body], Operation]) -> Any:
    """Make it exist: one call; a refused chunk is put again from what is stored. MetadataError."""
    chunks = service.chunks
    for attempt in range(REPUTS):
        new = tuple(chunk for stored in received.stored for chunk in stored.chunks)
        try:
            (result,) = await service.metadata.call(make(received.body()), chunks=new)
        except MetadataError as error:
            if error.code != CHUNK_REFUSED or attempt == REPUTS - 1:
                discard(service, received)
                raise
            for index, stored in enumerate(received.stored):
                received.stored[index] = await chunks.put_again(stored)
            continue
        for stored in received.stored:
            chunks.settle(stored)
        return result
    raise AssertionError("unreachable")


def discard(service: Service, received: Received) -> None:
    """It will never be committed."""
    for stored in received.stored:
        service.chunks.give_up(stored)
    received.stored = []
