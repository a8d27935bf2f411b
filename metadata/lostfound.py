"""Files out of tables of contents alone: what lost+found gets when no row says whose the bytes are. Pure.

A piece names its owner: an inode (a file that was written through the mount), an object's body (S3 tags all pieces of
one body alike), a content (what the compactor wrote), or nobody.

Invariants:
1. Pieces of different owners never meet in one file, and what nobody owns is a file of its own.
2. Where pieces of one inode overlap, the higher version is on top. Overlaps of one version from different chunks have
   no order that could be trusted: such a file is `doubtful`, and says so.
3. Every byte of a file comes from exactly one piece, or no piece covers it: a hole, never a guess.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from trivium.cluster.model import ChunkKind, PieceFlag
from trivium.cluster.salvage import FoundPut


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes [offset, offset + length) of a file are `put`'s from chunk_offset on; None: zeros that were written."""

    offset: int
    length: int
    put: FoundPut | None
    chunk_offset: int
    version: int

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(slots=True)
class LostFile:
    name: str
    spans: list[Span] = field(default_factory=list)  # in order, not overlapping
    doubtful: bool = False

    @property
    def size(self) -> int:
        return self.spans[-1].end if self.spans else 0


def assemble(puts: Iterable[FoundPut]) -> list[LostFile]:
    """The files that chunks of data hold pieces of, by name. Chunks of volumes and dumps are left out."""
    owned: dict[str, list[Span]] = {}
    for put in puts:
        if put.kind != ChunkKind.DATA:
            continue
        for number, piece in enumerate(put.pieces):
            name = owner_name(piece.owner, piece.version)
            offset = piece.owner_offset
            if not name:
                name, offset = f"chunk-{put.key.chunk.session:016x}-{put.key.chunk.counter:x}.{number}", 0
            has_bytes = bool(piece.flags & PieceFlag.DATA)
            span = Span(offset, piece.length, put if has_bytes else None, piece.chunk_offset, piece.version)
            owned.setdefault(name, []).append(span)
    return [_lay(name, spans) for name, spans in sorted(owned.items())]


def owner_name(owner: bytes, version: int) -> str:
    """ "" when the piece is nobody's. Versions of inodes begin with 1; the compactor's pieces have none."""
    first, second = int.from_bytes(owner[:8], "little"), int.from_bytes(owner[8:], "little")
    if not first:
        return f"object-{second:016x}" if second else ""
    kind = "inode" if version else "content"
    return f"{kind}-{first}" + (f"-part-{second}" if second else "")


def _lay(name: str, spans: list[Span]) -> LostFile:
    file = LostFile(name)
    for span in sorted(spans, key=_age):
        if span.length:
            file.doubtful |= _conflicts(file.spans, span)
            file.spans = _cover(file.spans, span)
    return file


def _age(span: Span) -> tuple[int, int, int]:
    chunk = span.put.key.chunk if span.put is not None else None
    return span.version, chunk.session if chunk else 0, chunk.counter if chunk else 0


def _conflicts(below: list[Span], span: Span) -> bool:
    return any(other.version == span.version and other.offset < span.end and span.offset < other.end for other in below)


def _cover(below: list[Span], span: Span) -> list[Span]:
    """`below` with `span` laid over it."""
    result: list[Span] = []
    for other in below:
        if other.end <= span.offset or other.offset >= span.end:
            result.append(other)
            continue
        if other.offset < span.offset:
            result.append(_cut(other, other.offset, span.offset))
        if other.end > span.end:
            result.append(_cut(other, span.end, other.end))
    return sorted([*result, span], key=lambda one: one.offset)


def _cut(span: Span, start: int, end: int) -> Span:
    return Span(start, end - start, span.put, span.chunk_offset + start - span.offset, span.version)
