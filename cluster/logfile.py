"""The log segment file: a head and a chain of records. Pure: bytes in, values out.

    4 KiB head: magic 8, format u16, cluster 16, segment 16, kind u8, owner 16, session u64, lease number u64,
                first seq u64, previous hash 16, CRC
    record, 8-aligned: magic u32, length u32 (of the payload), seq u64, kind u16, schema u16, flags u32,
                map version u64, previous hash 16, payload, CRC seeded with the segment's id, zeros up to 8

Invariants:
1. Seqs are contiguous from the head's first seq; each record names the hash of the one before it.
2. The hash covers header and payload without the CRC and without the batch position, so that a record copied into
   another segment, or sent again in another batch, is the same record of the same chain.
3. Zeros where a magic should be end the log. Behind that end there are no valid records of this segment.
4. Nothing here raises anything but Corrupt and Refused (another format), whatever the bytes.

What follows the last good record is one of three things. *Clean*: zeros. *Torn*: bytes of one append that was never
answered, to be cut. *Hole*: a later append is there, so the bytes before it had been durable and answered and are now
gone: damage, never cut. To tell them apart each record carries its position in its append (the upper 16 bits of
flags): a valid record beyond the gap whose append began after the gap proves the hole.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from trivium.cluster.errors import Corrupt, Refused
from trivium.cluster.hashing import blake128, crc32c
from trivium.cluster.wire import LogHead

Buffer = bytes | bytearray | memoryview

HEAD_MAGIC = b"trivslog"
FORMAT = 1
HEAD_SIZE = 4096
MAGIC = 0x3152_4C54  # "TLR1"
_ZEROS = bytes(64 * 1024)
_MAGIC_BYTES = MAGIC.to_bytes(4, "little")
MAX_PAYLOAD = 64 << 20
MAX_FLAGS = 0xFFFF  # the upper half is the position in the append
NO_HASH = bytes(16)

_HEAD = struct.Struct("<8sH16s16sB16sQQQ16s")
_RECORD = struct.Struct("<IIQHHIQ16s")
_CRC = struct.Struct("<I")
RECORD_OVERHEAD = _RECORD.size + _CRC.size


@dataclass(frozen=True, slots=True)
class LogRecord:
    seq: int
    kind: int  # 1 patchset, 2 migration, 3 volume
    schema: int
    flags: int  # 16 bits
    map_version: int
    previous_hash: bytes
    payload: Buffer

    @property
    def hash(self) -> bytes:
        """What the next record's `previous_hash` must be."""
        return blake128(b"".join((self._header(0), self.payload)))

    def _header(self, position: int) -> bytes:
        return _RECORD.pack(
            MAGIC, len(self.payload), self.seq, self.kind, self.schema, self.flags | position << 16,
            self.map_version, self.previous_hash,
        )  # fmt: skip

    @property
    def size(self) -> int:
        """Bytes that it takes in a segment."""
        return record_size(len(self.payload))


