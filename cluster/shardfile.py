"""The shard file: a self-describing, write-once file that holds one shard of a chunk. Pure: bytes in, values out.

    header, padded with zeros to 4 KiB | data: S bytes in blocks of 16 KiB (the last may be shorter)

    magic 8, format u16, header length u32, header CRC u32, cluster 16, session u64, counter u64, nonce 16,
    k, m, index, codec, kind u8, transforms u16, data length u32, S u32, plan seq u64, lease number u64,
    pieces u32, blocks u32, pieces x 56, block CRCs u32 each                                    (little-endian)

Invariants:
1. `header length` ends the block CRCs; data begins at the next multiple of 4 KiB.
2. The header CRC covers the whole padded header, its own field counted as zero: no byte of it can change unseen.
3. Block CRCs are seeded with the CRC of the header before them (its own CRC field as zero), which holds chunk, nonce
   and index: a block of another shard, or of another put of the same name, never verifies.
4. Nothing here raises anything but Corrupt, whatever the bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from trivium.cluster.errors import Corrupt
from trivium.cluster.hashing import crc32c
from trivium.cluster.model import BLOCK, SHARD_ALIGN, ChunkId, ChunkKind, Piece

Buffer = bytes | bytearray | memoryview

MAGIC = b"trivshrd"
FORMAT = 1
CODECS = ("none", "isa_l_rs_cauchy", "liberasurecode_rs_vand")  # the byte on disk; append-only
MAX_HEADER = 16 << 20

_FIXED = struct.Struct("<8sHII16sQQ16sBBBBBHIIQQII")
_PIECE = struct.Struct("<16sQQQIIQ")
_CRC = struct.Struct("<I")
_CRC_AT = 14
_LENGTHS = struct.Struct("<8sHI")
_NO_CRC = bytes(4)
_KIND_AT = struct.calcsize("<8sHII16sQQ16sBBBB")
PREFIX = _FIXED.size  # bytes that header_extent and is_dump need


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """What all shards of one put have in common."""

    cluster: bytes
    chunk: ChunkId
    nonce: bytes
    k: int
    m: int
    codec: str
    kind: int
    data_length: int  # of the chunk
    shard_size: int  # S
    pieces: tuple[Piece, ...] = ()
    plan_seq: int = 0
    lease: int = 0
    transforms: int = 0


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """A verified header. `seed` starts the blocks' CRCs."""

    spec: ShardSpec
    index: int
    header_length: int
    seed: int
    block_crcs: tuple[int, ...]

    @property
    def data_offset(self) -> int:
        return padded(self.header_length)

    @property
    def blocks(self) -> int:
        return len(self.block_crcs)

    @property
    def file_size(self) -> int:
        return self.data_offset + self.spec.shard_size

    def block_length(self, block: int) -> int:
        return min(BLOCK, self.spec.shard_size - block * BLOCK)


