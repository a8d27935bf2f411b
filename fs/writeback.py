"""Unsent data on its way to the metadata server: when it is sealed, sent, refused, lost.

    write -> open layer -> (sealed: full window, other kind of write, flush, age) -> staged (inline, or put as pieces)
          -> committed, in order of sealing -> gone

Invariants: (1) layers of an inode are committed in the order in which they were sealed, so that a crash leaves a
prefix of what was written; (2) a read sees base, then layers from old to new; (3) a layer that is refused for good is
dropped and its error is reported once to every handle that was open (`errors`, as errseq in the kernel): never lost,
never reported twice to one handle; (4) appended data has no offset until the server answers: `base` is what this mount
assumes; (5) data is sent only under the session under which it was taken in. It is kept as long as that session may
live, and dropped (EIO) when the server has said that it has ended: by then others may have written newer data.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence
from typing import Any

import trio

from trivium.cluster.errors import ClusterError
from trivium.fs.errors import translated
from trivium.fs.inodes import Inode, Inodes
from trivium.fs.layers import FRAGMENTS_MAX, WINDOW, Layer
from trivium.fs.layoutcache import shifted
from trivium.fs.ports import ChunkStore, Metadata
from trivium.fs.ranges import Buffer
from trivium.fs.staging import Staging
from trivium.metadata.messages import SESSION_ENDED, Append, Attr, Extent, MetadataError, Operation, Write

log = logging.getLogger(__name__)

DIRTY_MAX = 32 << 20  # bytes unsent in the whole mount before write() waits
SCATTERED_MAX = 8 << 20  # an open layer of this many bytes is sealed though no window is full
AGE_S = 1.0  # dirty data older than this is sent
CALL_MAX = 256 * 1024  # bytes of operations in one call
ATTEMPTS = 8  # puts of data that a commit refused
ROOM_S = 30  # a write waits no longer than this for room

Committed = Callable[[Inode, Attr, Sequence[Extent] | None, bool], None]
"""(inode, attributes, extents or None when they are not known to be the newest, whether appended data landed
elsewhere than this mount assumed)."""


class WriteBack:
    """Seals, stages and commits. `committed(inode, attr, extents)` is told of each commit."""

    def __init__(
        self,
        metadata: Metadata,
        chunks: ChunkStore,
        *,
        pool: int,
        wall_ns: Callable[[], int],
        committed: Committed,
        inodes: Inodes,
    ) -> None:
        self._metadata = metadata
        self._staging = Staging(chunks, pool)
        self._wall_ns = wall_ns
        self._committed = committed
        self._inodes = inodes
        self._room = trio.lowlevel.ParkingLot()
        self._bytes = 0
        self._dirty: dict[int, Inode] = {}
        self._spawn: Callable[..., None] | None = None

    # ---- writing --------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Stages full windows in the background and sends what has waited for AGE_S."""
        async with trio.open_nursery() as nursery:
            self._spawn = lambda fn, *args: nursery.start_soon(self._guarded, fn, *args)
            task_status.started()
            while True:
                await trio.sleep(AGE_S / 2)
                old = trio.current_time() - AGE_S
                for inode in list(self._dirty.values()):
                    layers = inode.pending.layers()
                    if layers and layers[0].born_s <= old:
                        nursery.start_soon(self._guarded, self.drain, inode)

    @staticmethod
    async def _guarded(fn: Callable[..., Any], *args: Any) -> None:
        """A failure in the background ends no mount: what is unsent stays and is tried again."""
        try:
            await fn(*args)
        except Exception:
            log.exception("sending in the background failed")

    def write(self, inode: Inode, offset: int, data: Buffer, *, append: bool, clear_suid: bool) -> None:
        """Take data in; never blocks (`room` does)."""
        pending = inode.pending
        layer = pending.open
        if layer is not None and layer.append != append:
            pending.seal()
            layer = None
        if layer is None:
            layer = pending.open = Layer(append=append, born_s=trio.current_time(), life=self._metadata.life)
            self._dirty[inode.ino] = inode
        elif append:
            offset = layer.ranges.end  # without a gap, whatever the size has become elsewhere
        added = layer.ranges.write(offset, data)
        layer.at = self._wall_ns()
        layer.clear_suid |= clear_suid
        self._bytes += added
        pending.end = max(pending.end, offset + len(data))
        self._full(inode, layer, offset, len(data), added)

    def _full(self, inode: Inode, layer: Layer, offset: int, length: int, added: int) -> None:
        """Seal what fills a window, or all of a layer that is large or in many fragments."""
        if layer.append:
            if layer.ranges.total >= WINDOW:
                self._start(inode, inode.pending.seal())
            return
        first, last = offset // WINDOW, (offset + length - 1) // WINDOW
        if added and first == last:
            held = layer.windows[first] = layer.windows.get(first, 0) + added
            if held >= WINDOW:
                self._seal_window(inode, layer, first)
        elif added:
            for window in range(first, last + 1):
                held = sum(len(v) for _, v in layer.ranges.overlay(window * WINDOW, (window + 1) * WINDOW))
                layer.windows[window] = held
                if held >= WINDOW:
                    self._seal_window(inode, layer, window)
        if layer.ranges.total >= SCATTERED_MAX or len(layer.ranges) >= FRAGMENTS_MAX:
            self._start(inode, inode.pending.seal())

    def _seal_window(self, inode: Inode, layer: Layer, window: int) -> None:
        full = Layer(clear_suid=layer.clear_suid, at=layer.at, born_s=layer.born_s, life=layer.life)
        for offset, data in layer.ranges.cut(window * WINDOW, (window + 1) * WINDOW):
            full.ranges.write(offset, data)
        layer.windows.pop(window, None)
        inode.pending.sealed.append(full)
        if not layer.ranges:
            inode.pending.open = None
        self._start(inode, full)

    def _start(self, inode: Inode, layer: Layer | None) -> None:
        if layer is not None and self._spawn is not None and not layer.staging:
            self._spawn(self._staging.stage, inode, layer)
            self._spawn(self._sealed, inode)

    async def room(self, inode: Inode) -> None:
        """Wait until the mount holds less than DIRTY_MAX unsent bytes. Not while the inode's lease is being recalled:
        the recall may be waiting for this very write to end."""
        if self._bytes <= DIRTY_MAX or inode.recalling:
            return
        self._start(inode, inode.pending.seal())
        for other in list(self._dirty.values()):
            if self._bytes > DIRTY_MAX and other.pending.open is not None:
                self._start(other, other.pending.seal())
        with trio.move_on_after(ROOM_S):
            while self._bytes > DIRTY_MAX and not inode.recalling:
                await self._room.park()

    # ---- sending --------------------------------------------------------------------------------------------

    async def _sealed(self, inode: Inode) -> None:
        """Send what is sealed; errors are kept for the handles."""
        await self.drain(inode, seal=False)

    async def drain(self, inode: Inode, *then: Operation, seal: bool = True) -> tuple[Any, ...]:
        """Send all that is pending (with `seal`, the open layer too), then `then`, in one call where they fit.

        Answers `then`'s values; raises what `then` raised. Failures of data are kept in `pending.errors`.
        """
        pending = inode.pending
        if not pending.dirty and not then:
            return ()
        if pending.lock is None:
            pending.lock = trio.Lock()
        async with pending.lock:
            if seal:
                pending.seal()
            left = list(pending.sealed)
            while left:
                batch = await self._batch(inode, left)
                del left[: len(batch)]
                values = await self._send(inode, batch, () if left else then)
                if values is not None and not left and then:
                    return values
            return await self._metadata.call(*then) if then else ()

    async def _batch(self, inode: Inode, layers: list[Layer]) -> list[Layer]:
        """The first of these layers that can go in one call."""
        batch: list[Layer] = []
        size = 0
        for layer in layers:
            if batch and not layer.done and (layer.staging or not layer.small):
                break
            await self._staging.stage(inode, layer)
            size += layer.cost
            if batch and (layer.failed is not None or batch[0].failed is not None or size > CALL_MAX):
                break
            batch.append(layer)
        return batch

    async def _send(self, inode: Inode, batch: list[Layer], then: Sequence[Operation]) -> tuple[Any, ...] | None:
        """Commit a batch, and `then` with it. None: `then` was not executed."""
        error = next((layer.failed for layer in batch if layer.failed is not None), None)
        values: tuple[Any, ...] | None = None
        if error is None:
            try:
                values = await self._commit(inode, batch, then)
            except (MetadataError, ClusterError, OSError) as exc:
                if isinstance(exc, MetadataError) and exc.code == SESSION_ENDED:
                    self._lose(inode)
                error = translated(exc)
        if error is not None:
            self._fail(inode, batch, error)
        inode.pending.commits += 1
        self._gone(inode, batch)
        return values

    def _gone(self, inode: Inode, layers: Sequence[Layer]) -> None:
        """These layers wait no more, whatever became of them."""
        pending = inode.pending
        for layer in layers:
            if layer in pending.sealed:
                pending.sealed.remove(layer)
                self._bytes -= layer.ranges.total
        pending.recount()
        if not pending.dirty:
            self._dirty.pop(inode.ino, None)
        self._room.unpark_all()

    def _fail(self, inode: Inode, batch: list[Layer], error: OSError) -> None:
        for layer in batch:
            self._staging.give_up(layer)
        refused = sum(layer.ranges.total for layer in batch if not layer.lost)
        if refused:
            log.error("%s: %d bytes could not be written: %s", self._inodes.path_of(inode), refused, error)
            inode.pending.failed(error.errno or errno.EIO)
            inode.layout = None

    def lose_all(self) -> None:
        """The session has ended: what it had not sent may be older than what others have written since."""
        for inode in self.dirty_inodes():
            self._lose(inode)

    def _lose(self, inode: Inode) -> None:
        pending = inode.pending
        pending.seal()
        layers = list(pending.sealed)
        if not layers:
            return
        log.error(
            "%s: %d bytes that were not sent are lost: the session has ended",
            self._inodes.path_of(inode),
            pending.held(),
        )
        for layer in layers:
            layer.lose()
            if not layer.staging:
                self._staging.give_up(layer)
        pending.failed(errno.EIO)
        pending.commits += 1
        inode.layout = None
        inode.fresh = False
        self._gone(inode, layers)

    async def _commit(self, inode: Inode, batch: list[Layer], then: Sequence[Operation]) -> tuple[Any, ...] | None:
        attempts = 0
        while True:
            operations = [self._operation(inode, layer) for layer in batch]
            chunks = [c for layer in batch for stored in layer.stored for c in stored.chunks]
            with self._inodes.watch() as seen:
                try:
                    answers = await self._metadata.call(*operations, *then, chunks=chunks, life=batch[0].life)
                except MetadataError as error:
                    if then and error.index >= len(batch) and error.code != SESSION_ENDED:
                        then = ()  # its own fault: the data goes without it
                        continue
                    attempts += 1
                    if error.code != "CHUNK_REFUSED" or attempts == ATTEMPTS or batch[0].lost:
                        raise
                    await self._staging.put_again(batch)
                    continue
                for layer, attr in zip(batch, answers, strict=False):
                    self._landed(inode, layer, attr, inode.ino in seen or -1 in seen)
            for layer in batch:
                self._staging.settle(layer)
            return tuple(answers[len(batch) :]) if then else None

    def _landed(self, inode: Inode, layer: Layer, attr: Attr, disturbed: bool) -> None:
        extents: Sequence[Extent] | None = layer.extents or ()
        moved = False
        if layer.append:
            base = attr.size - layer.ranges.end + layer.ranges.start
            delta = base - layer.ranges.start
            extents = shifted(extents or (), base)
            if delta:
                moved = True
                for later in inode.pending.layers():
                    if later.append and later is not layer:
                        later.ranges.shift(delta)
        if moved:
            inode.pending.recount()
        self._committed(inode, attr, None if disturbed else extents, moved)

    def _operation(self, inode: Inode, layer: Layer) -> Operation:
        extents = tuple(layer.extents or ())
        if layer.append:
            return Append(ino=inode.ino, extents=extents, at=layer.at)
        return Write(ino=inode.ino, extents=extents, size=layer.ranges.end, at=layer.at, clear_suid=layer.clear_suid)

    # ---- the rest -------------------------------------------------------------------------------------------

    def discard(self, inode: Inode, size: int) -> None:
        """Forget unsent bytes of the open layer beyond `size` (a truncate, or nobody can read them any more)."""
        layer = inode.pending.open
        if layer is None:
            return
        before = layer.ranges.total
        layer.ranges.cut(size, 1 << 63)
        self._bytes -= before - layer.ranges.total
        layer.windows = {w: n for w, n in layer.windows.items() if (w + 1) * WINDOW <= size}
        if not layer.ranges:
            inode.pending.open = None
        inode.pending.recount()
        if not inode.pending.dirty:
            self._dirty.pop(inode.ino, None)

    def dirty_inodes(self) -> list[Inode]:
        return list(self._dirty.values())
