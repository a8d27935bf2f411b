"""Data that was written here and that the metadata server does not know yet.

    write -> open layer -> (sealed: full window, other kind of write, flush, age) -> staged (inline, or put as pieces)
          -> committed, in order of sealing -> gone

Invariants: (1) layers of an inode are committed in the order in which they were sealed, so that a crash leaves a
prefix of what was written; (2) a read sees base, then layers from old to new; (3) a layer that is refused for good is
dropped and its error is reported once to every handle that was open (`errors`, as errseq in the kernel): never lost,
never reported twice to one handle; (4) appended data has no offset until the server answers: `base` is what this mount
assumes.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import trio

from trivium.cluster.errors import ClusterError, NoSpace, Unavailable
from trivium.cluster.model import CHUNK_SIZE, ChunkId, NewChunk, Placed, Ref
from trivium.cluster.pieces import PieceData, Stored
from trivium.fs.errors import translated
from trivium.fs.layoutcache import shifted
from trivium.fs.ranges import Buffer, Ranges
from trivium.metadata.messages import INLINE_MAX, Append, Attr, Extent, MetadataError, Operation, Write

if TYPE_CHECKING:
    from trivium.fs.inodes import Inode

log = logging.getLogger(__name__)

WINDOW = CHUNK_SIZE
INLINE_TOTAL = 64 * 1024  # a flush of at most this goes inline, when no range is above INLINE_MAX
DIRTY_MAX = 32 << 20  # bytes unsent in the whole mount before write() waits
SCATTERED_MAX = 8 << 20  # an open layer of this many bytes is sealed though no window is full
FRAGMENTS_MAX = 2000  # ranges in one Write operation
AGE_S = 1.0  # dirty data older than this is sent
PUTS = 4  # chunks in flight
CALL_MAX = 256 * 1024  # bytes of operations in one call
ATTEMPTS = 8  # puts of data that a commit refused


class ChunkStore(Protocol):
    """What the mount needs of cluster.chunks.Chunks."""

    async def put(self, pool: int, pieces: Sequence[PieceData]) -> Stored: ...
    async def put_again(self, stored: Stored) -> Stored: ...
    def settle(self, stored: Stored) -> None: ...
    def give_up(self, stored: Stored) -> None: ...
    async def get(self, ref: Ref, *, placed: Placed | None = None) -> memoryview: ...
    async def get_many(
        self, refs: Sequence[Ref], placed: Mapping[ChunkId, Placed] | None = None
    ) -> list[memoryview]: ...


class Metadata(Protocol):
    """What the mount needs of metadata.client.MetadataClient."""

    async def call(self, *operations: Operation, chunks: Sequence[NewChunk] = ()) -> tuple[Any, ...]: ...
    async def ask(self, query: Any) -> Any: ...
    def leases_usable(self) -> bool: ...
    def attach(
        self,
        *,
        on_recall: Callable[[int, bytes], Awaitable[bool]],
        on_ended: Callable[[str], None],
        on_lapsed: Callable[[], None],
    ) -> None: ...


Committed = Callable[["Inode", Attr, Sequence[Extent] | None, bool], None]
"""(inode, attributes, extents or None when they are not known to be the newest, whether appended data landed
elsewhere than this mount assumed)."""


@dataclass(eq=False, slots=True)
class Layer:
    """What goes out together. `append`: offsets count from `base`, which the server decides."""

    append: bool = False
    ranges: Ranges = field(default_factory=Ranges)
    windows: dict[int, int] = field(default_factory=dict)  # window number -> bytes held in it
    clear_suid: bool = False
    at: int = 0  # time of the last write
    born_s: float = 0.0
    extents: list[Extent] | None = None  # staged
    stored: list[Stored] = field(default_factory=list)
    staging: bool = False
    staged: trio.Event = field(default_factory=trio.Event)
    failed: OSError | None = None

    @property
    def done(self) -> bool:
        return self.extents is not None or self.failed is not None

    @property
    def small(self) -> bool:
        return self.ranges.total <= INLINE_TOTAL

    @property
    def cost(self) -> int:
        """Bytes in a call, about."""
        return 64 * len(self.extents or ()) + (0 if self.stored else self.ranges.total)


class Pending:
    """The unsent layers of one inode, oldest first; the last one may be open for more."""

    __slots__ = ("commits", "end", "errors", "last_error", "lock", "open", "sealed")

    def __init__(self) -> None:
        self.open: Layer | None = None
        self.sealed: list[Layer] = []
        self.end = 0  # one past the last unsent byte
        self.commits = 0  # changes of what the server has, by this mount
        self.errors = 0
        self.last_error = 0
        self.lock: trio.Lock | None = None

    @property
    def dirty(self) -> bool:
        return self.open is not None or bool(self.sealed)

    def layers(self) -> list[Layer]:
        return self.sealed if self.open is None else [*self.sealed, self.open]

    def recount(self) -> None:
        self.end = max((layer.ranges.end for layer in self.layers()), default=0)

    def last_write(self) -> int:
        return max((layer.at for layer in self.layers()), default=0)

    def held(self) -> int:
        return sum(layer.ranges.total for layer in self.layers())


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
        watch: Callable[[], AbstractContextManager[set[int]]],
    ) -> None:
        self._metadata, self._chunks, self._pool = metadata, chunks, pool
        self._wall_ns = wall_ns
        self._committed = committed
        self._watch = watch
        self._puts = trio.Semaphore(PUTS)
        self._room = trio.Condition()
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
            self._seal(inode)
            layer = None
        if layer is None:
            layer = pending.open = Layer(append=append, born_s=trio.current_time())
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
                self._start(inode, self._seal(inode))
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
            self._start(inode, self._seal(inode))

    def _seal_window(self, inode: Inode, layer: Layer, window: int) -> None:
        full = Layer(clear_suid=layer.clear_suid, at=layer.at, born_s=layer.born_s)
        for offset, data in layer.ranges.cut(window * WINDOW, (window + 1) * WINDOW):
            full.ranges.write(offset, data)
        layer.windows.pop(window, None)
        inode.pending.sealed.append(full)
        if not layer.ranges:
            inode.pending.open = None
        self._start(inode, full)

    def _seal(self, inode: Inode) -> Layer | None:
        layer = inode.pending.open
        if layer is not None:
            inode.pending.open = None
            inode.pending.sealed.append(layer)
        return layer

    def _start(self, inode: Inode, layer: Layer | None) -> None:
        if layer is not None and self._spawn is not None and not layer.staging:
            self._spawn(self._stage, inode, layer)
            self._spawn(self._sealed, inode)

    async def room(self, inode: Inode) -> None:
        """Wait until the mount holds less than DIRTY_MAX unsent bytes. Not while the inode's lease is being recalled:
        the recall may be waiting for this very write to end."""
        if self._bytes <= DIRTY_MAX or inode.recalling:
            return
        self._start(inode, self._seal(inode))
        for other in list(self._dirty.values()):
            if self._bytes > DIRTY_MAX and other.pending.open is not None:
                self._start(other, self._seal(other))
        with trio.move_on_after(30):
            async with self._room:
                while self._bytes > DIRTY_MAX and not inode.recalling:
                    await self._room.wait()

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
                self._seal(inode)
            upto = len(pending.sealed)
            while upto:
                batch = await self._batch(inode, upto)
                upto -= len(batch)
                values = await self._send(inode, batch, () if upto else then)
                if values is not None and not upto and then:
                    return values
            return await self._metadata.call(*then) if then else ()

    async def _batch(self, inode: Inode, upto: int) -> list[Layer]:
        """The first sealed layers that can go in one call."""
        batch: list[Layer] = []
        size = 0
        for layer in inode.pending.sealed[:upto]:
            if batch and not layer.done and (layer.staging or not layer.small):
                break
            await self._stage(inode, layer)
            size += layer.cost
            if batch and (layer.failed is not None or batch[0].failed is not None or size > CALL_MAX):
                break
            batch.append(layer)
        return batch

    async def _send(self, inode: Inode, batch: list[Layer], then: Sequence[Operation]) -> tuple[Any, ...] | None:
        """Commit a batch, and `then` with it. None: `then` was not executed."""
        error = batch[0].failed
        values: tuple[Any, ...] | None = None
        if error is None:
            try:
                values = await self._commit(inode, batch, then)
            except (MetadataError, ClusterError, OSError) as exc:
                error = translated(exc)
        if error is not None:
            self._fail(inode, batch, error)
        pending = inode.pending
        pending.commits += 1
        for layer in batch:
            pending.sealed.remove(layer)
            self._bytes -= layer.ranges.total
        pending.recount()
        if not pending.dirty:
            self._dirty.pop(inode.ino, None)
        async with self._room:
            self._room.notify_all()
        return values

    def _fail(self, inode: Inode, batch: list[Layer], error: OSError) -> None:
        log.error("inode %d: %d bytes could not be written: %s", inode.ino, sum(b.ranges.total for b in batch), error)
        inode.pending.errors += 1
        inode.pending.last_error = error.errno or errno.EIO
        inode.layout = None
        for layer in batch:
            for stored in layer.stored:
                self._chunks.give_up(stored)

    async def _commit(self, inode: Inode, batch: list[Layer], then: Sequence[Operation]) -> tuple[Any, ...] | None:
        attempts = 0
        while True:
            operations = [self._operation(inode, layer) for layer in batch]
            chunks = [c for layer in batch for stored in layer.stored for c in stored.chunks]
            with self._watch() as seen:
                try:
                    answers = await self._metadata.call(*operations, *then, chunks=chunks)
                except MetadataError as error:
                    if then and error.index >= len(batch):
                        then = ()  # its own fault: the data goes without it
                        continue
                    attempts += 1
                    if error.code != "CHUNK_REFUSED" or attempts == ATTEMPTS:
                        raise
                    await self._put_again(batch)
                    continue
                for layer, attr in zip(batch, answers, strict=False):
                    self._landed(inode, layer, attr, inode.ino in seen or -1 in seen)
            for layer in batch:
                for stored in layer.stored:
                    self._chunks.settle(stored)
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

    # ---- staging --------------------------------------------------------------------------------------------

    async def _stage(self, inode: Inode, layer: Layer) -> None:
        """Make the layer's extents: inline, or references to pieces that are durable."""
        if layer.done:
            return
        if layer.staging:
            await layer.staged.wait()
            return
        layer.staging = True
        try:
            base = layer.ranges.start if layer.append else 0
            runs = list(layer.ranges.runs())
            if layer.ranges.total <= INLINE_TOTAL and all(length <= INLINE_MAX for _, length, _ in runs):
                layer.extents = [Extent(o - base, n, None, b"".join(buffers)) for o, n, buffers in runs]
            else:
                layer.extents = await self._put(inode, layer, runs, base)
        except (ClusterError, MetadataError, OSError) as error:
            layer.failed = translated(error)
        finally:
            layer.staged.set()

    async def _put(
        self, inode: Inode, layer: Layer, runs: list[tuple[int, int, list[Buffer]]], base: int
    ) -> list[Extent]:
        extents: list[Extent] = []
        owner = inode.ino.to_bytes(8, "little") + bytes(8)
        for batch in _batches(runs):
            version = inode.attr.version + 1
            pieces = [PieceData(owner, o, version, buffers) for o, _, buffers in batch]
            stored = await self._put_patiently(pieces)
            layer.stored.append(stored)
            extents += [Extent(o - base, n, ref) for (o, n, _), ref in zip(batch, stored.refs, strict=True)]
        return extents

    async def _put_patiently(self, pieces: list[PieceData]) -> Stored:
        """Drives that are away for now are waited for; a full pool is not."""
        delay_s = 0.1
        while True:
            try:
                async with self._puts:
                    return await self._chunks.put(self._pool, pieces)
            except NoSpace:
                raise
            except Unavailable as error:
                log.warning("waiting for drives: %s", error)
            await trio.sleep(delay_s)
            delay_s = min(2.0, delay_s * 2)

    async def _put_again(self, batch: list[Layer]) -> None:
        for layer in batch:
            refs: dict[Ref, Ref] = {}
            again = []
            for stored in layer.stored:
                fresh = await self._chunks.put_again(stored)
                refs.update(zip(stored.refs, fresh.refs, strict=True))
                again.append(fresh)
            layer.stored = again
            layer.extents = [
                Extent(e.offset, e.length, refs.get(e.ref, e.ref) if e.ref else None, e.data)
                for e in layer.extents or ()
            ]

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


