"""What every operation gets: the request as S3 understands it, and the services behind the gateway."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import trio

from trivium.cluster.catalog import Catalog
from trivium.cluster.clock import Clock, Executor
from trivium.cluster.model import NewChunk, Placed, Ref
from trivium.cluster.pieces import PieceData, Stored
from trivium.metadata.messages import BucketInfo, Operation, Query
from trivium.s3.errors import S3Error
from trivium.s3.http import Request, Response
from trivium.s3.sigv4 import Claim

if TYPE_CHECKING:
    from trivium.s3.access import Access

MIB = 1 << 20


class Metadata(Catalog, Protocol):
    """The part of metadata.client.MetadataClient that the gateway uses."""

    async def call(self, *operations: Operation, chunks: Sequence[NewChunk] = ()) -> tuple[Any, ...]: ...

    async def ask(self, query: Query) -> Any: ...


class Chunks(Protocol):
    """The part of cluster.chunks.Chunks that the gateway uses."""

    async def put(self, pool: int, pieces: Sequence[PieceData]) -> Stored: ...

    async def get(self, ref: Ref, *, placed: Placed | None = None) -> memoryview: ...

    async def get_many(self, refs: Sequence[Ref], placed: Sequence[Placed | None]) -> list[memoryview]: ...

    def settle(self, stored: Stored) -> None: ...

    def give_up(self, stored: Stored) -> None: ...

    async def put_again(self, stored: Stored) -> Stored: ...


@dataclass(frozen=True, slots=True)
class S3Limits:
    """AWS's own, unless the operator sets others."""

    put_bytes: int = 5 << 30
    object_bytes: int = 5 << 40
    part_bytes: int = 5 << 30
    min_part_bytes: int = 5 << 20
    parts: int = 10_000
    user_metadata_bytes: int = 2048
    document_bytes: int = 4 * MIB
    policy_bytes: int = 20 * 1024
    piece_bytes: int = 4 * MIB
    pieces_in_flight: int = 4
    read_ahead: int = 3
    requests_in_flight: int = 512  # more are told to slow down
    body_memory_bytes: int = 256 * MIB  # of pieces on their way to the drives, all requests together


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks. `bucket`: the credential is scoped to it."""

    access_key: str = ""
    user: str = ""
    root: bool = False
    bucket: str = ""

    @property
    def anonymous(self) -> bool:
        return not self.access_key


ANONYMOUS = Identity()


@dataclass(slots=True)
class S3Request:
    http: Request
    operation: str
    bucket: bytes
    key: bytes
    query: dict[str, str]
    request_id: str
    identity: Identity = ANONYMOUS
    claim: Claim | None = None
    secret: str = ""
    virtual: bool = False  # the bucket came from the host name
    info: BucketInfo | None = None  # as cached; the operations decide by themselves
    access: Access | None = None  # what the object itself must still grant

    @property
    def headers(self) -> dict[str, str]:
        return self.http.headers

    @property
    def resource(self) -> str:
        return self.http.path

    def number(self, name: str, default: int, low: int, high: int) -> int:
        """An integer of the query, cut to `high`. S3Error InvalidArgument."""
        text = self.query.get(name)
        if text is None or (text == "" and default >= 0):
            return default
        if not text.isascii() or not text.isdigit() or len(text) > 10 or int(text) < low:
            raise S3Error(
                "InvalidArgument",
                f"Provided {name} not an integer or within integer range",
                ArgumentName=name,
                ArgumentValue=text[:64],
            )
        return min(int(text), high)


class BucketSource(Protocol):
    """Buckets as they were at most a moment ago."""

    async def get(self, name: bytes) -> BucketInfo: ...

    def forget(self, name: bytes) -> None: ...


@dataclass(slots=True)
class Service:
    """The gateway's parts, as the operations see them."""

    metadata: Metadata
    chunks: Chunks
    executor: Executor
    clock: Clock
    region: str
    limits: S3Limits
    buckets: BucketSource
    forget_credential: Callable[[str], None]
    authorize: Callable[[S3Request, str, bytes, bytes], Awaitable[Access]]  # may it do `action` on bucket, key?
    new_id: Callable[[], str]
    pieces: trio.CapacityLimiter  # of all requests together: bounds the memory of bodies on their way to the drives
    streams: int = 0  # large reads in progress

    @property
    def pool(self) -> int:
        """Where bodies go: the first pool."""
        pools = self.metadata.map().pools
        return pools[0].id if pools else 1


Operate = Callable[[Service, S3Request], Awaitable[Response]]
