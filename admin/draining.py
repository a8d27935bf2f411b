"""Drains: everything that must leave a draining drive, and when it has (metadata/drain moves the chunks).

    draining --no group with chunks, no open group, no log segment, no vote, no dump names it,
               and no session has an unsettled put from before--> drained (derived, never stored) --remove--> removed

Every part is a query over rows, root and chain, repeated until nothing is left: a restart or a crash resumes it, a
cancel (the row's reason goes) ends it. A session's puts from before are settled once its floor has passed the counters
that it had given when it surely knew the groups without the drive: two heartbeats after it was sent the map.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from trivium.cluster.errors import ClusterError
from trivium.cluster.model import DriveRow, Root
from trivium.cluster.rootvotes import next_voters
from trivium.metadata import drain
from trivium.metadata.drain import Drainer, Named
from trivium.metadata.heal import Rebuilder
from trivium.metadata.messages import MetadataError
from trivium.metadata.moving import Moving
from trivium.metadata.sessions import Session

if TYPE_CHECKING:
    from trivium.admin.processes.lead import Leader

log = logging.getLogger(__name__)

PERIOD_S = 2.0
DUMP_AGAIN_S = 60.0  # a dump that was asked for and did not come


@dataclass(slots=True)
class _Wait:
    """For one session's puts from before: what it knew, what it had given."""

    told_at: int = -1  # heartbeats answered when it had been sent the map
    top: int = -1  # the counter that its floor must pass


@dataclass(slots=True)
class PutsBefore:
    """Sessions that may still commit a put onto a drive that they were offered before a drain (or remove) began."""

    version: int  # of the map that says so
    waits: dict[int, _Wait] = field(default_factory=dict)

    def look(self, sessions: Iterable[Session]) -> frozenset[int]:
        """Those that have not settled yet."""
        live = {session.id: session for session in sessions}
        self.waits = {id: wait for id, wait in self.waits.items() if id in live}
        for id, wait in list(self.waits.items()):
            session = live[id]
            if wait.top < 0 and wait.told_at < 0 and session.map_version >= self.version:
                wait.told_at = session.beats
            if wait.top < 0 <= wait.told_at <= session.beats - 2:
                wait.top = session.top
            if 0 <= wait.top < session.floor:
                del self.waits[id]
        return frozenset(self.waits)


@dataclass(frozen=True, slots=True)
class Left:
    """What still names a draining drive."""

    named: Named
    log_segments: int = 0
    votes: bool = False
    dumps: bool = False
    clients: tuple[str, ...] = ()

    @property
    def nothing(self) -> bool:
        named = self.named
        return not (
            named.chunks or named.open_groups or named.volumes or self.log_segments or self.votes or self.dumps
            or self.clients
        )  # fmt: skip

    def in_words(self) -> str:
        """What is left, as a list for people: "120 chunks, a root vote"."""
        parts = []
        if self.named.chunks:
            parts.append(f"{self.named.chunks} chunk{'s' if self.named.chunks > 1 else ''}")
        if self.named.open_groups:
            parts.append("open groups")
        if self.log_segments:
            parts.append("metadata log segments")
        parts += [f"the write log of volume {name or '(removed)'}" for name in self.named.volumes]
        if self.votes:
            parts.append("a root vote")
        if self.dumps:
            parts.append("a metadata dump")
        if self.clients:
            parts.append(f"unsettled puts of {', '.join(self.clients)}")
        return ", ".join(parts)


