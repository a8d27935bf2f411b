"""Chunks from whatever shards are at hand: no rows, no groups, no pool; only what the shard files say themselves.

    drive directories --scan: every header--> puts (chunk + nonce), each with its places --read--> verified bytes

Invariants:
1. Shards are combined only within one put: same chunk, nonce, profile, length and codec.
2. Every byte returned was verified against the header of the shard it came from, or rebuilt from k that were.
3. Rebuilding works per 16 KiB block: a chunk reads as long as each of its block rows has k good shards, wherever. Of a
   row that has fewer, what lies on good data shards is read as it is.
Headers are kept in memory (some 300 bytes a shard, and 100 a piece of a table of contents, once per put).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from trivium.cluster import shardfile
from trivium.cluster.drivedir import NOBODY, DriveDir
from trivium.cluster.erasure import codec_for
from trivium.cluster.errors import ChunkLost, ClusterError
from trivium.cluster.model import BLOCK, ChunkId, Piece, Profile
from trivium.cluster.shardfile import ShardHeader, shard_name

CACHED = 4  # chunks kept decoded


@dataclass(frozen=True, slots=True)
class PutKey:
    """What shards must have in common to be combined."""

    chunk: ChunkId
    nonce: bytes
    k: int
    m: int
    codec: str
    length: int


@dataclass(slots=True)
class FoundPut:
    """One put of a chunk and where its shards lie: index -> drives, the newest plan first."""

    key: PutKey
    kind: int
    pieces: tuple[Piece, ...]
    transforms: int
    plan_seq: int = 0
    lease: int = 0  # of a volume's chunk: its writer's
    places: dict[int, list[tuple[int, DriveDir]]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Enough shards have a readable header; their blocks may still turn out to be bad."""
        return len(self.places) >= self.key.k


