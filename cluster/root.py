"""The root register: one small value that everything starts from, held by a majority of the root drives.

    reader  --claim: promise at a majority, rewrite what was read-->  holder  --Fenced: a higher ballot-->  deposed
    holder  --swap: accept at a majority (of the old and the new list)-->  holder  --release-->  reader

Invariants
1. A holder acts only on what it has itself written again under its own ballot (claim).
2. swap(version, root) succeeds only for the version that this holder wrote last; a swap in doubt is finished, with the
   same value, before anything else is written.
3. Only claim() raises ballots: readers and confirm() write nothing, so looking for the leader deposes nobody.
4. A copy that does not verify is no vote, neither for nor against.
5. Copies on drives that do not vote are hints: written after the majority has the value, never counted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

import msgspec
import trio

from trivium.cluster import rootplan
from trivium.cluster.errors import ClusterError, Fenced, Refused, Unavailable
from trivium.cluster.logplan import Chain
from trivium.cluster.logsegment import at_each
from trivium.cluster.model import Ballot, Leader, Root, RootSlot
from trivium.cluster.nodes import Nodes
from trivium.cluster.wire import AcceptRoot, NodeRequest, PromiseRoot, ReadRoot, RootCopy

log = logging.getLogger(__name__)

ATTEMPT_S = 3.0
PATIENCE_S = 10.0
RETRY_S = 0.2


class RootRegister(Protocol):
    """`drives` (here) or `etcd`. One object belongs to one process (starter)."""

    async def read(self) -> RootSlot:
        """What a majority holds; may be one change behind. Unavailable."""
        ...

    async def claim(self) -> RootSlot:
        """Become the one who may swap: deposes the holder, so only a candidate calls it (RULES: Root). Answers the
        value to act on. Fenced when another candidate was faster, Unavailable without a majority."""
        ...

    async def swap(self, version: int, root: Root) -> RootSlot:
        """Replace version `version` by `root`. Refused: the version has moved on; Fenced: deposed; Unavailable: in
        doubt, repeat or read `held`."""
        ...

    async def confirm(self) -> bool:
        """A majority still obeys this holder. Costs no write. Count the lease from before the call."""
        ...

    async def release(self) -> None:
        """A successor may serve at once."""
        ...


class DriveRegister:
    """The register on root drives. `drives` are all drives known so far (a hint): the value names those that vote."""

    def __init__(
        self,
        nodes: Nodes,
        drives: Iterable[bytes],
        starter: bytes,
        *,
        attempt_s: float = ATTEMPT_S,
        patience_s: float = PATIENCE_S,
        retry_s: float = RETRY_S,
    ) -> None:
        self._nodes = nodes
        self._known = tuple(drives)
        self._starter = starter
        self._attempt_s, self._patience_s, self._retry_s = attempt_s, patience_s, retry_s
        self._held: RootSlot | None = None
        self._doubt: RootSlot | None = None  # a write that is not known to have a majority
        self._deposed: Fenced | None = None
        self._lock = trio.Lock()
        self._hint = trio.Event()

    @property
    def held(self) -> RootSlot | None:
        """The value that this holder wrote last; None before claim()."""
        return self._held

    @property
    def ballot(self) -> Ballot | None:
        return None if self._held is None else self._held.accepted

    async def form(self, root: Root) -> RootSlot:
        """First start: write the first value to every root drive, all of them, and hold it."""
        ballot = Ballot(1, self._starter)
        slot = RootSlot(ballot, ballot, 1, root)
        copies, _ = await self._collect(root.root_drives, ReadRoot)
        if any(copy.root is not None for copy in copies.values()):
            raise Refused("a drive already belongs to a cluster with a root; it is not formed again")
        accepted, errors = await self._collect(root.root_drives, lambda drive: AcceptRoot(drive, slot))
        if len(accepted) < len(root.root_drives):
            raise _worst(errors, "the root could not be written to every root drive")
        self._held = slot
        self._hint.set()
        return slot

    async def read(self) -> RootSlot:
        slot, _ = await self._read_majority()
        return slot

    async def claim(self) -> RootSlot:
        async with self._lock:
            slot, copies = await self._read_majority()
            ballot = rootplan.next_ballot(copies, self._starter)
            while True:
                root = _root(slot)
                promised, errors = await self._collect(rootplan.voters(root), lambda d: PromiseRoot(d, ballot))
                promised = {drive: copy for drive, copy in promised.items() if copy.root is not None}
                if not rootplan.has_majority(promised, root):
                    raise _worst(errors, "no majority of the root drives promised")
                slot = max(slot, *promised.values(), key=rootplan.order)
                if rootplan.lists(_root(slot)) == rootplan.lists(root):
                    break  # else the list moved on meanwhile: the promises of the newer one count
            self._deposed, self._doubt = None, None
            return await self._write(RootSlot(ballot, ballot, slot.version, slot.root))

    async def swap(self, version: int, root: Root) -> RootSlot:
        async with self._lock:
            return await self._swap(version, root)

    async def change(self, edit: Callable[[Root], Root]) -> RootSlot:
        """Read-modify-write of the value that this holder holds; `edit` may raise and must not block."""
        async with self._lock:
            await self._settle()
            held = self._holding()
            new = edit(_root(held))
            return held if new is _root(held) else await self._swap(held.version, new)

    async def _swap(self, version: int, root: Root) -> RootSlot:
        await self._settle()
        held = self._holding()
        if version != held.version:
            raise Refused(f"the root has version {held.version}, not {version}")
        new = rootplan.changed(_root(held), root)
        return await self._write(RootSlot(held.accepted, held.accepted, version + 1, new))

    async def confirm(self) -> bool:
        held = self._held
        if held is None or self._deposed is not None:
            return False
        root = _root(held)

        def obeys(copies: dict[bytes, RootSlot]) -> bool:
            true = [drive for drive, copy in copies.items() if copy.root and copy.promised <= held.accepted]
            return rootplan.has_majority(true, root)

        copies, _ = await self._collect(rootplan.voters(root), lambda d: ReadRoot(d, held.accepted), obeys)
        return self._deposed is None and obeys(copies)

    async def release(self, log: Chain | None = None) -> None:
        """Write that the leader has gone, and the closed log's chain in the same write."""

        def edit(root: Root) -> Root:
            leader = root.leader or Leader(self._starter, "", "")
            leader = msgspec.structs.replace(leader, released=True)
            return msgspec.structs.replace(root, leader=leader, log=root.log if log is None else log)

        await self.change(edit)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep copies of the newest value on the drives that do not vote. Optional, in the background."""
        task_status.started()
        while True:
            await self._hint.wait()
            self._hint = trio.Event()
            held = self._held
            if held is not None:
                root = _root(held)
                others = {row.id for row in root.map.drives if row.reason != "removed"} - set(root.root_drives)
                await self._collect(sorted(others), partial(_hint, held))

    # ---- under the lock -------------------------------------------------------------------------------------

    def _holding(self) -> RootSlot:
        if self._deposed is not None:
            raise self._deposed
        if self._held is None:
            raise Refused("the root is written only after claim()")
        return self._held

    async def _settle(self) -> None:
        """Finish a write in doubt."""
        if self._doubt is not None:
            await self._write(self._doubt)

    async def _write(self, slot: RootSlot) -> RootSlot:
        """Accept at a majority of each list, until it is certain."""
        self._doubt, root = slot, _root(slot)
        accepted: set[bytes] = set()
        give_up = trio.current_time() + self._patience_s

        def enough(more: dict[bytes, RootSlot]) -> bool:
            return rootplan.has_majority({*accepted, *more}, root)

        while True:
            targets = [drive for drive in rootplan.voters(root) if drive not in accepted]
            got, errors = await self._collect(targets, lambda drive: AcceptRoot(drive, slot), enough)
            accepted |= set(got)
            if rootplan.has_majority(accepted, root):
                break
            if any(isinstance(error, Fenced) for error in errors) and await self._is_deposed(slot):
                self._deposed = Fenced("another process holds the root register now")
                raise self._deposed
            if trio.current_time() >= give_up:
                raise Unavailable(f"the root register has no majority: {errors[0] if errors else 'no answer'}")
            await trio.sleep(self._retry_s)
        self._doubt = None
        self._held = slot
        self._hint.set()
        return slot

    async def _is_deposed(self, slot: RootSlot) -> bool:
        copies, _ = await self._collect(rootplan.voters(_root(slot)), ReadRoot)
        lost = [drive for drive, copy in copies.items() if copy.promised > slot.accepted]
        return not rootplan.may_have_majority(lost, _root(slot))

    # ---- asking the drives ----------------------------------------------------------------------------------

    async def _read_majority(self) -> tuple[RootSlot, dict[bytes, RootSlot]]:
        """The newest value, from a majority of the list that it names; and all copies seen."""
        held = () if self._held is None else rootplan.voters(_root(self._held))
        asked: dict[bytes, None] = dict.fromkeys((*self._known, *held))
        copies, _ = await self._collect(asked, ReadRoot)
        while True:
            slot = rootplan.newest(copies)
            if slot is None:
                raise Unavailable("no drive that can be reached holds a root")
            missing = [drive for drive in rootplan.voters(_root(slot)) if drive not in asked]
            if not missing:
                break
            asked.update(dict.fromkeys(missing))
            copies |= (await self._collect(missing, ReadRoot))[0]
        voting = [drive for drive, copy in copies.items() if copy.root is not None]
        if not rootplan.has_majority(voting, _root(slot)):
            voters = rootplan.voters(_root(slot))
            away = ", ".join(drive.hex() for drive in voters if drive not in voting)
            raise Unavailable(f"no majority of the {len(voters)} root drives answers; missing: {away}")
        self._known = tuple(asked)
        return slot, copies

    async def _collect(
        self,
        drives: Iterable[bytes],
        make: Callable[[bytes], NodeRequest],
        enough: Callable[[dict[bytes, RootSlot]], bool] | None = None,
    ) -> tuple[dict[bytes, RootSlot], list[ClusterError]]:
        """Answers and errors of all drives, or of those that answered when `enough` says so or time is up."""
        copies: dict[bytes, RootSlot] = {}
        errors: list[ClusterError] = []

        async def one(drive: bytes) -> None:
            reply = await self._nodes.call(drive, make(drive))
            if not isinstance(reply.answer, RootCopy):
                raise Unavailable("a node answered a root request with something else")
            copies[drive] = reply.answer.slot
            if enough is not None and enough(copies):
                scope.cancel()

        with trio.move_on_after(self._attempt_s) as scope:
            answers = await at_each(drives, one)
            errors = [answer for answer in answers.values() if isinstance(answer, ClusterError)]
        return copies, errors


class RootChain:
    """The metadata log's chain, in the root: a ChainStore."""

    def __init__(self, register: DriveRegister) -> None:
        self._register = register

    async def read(self) -> Chain:
        held = self._register.held
        if held is None:
            raise Refused("the root is read by its holder")
        await trio.lowlevel.checkpoint()
        return _root(held).log

    async def swap(self, expect: Chain, chain: Chain) -> None:
        def edit(root: Root) -> Root:
            if root.log == chain:
                return root
            if root.log != expect:
                raise Fenced("the metadata log's chain has moved on")
            return msgspec.structs.replace(root, log=chain)

        await self._register.change(edit)


def _hint(slot: RootSlot, drive: bytes) -> AcceptRoot:
    return AcceptRoot(drive, slot, hint=True)


def _root(slot: RootSlot) -> Root:
    assert slot.root is not None
    return slot.root


def _worst(errors: Sequence[ClusterError], text: str) -> ClusterError:
    fenced = [error for error in errors if isinstance(error, Fenced)]
    if fenced:
        return Fenced(f"{text}: {fenced[0]}")
    return Unavailable(f"{text}: {errors[0]}" if errors else text)
