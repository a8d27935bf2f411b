"""The root file of a drive: who the drive is, and its copy of the register that everything starts from. Pure.

    4 KiB head: magic 8, format u16, cluster 16, drive 16, slot size u32, CRC
    2 slots of 256 KiB: generation u64, promised (u64, starter 16), accepted (same), length u32, msgpack, CRC

Invariants:
1. The older slot is written, then synced; the newest slot that verifies counts. A torn write leaves the other one.
2. A slot's CRC is seeded with the drive's id, so that a copy of another drive's file never votes.
3. The msgpack holds [version, Root or nil]; the file is never shortened or replaced, its inode holds the drive's lock.
4. Parsers raise nothing but Corrupt and Refused (another format).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import msgspec

from trivium.cluster.errors import Corrupt, Refused
from trivium.cluster.hashing import crc32c
from trivium.cluster.model import Ballot, Root, RootSlot

Buffer = bytes | bytearray | memoryview

MAGIC = b"trivroot"
FORMAT = 1
HEAD_SIZE = 4096
SLOT_SIZE = 256 * 1024
FILE_SIZE = HEAD_SIZE + 2 * SLOT_SIZE

_HEAD = struct.Struct("<8sH16s16sI")
_SLOT = struct.Struct("<QQ16sQ16sI")
_CRC = struct.Struct("<I")
MAX_VALUE = SLOT_SIZE - _SLOT.size - _CRC.size
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, Root | None]).decode


@dataclass(frozen=True, slots=True)
class RootHead:
    cluster: bytes
    drive: bytes


@dataclass(frozen=True, slots=True)
class Slot:
    """A verified slot: the value and the generation that orders the two."""

    generation: int
    value: RootSlot


def build_head(head: RootHead) -> bytes:
    fields = _HEAD.pack(MAGIC, FORMAT, head.cluster, head.drive, SLOT_SIZE)
    return (fields + _CRC.pack(crc32c(fields))).ljust(HEAD_SIZE, b"\0")


def parse_head(data: Buffer) -> RootHead:
    if len(data) < HEAD_SIZE:
        raise Corrupt("a root file ends within its head")
    magic, form, cluster, drive, slot_size = _HEAD.unpack_from(data)
    end = _HEAD.size + _CRC.size
    if magic != MAGIC:
        raise Corrupt("not a root file")
    if crc32c(bytes(data[: _HEAD.size])) != _CRC.unpack_from(data, _HEAD.size)[0] or any(data[end:HEAD_SIZE]):
        raise Corrupt("a root file's head does not match its CRC")
    if form != FORMAT or slot_size != SLOT_SIZE:
        raise Refused(f"a drive of format {form} (slots of {slot_size} bytes): this version reads format {FORMAT}")
    return RootHead(cluster, drive)


def build_slot(drive: bytes, slot: Slot) -> bytes:
    """The slot's bytes up to its CRC (what is behind them does not count). Refused when the Root is too large."""
    value = slot.value
    packed = _encode((value.version, value.root))
    if len(packed) > MAX_VALUE:
        raise Refused(f"the root register takes {MAX_VALUE} bytes, not {len(packed)}")
    p, a = value.promised, value.accepted
    fields = _SLOT.pack(slot.generation, p.number, p.starter, a.number, a.starter, len(packed))
    return b"".join((fields, packed, _CRC.pack(crc32c(packed, crc32c(fields, crc32c(drive))))))


def parse_slot(drive: bytes, data: Buffer) -> Slot:
    view = memoryview(data)
    if view.nbytes < _SLOT.size + _CRC.size:
        raise Corrupt("a root slot is cut short")
    generation, promised, p_starter, accepted, a_starter, length = _SLOT.unpack_from(view)
    end = _SLOT.size + length
    if not generation or length > MAX_VALUE or view.nbytes < end + _CRC.size:
        raise Corrupt("a root slot is blank or cut short")
    if crc32c(view[:end], crc32c(drive)) != _CRC.unpack_from(view, end)[0]:
        raise Corrupt("a root slot does not match its CRC")
    try:
        version, root = _decode(view[_SLOT.size : end])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"a root slot cannot be decoded: {error}") from None
    value = RootSlot(Ballot(promised, p_starter), Ballot(accepted, a_starter), version, root)
    return Slot(generation, value)


def slot_offset(generation: int) -> int:
    """Generations alternate between the slots: writing generation n + 1 overwrites n - 1."""
    return HEAD_SIZE + (generation & 1) * SLOT_SIZE


def newest(drive: bytes, data: Buffer) -> Slot:
    """The newest valid slot of a whole root file. Corrupt when there is none: such a drive does not vote."""
    view = memoryview(data)
    found = []
    for at in (HEAD_SIZE, HEAD_SIZE + SLOT_SIZE):
        try:
            slot = parse_slot(drive, view[at : at + SLOT_SIZE])
        except Corrupt:
            continue
        if slot_offset(slot.generation) == at:
            found.append(slot)
    if not found:
        raise Corrupt("neither slot of the root file verifies: the drive does not vote until it is admitted again")
    return max(found, key=lambda slot: slot.generation)
