"""Buckets: top-level directories with a name that S3 allows; rows of `buckets` say who owns them.

A directory that a mount made at the top is a bucket too when its name could be one; it belongs to nobody ("") until
S3 adopts it.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from trivium.metadata import inodes, listing, namespace, uploads
from trivium.metadata.bucketnames import find_bucket, is_bucket_name, need_bucket
from trivium.metadata.messages import (
    ROOT_INO,
    BucketInfo,
    CreateBucket,
    DeleteBucket,
    GetBucket,
    ListBuckets,
    MetadataError,
    SetBucketConfig,
)

if TYPE_CHECKING:
    from trivium.metadata.tx import Reader, Tx

NAMED = 5  # entries that a refused DeleteBucket names


def info(reader: Reader, name: bytes, ino: int) -> BucketInfo:
    row = reader.one("SELECT owner, created FROM buckets WHERE ino = ?", ino)
    owner, created = row or ("", inodes.need(reader, ino).btime)
    config: dict[str, bytes] = dict(reader.all("SELECT kind, value FROM bucket_config WHERE ino = ?", ino))
    return BucketInfo(name, ino, created, owner, config)


def create_bucket(tx: Tx, op: CreateBucket) -> BucketInfo:
    if not is_bucket_name(op.name):
        raise MetadataError("InvalidBucketName", "a bucket's name has 3 to 63 of a-z, 0-9, `-` and `.`")
    ino = find_bucket(tx, op.name)
    if ino:
        _check_adoptable(tx, ino, op.owner)
    else:
        ino = _make(tx, op.name)
    tx.run("INSERT INTO buckets (ino, owner, created) VALUES (?, ?, ?)", ino, op.owner, tx.now)
    for kind, value in op.config.items():
        _set_config(tx, ino, kind, value)
    return info(tx, op.name, ino)


def _check_adoptable(tx: Tx, ino: int, owner: str) -> None:
    row = tx.one("SELECT owner FROM buckets WHERE ino = ?", ino)
    if row is not None:
        mine = row[0] == owner
        code = "BucketAlreadyOwnedByYou" if mine else "BucketAlreadyExists"
        raise MetadataError(code, "the bucket is there already")


def _make(tx: Tx, name: bytes) -> int:
    if namespace.find(tx, ROOT_INO, name) is not None:
        raise MetadataError("BucketAlreadyExists", "an entry of that name, no directory, is at the top of the mount")
    tx.touch(ROOT_INO, name)
    root = inodes.need(tx, ROOT_INO)
    made = inodes.make(tx, stat.S_IFDIR | 0o755, uid=root.uid, gid=root.gid, parent=ROOT_INO, explicit=1)
    namespace.make_dir(tx, root, name, made)
    root.mtime = root.ctime = tx.now
    inodes.save(tx, root)
    return made.ino


def delete_bucket(tx: Tx, op: DeleteBucket) -> None:
    ino = need_bucket(tx, op.name)
    if not namespace.is_empty(tx, ino):
        raise MetadataError("BucketNotEmpty", _what_is_left(tx, ino))
    tx.touch(ROOT_INO, op.name)
    tx.touch(ino)
    uploads.abort_all(tx, ino)
    root = inodes.need(tx, ROOT_INO)
    namespace.remove(tx, ROOT_INO, op.name + b"/")
    inodes.drop_dir(tx, inodes.need(tx, ino))
    forget(tx, ino)
    root.nlink -= 1
    root.mtime = root.ctime = tx.now
    inodes.save(tx, root)


def forget(tx: Tx, ino: int) -> None:
    """The directory is no bucket any more."""
    tx.run("DELETE FROM buckets WHERE ino = ?", ino)
    tx.run("DELETE FROM bucket_config WHERE ino = ?", ino)


def _what_is_left(tx: Tx, ino: int) -> str:
    for _ in listing.Walk(tx, ino, b"").entries():
        return "the bucket is not empty"
    names = b", ".join(listing.unlisted(tx, ino, NAMED)).decode(errors="backslashreplace")
    return f"what a mount made and no key can name is left in it: {names}"


def set_bucket_config(tx: Tx, op: SetBucketConfig) -> None:
    _set_config(tx, need_bucket(tx, op.name), op.kind, op.value)


def _set_config(tx: Tx, ino: int, kind: str, value: bytes | None) -> None:
    if value is None:
        tx.run("DELETE FROM bucket_config WHERE ino = ? AND kind = ?", ino, kind)
        return
    tx.run(
        "INSERT INTO bucket_config (ino, kind, value) VALUES (?, ?, ?)"
        " ON CONFLICT (ino, kind) DO UPDATE SET value = excluded.value",
        *(ino, kind, value),
    )


def get_bucket(reader: Reader, query: GetBucket) -> BucketInfo:
    return info(reader, query.name, need_bucket(reader, query.name))


def list_buckets(reader: Reader, query: ListBuckets) -> tuple[BucketInfo, ...]:
    rows = reader.all("SELECT sort_name, ino FROM dirents WHERE parent = ? AND hidden = 0 ORDER BY sort_name", ROOT_INO)
    names = ((sort_name[:-1], ino) for sort_name, ino in rows if sort_name.endswith(b"/"))
    found = (info(reader, name, ino) for name, ino in sorted(names) if is_bucket_name(name))
    return tuple(bucket for bucket in found if not query.owner or bucket.owner == query.owner)