class Draining:
    """Runs all drains. `changed()` looks at once."""

    def __init__(self, leader: Leader, mover: Rebuilder, moving: Moving) -> None:
        self._leader = leader
        self.drainer = Drainer(
            leader.server.writer,
            leader.read,
            mover,
            cluster_map=lambda: leader.server.map,
            usable=leader.substrate.watch.usable,
            moving=moving,
        )
        self._puts: dict[bytes, PutsBefore] = {}
        self._most: dict[bytes, int] = {}  # chunks to move when the drain was first looked at
        self._asked_dumps: tuple[object, float] = (None, 0.0)
        self._wake = trio.Event()

    def changed(self) -> None:
        self._wake.set()
        self.drainer.changed()

    def forget(self, drive: bytes) -> None:
        """Its drain was cancelled: another one begins with the sessions that live then."""
        self._puts.pop(drive, None)
        self._most.pop(drive, None)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.drainer.run)
            while True:
                await self._look()
                with trio.move_on_after(PERIOD_S):
                    await self._wake.wait()
                self._wake = trio.Event()

    # ---- what is left -----------------------------------------------------------------------------------------

    async def left(self, row: DriveRow) -> Left:
        leader = self._leader
        named: Named = await leader.read(lambda reader: drain.named(reader, row.id))
        root = leader.root
        waiting = self._before(row.id).look(leader.server.sessions.all())
        clients = sorted(session.client for session in leader.server.sessions.all() if session.id in waiting)
        self._most[row.id] = max(self._most.get(row.id, 0), named.chunks)
        return Left(
            named,
            sum(1 for entry in leader.log.chain if row.id in entry.drives),
            row.id in root.root_drives or row.id in root.former_root_drives,
            row.id in leader.upkeep.dumper.drives(),
            tuple(clients),
        )

    async def report(self) -> dict[bytes, dict[str, Any]]:
        """Per draining drive: chunks left and in all, whether it is done, and in words."""
        found = {}
        for row in drain.draining(self._leader.server.map):
            left = await self.left(row)
            total = self._most[row.id]
            done = total - left.named.chunks
            text = f"{done} of {total} chunks moved; left: {left.in_words()}"
            if left.nothing:
                text = f"nothing is left on it: trivium drive remove {row.name}"
            elif self.drainer.waiting and left.named.chunks:
                text += f"; {self.drainer.waiting}"
            found[row.id] = {"done": left.nothing, "chunks_left": left.named.chunks, "chunks": total, "text": text}
        return found

    def _before(self, drive: bytes) -> PutsBefore:
        """Made when the drain is first seen in this life: whoever lives then may have a put from before."""
        if drive not in self._puts:
            sessions = self._leader.server.sessions.all()
            version = self._leader.server.map.version
            self._puts[drive] = PutsBefore(version, {session.id: _Wait() for session in sessions})
        return self._puts[drive]

    # ---- moving -----------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        rows = drain.draining(self._leader.server.map)
        drives = frozenset(row.id for row in rows)
        for drive in set(self._puts) - drives:
            self.forget(drive)
        for drive in sorted(drives):
            self._before(drive)
        try:
            await self.settle_votes()
            if drives:
                self._move_log(drives)
                self._move_dumps(drives)
                self._leader.upkeep.volume_logs.changed()
        except (ClusterError, MetadataError) as error:
            log.warning("a drain goes on later: %s", error)

    async def settle_votes(self) -> None:
        """Give the root the voters that the map allows, one change at a time."""
        leader = self._leader
        cluster_map = leader.server.map
        if leader.root.map.version < cluster_map.version:  # its copy met no majority when the record was made
            await leader.register.change(lambda root: msgspec.structs.replace(root, map=cluster_map))

        def wanted(root: Root) -> tuple[bytes, ...] | None:
            return next_voters(root.root_drives, leader.server.map, leader.substrate.watch.usable())

        def edit(root: Root) -> Root:
            voters = wanted(root)
            return root if voters is None else msgspec.structs.replace(root, root_drives=voters)

        while wanted(leader.root) is not None:
            await leader.register.change(edit)
        if leader.root.former_root_drives and not wanted(leader.root):
            await leader.register.change(lambda root: msgspec.structs.replace(root))  # the list before votes no more

    def _move_log(self, drives: frozenset[bytes]) -> None:
        if any(not drives.isdisjoint(entry.drives) for entry in self._leader.log.chain):
            self._leader.upkeep.heal_log()  # not drives_changed(), which would have us look again at once, for ever

    def _move_dumps(self, drives: frozenset[bytes]) -> None:
        """Ask for dumps until neither of the two that the root names lies there."""
        leader = self._leader
        dumps, now = leader.root.dumps, leader.substrate.clock.boot_s()
        if drives.isdisjoint(leader.upkeep.dumper.drives()):
            return
        if self._asked_dumps[0] != dumps or now >= self._asked_dumps[1]:
            self._asked_dumps = (dumps, now + DUMP_AGAIN_S)
            leader.upkeep.dumper.asked.set()
