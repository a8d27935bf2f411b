"""Records of the metadata log: what one batch of operations did, or one step of the schema.

A record is chained to the one before by hash, so that a log, a dump and a database file either fit together exactly or
visibly do not. The log's own framing (magic, CRC) is the cluster's; a Record is what it carries.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

import msgspec

from trivium.cluster.hashing import blake128

RECORD_MAX = 1 << 20  # bytes of payload
NO_HASH = bytes(16)  # what the first record is chained to
_HEAD = struct.Struct("<QHHIQ")


class RecordKind(IntEnum):
    PATCHSET = 1
    MIGRATION = 2


@dataclass(frozen=True, slots=True)
class Record:
    seq: int
    kind: int
    schema: int  # version of the tables that the payload was made with
    previous_hash: bytes
    payload: bytes
    map_version: int = 0

    @property
    def hash(self) -> bytes:
        """Of everything that the record says; the next record carries it."""
        head = _HEAD.pack(self.seq, self.kind, self.schema, 0, self.map_version)
        return blake128(b"".join((head, self.previous_hash, self.payload)))


class Migration(msgspec.Struct, frozen=True, array_like=True):
    """Payload of a migration record: the steps are code (migrations.py), the rows they made are data."""

    to_version: int
    patchset: bytes  # rows written by this record after the step, e.g. the first ones of a new cluster


encode_migration = msgspec.msgpack.Encoder().encode
decode_migration = msgspec.msgpack.Decoder(Migration).decode
