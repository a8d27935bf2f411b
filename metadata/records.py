"""Records of the metadata log: what one batch of operations did, or one step of the schema.

A record is the cluster's LogRecord: chained to the one before by hash, so that a log, a dump and a database file
either fit together exactly or visibly do not. Here is what its payload says.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from trivium.cluster.logfile import LogRecord

Record = LogRecord
RECORD_MAX = 1 << 20  # bytes of payload
NO_HASH = bytes(16)  # what the first record is chained to


class RecordKind(IntEnum):
    PATCHSET = 1
    MIGRATION = 2


def make(
    kind: RecordKind, payload: bytes, *, schema: int, last_seq: int, last_hash: bytes, map_version: int = 0
) -> Record:
    """The record that follows record `last_seq`. `schema`: version of the tables that the payload needs."""
    return Record(
        seq=last_seq + 1,
        kind=kind,
        schema=schema,
        flags=0,
        map_version=map_version,
        previous_hash=last_hash,
        payload=payload,
    )


class Migration(msgspec.Struct, frozen=True, array_like=True):
    """Payload of a migration record: the steps are code (migrations.py), the rows they made are data."""

    to_version: int
    patchset: bytes  # rows written by this record after the step, e.g. the first ones of a new cluster


encode_migration = msgspec.msgpack.Encoder().encode
decode_migration = msgspec.msgpack.Decoder(Migration).decode
