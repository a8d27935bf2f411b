"""Files out of tables of contents: newer versions on top, owners never mixed, doubt said."""

from __future__ import annotations

from trivium.cluster.model import ChunkId, ChunkKind, Piece, PieceFlag
from trivium.cluster.salvage import FoundPut, PutKey
from trivium.metadata.lostfound import assemble


def inode(number: int) -> bytes:
    return number.to_bytes(8, "little") + bytes(8)


def put(counter: int, *pieces: Piece, kind: int = ChunkKind.DATA, session: int = 1) -> FoundPut:
    return FoundPut(PutKey(ChunkId(session, counter), b"n" * 16, 4, 2, "isa_l_rs_cauchy", 100), kind, pieces, 0)


def piece(owner: bytes, offset: int, length: int, version: int, at: int = 0, flags: int = 1) -> Piece:
    return Piece(owner, offset, length, version, at, flags)


def layout(name: str, puts: list[FoundPut]) -> list[tuple[int, int, int, int]]:
    (file,) = [file for file in assemble(puts) if file.name == name]
    return [(s.offset, s.length, s.put.key.chunk.counter if s.put else 0, s.chunk_offset) for s in file.spans]


def test_a_newer_version_covers_what_it_overlaps() -> None:
    puts = [put(2, piece(inode(5), 10, 20, 3, at=7)), put(1, piece(inode(5), 0, 100, 2))]
    assert layout("inode-5", puts) == [(0, 10, 1, 0), (10, 20, 2, 7), (30, 70, 1, 30)]
    assert not assemble(puts)[0].doubtful


def test_overlaps_of_one_version_are_doubtful() -> None:
    puts = [put(1, piece(inode(5), 0, 10, 2)), put(2, piece(inode(5), 5, 10, 2), session=9)]
    assert assemble(puts)[0].doubtful


def test_owners_are_never_mixed() -> None:
    body = bytes(8) + b"bodytag1"
    puts = [
        put(1, piece(inode(5), 0, 10, 1), piece(inode(5), 0, 10, 0), piece(bytes(16), 0, 10, 0, at=20)),
        put(2, piece(body, 0, 10, 0), piece(body, 10, 5, 0, at=10)),
        put(3, piece(inode(5), 0, 10, 1), kind=ChunkKind.VOLUME),
    ]
    names = [file.name for file in assemble(puts)]
    assert names == sorted(names) and len(names) == 4
    assert {"inode-5", "content-5", "chunk-0000000000000001-1.2"} < set(names)
    assert [file.size for file in assemble(puts) if file.name.startswith("object-")] == [15]


def test_zeros_that_were_written_cover_older_bytes() -> None:
    zero = piece(inode(5), 2, 3, 2, flags=int(PieceFlag.ZERO))
    assert layout("inode-5", [put(1, piece(inode(5), 0, 10, 1)), put(2, zero)]) == [
        (0, 2, 1, 0), (2, 3, 0, 0), (5, 5, 1, 5),
    ]  # fmt: skip
