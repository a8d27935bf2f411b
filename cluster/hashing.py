"""The two checks of the on-disk formats: CRC32C against rot, BLAKE2b-128 for chains and digests."""

from __future__ import annotations

import hashlib

from crc32c import crc32c as _crc32c


def crc32c(data: bytes | bytearray | memoryview, seed: int = 0) -> int:
    """CRC-32C (Castagnoli) of `data`, continued from `seed`. Takes any contiguous buffer without copying it."""
    return int(_crc32c(data, seed))


def blake128(data: bytes | bytearray | memoryview) -> bytes:
    """The 16-byte BLAKE2b hash of `data`."""
    return hashlib.blake2b(data, digest_size=16).digest()
