"""What the map stores besides its rows: maintenance, and why a drive is out. Rows of `settings`.

    maintenance         msgpack int: wall-clock nanoseconds until which nothing is marked out; FOREVER until turned off
    drive/<id in hex>   msgpack OutNote: why a drive is out, and what it was before
"""

from __future__ import annotations

import msgspec

from trivium.metadata.tx import Reader, Tx

FOREVER = -1
MAINTENANCE = "maintenance"


class OutNote(msgspec.Struct, frozen=True, array_like=True):
    """`silent`: it comes back in by itself once it answers; else (an I/O error) only by the operator's hand."""

    text: str
    silent: bool
    was: str = ""  # the reason that its row had: "" or draining


def maintenance_until(reader: Reader) -> int:
    """0: there is none."""
    row = reader.one("SELECT value FROM settings WHERE name = ?", MAINTENANCE)
    return 0 if row is None else msgspec.msgpack.decode(row[0], type=int)


def set_maintenance(tx: Tx, until_ns: int) -> None:
    tx.run("DELETE FROM settings WHERE name = ?", MAINTENANCE)
    if until_ns:
        tx.run("INSERT INTO settings (name, value) VALUES (?, ?)", MAINTENANCE, msgspec.msgpack.encode(until_ns))


def is_maintenance(until_ns: int, now_ns: int) -> bool:
    return until_ns == FOREVER or until_ns > now_ns


def note_out(tx: Tx, drive: bytes, note: OutNote | None) -> None:
    """Remember why a drive is out; None when it is not out any more."""
    name = f"drive/{drive.hex()}"
    tx.run("DELETE FROM settings WHERE name = ?", name)
    if note is not None:
        tx.run("INSERT INTO settings (name, value) VALUES (?, ?)", name, msgspec.msgpack.encode(note))


def out_notes(reader: Reader) -> dict[bytes, OutNote]:
    rows = reader.all("SELECT name, value FROM settings WHERE name > 'drive/' AND name < 'drive0'")
    decode = msgspec.msgpack.Decoder(OutNote).decode
    return {bytes.fromhex(name.removeprefix("drive/")): decode(value) for name, value in rows}
