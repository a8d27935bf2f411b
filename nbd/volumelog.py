"""A volume's log in the cluster: cluster.log under the volume's lease, its chain in the volume's row.

    empty chain: nothing is made until the first append (an export that is only looked at costs no segment)
    else: takeover at once (fences the writer before, on the drives), records read, writing goes on behind them

A writer that found no space stops; the next append takes the log over again, under the same lease.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import trio

from trivium.cluster import logheal, logplan
from trivium.cluster.clock import Random
from trivium.cluster.errors import ClusterError, Fenced, NoSpace
from trivium.cluster.log import LogOptions, LogParts, LogWriter
from trivium.cluster.logfile import NO_HASH, LogRecord
from trivium.cluster.logplan import Chain, LogOwner
from trivium.cluster.logread import read_chain
from trivium.cluster.logsegment import read as read_segment
from trivium.cluster.model import ClusterMap
from trivium.cluster.nodes import Nodes
from trivium.cluster.takeover import takeover
from trivium.metadata.messages import LEASE_LOST, SESSION_ENDED, MetadataError, OpenVolume, SetVolumeLog, VolumeState
from trivium.nbd.backend import ClusterMetadata
from trivium.nbd.recovery import volume_owner

POOL = 1
KIND_VOLUME = 2  # of a log
RECORD_VOLUME = 3  # of a record
SCHEMA = 1
RESERVE_CLASS = 1
KEEP_COPIES_S = 5.0  # between looks whether a segment lacks a replica, or has one on a drive that is to be left
KEEP_COPIES_MOST_S = 60.0  # while that cannot be helped

log = logging.getLogger(__name__)


def replicas(cluster_map: ClusterMap, pool: int = POOL) -> int:
    """How many each segment of a volume's log should have."""
    return next((row.m + 1 for row in cluster_map.pools if row.id == pool), 3)


class VolumeChain:
    """ChainStore over SetVolumeLog."""

    def __init__(self, metadata: ClusterMetadata, name: str, volume: int, lease: int) -> None:
        self._metadata = metadata
        self._name = name
        self._volume = volume
        self._lease = lease

    async def read(self) -> Chain:
        (state,) = await self._metadata.call(OpenVolume(self._name, read_only=True))
        chain: Chain = state.log
        return chain

    async def swap(self, expect: Chain, chain: Chain) -> None:
        try:
            await self._metadata.call(SetVolumeLog(self._volume, self._lease, expect, chain))
        except MetadataError as error:
            if error.code in (LEASE_LOST, SESSION_ENDED, "ESTALE", "ENOENT"):
                raise Fenced(f"the log of volume {self._name} has another writer: {error.text}") from error
            raise


