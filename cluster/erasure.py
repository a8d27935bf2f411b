"""Erasure coding of chunks: k data and m parity shards, byte-wise, in cache-sized column slices.

Invariants
1. Shard i < k holds the chunk's bytes [i*S, (i+1)*S), padded with zeros; S = length/k rounded up to 4 KiB.
2. The code is byte-wise: byte x of a parity shard depends on byte x of the data shards alone. So any 4 KiB-aligned
   range of a shard is rebuilt from the same range of any k others, and slicing changes no byte.
3. k = 1 is replication (plain copies) and m = 0 has no parity; neither touches the library.

liberasurecode puts an 80-byte header before each fragment. It depends on the fragment's index and size alone, so the
shard files hold only the payload, and for a rebuild each piece is given the header of a dummy encode of its size.
The library never releases the GIL: callers run in an executor thread, and between slices the thread lets others in.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from pyeclib.ec_iface import ECDriver

from trivium.cluster.model import SHARD_ALIGN, Profile
from trivium.cluster.transport.interface import Buffer

SLICE = 32 * 1024  # of each shard: k of them, and the parity, stay in the L2 cache (measured: 3.8 GB/s for 4+2)
SLICES_PER_TURN = 4  # about 0.2 ms with the GIL held
FRAGMENT_HEADER = 80
MAX_WIDTH = 32  # liberasurecode's limit for k + m


def shard_size(length: int, k: int) -> int:
    """S: bytes of each shard of a chunk of `length` bytes."""
    per_shard = -(-length // k)
    return -(-per_shard // SHARD_ALIGN) * SHARD_ALIGN


class Codec:
    """Encodes and rebuilds for one profile. Stateless after construction; blocking (CPU), so run it in a thread."""

    def __init__(self, profile: Profile) -> None:
        if profile.k < 1 or profile.m < 0 or profile.width > MAX_WIDTH:
            raise ValueError(f"no profile {profile}: k >= 1, m >= 0 and k + m <= {MAX_WIDTH}")
        self.profile = profile
        self.k, self.m = profile.k, profile.m
        self._driver: ECDriver | None = None
        if self.k > 1 and self.m > 0:
            self._driver = ECDriver(k=self.k, m=self.m, ec_type=profile.codec)
        self._headers: dict[int, list[bytes]] = {}  # slice size -> each fragment's header; at most SLICE / 4 KiB sizes

    def encode(self, data: Sequence[Buffer], length: int) -> list[Buffer]:
        """The k+m shard bodies, each S bytes, of the concatenation of `data` (`length` bytes in all).

        Data shards are views of the one buffer given, where it covers them; only what needs padding is copied.
        """
        size = shard_size(length, self.k)
        shards = _data_shards(data, length, self.k, size)
        if self.k == 1:
            return shards * (1 + self.m)
        if self.m == 0 or size == 0:
            return shards + [b""] * (self.m if size == 0 else 0)
        return shards + self._parity(shards, size)

    def rebuild(self, wanted: Sequence[int], have: Mapping[int, Buffer]) -> dict[int, Buffer]:
        """The bytes of the shards `wanted` in a range, from at least k others' bytes of the same range.

        Ranges are multiples of 4 KiB long. Raises ValueError when fewer than k are given or their lengths differ.
        """
        lengths = {len(piece) for piece in have.values()}
        if len(have) < self.k or len(lengths) > 1:
            raise ValueError(f"{len(have)} shards of lengths {sorted(lengths)} cannot rebuild a {self.profile} chunk")
        missing = [index for index in wanted if index not in have]
        found: dict[int, Buffer] = {index: have[index] for index in wanted if index in have}
        if not missing:
            return found
        length = lengths.pop()
        if self.k == 1 or length == 0:
            return found | {index: next(iter(have.values())) for index in missing}
        sources = dict(sorted(have.items())[: self.k])
        return found | self._reconstruct(missing, sources, length)

    def _parity(self, shards: Sequence[Buffer], size: int) -> list[Buffer]:
        driver = self._require_driver()
        views = [memoryview(shard) for shard in shards]
        parity = [bytearray(size) for _ in range(self.m)]
        for start, end in _slices(size):
            fragments = driver.encode(b"".join([view[start:end] for view in views]))
            for row, fragment in zip(parity, fragments[self.k :], strict=True):
                row[start:end] = memoryview(fragment)[FRAGMENT_HEADER:]
        return list(parity)

    def _reconstruct(self, missing: Sequence[int], sources: Mapping[int, Buffer], length: int) -> dict[int, Buffer]:
        driver = self._require_driver()
        views = {index: memoryview(piece) for index, piece in sources.items()}
        rebuilt = {index: bytearray(length) for index in sorted(missing)}
        for start, end in _slices(length):
            headers = self._fragment_headers(end - start)
            fragments = [b"".join((headers[index], view[start:end])) for index, view in views.items()]
            for index, fragment in zip(rebuilt, driver.reconstruct(fragments, list(rebuilt)), strict=True):
                rebuilt[index][start:end] = memoryview(fragment)[FRAGMENT_HEADER:]
        return dict(rebuilt)

    def _fragment_headers(self, size: int) -> list[bytes]:
        headers = self._headers.get(size)
        if headers is None:
            fragments = self._require_driver().encode(bytes(size * self.k))
            headers = self._headers[size] = [bytes(fragment[:FRAGMENT_HEADER]) for fragment in fragments]
        return headers

    def _require_driver(self) -> ECDriver:
        assert self._driver is not None, "k = 1 and m = 0 need no library"
        return self._driver


@lru_cache(maxsize=64)
def codec_for(profile: Profile) -> Codec:
    """The process's codec of a profile (building the tables costs a millisecond)."""
    return Codec(profile)


def _slices(size: int) -> Iterator[tuple[int, int]]:
    """Column slices of a shard; between turns other threads get the GIL."""
    for turn, start in enumerate(range(0, size, SLICE), 1):
        yield start, min(start + SLICE, size)
        if turn % SLICES_PER_TURN == 0:
            time.sleep(0)


def _data_shards(data: Sequence[Buffer], length: int, k: int, size: int) -> list[Buffer]:
    if sum(len(part) for part in data) != length:
        raise ValueError(f"the parts hold {sum(len(part) for part in data)} bytes, not {length}")
    whole = memoryview(data[0] if len(data) == 1 else b"".join(data)).cast("B")
    shards: list[Buffer] = []
    for start in range(0, k * size, size) if size else ():
        part = whole[start : start + size]
        shards.append(part if len(part) == size else b"".join((part, bytes(size - len(part)))))
    return shards or [b""] * k
