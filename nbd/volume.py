"""A thin block device that is log-structured: the engine, on the event loop, over VolumeCore.

    write -> segment (memory) --flush--> the volume's log --+
                              --full---> volume chunk ------+--> map --> checkpoint
    recovery = checkpoint, then the chunks and log records after it by write number (recovery.py)

Invariants
1. flush() answers when every write accepted before it is in a committed chunk or in the log.
2. Chunks are put side by side, their rows commit in order: `core.upto` rises without gaps.
3. Log records go when the chunk that holds their writes has committed: its row is what recovery reads.
4. Whatever names a chunk or changes the volume carries the lease number; once that is refused (or the log is fenced)
   the volume serves nothing any more.
5. Until the guest's first flush every write is durable when it is answered.

    recovering -> serving -> closing -> closed
                     +-----> failed (displaced, session ended, damaged)
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, TypeVar

import trio

from trivium.cluster.chunks import PieceData, Stored
from trivium.cluster.errors import ChunkLost, ClusterError, Fenced, NoSpace, NotFound, Unavailable
from trivium.cluster.model import MIB, ChunkId, ChunkKind, NewChunk, PieceFlag
from trivium.metadata.messages import (
    CHUNK_REFUSED,
    LEASE_LOST,
    SESSION_ENDED,
    Checkpoint,
    CloseVolume,
    CommitSegment,
    FsInfo,
    MetadataError,
    OpenVolume,
    StatFs,
    VolumeState,
)
from trivium.nbd import checkpoint as cp
from trivium.nbd.backend import ChunkStore, Logs, Metadata, VolumeLog
from trivium.nbd.buffer import Sealed, Segment
from trivium.nbd.cache import ChunkCache
from trivium.nbd.cleaner import Cleaner
from trivium.nbd.core import Miss, VolumeCore
from trivium.nbd.errors import Busy, Damaged, Displaced, Full, VolumeError
from trivium.nbd.journal import TRIM, ZERO
from trivium.nbd.map import BLOCK, BLOCK_SHIFT
from trivium.nbd.reader import ChunkReader, Moved
from trivium.nbd.recovery import Recovered, recover, volume_owner

log = logging.getLogger(__name__)
T = TypeVar("T")

CACHE_BYTES = 256 * MIB
DIRTY_S = 1.0  # unlogged writes are logged after at most about this long
CHECKPOINT_CHUNKS = 16
PUTS = 3  # chunks in flight
SPACE_PERIOD_S = 2.0
SPACE_MIN = 64 * MIB  # less room for client data than this: writes are refused
CLASS_VOLUME = 1  # reserve class of what only moves data that was accepted already


class Volume:
    """One open volume of this process; all connections share it. Offsets and lengths in bytes."""

    def __init__(
        self,
        state: VolumeState,
        recovered: Recovered,
        *,
        metadata: Metadata,
        chunks: ChunkStore,
        volume_log: VolumeLog | None,
        pool: int,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.info = state.info
        self.lease = state.lease
        self.owner = volume_owner(state.info.id)
        self._metadata = metadata
        self.chunks = chunks
        self._log = volume_log
        self.pool = pool
        self.core = VolumeCore(
            state.info.size,
            base=recovered.base,
            table=recovered.table,
            upto=recovered.upto,
            next_number=recovered.next_number,
            cache=ChunkCache(cache_bytes),
            read_only=volume_log is None,
        )
        for segment in recovered.segments:
            self.core.adopt(segment)
        self.core.on_full = self.kick
        self.reader = ChunkReader(self.core, chunks)
        self.cleaner = Cleaner(self)
        self._pages = recovered.pages
        self._stale = recovered.stale  # rows that no checkpoint will map: they die with the next one
        self._must_checkpoint = recovered.must_checkpoint
        self._changed = trio.Event()
        self._appending = False
        self._checkpointing = trio.Lock()
        self._commits_since = 0
        self._space_short = False

    @classmethod
    async def open(
        cls,
        name: str,
        *,
        metadata: Metadata,
        chunks: ChunkStore,
        logs: Logs,
        pool: int = 1,
        takeover: str = "fail",
        read_only: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ) -> Volume:
        """Take the lease and recover. The caller runs `run()` beside it. Raises Busy, ENOENT as MetadataError."""
        state = await _take_lease(metadata, name, read_only, takeover)
        if read_only:
            records = [(0, payload) async for payload in logs.read(state)]
            recovered = await recover(state, chunks, [payload for _, payload in records])
            return cls(
                state, recovered, metadata=metadata, chunks=chunks, volume_log=None, pool=pool, cache_bytes=cache_bytes
            )
        volume_log, records = await logs.take_over(state)
        recovered = await recover(state, chunks, [payload for _, payload in records])
        if records:
            for segment in recovered.segments:
                segment.log_seq = records[-1][0]
        volume = cls(
            state,
            recovered,
            metadata=metadata,
            chunks=chunks,
            volume_log=volume_log,
            pool=pool,
            cache_bytes=cache_bytes,
        )
        return volume

    # ---- requests -------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        return self.core.size

    async def read(self, offset: int, length: int) -> bytearray:
        out = bytearray(length)
        await self.read_into(offset, memoryview(out))
        return out

    async def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out`. Waits while chunks cannot be reached. Raises ChunkLost, Corrupt."""
        await self.until_usable()
        await self.finish_read(offset, out, self.core.read(offset, out))

    async def finish_read(self, offset: int, out: memoryview, misses: Sequence[Miss]) -> None:
        """Fetch what core.read() did not have."""
        pause_s = 0.05
        lost = 0
        while misses:
            try:
                await self.reader.fill(misses, out)
                return
            except Moved:
                await trio.lowlevel.checkpoint()
            except (NotFound, ChunkLost):
                lost += 1
                if lost > 2 or self.core.read(offset, out) == misses:
                    raise
            except Unavailable as error:
                log.warning("volume %s: a read waits: %s", self.info.name, error)
                await trio.sleep(pause_s)
                pause_s = min(2.0, pause_s * 2)
            misses = self.core.read(offset, out)

    async def until_usable(self) -> None:
        """While the metadata server does not answer the lease may have gone to another: nothing is served."""
        pause_s = 0.01
        while not self.core.usable():
            self._check()
            await trio.sleep(pause_s)
            pause_s = min(0.5, pause_s * 2)

    async def write(self, offset: int, data: bytes | bytearray | memoryview, *, fua: bool = False) -> None:
        """Accept a write (and make it durable with `fua` or before the guest's first flush)."""
        view = memoryview(data)
        self.core.check_range(offset, len(view))
        if not len(view):
            return
        await self.until_usable()
        head = -offset % BLOCK
        if head or len(view) % BLOCK:
            await self._write_unaligned(offset, view, min(head, len(view)))
        else:
            await self._write_blocks(offset, view)
        if fua or self.core.write_through:
            await self.make_durable()

    async def _write_blocks(self, offset: int, view: memoryview) -> None:
        done = self.core.write(offset, view)
        while done < len(view):
            await self.room()
            done += self.core.write(offset + done, view[done:])

    async def _write_unaligned(self, offset: int, view: memoryview, head: int) -> None:
        if head:
            await self._merge(offset, view[:head])
        whole = (len(view) - head) & ~(BLOCK - 1)
        if whole:
            await self._write_blocks(offset + head, view[head : head + whole])
        if head + whole < len(view):
            await self._merge(offset + head + whole, view[head + whole :])

    async def _merge(self, offset: int, part: memoryview) -> None:
        """Read, change and write one block; again when it was written meanwhile."""
        block = offset >> BLOCK_SHIFT
        start = offset & BLOCK - 1
        content = bytearray(BLOCK)
        while True:
            entry = self.core.lookup(block, 1)[0][2]
            await self.read_into(block << BLOCK_SHIFT, memoryview(content))
            content[start : start + len(part)] = part
            done = self.core.write_if(block, entry, memoryview(content))
            if done:
                return
            if done is None:
                await self.room()
            else:
                await trio.lowlevel.checkpoint()

    async def zero(self, offset: int, length: int, *, trim: bool = False, fua: bool = False) -> None:
        """Zeros from here on, and nothing is stored for them. Parts of blocks at the ends are written."""
        self.core.check_range(offset, length)
        end = offset + length
        first, last = -(-offset // BLOCK) * BLOCK, end // BLOCK * BLOCK
        if first >= last:
            if not trim and length:
                for start, stop in _parts(offset, end):
                    await self._merge(start, memoryview(bytes(stop - start)))
        else:
            if not trim and offset < first:
                await self._merge(offset, memoryview(bytes(first - offset)))
            while not self.core.zero(first, last - first, TRIM if trim else ZERO):
                await self.room()
            if not trim and last < end:
                await self._merge(last, memoryview(bytes(end - last)))
        if fua or self.core.write_through:
            await self.make_durable()

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        """The guest does not need these bytes: whole blocks become holes (zeros), parts of blocks stay."""
        await self.zero(offset, length, trim=True, fua=fua)

    async def flush(self) -> None:
        """The guest's flush: everything accepted so far is durable when it answers."""
        await self.make_durable()
        self.core.write_through = False

    async def room(self) -> None:
        """Wait until a full segment has been sealed. Raises Full when that is why it takes so long."""
        changed = self._changed
        if self.core.no_space:
            raise Full(self.core.no_space)
        self._check()
        await changed.wait()

    # ---- durability -----------------------------------------------------------------------------------------

    async def make_durable(self) -> None:
        """Log what is not in chunks yet. Whoever comes first appends for all that wait."""
        target = self.core.accepted
        while self.core.durable() < target:
            self._check()
            changed = self._changed
            batches = [] if self._appending else self.core.take_unlogged()
            if batches:
                await self._append(batches)
            else:
                await changed.wait()
        self._check()

    async def _append(self, batches: list[Any]) -> None:
        assert self._log is not None
        self._appending = True
        done = False
        try:
            seq = await self._log.append([payload for batch in batches for _, payload in batch.records])
            self.core.logged(batches, seq)
            done = True
            if not self._space_short:
                self.core.no_space = ""
        except Fenced as error:
            self.fail(Displaced(f"volume {self.info.name} has another writer now: {error}"))
        except NoSpace as error:
            self._out_of_space(error)
            raise Full(str(error)) from error
        except Unavailable as error:
            log.warning("volume %s: the log waits: %s", self.info.name, error)
            await trio.sleep(0.2)
        finally:
            self._appending = False
            if not done:
                self.core.untake(batches)
            self.kick()

    # ---- background -----------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Seal, log, checkpoint and clean until close() or failure. Started when recovery's rest is sealed."""
        if self._log is None:
            task_status.started()
            await trio.sleep_forever()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._log.run)
            nursery.start_soon(self._seal_all, nursery)
            if self._must_checkpoint:
                await self._until(lambda: not self.core.full)
                await self.checkpoint()
            task_status.started()
            nursery.start_soon(self._log_regularly)
            nursery.start_soon(self._watch_space)
            nursery.start_soon(self._checkpoint_regularly)
            nursery.start_soon(self.cleaner.run)

    async def _seal_all(self, nursery: trio.Nursery) -> None:
        while True:
            changed = self._changed
            with self.core.lock:
                waiting = [segment for segment in self.core.full if not segment.sealing]
                flying = len(self.core.full) - len(waiting)
            for segment in waiting[: PUTS - flying]:
                segment.sealing = True
                nursery.start_soon(self._seal, segment)
            await changed.wait()

    async def _seal(self, segment: Segment) -> None:
        """Put a full segment as a chunk, wait for its turn, commit its row, move it into the map."""
        sealed = segment.seal(self.owner)
        stored = await self.keep_trying(lambda: self._put_sealed(segment, sealed))
        await self._until(lambda: self.core.full[0] is segment)
        operation = (self.info.id, self.lease, segment.first_write, segment.last_write)
        stored = await self.commit_segment(stored, operation)
        self.core.commit(segment, sealed, stored.refs[0])
        self._commits_since += 1
        self.kick()
        if segment.log_seq and self._log is not None:
            await self._trim_log(segment.log_seq)

    async def _put_sealed(self, segment: Segment, sealed: Sealed) -> Stored:
        piece = PieceData(self.owner, 0, segment.last_write, list(sealed.buffers))
        return await self.chunks.put(
            self.pool, [piece], kind=ChunkKind.VOLUME, lease=self.lease, reserve_class=CLASS_VOLUME
        )

    async def commit_segment(self, stored: Stored, fields: tuple[int, int, int, int]) -> Stored:
        """Commit a volume chunk's row; the data goes to another group when that is asked for."""
        volume, lease, first, last = fields
        while True:
            operation = CommitSegment(volume, lease, stored.refs[0].chunk, first, last)
            try:
                await self.keep_trying(lambda op=operation, new=stored.chunks: self._call(op, chunks=new))
            except MetadataError as error:
                if error.code != CHUNK_REFUSED:
                    raise
                stored = await self.keep_trying(lambda old=stored: self.chunks.put_again(old))
                continue
            self.chunks.settle(stored)
            return stored

    async def _trim_log(self, seq: int) -> None:
        assert self._log is not None
        try:
            await self._log.trim(seq)
        except Fenced as error:
            self.fail(Displaced(str(error)))
        except ClusterError as error:
            log.warning("volume %s: its log was not trimmed: %s", self.info.name, error)

    async def _log_regularly(self) -> None:
        before = 0
        while True:
            await trio.sleep(DIRTY_S)
            target, before = before, self.core.accepted
            if self.core.durable() < target:
                with suppress(Full):
                    await self.make_durable()

    async def _watch_space(self) -> None:
        """Writes are refused while the pool has no room for client data: what was accepted still fits the reserve."""
        while True:
            room: FsInfo = await self.keep_trying(lambda: self._metadata.ask(StatFs()))
            if room.bytes_free < SPACE_MIN:
                self._out_of_space(NoSpace("the pool is full"))
            elif self._space_short:
                self._space_short = False
                self.core.no_space = ""
                self.kick()
            self._space_short = room.bytes_free < SPACE_MIN
            await trio.sleep(SPACE_PERIOD_S)

    async def _checkpoint_regularly(self) -> None:
        while True:
            changed = self._changed
            if self._commits_since >= CHECKPOINT_CHUNKS:
                await self.checkpoint()
            else:
                await changed.wait()

    # ---- checkpoints ----------------------------------------------------------------------------------------

    async def checkpoint(self) -> None:
        """Make the map as of `core.upto` durable and let go what it needs no more."""
        async with self._checkpointing:
            self._commits_since = 0
            core = self.core
            with core.lock:
                core.base.dirty |= cp.sparse_pages(self._pages)
                taken = cp.snapshot(core.base, core.table, core.upto, core.next_number)
            done = False
            try:
                await self._write_checkpoint(taken)
                done = True
            finally:
                if not done:
                    with core.lock:
                        core.base.dirty |= taken.pages.keys()

    async def _write_checkpoint(self, taken: cp.Snapshot) -> None:
        made = cp.draft(self._pages, taken.pages, iter(self.core.new_number, -1))
        taken.next_number = self.core.next_number
        maps = {n: cp.MapInfo(i.ref, i.pages, made.live[n]) for n, i in self._pages.maps.items()}
        operations: list[Any] = []
        new: list[NewChunk] = []
        puts: list[Stored] = []
        for number, pages in made.chunks:
            stored = await self._put_map([*pages])
            puts.append(stored)
            maps[number] = cp.MapInfo(stored.refs[0], len(pages), made.live[number])
            operations.append(CommitSegment(self.info.id, self.lease, stored.refs[0].chunk, taken.upto, taken.upto))
            new.extend(stored.chunks)
        dead = {n for n, i in taken.table.items() if not taken.live.get(n, 0)}
        dead_maps = {n for n, info in maps.items() if not info.live}
        index = cp.index_of(taken, made, maps, self.core.size, dead | dead_maps)
        stored = await self._put_map([cp.encode_index(index)])
        puts.append(stored)
        died = {taken.table[n].ref.chunk for n in dead} | {maps[n].ref.chunk for n in dead_maps} | self._stale
        operations.append(
            Checkpoint(
                self.info.id,
                self.lease,
                taken.upto,
                stored.refs[0],
                died=tuple(sorted(died)),
                used=taken.used_blocks * BLOCK,
            )
        )
        try:
            await self.keep_trying(lambda: self._call(*operations, chunks=[*new, *stored.chunks]))
        except MetadataError as error:
            if error.code == CHUNK_REFUSED:  # rare, and pages name chunk numbers, not ids: simply put all of it again
                for put in puts:
                    self.chunks.give_up(put)
                await self._write_checkpoint(taken)
                return
            raise
        for put in puts:
            self.chunks.settle(put)
        self._checkpointed(made, maps, dead, dead_maps, died)

    async def _put_map(self, buffers: list[bytes]) -> Stored:
        piece = PieceData(self.owner, 0, self.core.upto, list(buffers), flags=int(PieceFlag.MAP))
        return await self.keep_trying(
            lambda: self.chunks.put(
                self.pool, [piece], kind=ChunkKind.MAP, lease=self.lease, reserve_class=CLASS_VOLUME
            )
        )

    def _checkpointed(
        self, made: cp.Draft, maps: dict[int, cp.MapInfo], dead: set[int], dead_maps: set[int], died: set[ChunkId]
    ) -> None:
        self._stale -= died
        self._pages.maps = {n: info for n, info in maps.items() if n not in dead_maps}
        self._pages.pages.update(made.pages)
        self._pages.places = made.places
        with self.core.lock:
            for number in dead:
                self.core.table.pop(number, None)
                self.core.base.live.pop(number, None)
        self._must_checkpoint = False

    # ---- calls that may have to wait ------------------------------------------------------------------------

    async def keep_trying(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Until it works: the pool may be away or full for a while. Fails the volume when it never can again."""
        pause_s = 0.05
        while True:
            try:
                result = await attempt()
            except NoSpace as error:
                self._out_of_space(error)
            except Unavailable as error:
                log.warning("volume %s waits: %s", self.info.name, error)
            except Fenced as error:
                self.fail(Displaced(str(error)))
            else:
                if self.core.no_space and not self._space_short:
                    self.core.no_space = ""
                    self.kick()
                return result
            self._check()
            await trio.sleep(pause_s)
            pause_s = min(2.0, pause_s * 2)

    async def _call(self, *operations: Any, chunks: Sequence[NewChunk] = ()) -> tuple[Any, ...]:
        try:
            return await self._metadata.call(*operations, chunks=chunks)
        except MetadataError as error:
            if error.code in (LEASE_LOST, SESSION_ENDED):
                self.fail(Displaced(f"volume {self.info.name}: this writer's lease is over ({error.text})"))
                raise self._failure() from error
            raise

    def _out_of_space(self, error: NoSpace) -> None:
        if not self.core.no_space:
            log.warning("volume %s takes no writes: %s", self.info.name, error)
        self.core.no_space = str(error) or "the pool is full"
        self.kick()

    def fail(self, error: VolumeError) -> None:
        """Nothing is served from here on; what was not durable is lost and said so."""
        if self.core.failed is None:
            log.error("volume %s: %s", self.info.name, error)
            self.core.failed = error
        self.kick()

    def _failure(self) -> VolumeError:
        return self.core.failed or Damaged("the volume has failed")

    def _check(self) -> None:
        if self.core.failed is not None:
            raise self.core.failed

    def kick(self) -> None:
        """Something has changed: everybody who waits looks again. On the event loop's thread only."""
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._check()
            changed = self._changed
            await changed.wait()

    # ---- closing --------------------------------------------------------------------------------------------

    async def close(self, *, patience_s: float = 30.0) -> None:
        """Flush, seal, checkpoint and give the lease back, while run() still runs. What cannot be sealed in time is
        in the log, which the next writer reads."""
        if self._log is None or self.core.failed is not None:
            return
        await self.make_durable()
        with trio.move_on_after(patience_s):
            self.core.close_open()
            self.kick()
            await self._until(lambda: not self.core.full)
            if self.core.base.dirty or self._stale:
                await self.checkpoint()
        sealed = not self.core.full and self.core.open is None
        last = await self._log.close(empty=sealed)
        await self._call(*last, CloseVolume(self.info.id, self.lease))
        self.core.failed = Displaced("the volume is closed")


def _parts(start: int, end: int) -> list[tuple[int, int]]:
    """Cut a range at block boundaries."""
    cuts = [start, *range((start // BLOCK + 1) * BLOCK, end, BLOCK), end]
    return list(pairwise(cuts))


async def _take_lease(metadata: Metadata, name: str, read_only: bool, takeover: str) -> VolumeState:
    """OpenVolume; `wait` asks again until the holder has gone."""
    pause_s = 0.2
    while True:
        try:
            mode = "break" if takeover == "break" else "fail"
            (state,) = await metadata.call(OpenVolume(name, read_only, mode))
            assert isinstance(state, VolumeState)
            return state
        except MetadataError as error:
            if error.code != "EBUSY":
                raise
            if takeover != "wait":
                raise Busy(
                    f"volume {name} is in use: {error.text}. Stop that process, or open with takeover=wait or "
                    "takeover=break"
                ) from error
        await trio.sleep(pause_s)
        pause_s = min(2.0, pause_s * 1.5)