@dataclass(frozen=True, slots=True)
class Salvaged:
    """A chunk as far as it can be had: zeros in the ranges [start, end) that are lost."""

    data: bytes
    lost: tuple[tuple[int, int], ...] = ()
    why: str = ""

    def split(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """[offset, offset + length) in order as (start, end, whether it is lost)."""
        at, end = offset, offset + length
        for first, last in self.lost:
            first, last = max(first, at), min(last, end)
            if first < last:
                if at < first:
                    yield at, first, False
                yield first, last, True
                at = last
        if at < end:
            yield at, end, False


class Salvage:
    def __init__(self, drives: Sequence[DriveDir]) -> None:
        self.drives = tuple(drives)
        self.puts: dict[ChunkId, dict[PutKey, FoundPut]] = {}
        self.unreadable: list[str] = []  # shard files whose header does not verify
        self._cache: OrderedDict[PutKey, Salvaged] = OrderedDict()

    def scan(self, progress: Callable[[int], None] = lambda shards: None) -> None:
        """Read every header. `progress` hears 1 for each shard file."""
        for drive in self.drives:
            for chunk, index in drive.shard_places():
                progress(1)
                assert drive.shards is not None
                try:
                    self._note(drive, drive.shards.header(chunk, index))
                except ClusterError as error:
                    self.unreadable.append(f"{drive.path}/chunks/{shard_name(chunk, index)}: {error}")

    def _note(self, drive: DriveDir, header: ShardHeader) -> None:
        spec = header.spec
        if drive.cluster != NOBODY and spec.cluster != drive.cluster:
            self.unreadable.append(f"{drive.path}/chunks/{shard_name(spec.chunk, header.index)}: of another cluster")
            return
        key = PutKey(spec.chunk, spec.nonce, spec.k, spec.m, spec.codec, spec.data_length)
        puts = self.puts.setdefault(spec.chunk, {})
        put = puts.get(key)
        if put is None:
            put = puts[key] = FoundPut(key, spec.kind, spec.pieces, spec.transforms, lease=spec.lease)
        put.plan_seq = max(put.plan_seq, spec.plan_seq)
        put.places.setdefault(header.index, []).append((spec.plan_seq, drive))
        put.places[header.index].sort(key=lambda place: -place[0])

    def all(self) -> Iterator[FoundPut]:
        """In order of (session, counter)."""
        for chunk in sorted(self.puts):
            yield from self.puts[chunk].values()

    def find(self, chunk: ChunkId, nonce: bytes) -> FoundPut | None:
        return next((put for key, put in self.puts.get(chunk, {}).items() if key.nonce == nonce), None)

    def read(self, put: FoundPut) -> bytes:
        """The whole chunk. ChunkLost, naming it, when some block row has fewer than k good shards."""
        found = self.rest(put)
        if found.lost:
            raise ChunkLost(found.why)
        return found.data

    def rest(self, put: FoundPut) -> Salvaged:
        """What of the chunk can be had."""
        known = self._cache.get(put.key)
        if known is not None:
            self._cache.move_to_end(put.key)
            return known
        if put.transforms:
            why = f"chunk {put.key.chunk} was stored in a way that this version does not know"
            known = Salvaged(bytes(put.key.length), ((0, put.key.length),), why)
        else:
            known = _Assembly(put).rest()
        self._cache[put.key] = known
        while len(self._cache) > CACHED:
            self._cache.popitem(last=False)
        return known

    def get(self, chunk: ChunkId, nonce: bytes, offset: int, length: int) -> bytes:
        """A range of a chunk that a row names. ChunkLost when any byte of it is lost."""
        found = self.named(chunk, nonce)
        if any(lost for _, _, lost in found.split(offset, length)):
            raise ChunkLost(found.why)
        return found.data[offset : offset + length]

    def named(self, chunk: ChunkId, nonce: bytes) -> Salvaged:
        """What there is of a chunk that a row names. ChunkLost: nothing."""
        put = self.find(chunk, nonce)
        if put is None:
            raise ChunkLost(f"chunk {chunk}: none of the given drives has a shard of it")
        return self.rest(put)


class _Assembly:
    """Puts one chunk together from shards, block row by block row."""

    def __init__(self, put: FoundPut) -> None:
        self._put, self._key = put, put.key
        self._good: dict[int, tuple[memoryview, set[int]]] = {}  # index -> (body, numbers of bad blocks)
        self._size = -1

    def rest(self) -> Salvaged:
        key = self._key
        self._load(range(key.k))
        if len(self._good) < key.k or any(bad for _, bad in self._good.values()):
            self._load(range(key.k, key.k + key.m))
        if self._size < 0:
            return Salvaged(bytes(key.length), ((0, key.length),), self._why(0))
        rows = [self._row(row) for row in range(shardfile.block_count(self._size))]
        lost: list[tuple[int, int]] = []
        least = key.k
        parts: list[shardfile.Buffer] = []
        for index in range(key.k):
            for number, row in enumerate(rows):
                start, end = number * BLOCK, min((number + 1) * BLOCK, self._size)
                part = row.get(index)
                if part is None:
                    part = bytes(end - start)
                    first = index * self._size + start
                    _add(lost, first, min(first + end - start, key.length))
                    least = min(least, sum(number not in bad for _, bad in self._good.values()))
                parts.append(part)
        return Salvaged(b"".join(parts)[: key.length], tuple(lost), self._why(least) if lost else "")

    def _load(self, indices: Iterable[int]) -> None:
        for index in indices:
            best: tuple[memoryview, set[int]] | None = None
            for _, drive in self._put.places.get(index, ()):
                loaded = self._try(drive, index)
                if loaded is not None and (best is None or len(loaded[1]) < len(best[1])):
                    best = loaded
                if best is not None and not best[1]:
                    break
            if best is not None:
                self._good[index] = best

    def _try(self, drive: DriveDir, index: int) -> tuple[memoryview, set[int]] | None:
        assert drive.shards is not None
        chunk = self._key.chunk
        try:
            header = drive.shards.header(chunk, index)
            if header.spec.nonce != self._key.nonce:
                return None
            _, data = drive.shards.read(chunk, index, 0, header.blocks, True)
        except ClusterError:
            return None
        self._size = header.spec.shard_size
        body = bytes(data).ljust(self._size, b"\0")[: self._size]
        bad = set(shardfile.bad_blocks(header, 0, data)) | set(range(-(-len(data) // BLOCK), header.blocks))
        return memoryview(body), bad

    def _row(self, row: int) -> dict[int, shardfile.Buffer]:
        """The data shards' bytes of one block row: all of them, or those that are good when they cannot be rebuilt."""
        start, end = row * BLOCK, min((row + 1) * BLOCK, self._size)
        have = {index: body[start:end] for index, (body, bad) in self._good.items() if row not in bad}
        wanted = range(self._key.k)
        if all(index in have for index in wanted):
            return {index: have[index] for index in wanted}
        if len(have) < self._key.k:
            return {index: have[index] for index in wanted if index in have}
        key = self._key
        return codec_for(Profile(key.k, key.m, key.codec)).rebuild(list(wanted), have)

    def _why(self, have: int) -> str:
        key = self._key
        return f"chunk {key.chunk}: {have} good shards of {key.k}+{key.m} are on the given drives, {key.k} are needed"


def _add(ranges: list[tuple[int, int]], start: int, end: int) -> None:
    """In order: neighbours become one."""
    if start < end:
        if ranges and ranges[-1][1] == start:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((start, end))
