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
from functools import partial
from itertools import pairwise
from typing import TypeVar

import trio

from trivium.cluster.errors import ChunkLost, Fenced, NoSpace, NotFound, Unavailable
from trivium.metadata.messages import CloseVolume, MetadataError, OpenVolume, VolumeState
from trivium.nbd.backend import ChunkStore, Logs, Metadata, VolumeLog
from trivium.nbd.cache import ChunkCache
from trivium.nbd.checkpointer import Checkpointer
from trivium.nbd.cleaner import Cleaner
from trivium.nbd.core import Batch, Miss, VolumeCore
from trivium.nbd.errors import Busy, Displaced, Full
from trivium.nbd.journal import TRIM, ZERO
from trivium.nbd.leased import DEFAULTS, Leased, Tuning
from trivium.nbd.map import BLOCK, BLOCK_SHIFT
from trivium.nbd.reader import AHEAD_BYTES, ChunkReader, Moved
from trivium.nbd.recovery import Recovered, recover
from trivium.nbd.sealer import Sealer
from trivium.nbd.spacewatch import SpaceWatch
from trivium.nbd.widener import Widener

log = logging.getLogger(__name__)
T = TypeVar("T")

DIRTY_S = 1.0  # unlogged writes are logged after at most about twice this long
GIVE_BACK_S = 5.0
GIVE_BACK_TURNS = 6  # between looks while there is room
GATHER_S = 0.001
GATHER_TURNS = 8


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
        tuning: Tuning = DEFAULTS,
    ) -> None:
        self.core = VolumeCore(
            state.info.size,
            base=recovered.base,
            table=recovered.table,
            upto=recovered.upto,
            next_number=recovered.next_number,
            cache=ChunkCache(tuning.cache_bytes),
            read_only=volume_log is None,
            segment_bytes=tuning.segment_bytes,
        )
        self.held = Leased(state, self.core, metadata, chunks, pool, tuning)
        for segment in recovered.segments:
            self.core.adopt(segment)
        self.core.on_full = self.kick
        self.reader = ChunkReader(self.core, chunks)
        self._log = volume_log
        self._sealer = Sealer(self.held, volume_log) if volume_log is not None else None
        self._checkpointer = Checkpointer(self.held, recovered.pages, recovered.stale)
        self.cleaner = Cleaner(self.held)
        self.widener = Widener(self.held, self.cleaner, self._checkpointer, self.checkpoint)
        self.space = SpaceWatch(self.held)
        self._must_checkpoint = recovered.must_checkpoint
        self._appending = False
        self._gathering = False
        self._background = trio.CancelScope()

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
        tuning: Tuning = DEFAULTS,
    ) -> Volume:
        """Take the lease and recover. The caller runs `run()` beside it. Raises Busy, ENOENT as MetadataError."""
        state = await _take_lease(metadata, name, read_only, takeover)
        volume_log: VolumeLog | None = None
        records: list[tuple[int, bytes | memoryview]]
        if read_only:
            records = [(0, payload) async for payload in logs.read(state)]
        else:
            volume_log, records = await _patiently(partial(logs.take_over, state), name)
        recovered = await _patiently(partial(recover, state, chunks, [payload for _, payload in records]), name)
        if records and recovered.segments:
            recovered.segments[-1].log_seq = records[-1][0]
        return cls(state, recovered, metadata=metadata, chunks=chunks, volume_log=volume_log, pool=pool, tuning=tuning)

    @property
    def name(self) -> str:
        return self.held.info.name

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
        if len(out) >= AHEAD_BYTES:
            self.reader.open_ahead((offset + len(out)) >> BLOCK_SHIFT)
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
                log.warning("volume %s: a read waits: %s", self.name, error)
                await trio.sleep(pause_s)
                pause_s = min(2.0, pause_s * 2)
            misses = self.core.read(offset, out)

    async def until_usable(self) -> None:
        """While the metadata server does not answer the lease may have gone to another: nothing is served."""
        pause_s = 0.01
        while not self.core.usable():
            self.held.check()
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
            await self.room(len(view) - done)
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

    async def room(self, length: int = BLOCK) -> None:
        """Wait until a full segment has been sealed, or the pool was asked what room it has, for `length` bytes.
        Raises Full when there is none."""
        if self.core.no_space:
            raise Full(self.core.no_space)
        self.held.check()
        if self.core.takes_writes(length):  # meanwhile (the caller may have looked from another thread)
            await trio.lowlevel.checkpoint()
            return
        self.space.hurry()
        await self.held.changed.wait()

    # ---- durability -----------------------------------------------------------------------------------------

    async def make_durable(self) -> None:
        """Log what is not in chunks yet. Whoever comes first appends for all that wait."""
        target = self.core.accepted
        while self.core.durable() < target:
            self.held.check()
            changed = self.held.changed
            if not self._appending and not self._gathering and self.core.must_seal():
                if not await self._gather():
                    await self.held.changed.wait()  # a full segment has to become a chunk first
                continue
            batches = [] if self._appending else self.core.take_unlogged()
            if batches:
                await self._append(batches)
            else:
                await changed.wait()
        self.held.check()

    async def _gather(self) -> bool:
        """Much is to be made durable, and whoever writes it may be about to write more (the answers to the last group
        are just out): chunks of its own for each write would cost several times as much. False: no room to seal."""
        self._gathering = True
        core = self.core
        try:
            for _ in range(GATHER_TURNS if core.write_through else 0):
                before = core.accepted
                await trio.sleep(GATHER_S)
                if core.accepted == before:
                    break
            await self.held.until(lambda: not (core.write_through and core.full and core.must_seal()))
        except BaseException:
            self._gathering = False
            self.kick()  # somebody else has to
            raise
        self._gathering = False
        done = core.seal_open()
        if done:  # else nothing has changed, and nobody is to look again before a segment has become a chunk
            self.kick()
        return done

    async def _append(self, batches: list[Batch]) -> None:
        assert self._log is not None
        self._appending = True
        done = False
        try:
            seq = await self._log.append([payload for batch in batches for _, payload in batch.records])
            self.core.logged(batches, seq)
            done = True
            self.held.has_space()
        except Fenced as error:
            self.held.fail(Displaced(f"volume {self.name} has another writer now: {error}"))
        except NoSpace as error:
            self.held.out_of_space(error)
            raise Full(str(error)) from error
        except Unavailable as error:
            log.warning("volume %s: the log waits: %s", self.name, error)
            await trio.sleep(0.2)
        finally:
            self._appending = False
            if not done:
                self.core.untake(batches)
            self.kick()

    # ---- background -----------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Seal, log, checkpoint and clean until cancelled or failed. Started when it may take requests."""
        if self._log is None or self._sealer is None:
            task_status.started()
            await self.reader.run()
            return
        async with trio.open_nursery() as nursery:
            await nursery.start(self._log.run)
            nursery.start_soon(self._sealer.run)
            if self._must_checkpoint:
                await self.held.until(lambda: not self.core.full)
                await self.checkpoint()
            task_status.started()
            with self._background:
                async with trio.open_nursery() as background:
                    background.start_soon(self.reader.run)
                    background.start_soon(self._log_regularly)
                    background.start_soon(self.space.run)
                    background.start_soon(self._checkpoint_regularly, self._sealer)
                    background.start_soon(self.cleaner.run)
                    background.start_soon(self.widener.run)
                    background.start_soon(self._give_back_regularly)

    async def _log_regularly(self) -> None:
        before = 0
        while True:
            await trio.sleep(DIRTY_S)
            target, before = before, self.core.accepted
            if self.core.durable() < target:
                with suppress(Full):
                    await self.make_durable()

    async def _checkpoint_regularly(self, sealer: Sealer) -> None:
        while True:
            changed = self.held.changed
            # a checkpoint writes the whole chunk table: of a large volume the more seldom
            if sealer.committed >= max(self.held.tuning.checkpoint_chunks, len(self.core.table) // 256):
                sealer.committed = 0
                await self.checkpoint()
            else:
                await changed.wait()

    async def _give_back_regularly(self) -> None:
        """What trims and overwrites have freed goes with a checkpoint: in a full pool nothing else would bring one."""
        done = self.core.upto
        turn = 0
        while True:
            await trio.sleep(GIVE_BACK_S)
            turn += 1
            target = self.core.accepted
            if self.core.no_space and target != done:
                done = target
                self.core.close_open()
                self.kick()
                await self.held.until(lambda target=target: self.core.upto >= target)  # type: ignore[misc]
                await self.checkpoint()
            elif turn % GIVE_BACK_TURNS == 0 and self.core.has_dead_chunks():
                await self.checkpoint()

    async def checkpoint(self) -> None:
        """Make the map durable and let go what it needs no more."""
        await self._checkpointer.checkpoint()

    def kick(self) -> None:
        """On the event loop's thread: whoever waits looks again."""
        self.held.kick()

    # ---- closing --------------------------------------------------------------------------------------------

    async def close(self, *, patience_s: float = 30.0) -> None:
        """Flush, seal, checkpoint and give the lease back, while run() still runs. What cannot be sealed in time is
        in the log, which the next writer reads."""
        if self._log is None or self._sealer is None or self.core.failed is not None:
            return
        await self._checkpointer.idle()  # a checkpoint of unknown outcome must not land after the last one
        self._background.cancel()
        await self.make_durable()
        sealer = self._sealer
        with trio.move_on_after(patience_s):
            self.core.close_open()
            self.kick()
            await self.held.until(lambda: sealer.idle)
            if self._checkpointer.needed:
                await self.checkpoint()
        last = await self._log.close(empty=sealer.idle and self.core.open is None)
        await self.held.call(*last, CloseVolume(self.held.info.id, self.held.lease))
        self.core.failed = Displaced("the volume is closed")


def _parts(start: int, end: int) -> list[tuple[int, int]]:
    """Cut a range at block boundaries."""
    return list(pairwise([start, *range((start // BLOCK + 1) * BLOCK, end, BLOCK), end]))


async def _patiently(attempt: Callable[[], Awaitable[T]], name: str) -> T:
    """Until what it needs can be reached."""
    pause_s = 0.1
    while True:
        try:
            return await attempt()
        except Unavailable as error:
            log.warning("volume %s cannot be opened yet: %s", name, error)
        await trio.sleep(pause_s)
        pause_s = min(2.0, pause_s * 2)


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
                ) from None
        await trio.sleep(pause_s)
        pause_s = min(2.0, pause_s * 1.5)
