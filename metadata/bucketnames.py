"""Which top-level directories are buckets: those whose name S3 allows, whoever made them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from trivium.metadata import namespace
from trivium.metadata.messages import ROOT_INO, MetadataError

if TYPE_CHECKING:
    from trivium.metadata.tx import Reader

_NAME = re.compile(rb"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def is_bucket_name(name: bytes) -> bool:
    return _NAME.fullmatch(name) is not None and b".." not in name


def find_bucket(reader: Reader, name: bytes) -> int:
    """The bucket's inode, 0 when there is none."""
    return namespace.find_dir(reader, ROOT_INO, name) if is_bucket_name(name) else 0


def need_bucket(reader: Reader, name: bytes) -> int:
    ino = find_bucket(reader, name)
    if not ino:
        raise MetadataError("NoSuchBucket", f"there is no bucket {name.decode(errors='replace')}")
    return ino
