"""What callers hand to Chunks and get back, and how pieces are packed into chunks. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trivium.cluster.errors import Refused
from trivium.cluster.model import (
    CHUNK_SIZE,
    MIB,
    VOLUME_CHUNK_SIZE,
    ChunkId,
    ChunkKind,
    Group,
    NewChunk,
    Piece,
    PieceFlag,
    Placed,
    Ref,
)
from trivium.cluster.transport.interface import Buffer

SMALL = MIB  # puts below this are gathered
MAX_PIECES = 8192  # in one chunk: a table of contents of at most 448 KiB


@dataclass(frozen=True, slots=True)
class PieceData:
    """Bytes to store, and whose they are. `length` is the owner's range where that has no bytes (zero, trim)."""

    owner: bytes  # 16
    owner_offset: int
    version: int
    data: Buffer | list[Buffer]
    flags: int = int(PieceFlag.DATA)
    source: int = 0
    length: int | None = None

    @property
    def size(self) -> int:
        """Bytes that it takes in the chunk."""
        return sum(map(len, self.data)) if isinstance(self.data, list) else len(self.data)


@dataclass(frozen=True, slots=True)
class Stored:
    """What a put made: refs[i] is pieces[i]; `chunks` go into the commit that names the refs."""

    refs: tuple[Ref, ...]
    chunks: tuple[NewChunk, ...]


@dataclass(frozen=True, slots=True)
class Order:
    """Where a put goes and under what name; puts of equal orders may share a chunk."""

    pool: int
    kind: int = int(ChunkKind.DATA)
    lease: int = 0
    reserve_class: int = 0

    def limit(self, chunk_size: int = CHUNK_SIZE) -> int:
        """The largest chunk, in bytes."""
        return max(chunk_size, VOLUME_CHUNK_SIZE) if self.kind == ChunkKind.VOLUME else chunk_size


@dataclass(frozen=True, slots=True)
class Draft:
    """A chunk about to be written: its table of contents and its bytes."""

    toc: tuple[Piece, ...]
    sizes: tuple[int, ...]  # bytes of each piece in the chunk (0 for a zero or trim)
    buffers: tuple[Buffer, ...]
    length: int

    def refs(self, chunk: ChunkId) -> tuple[Ref, ...]:
        return tuple(Ref(chunk, piece.chunk_offset, size) for piece, size in zip(self.toc, self.sizes, strict=True))


def draft(pieces: Sequence[PieceData]) -> Draft:
    """One chunk of these pieces, in order, back to back."""
    toc: list[Piece] = []
    sizes: list[int] = []
    buffers: list[Buffer] = []
    offset = 0
    for piece in pieces:
        size = piece.size
        length = size if piece.length is None else piece.length
        if size and size != length:
            raise Refused(f"a piece of {size} bytes cannot stand for a range of {length}")
        toc.append(Piece(piece.owner, piece.owner_offset, length, piece.version, offset, piece.flags, piece.source))
        buffers.extend(piece.data if isinstance(piece.data, list) else (piece.data,))
        sizes.append(size)
        offset += size
    return Draft(tuple(toc), tuple(sizes), tuple(buffers), offset)


def pack(pieces: Sequence[PieceData], limit: int) -> list[list[PieceData]]:
    """Split pieces, in order, into runs that fit a chunk of `limit` bytes each."""
    runs: list[list[PieceData]] = []
    room = -1
    for piece in pieces:
        size = piece.size
        if size > limit:
            raise Refused(f"a piece of {size} bytes does not fit a chunk of {limit}: cut it first")
        if not runs or size > room or len(runs[-1]) == MAX_PIECES:
            runs.append([])
            room = limit
        runs[-1].append(piece)
        room -= size
    return runs


@dataclass(frozen=True, slots=True)
class Written:
    """A chunk that is durable as far as `new.missing` says, in `group`."""

    new: NewChunk
    group: Group

    def placed(self) -> Placed:
        new = self.new
        return Placed(new.chunk, new.nonce, new.length, new.missing, 0, self.group, new.kind)
