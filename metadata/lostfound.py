"""Files out of tables of contents alone: what lost+found gets when no row says whose the bytes are. Pure.

A piece names its owner: an inode (a file that was written through the mount), an object's body (S3 tags all pieces of
one body alike), a content (what the compactor wrote), or nobody.

Invariants:
1. Pieces of different owners never meet in one file, and what nobody owns is a file of its own.
2. Where pieces of one inode overlap, the higher version is on top. Overlaps of one version whose bytes differ have no
   order that could be trusted: such a file is `doubtful`, and another one, NAME.other-1 ..., has what it leaves out.
3. Every byte of a file comes from exactly one piece, or no piece covers it: a hole, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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


Same = Callable[[Span, Span], bool]
"""Whether two spans of one range are known to hold the same bytes (a body that was put twice)."""


def assemble(puts: Iterable[FoundPut], same: Same = lambda one, other: False) -> list[LostFile]:
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
    return [file for name, spans in sorted(owned.items()) for file in _Layers(name, same).lay(spans)]


def owner_name(owner: bytes, version: int) -> str:
    """ "" when the piece is nobody's. Versions of inodes begin with 1; the compactor's pieces have none."""
    first, second = int.from_bytes(owner[:8], "little"), int.from_bytes(owner[8:], "little")
    if not first:
        return f"object-{second:016x}" if second else ""
    kind = "inode" if version else "content"
    return f"{kind}-{first}" + (f"-part-{second}" if second else "")


class _Layers:
    """One owner's file, and what it leaves out: a level of ranges for each further claim to the same bytes."""

    def __init__(self, name: str, same: Same) -> None:
        self._file, self._same = LostFile(name), same
        self._levels: list[list[Span]] = []

    def lay(self, spans: list[Span]) -> list[LostFile]:
        file = self._file
        for span in sorted(spans, key=_age):
            if span.length:
                displaced = self._displaced(span)
                self._levels = [_uncover(level, span) for level in self._levels]
                for one in displaced:
                    self._keep(one)
                file.spans = _cover(file.spans, span)
        levels = [level for level in self._levels if level]
        file.doubtful = bool(levels)
        others = []
        for number, level in enumerate(levels, 1):
            other = LostFile(f"{file.name}.other-{number}", file.spans, True)
            for span in level:
                other.spans = _cover(other.spans, span)
            others.append(other)
        return [file, *others]

    def _displaced(self, span: Span) -> list[Span]:
        """What lies below under the same version and is not known to be equal."""
        found = []
        for other in self._file.spans:
            start, end = max(other.offset, span.offset), min(other.end, span.end)
            if other.version == span.version and start < end:
                below = _cut(other, start, end)
                if not self._same(below, _cut(span, start, end)):
                    found.append(below)
        return found

    def _keep(self, span: Span) -> None:
        for level in self._levels:
            if not any(other.offset < span.end and span.offset < other.end for other in level):
                level.append(span)
                return
        self._levels.append([span])


def _age(span: Span) -> tuple[int, int, int]:
    chunk = span.put.key.chunk if span.put is not None else None
    return span.version, chunk.session if chunk else 0, chunk.counter if chunk else 0


def _uncover(level: list[Span], span: Span) -> list[Span]:
    """A later version replaces what was in doubt before it."""
    older = [other for other in level if other.version < span.version]
    return [other for other in level if other.version >= span.version] + _without(older, span)


def _without(below: list[Span], span: Span) -> list[Span]:
    result: list[Span] = []
    for other in below:
        if other.end <= span.offset or other.offset >= span.end:
            result.append(other)
            continue
        if other.offset < span.offset:
            result.append(_cut(other, other.offset, span.offset))
        if other.end > span.end:
            result.append(_cut(other, span.end, other.end))
    return result


def _cover(below: list[Span], span: Span) -> list[Span]:
    """`below` with `span` laid over it."""
    return sorted([*_without(below, span), span], key=lambda one: one.offset)


def _cut(span: Span, start: int, end: int) -> Span:
    return Span(start, end - start, span.put, span.chunk_offset + start - span.offset, span.version)
