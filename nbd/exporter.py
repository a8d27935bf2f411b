"""The volumes of one nbdkit process: one Volume per name, shared by its connections, leased from first open to last.

closed --open--> opening --lease, recovered--> open (n connections) --last close--> closing --> closed
                    `--Busy, ENOENT--> closed       `--failed: the next open begins anew
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import trio

from trivium.metadata.messages import GetVolume, ListVolumes, MetadataError, VolumeInfo
from trivium.nbd.backend import ChunkStore, Logs, Metadata
from trivium.nbd.errors import Displaced, VolumeError
from trivium.nbd.leased import CACHE_BYTES, Tuning
from trivium.nbd.volume import Volume

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Backend:
    """What the process has from below."""

    metadata: Metadata
    chunks: ChunkStore
    logs: Logs
    usable: Callable[[], bool] = lambda: True  # whether leases may still be relied upon


Connect = Callable[[Callable[[str], None]], AbstractAsyncContextManager[Backend]]
"""(on_ended) -> a live backend. on_ended(why) is called when the session has ended: leases are lost."""


@dataclass(slots=True)
class _Export:
    lock: trio.Lock = field(default_factory=trio.Lock)
    volume: Volume | None = None
    connections: int = 0
    scope: trio.CancelScope | None = None


class Exporter:
    """Runs on the trio thread."""

    def __init__(
        self,
        connect: Connect,
        *,
        takeover: str = "fail",
        read_only: bool = False,
        only: str = "",
        cache_bytes: int = CACHE_BYTES,
        soon: Callable[[Callable[[], object]], None] | None = None,
    ) -> None:
        self._connect = connect
        self._takeover = takeover
        self._read_only = read_only
        self._only = only
        self._cache_bytes = cache_bytes
        self._soon = soon
        self._exports: dict[tuple[str, bool], _Export] = {}
        self._backend: Backend | None = None
        self._nursery: trio.Nursery | None = None

    async def run(
        self, stopping: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until `stopping`; then every volume is flushed and given back."""
        async with self._connect(self._session_ended) as backend:
            self._backend = backend
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await stopping.wait()
                await self._close_all()
                nursery.cancel_scope.cancel()

    @property
    def backend(self) -> Backend:
        assert self._backend is not None
        return self._backend

    async def names(self) -> list[str]:
        if self._only:
            return [self._only]
        volumes: tuple[VolumeInfo, ...] = await self.backend.metadata.ask(ListVolumes())
        return sorted(info.name for info in volumes)

    async def default(self) -> str:
        names = await self.names()
        return names[0] if len(names) == 1 else ""

    async def open(self, name: str, read_only: bool) -> Volume:
        """One more connection. Raises MetadataError (ENOENT), Busy, Damaged."""
        name = name or await self.default()
        if self._only and name != self._only:
            raise MetadataError("ENOENT", f"this server exports {self._only} only")
        key = (name, read_only or self._read_only)
        export = self._exports.setdefault(key, _Export())
        async with export.lock:
            if export.volume is not None and export.volume.core.failed is not None:
                self._drop(export)
            if export.volume is None:
                await self._begin(export, *key)
            assert export.volume is not None
            export.connections += 1
            await self._follow_size(export.volume)
            return export.volume

    async def _begin(self, export: _Export, name: str, read_only: bool) -> None:
        backend = self.backend
        volume = await Volume.open(
            name,
            metadata=backend.metadata,
            chunks=backend.chunks,
            logs=backend.logs,
            takeover=self._takeover,
            read_only=read_only,
            tuning=Tuning(cache_bytes=self._cache_bytes),
        )
        volume.core.usable = backend.usable
        if self._soon is not None:
            soon, kick = self._soon, volume.kick
            volume.core.on_full = lambda: soon(kick)
        scope = trio.CancelScope()
        assert self._nursery is not None
        try:
            await self._nursery.start(self._run_volume, volume, scope)
        except RuntimeError as error:  # it ended before it could serve
            raise volume.core.failed or error from None
        export.volume, export.scope, export.connections = volume, scope, 0
        log.info("volume %s is open (lease %d)", name, volume.held.lease)

    async def _run_volume(self, volume: Volume, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            try:
                await volume.run(task_status=task_status)
            except* VolumeError as errors:
                volume.held.fail(_first(errors))
            except* Exception as errors:
                log.exception("volume %s has failed", volume.name)
                volume.held.fail(VolumeError(f"internal error: {_first(errors)!r}"))

    async def _follow_size(self, volume: Volume) -> None:
        """A resize shows at the next connection."""
        info: VolumeInfo = await self.backend.metadata.ask(GetVolume(volume.name))
        if info.size > volume.core.size:
            volume.core.size = info.size

    async def close(self, volume: Volume) -> None:
        """One connection less; the last one gives the lease back."""
        for export in self._exports.values():
            if export.volume is volume:
                async with export.lock:
                    export.connections -= 1
                    if export.connections <= 0 and export.volume is volume:
                        await self._end(export)
                return

    async def _end(self, export: _Export) -> None:
        volume = export.volume
        assert volume is not None
        try:
            await volume.close()
            log.info("volume %s is closed", volume.name)
        except Exception as error:
            log.error("volume %s was not closed cleanly: %s", volume.name, error)
        finally:
            self._drop(export)

    def _drop(self, export: _Export) -> None:
        if export.scope is not None:
            export.scope.cancel()
        export.volume, export.scope, export.connections = None, None, 0

    async def _close_all(self) -> None:
        for export in list(self._exports.values()):
            async with export.lock:
                if export.volume is not None:
                    await self._end(export)

    def _session_ended(self, why: str) -> None:
        for export in self._exports.values():
            if export.volume is not None:
                export.volume.held.fail(Displaced(f"volume {export.volume.name}: the session has ended ({why})"))


def _first(errors: BaseExceptionGroup[Exception]) -> VolumeError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, VolumeError) else VolumeError(repr(error))
