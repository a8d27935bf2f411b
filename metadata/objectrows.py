"""What S3 knows of an inode: rows of `objects`, ETags, and how they become ObjectInfo."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from trivium.metadata.inodes import Inode
from trivium.metadata.messages import ObjectInfo, ObjectMeta

if TYPE_CHECKING:
    from trivium.metadata.tx import Reader, Tx

EMPTY_MD5 = "d41d8cd98f00b204e9800998ecf8427e"
PLAIN = ObjectMeta()

encode = msgspec.msgpack.Encoder().encode
decode_meta = msgspec.msgpack.Decoder(ObjectMeta).decode


class Stat(NamedTuple):
    """An inode with its object's row, as far as S3 shows them; etag None: POSIX wrote it."""

    ino: int
    mode: int
    size: int
    version: int
    mtime: int
    explicit: int
    etag: str | None
    owner: str | None
    meta: bytes | None


_STAT = (
    "SELECT i.ino, i.mode, i.size, i.version, i.mtime, i.explicit, o.etag, o.owner, o.meta FROM inodes i"
    " LEFT JOIN objects o ON o.ino = i.ino WHERE i.ino = ?"
)


def stat_of(reader: Reader, ino: int) -> Stat:
    row = reader.one(_STAT, ino)
    assert row is not None, "a name leads to an inode"
    return Stat(*row)


def etag_of(stat: Stat) -> str:
    """Without quotes: MD5 of what S3 wrote, else inode and version."""
    if stat.etag is not None:
        return stat.etag
    return EMPTY_MD5 if stat.mode & 0o170000 == 0o040000 else f"{stat.ino:x}.{stat.version}-0"


def info_of(key: bytes, stat: Stat) -> ObjectInfo:
    is_dir = stat.mode & 0o170000 == 0o040000
    return ObjectInfo(
        key=key,
        ino=stat.ino,
        version=stat.version,
        size=0 if is_dir else stat.size,
        etag=etag_of(stat),
        mtime=stat.mtime,
        meta=PLAIN if stat.meta is None else decode_meta(stat.meta),
        owner=stat.owner or "",
    )


def put_row(tx: Tx, inode: Inode, etag: str, owner: str, meta: ObjectMeta) -> None:
    tx.run(
        "INSERT INTO objects (ino, etag, owner, meta) VALUES (?, ?, ?, ?) ON CONFLICT (ino) DO UPDATE"
        " SET etag = excluded.etag, owner = excluded.owner, meta = excluded.meta",
        *(inode.ino, etag, owner, encode(meta)),
    )
