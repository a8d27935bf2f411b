"""Who is a member now: every node of the map is asked how its drives are, on a connection of its own.

    unheard --answer--> up --no answer--> silent --T since the last question that was answered--> down
                        ^-------------------------------answer--------------------------------------|

Invariants
1. A remote node is down only when a question to it has failed T or more after the newest one that it answered; a cold
   start marks nobody in the first T. The node of this very process answers or the process is dead: it is never silent.
2. Down is memory: it closes groups, makes readers look elsewhere and replaces replicas of open log segments; it is
   never checked at a commit. A drive that its own node cannot use (failed, wiped, missing) is down at once.
3. Listeners hear of every change of the drives' states, one change at a time. They may take long (a record of the
   log, which may wait for the very drive that went away): asking goes on meanwhile, and `on_change` is told at once.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec
import trio

from trivium.cluster.clock import Clock
from trivium.cluster.errors import ClusterError, Unavailable
from trivium.cluster.files import Space
from trivium.cluster.liveness import HEARTBEAT_S, T_S, Liveness
from trivium.cluster.model import ClusterMap
from trivium.cluster.store import space
from trivium.cluster.transport.dial import addresses_of
from trivium.cluster.transport.interface import Connection
from trivium.cluster.wire import DriveReport, NodeReport, Ping, Service, decode_node_answer, encode_node_request

log = logging.getLogger(__name__)

DIAL_S = 5.0  # a handshake may take longer than an answer
SILENT = "silent"  # a drive's state while its node is down


@dataclass(slots=True)
class Member:
    """A node as this process sees it."""

    node: bytes
    name: str = ""
    addresses: tuple[str, ...] = ()
    drives: tuple[bytes, ...] = ()  # of the map
    connection: Connection | None = None
    report: NodeReport | None = None
    asked_s: float | None = None  # sending time of the question in flight
    heard_s: float = 0.0  # sending time of the newest question that was answered
    failed_s: float | None = None  # since when questions fail; None while it answers
    text: str = ""  # why the newest question failed
    deaf: str = ""  # why it does not take what it is told
    down: bool = False
    lock: trio.Lock = field(default_factory=trio.Lock)


class Membership:
    """`connect(node)`: a new connection to it. `listeners` are called (in order, awaited) when drives change."""

    def __init__(
        self,
        connect: Callable[[bytes], Awaitable[Connection]],
        own: bytes,
        clock: Clock,
        *,
        t_s: float = T_S,
        period_s: float = HEARTBEAT_S,
    ) -> None:
        self._connect, self._own, self._clock = connect, own, clock
        self._period_s = min(period_s, t_s / 4)
        self._limit_s = max(self._period_s, t_s / 4)  # of one question
        self.liveness = Liveness(clock.boot_s(), t_s)
        self.t_s = t_s
        self.tell: Callable[[], bytes] | None = None  # what nodes are told with each question (Service.IDENTITY)
        self.reports: dict[bytes, DriveReport] = {}
        self.listeners: list[Callable[[], Awaitable[None]]] = []
        self.on_change: Callable[[], None] = lambda: None
        self._members: dict[bytes, Member] = {own: Member(own, heard_s=clock.boot_s())}
        self._look = trio.Event()
        self._more = trio.Event()
        self._telling = trio.Lock()
        self._untold = False
        self._news = trio.Event()

    # ---- what is known --------------------------------------------------------------------------------------

    def down(self) -> frozenset[bytes]:
        """Drives that do not answer."""
        return frozenset(drive for drive, report in self.reports.items() if report.state not in ("ok", "full"))

    def unfit(self) -> frozenset[bytes]:
        """Drives that take no new shards: down or full."""
        return frozenset(drive for drive, report in self.reports.items() if report.state != "ok")

    def near_full(self) -> frozenset[bytes]:
        """Drives over the limit for new data (85 %, and little is free)."""
        return frozenset(drive for drive, report in self.reports.items() if is_near_full(report))

    def usable(self) -> frozenset[bytes]:
        """Drives that answer: healing has a limit of its own, which the drive itself holds."""
        return frozenset(self.reports) - self.down()

    def away(self) -> frozenset[bytes]:
        """Drives of nodes that are silent just now, though perhaps not for T yet: what status counts as not there."""
        return frozenset(drive for member in self.silent() for drive in member.drives)

    def silent(self) -> list[Member]:
        return [member for member in self._members.values() if self._is_silent(member)]

    def members(self) -> list[Member]:
        return sorted(self._members.values(), key=lambda member: (member.name, member.node))

    def silent_for_s(self, member: Member) -> float:
        return max(0.0, self._clock.boot_s() - member.heard_s) if self._is_silent(member) else 0.0

    def _is_silent(self, member: Member) -> bool:
        if member.node == self._own:
            return False
        waiting = member.asked_s is not None and self._clock.boot_s() - member.asked_s > self._period_s
        return member.failed_s is not None or waiting

    # ---- asking ---------------------------------------------------------------------------------------------

    def follow(self, cluster_map: ClusterMap) -> None:
        """The nodes and drives of a new map."""
        now = self._clock.boot_s()
        rows = [row for row in cluster_map.drives if row.reason != "removed"]
        self.liveness.follow((row.id for row in rows), now)
        names = {row.id: row.name for row in cluster_map.nodes}
        wanted = {self._own} | {row.node for row in rows} | set(names)
        for node in set(self._members) - wanted:
            del self._members[node]
        for node in wanted:
            member = self._members.setdefault(node, Member(node, heard_s=now))
            member.name = names.get(node, "") or node.hex()[:8]
            member.drives = tuple(row.id for row in rows if row.node == node)
            if (addresses := addresses_of(cluster_map, node)) != member.addresses:
                member.addresses, member.connection = addresses, None
        self._more.set()

    def fill(self) -> dict[bytes, float]:
        """How full drives are, 0 to 1."""
        known = ((drive, report) for drive, report in self.reports.items() if report.bytes_total > 0)
        return {drive: 1 - report.bytes_free / report.bytes_total for drive, report in known}

    def look(self) -> None:
        """Look now: somebody met an error."""
        self._look.set()
        self._look = trio.Event()

    async def refresh(self, *, settle: bool = True) -> None:
        """Ask every node once; those that take longer than a heartbeat are not waited for. With `settle` the listeners
        have acted upon it when this returns."""
        with trio.move_on_after(self._period_s):
            async with trio.open_nursery() as nursery:
                for member in self.members():
                    if member.node != self._own:
                        nursery.start_soon(self._ask, member)
        await self._ask(self._members[self._own])
        if settle:
            await self._tell()
        else:
            self._news.set()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_telling)
            running: set[bytes] = set()

            async def keep(node: bytes) -> None:
                while node in self._members:
                    look = self._look
                    await self._ask(self._members[node])
                    self._news.set()
                    with trio.move_on_after(self._period_s):
                        await look.wait()
                running.discard(node)

            while True:
                for node in sorted(set(self._members) - running):
                    running.add(node)
                    nursery.start_soon(keep, node)
                await self._more.wait()
                self._more = trio.Event()

    async def _ask(self, member: Member) -> None:
        async with member.lock:
            asked_s = member.asked_s = self._clock.boot_s()
            try:
                report = await self._question(member)
            except ClusterError as error:
                member.text = str(error)
                member.failed_s = asked_s if member.failed_s is None else member.failed_s
                if member.connection is not None:
                    await member.connection.aclose()
                    member.connection = None
                silent_s = self._clock.boot_s() - member.heard_s
                if not member.down and member.node != self._own and silent_s >= self.t_s:
                    member.down = True
                    log.warning("node %s has not answered for %.0f s: %s", member.name, silent_s, error)
            else:
                if member.down:
                    log.warning("node %s is back", member.name)
                member.report, member.heard_s, member.failed_s, member.down = report, asked_s, None, False
                for drive in report.drives:
                    self.liveness.heartbeat(drive.drive, asked_s, drive.state, drive.text)
            finally:
                member.asked_s = None
        self._note()

    async def _question(self, member: Member) -> NodeReport:
        limit_s = float("inf") if member.node == self._own else self._limit_s
        try:
            if member.connection is None:
                with trio.fail_after(max(limit_s, DIAL_S)):
                    member.connection = await self._connect(member.node)
            connection = member.connection
            with trio.fail_after(limit_s):
                if self.tell is not None and member.node != self._own and (news := self.tell()):
                    await self._inform(member, connection, news)
                reply = await connection.request(Service.NODE, encode_node_request(Ping()))
            answer = decode_node_answer(reply.body)
        except trio.TooSlowError:
            raise Unavailable(f"no answer within {limit_s:.0f} s") from None
        except msgspec.MsgspecError as error:
            raise Unavailable(f"it answers what this version does not understand: {error}") from None
        if not isinstance(answer, NodeReport):
            raise Unavailable("it answers a heartbeat with something else")
        if answer.node != member.node:
            raise Unavailable(f"another node answers there ({answer.node.hex()[:8]})")
        return answer

    async def _inform(self, member: Member, connection: Connection, news: bytes) -> None:
        try:
            await connection.request(Service.IDENTITY, news)
            member.deaf = ""
        except Unavailable:
            raise
        except ClusterError as error:
            if str(error) != member.deaf:
                member.deaf = str(error)
                log.warning("node %s does not take who is revoked: %s", member.name, error)

    # ---- telling --------------------------------------------------------------------------------------------

    def _note(self) -> None:
        before = {drive: report.state for drive, report in self.reports.items()}
        self.reports = self._reports()
        after = {drive: report.state for drive, report in self.reports.items()}
        if before == after:
            return
        for drive in sorted(after):
            if before.get(drive, "ok") != after[drive]:
                found = self.reports[drive]
                log.warning("drive %s is %s: %s", found.path or drive.hex(), found.state, found.text or "back")
        self._untold = True
        self.on_change()

    async def _keep_telling(self) -> None:
        while True:
            await self._news.wait()
            self._news = trio.Event()
            await self._tell()

    async def _tell(self) -> None:
        async with self._telling:
            if self._untold:
                self._untold = False
                for listener in self.listeners:
                    await listener()

    def _reports(self) -> dict[bytes, DriveReport]:
        """Each drive as the node reports it that has it by the map (else any); in a down node's name: silent."""
        found: dict[bytes, DriveReport] = {}
        for member in self._members.values():
            said = {report.drive: report for report in member.report.drives} if member.report else {}
            for drive, report in said.items():
                if self._reporter(drive) in (None, member):
                    found[drive] = report
            for drive in member.drives:
                if member.down:
                    text = f"its node {member.name} does not answer"
                    found[drive] = _instead(drive, said.get(drive), SILENT, text)
                elif member.report is not None and drive not in said:
                    found[drive] = _instead(drive, None, "missing", f"its node {member.name} does not have it")
        return found

    def _reporter(self, drive: bytes) -> Member | None:
        return next((member for member in self._members.values() if drive in member.drives), None)


def is_near_full(report: DriveReport) -> bool:
    room = Space(report.bytes_total, report.bytes_free)
    return room.total > 0 and not space.fits(room, 0, space.CLIENT)


def _instead(drive: bytes, last: DriveReport | None, state: str, text: str) -> DriveReport:
    if last is None:
        return DriveReport(drive, state, text, 0, 0, 0)
    return msgspec.structs.replace(last, state=state, text=text)