def _batches(runs: list[tuple[int, int, list[Buffer]]]) -> list[list[tuple[int, int, list[Buffer]]]]:
    """Cut runs at window borders and gather them into batches of at most one chunk."""
    batches: list[list[tuple[int, int, list[Buffer]]]] = [[]]
    room = WINDOW
    for offset, length, buffers in runs:
        for o, n, part in _cut(offset, length, buffers):
            if n > room or len(batches[-1]) >= FRAGMENTS_MAX:
                batches.append([])
                room = WINDOW
            batches[-1].append((o, n, part))
            room -= n
    return [batch for batch in batches if batch]


def _cut(offset: int, length: int, buffers: list[Buffer]) -> list[tuple[int, int, list[Buffer]]]:
    if offset // WINDOW == (offset + length - 1) // WINDOW:
        return [(offset, length, buffers)]
    pieces: list[tuple[int, int, list[Buffer]]] = []
    start = end = offset
    part: list[Buffer] = []
    for buffer in buffers:
        view = memoryview(buffer)
        while len(view):
            border = (start // WINDOW + 1) * WINDOW
            take = min(len(view), border - end)
            part.append(view[:take])
            end += take
            view = view[take:]
            if end == border:
                pieces.append((start, end - start, part))
                start, part = end, []
    if part:
        pieces.append((start, end - start, part))
    return pieces