class ClusterLog:
    """VolumeLog over LogWriter."""

    def __init__(
        self,
        parts: LogParts,
        volume: int,
        lease: int,
        writer: LogWriter | None,
        leaving: Callable[[], tuple[frozenset[bytes], frozenset[bytes]]],
    ) -> None:
        self._parts = parts
        self._leaving = leaving
        self._volume = volume
        self._lease = lease
        self._writer = writer
        self._making = trio.Lock()
        self._made = trio.Event()
        self._closed = False
        if writer is not None:
            self._made.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Store what is appended, until cancelled."""
        task_status.started()
        while True:
            await self._made.wait()
            assert self._writer is not None
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._keep_copies, self._writer)
                    await self._writer.run()
                    nursery.cancel_scope.cancel()
            except* NoSpace:
                pass  # the next append tries again
            if self._closed:
                return
            self._made = trio.Event()
            self._writer = None

    async def _keep_copies(self, writer: LogWriter) -> None:
        """Leave drives that are draining or gone, and give segments that were left with fewer replicas others."""
        wait_s = KEEP_COPIES_S
        while True:
            await trio.sleep(wait_s)
            avoid, present = self._leaving()
            short = 0
            if logheal.is_short(writer.chain, logheal.wanted(self._parts, avoid), avoid):
                try:
                    short = await logheal.heal(self._parts, writer, avoid, present=present)
                except (ClusterError, MetadataError) as error:
                    log.info("the log of volume %d stays as it is for now: %s", self._volume, error)
                    short = 1
            wait_s = min(2 * wait_s, KEEP_COPIES_MOST_S) if short else KEEP_COPIES_S

    async def append(self, payloads: Sequence[Sequence[bytes | memoryview]]) -> int:
        records = [LogRecord(0, RECORD_VOLUME, SCHEMA, 0, 0, NO_HASH, b"".join(payload)) for payload in payloads]
        async with self._making:
            if self._writer is None:
                self._writer = await takeover(self._parts)
                self._made.set()
            writer = self._writer
        return await writer.append(records)

    async def trim(self, upto: int) -> None:
        if self._writer is not None:
            await self._writer.trim(upto)

    async def close(self, *, empty: bool) -> list[Any]:
        """Stop writing. With `empty` (all of it is in chunks) answers the operation that lets the whole chain go."""
        self._closed = True
        writer = self._writer
        if writer is None:
            return []
        before = writer.chain
        await writer.close(change_chain=not empty)
        return [SetVolumeLog(self._volume, self._lease, before, ())] if empty else []


class ClusterLogs:
    """Logs over the nodes that chunks are on too."""

    def __init__(self, metadata: ClusterMetadata, nodes: Nodes, *, random: Random, pool: int = POOL) -> None:
        self._metadata = metadata
        self._nodes = nodes
        self._random = random
        self._pool = pool

    async def take_over(self, state: VolumeState) -> tuple[ClusterLog, list[tuple[int, bytes | memoryview]]]:
        parts = self.parts(state)
        if not state.log:
            return ClusterLog(parts, state.info.id, state.lease, None, self._leaving), []
        writer = await takeover(parts, lost=self._lost(state))
        first = writer.chain[0].first_seq
        records = [(record.seq, memoryview(record.payload)) async for record in writer.read(first)]
        return ClusterLog(parts, state.info.id, state.lease, writer, self._leaving), [*records]

    async def read(self, state: VolumeState) -> AsyncIterator[bytes | memoryview]:
        """For a reader without lease: what the open segment's replicas hold now may not all be answered yet; a record
        that one of them has is a write that the guest made."""
        if not state.log:
            return
        upto = await self._last_seq(state.log)
        async for record in read_chain(self._nodes, lambda: state.log, state.log[0].first_seq, lambda: upto):
            yield memoryview(record.payload)

    async def _last_seq(self, chain: Chain) -> int:
        last = chain[-1]
        if last.last_seq is not None:
            return last.last_seq
        error: ClusterError | None = None
        ends: list[int] = []
        for drive in last.drives:
            try:
                state, _ = await read_segment(self._nodes, drive, last.segment, last.first_seq)
                ends.append(state.last_seq)
            except ClusterError as reason:
                error = reason
        if not ends:
            assert error is not None
            raise error
        return min(ends)

    def parts(self, state: VolumeState) -> LogParts:
        """What a writer of this volume's log is made of."""
        owner = LogOwner(KIND_VOLUME, volume_owner(state.info.id), self._metadata.session, state.lease)
        store = VolumeChain(self._metadata, state.info.name, state.info.id, state.lease)
        options = LogOptions(reserve_class=RESERVE_CLASS, remove_trimmed=False)
        return LogParts(self._nodes, store, owner, self._choose, self._random, options)

    def _choose(self, segment: bytes, avoid: frozenset[bytes]) -> tuple[bytes, ...]:
        cluster_map = self._metadata.map()
        up = [row.id for row in cluster_map.drives if self._nodes.is_up(row.id)]
        return logplan.choose_drives(cluster_map, up, replicas(cluster_map, self._pool), segment, avoid)

    def _leaving(self) -> tuple[frozenset[bytes], frozenset[bytes]]:
        """Drives that must not keep a segment: all of them, and those of them that still have theirs."""
        rows = self._metadata.map().drives
        draining = frozenset(row.id for row in rows if row.reason == "draining")
        return draining | {row.id for row in rows if row.reason in ("out", "removed")}, draining

    def _lost(self, state: VolumeState) -> list[bytes]:
        return [drive for entry in state.log for drive in entry.drives if not self._nodes.is_up(drive)]
