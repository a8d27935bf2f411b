"""Where the scrub is and what it found, kept in a row of `settings`: a restart goes on where it was."""

from __future__ import annotations

import msgspec

from trivium.cluster.model import ChunkId
from trivium.metadata.tx import Reader, Tx

NAME = "scrub"
FINDINGS_KEPT = 100  # the newest, in words


class ScrubState(msgspec.Struct, array_like=True):
    """Of the pass that is under way, and of the last whole one. Times are nanoseconds since the epoch, 0 = never."""

    after: ChunkId = ChunkId(0, 0)  # chunks up to here have been read in this pass
    hurried: bool = False  # somebody asked for it: without pauses
    began_ns: int = 0
    chunks: int = 0
    shards: int = 0
    size_bytes: int = 0
    skipped: int = 0
    findings: list[str] = []
    last_ended_ns: int = 0
    last_shards: int = 0
    last_bytes: int = 0
    last_skipped: int = 0
    last_findings: list[str] = []


_decode = msgspec.msgpack.Decoder(ScrubState).decode


def load(reader: Reader) -> ScrubState:
    row = reader.one("SELECT value FROM settings WHERE name = ?", NAME)
    return ScrubState() if row is None else _decode(row[0])


def save(tx: Tx, state: bytes) -> None:
    """`state`: encoded by the caller at the moment of its decision."""
    if not tx.run("UPDATE settings SET value = ? WHERE name = ?", state, NAME):
        tx.run("INSERT INTO settings (name, value) VALUES (?, ?)", NAME, state)


encode = msgspec.msgpack.Encoder().encode
