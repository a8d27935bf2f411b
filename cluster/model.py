"""Values that every part of the cluster shares: ids, profiles, groups, chunk rows, the root.

All are immutable. Those that travel or are stored are msgspec Structs (encoded as msgpack arrays, so a field may only
be appended, with a default). Sizes are in bytes, times in nanoseconds since the epoch unless the name says otherwise.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import NewType

import msgspec

from trivium.cluster.hashing import blake128

ClusterId = NewType("ClusterId", bytes)  # 16 random bytes
DriveId = NewType("DriveId", bytes)  # 16 random bytes, made when the directory is formatted
NodeId = NewType("NodeId", bytes)  # 16 random bytes, one per node process's key
SegmentId = NewType("SegmentId", bytes)  # 16 random bytes, one per log segment
SessionId = NewType("SessionId", int)  # 63 random bits (SQLite's integers are signed), never used again
GroupId = NewType("GroupId", int)
PoolId = NewType("PoolId", int)

MIB = 1 << 20
BLOCK = 16 * 1024  # a shard's verification unit
SHARD_ALIGN = 4096  # shard sizes and the header are multiples of this
CHUNK_SIZE = 4 * MIB  # largest chunk of file data
VOLUME_CHUNK_SIZE = 8 * MIB


class ChunkId(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Names an immutable chunk for ever: the session that put it and that session's counter (from 1)."""

    session: int
    counter: int

    def __str__(self) -> str:
        return f"{self.session:016x}/{self.counter:x}"


class Ref(msgspec.Struct, frozen=True, array_like=True):
    """A byte range of a chunk's data."""

    chunk: ChunkId
    offset: int
    length: int


class Profile(msgspec.Struct, frozen=True, array_like=True):
    """How a chunk is spread: k data and m parity shards of one codec."""

    k: int
    m: int
    codec: str = "isa_l_rs_cauchy"

    @property
    def width(self) -> int:
        return self.k + self.m

    def __str__(self) -> str:
        return f"{self.k}+{self.m}"


class ChunkKind(IntEnum):
    DATA = 1  # file and object contents, packs
    VOLUME = 2  # a volume's sealed blocks
    MAP = 3  # a volume's checkpoint
    DUMP = 4  # a metadata dump


class PieceFlag(IntEnum):
    DATA = 1
    ZERO = 2
    TRIM = 4
    MAP = 8
    COPY = 16


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """One entry of a chunk's table of contents: whose bytes are where. RULES: 56 bytes on disk."""

    owner: bytes  # 16: inode u64 + part u64, or the volume's id; zeros when nobody's
    owner_offset: int
    length: int
    version: int  # the inode's version or the volume's write number
    chunk_offset: int
    flags: int = int(PieceFlag.DATA)
    source: int = 0  # for a cleaner's copy: the write number that it copied


class Group(msgspec.Struct, frozen=True, array_like=True):
    """An immutable row: the k+m named drives, in shard order, that a chunk's shards are on."""

    id: int
    pool: int
    k: int
    m: int
    drives: tuple[bytes, ...]
    codec: str = "isa_l_rs_cauchy"

    @property
    def digest(self) -> bytes:
        """16 bytes that a commit repeats, so that a reused number can never name other drives."""
        return blake128(b"".join((self.pool.to_bytes(8, "little"), bytes((self.k, self.m)), *self.drives)))

    @property
    def profile(self) -> Profile:
        return Profile(self.k, self.m, self.codec)


class NewChunk(msgspec.Struct, frozen=True, array_like=True):
    """What a put made and a commit introduces. Repeating it in a later commit is harmless."""

    chunk: ChunkId
    nonce: bytes  # 16
    group: int
    group_digest: bytes  # 16
    length: int
    missing: int  # bit i: shard i is not (known to be) durable
    kind: int = int(ChunkKind.DATA)


class Placed(msgspec.Struct, frozen=True, array_like=True):
    """A chunk's row joined with its group: all that a reader needs."""

    chunk: ChunkId
    nonce: bytes
    length: int
    missing: int
    plan_seq: int
    group: Group
    kind: int = int(ChunkKind.DATA)


class DriveState(StrEnum):
    """Derived, never stored: from the row (weight, reason) and from heartbeats (liveness)."""

    NEW = "new"
    UP = "up"
    DOWN = "down"
    OUT = "out"
    DRAINING = "draining"
    REMOVED = "removed"


class DriveRow(msgspec.Struct, frozen=True, array_like=True):
    """A drive as the map stores it. `reason` is "" while it is in use, else out, draining or removed."""

    id: bytes
    name: str  # d0, d1 … : what the operator calls it
    node: bytes
    domain: str  # path of failure domains: rack/host
    weight: float
    reason: str = ""
    path: str = ""  # relative to the data directory where it lies inside it
    bytes_total: int = 0
    device: int = 0  # st_dev: drives that share it share one disk


class NodeRow(msgspec.Struct, frozen=True, array_like=True):
    id: bytes
    name: str
    addresses: tuple[str, ...] = ()  # unix:PATH (relative to the data directory) or quic:HOST:PORT
    public_key: bytes = b""


class PoolRow(msgspec.Struct, frozen=True, array_like=True):
    id: int
    name: str
    k: int
    m: int
    chunk_size: int = CHUNK_SIZE
    codec: str = "isa_l_rs_cauchy"


class ClusterMap(msgspec.Struct, frozen=True, array_like=True):
    version: int = 0
    drives: tuple[DriveRow, ...] = ()
    nodes: tuple[NodeRow, ...] = ()
    pools: tuple[PoolRow, ...] = ()
    maintenance_until: int = 0  # no drive is marked out before this time (ns); -1: until it is turned off; 0: none


class SegmentEntry(msgspec.Struct, frozen=True, array_like=True):
    """A link of a log's chain. `last_seq` is None while the segment is open."""

    segment: bytes
    drives: tuple[bytes, ...]
    first_seq: int
    last_seq: int | None = None


class DumpEntry(msgspec.Struct, frozen=True, array_like=True):
    """A durable copy of the metadata: an index chunk that lists the chunks of the dump, with explicit locations."""

    index: Placed
    seq: int  # the dump holds everything up to here
    digest: bytes  # 16: logical digest of its rows in key order
    chain_hash: bytes  # 16: hash of record `seq`
    size: int = 0


class Leader(msgspec.Struct, frozen=True, array_like=True):
    starter: bytes  # 16 random bytes of one process's life
    address: str
    boot_id: str
    released: bool = False
    holder: bytes = b""  # the data directory that it leads from: who holds that one's lock knows that it is dead
    lock: str = ""  # which file that lock is on (device:inode): a copy of the directory has another


class Root(msgspec.Struct, frozen=True, array_like=True):
    """The small register that everything starts from."""

    map: ClusterMap
    root_drives: tuple[bytes, ...]
    log: tuple[SegmentEntry, ...]  # the metadata log's chain, oldest first
    dumps: tuple[DumpEntry, ...]  # the two newest, newest last
    leader: Leader | None = None
    former_root_drives: tuple[bytes, ...] = ()  # while a change of root_drives settles: the list before votes too


class Ballot(msgspec.Struct, frozen=True, array_like=True, order=True):
    number: int
    starter: bytes


NO_BALLOT = Ballot(0, bytes(16))


class RootSlot(msgspec.Struct, frozen=True, array_like=True):
    """What one drive's root file holds: its promise, and the value that it accepted (version grows by one)."""

    promised: Ballot = NO_BALLOT
    accepted: Ballot = NO_BALLOT
    version: int = 0
    root: Root | None = None