def padded(length: int) -> int:
    return -(-length // SHARD_ALIGN) * SHARD_ALIGN


def block_count(shard_size: int) -> int:
    return -(-shard_size // BLOCK)


def header_size(pieces: int, shard_size: int) -> int:
    """Bytes of the padded header: where the data begins."""
    return padded(_FIXED.size + pieces * _PIECE.size + 4 * block_count(shard_size))


def build_headers(spec: ShardSpec, bodies: Sequence[Buffer], first_index: int = 0) -> list[bytes]:
    """The padded headers of the shards first_index, first_index + 1 … whose bytes are `bodies` (each S long).

    A shard file is its header followed by its body, unchanged.
    """
    toc = b"".join(
        _PIECE.pack(p.owner, p.owner_offset, p.length, p.version, p.chunk_offset, p.flags, p.source)
        for p in spec.pieces
    )
    return [_build(spec, index, toc, body) for index, body in enumerate(bodies, first_index)]


def build_header(spec: ShardSpec, index: int, body: Buffer) -> bytes:
    return build_headers(spec, (body,), index)[0]


def _build(spec: ShardSpec, index: int, toc: bytes, body: Buffer) -> bytes:
    view = memoryview(body)
    if view.nbytes != spec.shard_size:
        raise ValueError(f"a shard body of {view.nbytes} bytes, not {spec.shard_size}")
    blocks = block_count(spec.shard_size)
    length = _FIXED.size + len(toc) + 4 * blocks
    header = bytearray(padded(length))
    chunk = spec.chunk
    _FIXED.pack_into(
        header, 0, MAGIC, FORMAT, length, 0, spec.cluster, chunk.session, chunk.counter, spec.nonce, spec.k, spec.m,
        index, CODECS.index(spec.codec), spec.kind, spec.transforms, spec.data_length, spec.shard_size, spec.plan_seq,
        spec.lease, len(spec.pieces), blocks,
    )  # fmt: skip
    crcs_at = _FIXED.size + len(toc)
    header[_FIXED.size : crcs_at] = toc
    seed = crc32c(memoryview(header)[:crcs_at])
    crcs = [crc32c(view[at : at + BLOCK], seed) for at in range(0, spec.shard_size, BLOCK)]
    struct.pack_into(f"<{blocks}I", header, crcs_at, *crcs)
    _CRC.pack_into(header, _CRC_AT, crc32c(header))
    return bytes(header)


def is_dump(prefix: Buffer) -> bool:
    """By the file's first PREFIX bytes, not yet verified."""
    return len(prefix) > _KIND_AT and prefix[_KIND_AT] == ChunkKind.DUMP


def header_extent(prefix: Buffer) -> int:
    """How many bytes the padded header has, from the file's first PREFIX bytes (not yet verified)."""
    if len(prefix) < PREFIX:
        raise Corrupt("a shard file ends within its header")
    magic, form, length = _LENGTHS.unpack_from(prefix)
    if magic != MAGIC:
        raise Corrupt("not a shard file")
    if form != FORMAT:
        raise Corrupt(f"a shard file of format {form}, not {FORMAT}")
    if not _FIXED.size <= length <= MAX_HEADER:
        raise Corrupt("a shard header of an impossible length")
    return padded(length)


def parse_header(data: Buffer) -> ShardHeader:
    """Verify and decode the header at the start of `data` (the whole padded header must be there)."""
    size = header_extent(data)
    view = memoryview(data)
    if view.nbytes < size:
        raise Corrupt("a shard file ends within its header")
    view = view[:size]
    (
        _, _, length, crc, cluster, session, counter, nonce, k, m, index, codec, kind, transforms, data_length,
        shard_size, plan_seq, lease, pieces, blocks,
    ) = _FIXED.unpack_from(view)  # fmt: skip
    if crc32c(view[_CRC_AT + 4 :], crc32c(_NO_CRC, crc32c(view[:_CRC_AT]))) != crc:
        raise Corrupt("a shard header does not match its CRC")
    crcs_at = _FIXED.size + pieces * _PIECE.size
    if crcs_at + 4 * blocks != length or blocks != block_count(shard_size) or not 0 <= codec < len(CODECS):
        raise Corrupt("a shard header contradicts itself")
    if not k or index >= k + m or data_length > k * shard_size or kind not in _KINDS:
        raise Corrupt("a shard header contradicts itself")
    seed = crc32c(view[_CRC_AT + 4 : crcs_at], crc32c(_NO_CRC, crc32c(view[:_CRC_AT])))
    toc = tuple(Piece(*fields) for fields in _pieces(view[_FIXED.size : crcs_at]))
    spec = ShardSpec(
        cluster, ChunkId(session, counter), nonce, k, m, CODECS[codec], kind, data_length, shard_size, toc, plan_seq,
        lease, transforms,
    )  # fmt: skip
    return ShardHeader(spec, index, length, seed, struct.unpack_from(f"<{blocks}I", view, crcs_at))


_KINDS = frozenset(int(kind) for kind in ChunkKind)


def _pieces(toc: memoryview) -> list[tuple[bytes, int, int, int, int, int, int]]:
    return [
        (owner, owner_offset, length, version, chunk_offset, flags, source)
        for owner, owner_offset, length, version, chunk_offset, flags, source in _PIECE.iter_unpack(toc)
    ]


def bad_blocks(header: ShardHeader, first_block: int, data: Buffer) -> list[int]:
    """Numbers of the blocks in `data` (whole blocks from `first_block` on) that do not verify or are cut short."""
    view = memoryview(data)
    seed, crcs = header.seed, header.block_crcs
    bad = []
    block = first_block
    for at in range(0, view.nbytes, BLOCK):
        part = view[at : at + BLOCK]
        if block >= len(crcs) or part.nbytes != header.block_length(block) or crc32c(part, seed) != crcs[block]:
            bad.append(block)
        block += 1
    return bad


def verify_blocks(header: ShardHeader, first_block: int, data: Buffer) -> None:
    """Raise Corrupt, naming the chunk and the block, unless every block in `data` is the one that was written."""
    if bad := bad_blocks(header, first_block, data):
        raise Corrupt(f"block {bad[0]} of shard {header.index} of chunk {header.spec.chunk} does not verify")


def verify_file(data: Buffer) -> ShardHeader:
    """Verify a complete shard file and return its header."""
    header = parse_header(data)
    if len(data) != header.file_size:
        raise Corrupt(f"shard {header.index} of chunk {header.spec.chunk} has the wrong length")
    verify_blocks(header, 0, memoryview(data)[header.data_offset :])
    return header


def shard_name(chunk: ChunkId, index: int) -> str:
    """Its path below a drive's `chunks/`: <session>/<counter >> 12>/<counter>.<index>, in hexadecimal."""
    return f"{chunk.session:016x}/{chunk.counter >> 12:x}/{chunk.counter:x}.{index:x}"