def record_size(payload: int) -> int:
    return -(-(RECORD_OVERHEAD + payload) // 8) * 8


class Tail(Enum):
    CLEAN = "clean"
    TORN = "torn"
    HOLE = "hole"


@dataclass(frozen=True, slots=True)
class Scan:
    """The good records of a stretch of log, and what follows them."""

    records: tuple[LogRecord, ...]
    offsets: tuple[int, ...]  # of each record in the scanned bytes
    end: int  # where the next record would begin
    last_seq: int
    last_hash: bytes
    tail: Tail
    tail_end: int  # end of the bytes behind `end` that are not zero (== end when clean)

    def require_clean(self, what: str) -> None:
        if self.tail is not Tail.CLEAN:
            raise Corrupt(f"{what}: the records after {self.last_seq} do not verify ({self.tail.value})")


# ---- head ---------------------------------------------------------------------------------------------------


def build_head(cluster: bytes, head: LogHead) -> bytes:
    fields = _HEAD.pack(
        HEAD_MAGIC, FORMAT, cluster, head.segment, head.kind, head.owner, head.session, head.lease, head.first_seq,
        head.previous_hash,
    )  # fmt: skip
    return (fields + _CRC.pack(crc32c(fields))).ljust(HEAD_SIZE, b"\0")


def parse_head(data: Buffer) -> tuple[bytes, LogHead]:
    """(cluster, head) of a segment file."""
    if len(data) < HEAD_SIZE:
        raise Corrupt("a log segment ends within its head")
    magic, form, cluster, segment, kind, owner, session, lease, first_seq, previous = _HEAD.unpack_from(data)
    if magic != HEAD_MAGIC:
        raise Corrupt("not a log segment")
    end = _HEAD.size + _CRC.size
    if crc32c(bytes(data[: _HEAD.size])) != _CRC.unpack_from(data, _HEAD.size)[0] or any(data[end:HEAD_SIZE]):
        raise Corrupt("a log segment's head does not match its CRC")
    if form != FORMAT:
        raise Refused(f"a log segment of format {form}: this version reads format {FORMAT}")
    return cluster, LogHead(segment, kind, owner, session, lease, first_seq, previous)


# ---- records ------------------------------------------------------------------------------------------------


def encode_append(records: Sequence[LogRecord], segment: bytes) -> bytes:
    """The bytes of one append. The records keep their seqs and previous hashes (see `chained`)."""
    seed = crc32c(segment)
    parts: list[Buffer] = []
    for position, record in enumerate(records):
        if len(record.payload) > MAX_PAYLOAD or record.flags > MAX_FLAGS:
            raise ValueError("a log record's payload or flags are too large")
        header = record._header(min(position, 0xFFFF))
        crc = crc32c(record.payload, crc32c(header, seed))
        padding = record.size - RECORD_OVERHEAD - len(record.payload)
        parts += (header, record.payload, _CRC.pack(crc) + bytes(padding))
    return b"".join(parts)


def chained(records: Iterable[LogRecord], first_seq: int, previous_hash: bytes) -> tuple[list[LogRecord], bytes]:
    """The records renumbered from `first_seq` and chained from `previous_hash`; and the last one's hash."""
    result = []
    for seq, record in enumerate(records, first_seq):
        linked = replace(record, seq=seq, previous_hash=previous_hash)
        previous_hash = linked.hash
        result.append(linked)
    return result, previous_hash


def scan(data: Buffer, segment: bytes, next_seq: int, previous_hash: bytes | None) -> Scan:
    """Decode records from the start of `data` (a segment without its head, or a stretch of it).

    `next_seq` is the first record's seq and `previous_hash` what it must name (None: whatever it names, for a
    stretch from the middle). Payloads are views of `data`.
    """
    view = memoryview(data)
    seed = crc32c(segment)
    records: list[LogRecord] = []
    offsets: list[int] = []
    at, last_hash = 0, previous_hash
    while (found := _record_at(view, at, seed)) is not None:
        record, _, size = found
        if record.seq != next_seq or (last_hash is not None and record.previous_hash != last_hash):
            break
        records.append(record)
        offsets.append(at)
        last_hash = record.hash
        at, next_seq = at + size, next_seq + 1
    tail, tail_end = _classify(view, at, seed, next_seq)
    return Scan(tuple(records), tuple(offsets), at, next_seq - 1, last_hash or NO_HASH, tail, tail_end)


def decode_append(data: Buffer, segment: bytes, first_seq: int, previous_hash: bytes | None = None) -> Scan:
    """The records of one append or of a read answer: every byte must be good. Raises Corrupt."""
    result = scan(data, segment, first_seq, previous_hash)
    if result.end != len(data) or not result.records:
        raise Corrupt(f"log records from {first_seq} on do not verify after {result.last_seq}")
    return result


def _record_at(view: memoryview, at: int, seed: int) -> tuple[LogRecord, int, int] | None:
    """(record, position in its append, size) when a valid one begins here."""
    if at + RECORD_OVERHEAD > view.nbytes:
        return None
    magic, length, seq, kind, schema, flags, map_version, previous = _RECORD.unpack_from(view, at)
    if magic != MAGIC or length > MAX_PAYLOAD:
        return None
    size = record_size(length)
    if at + size > view.nbytes:
        return None
    body = at + _RECORD.size
    crc_at = body + length
    if crc32c(view[at:crc_at], seed) != _CRC.unpack_from(view, crc_at)[0]:
        return None
    if any(view[crc_at + _CRC.size : at + size]):
        return None
    record = LogRecord(seq, kind, schema, flags & MAX_FLAGS, map_version, previous, view[body:crc_at])
    return record, flags >> 16, size


def _classify(view: memoryview, end: int, seed: int, next_seq: int) -> tuple[Tail, int]:
    length = _last_byte(view, end) - end
    if not length:
        return Tail.CLEAN, end
    rest = bytes(view[end : end + length])
    at = rest.find(_MAGIC_BYTES)
    while at >= 0:
        if at % 8 == 0 and (found := _record_at(view, end + at, seed)) is not None:
            record, position, _ = found
            if record.seq - position > next_seq:
                return Tail.HOLE, end + length
        at = rest.find(_MAGIC_BYTES, at + 1)
    return Tail.TORN, end + length


def _last_byte(view: memoryview, end: int) -> int:
    """Where the zeros begin that `view` ends with, not before `end`. By blocks: a restart scans the zeros of whole
    preallocated segments, and stripping 16 MiB byte by byte took 0.1 s of each."""
    stop = view.nbytes
    while stop > end:
        start = max(end, stop - len(_ZEROS))
        block = bytes(view[start:stop])
        if block != _ZEROS[: stop - start]:
            return start + len(block.rstrip(b"\0"))
        stop = start
    return end
