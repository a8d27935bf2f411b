"""S3's checksums: five algorithms, their combination over parts, and Content-MD5.

CRCs come from awscrt (hardware speed, and it can combine them without the data: over 10 GB/s here, zlib's CRC32 4),
the rest from hashlib; all release the interpreter lock for large buffers, so they run in threads beside the puts.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from awscrt import checksums as crt

from trivium.cluster.hashing import crc32c
from trivium.cluster.transport.interface import Buffer
from trivium.s3.errors import S3Error

SIZES = {"CRC32": 4, "CRC32C": 4, "CRC64NVME": 8, "SHA1": 20, "SHA256": 32}
ALGORITHMS = tuple(SIZES)
HEADERS = {f"x-amz-checksum-{name.lower()}": name for name in ALGORITHMS}
ELEMENTS = {f"Checksum{name}": name for name in ALGORITHMS}
FULL_OBJECT, COMPOSITE = "FULL_OBJECT", "COMPOSITE"


class Hasher(Protocol):
    def update(self, data: Buffer, /) -> None: ...

    def digest(self) -> bytes: ...


class Crc:
    """A CRC with hashlib's two methods."""

    __slots__ = ("_function", "_size", "_value")

    def __init__(self, function: Callable[[Any, int], int], size: int) -> None:
        self._function, self._size, self._value = function, size, 0

    def update(self, data: Buffer, /) -> None:
        self._value = self._function(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size, "big")


_FACTORIES: dict[str, Callable[[], Hasher]] = {
    "CRC32": lambda: Crc(zlib.crc32, 4),
    "CRC32C": lambda: Crc(crc32c, 4),
    "CRC64NVME": lambda: Crc(crt.crc64nvme, 8),
    "SHA1": lambda: hashlib.sha1(usedforsecurity=False),
    "SHA256": hashlib.sha256,
}

_COMBINE: dict[str, Callable[[int, int, int], int]] = {
    "CRC32": crt.combine_crc32,
    "CRC32C": crt.combine_crc32c,
    "CRC64NVME": crt.combine_crc64nvme,
}


def hasher(algorithm: str) -> Hasher:
    return _FACTORIES[algorithm]()


def combine(algorithm: str, parts: Sequence[tuple[bytes, int]]) -> bytes:
    """The checksum of the whole from (checksum, size) of its parts: CRCs only."""
    joined = 0
    for digest, size in parts:
        joined = _COMBINE[algorithm](joined, int.from_bytes(digest, "big"), size)
    return joined.to_bytes(SIZES[algorithm], "big")


def composite(algorithm: str, digests: Sequence[bytes]) -> str:
    """base64(checksum of checksums)-N."""
    outer = hasher(algorithm)
    outer.update(b"".join(digests))
    return f"{to_base64(outer.digest())}-{len(digests)}"


def to_base64(digest: bytes) -> str:
    return binascii.b2a_base64(digest, newline=False).decode("ascii")


def from_base64(text: str, size: int) -> bytes:
    """Exactly `size` bytes. ValueError."""
    digest = base64.b64decode(text, validate=True)
    if len(digest) != size:
        raise ValueError(f"{len(digest)} bytes instead of {size}")
    return digest


@dataclass(frozen=True, slots=True)
class Expected:
    """What a client says about its body. Digests are raw; `trailer`: the checksum comes after the body."""

    md5: bytes | None = None
    sha256: bytes | None = None  # x-amz-content-sha256
    algorithm: str = ""  # to compute, "" = none
    checksum: bytes | None = None
    trailer: str = ""


def expected(headers: Mapping[str, str], payload: str) -> Expected:
    """From a request's headers; `payload` is x-amz-content-sha256 (or the presigned stand-in). S3Error."""
    md5 = None
    if (text := headers.get("content-md5")) is not None:
        try:
            md5 = from_base64(text.strip(), 16)
        except ValueError:
            raise S3Error("InvalidDigest", "The Content-MD5 you specified is not valid.") from None
    sha256 = bytes.fromhex(payload) if len(payload) == 64 else None
    given = [(name, headers[name]) for name in HEADERS if name in headers]
    if len(given) > 1:
        raise S3Error(
            "InvalidRequest", "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed."
        )
    trailer = headers.get("x-amz-trailer", "").strip().lower()
    if trailer and trailer not in HEADERS:
        raise S3Error("InvalidRequest", "The value specified in the x-amz-trailer header is not supported")
    if trailer and given:
        raise S3Error("InvalidRequest", "Expecting a single x-amz-checksum- header")
    wanted = algorithm_named(headers.get("x-amz-sdk-checksum-algorithm", ""))
    if given:
        name, text = given[0]
        algorithm = HEADERS[name]
        try:
            checksum = from_base64(text.strip(), SIZES[algorithm])
        except ValueError:
            raise S3Error("InvalidRequest", f"Value for {name} header is invalid.") from None
        return Expected(md5, sha256, algorithm, checksum)
    return Expected(md5, sha256, HEADERS[trailer] if trailer else wanted, None, trailer)


def algorithm_named(text: str) -> str:
    """The algorithm that a header or element names, "" for none. S3Error."""
    if not text:
        return ""
    name = text.strip().upper()
    if name not in SIZES:
        raise S3Error(
            "InvalidRequest",
            "Checksum algorithm provided is unsupported. Please try again with any of the "
            "valid types: [CRC32, CRC32C, CRC64NVME, SHA1, SHA256]",
        )
    return name


class BodyHash:
    """MD5 and whatever else is expected, of one body as it passes. `update` may run in a thread, one at a time."""

    __slots__ = ("_all", "checksum", "expected", "md5", "sha256", "size")

    def __init__(self, wanted: Expected) -> None:
        self.expected = wanted
        self.md5 = hashlib.md5(usedforsecurity=False)
        self.sha256 = hashlib.sha256() if wanted.sha256 is not None else None
        self.checksum = hasher(wanted.algorithm) if wanted.algorithm else None
        if wanted.algorithm == "SHA256" and self.sha256 is not None:
            self.checksum = self.sha256
        found: list[Hasher] = [self.md5]
        for other in (self.sha256, self.checksum):
            if other is not None and all(other is not one for one in found):
                found.append(other)
        self._all = found
        self.size = 0

    def update(self, data: Buffer) -> None:
        self.size += len(data)
        for one in self._all:
            one.update(data)

    def finish(self, trailer: str | None = None) -> tuple[str, str]:
        """(etag, checksum in base64 or ""); `trailer` is its value. S3Error when anything does not match."""
        wanted = self.expected
        etag = self.md5.digest()
        if wanted.md5 is not None and wanted.md5 != etag:
            raise S3Error("BadDigest", "The Content-MD5 you specified did not match what we received.")
        if self.sha256 is not None and self.sha256.digest() != wanted.sha256:
            raise S3Error("XAmzContentSHA256Mismatch")
        if self.checksum is None:
            return etag.hex(), ""
        digest, name = self.checksum.digest(), wanted.algorithm
        said = wanted.checksum
        if wanted.trailer:
            try:
                said = from_base64((trailer or "").strip(), SIZES[name])
            except ValueError:
                raise S3Error("InvalidRequest", f"Value for {wanted.trailer} trailing header is invalid.") from None
        if said is not None and said != digest:
            raise S3Error("BadDigest", f"The {name} you specified did not match the calculated checksum.")
        return etag.hex(), to_base64(digest)
