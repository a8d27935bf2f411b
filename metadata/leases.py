"""Read leases and their recalls: who may cache what. Pure logic in memory; a restart forgets it all.

    none --grant--> held --recall sent--> recalled --answer--> none (or held, when only one entry was recalled)
                                              `--no answer in T--> the session is ended, by record

Invariants:
1. While a change of an inode is between its check and its COMMIT no lease on it is granted (`begin`, `end`), and while
   a recall is pending on it neither: a change never commits under somebody else's lease.
2. A lease is noted before the answer that carries it goes out, and only if no change has become visible since the
   answer's snapshot (`grant` says "read again" otherwise).
3. A session's own leases never stand in its own way.
4. Recalling one entry of a directory leaves the lease on the directory; after ENTRY_RECALLS of those all of it goes.
   Until the change has happened, answers about the directory carry no lease (a holder caches nothing that they say),
   and a change in the directory by the holder itself, whose answer it caches, makes the recall void.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from trivium.metadata.writer import LeaseCheck, Touched

ENTRY_RECALLS = 16
RECENT_CHANGES = 10_000  # inodes whose last change is remembered exactly


@dataclass(frozen=True, slots=True)
class RecallNeeded:
    session: int
    ino: int
    name: bytes


class LeaseTable(LeaseCheck):
    def __init__(self) -> None:
        self._holders: dict[int, dict[int, int]] = {}  # ino -> session -> entries recalled so far
        self._of_session: dict[int, set[int]] = {}
        self._changing: dict[int, int] = {}  # ino -> changes between check and COMMIT
        self._recalling: dict[int, int] = {}  # ino -> recalls pending
        self._cleared: dict[tuple[int, bytes], set[int]] = {}  # entry -> sessions that have dropped just it
        self._unreclaimed: frozenset[int] = frozenset()  # sessions that may hold leases of an earlier life
        self._changed: dict[int, int] = {}  # ino -> seq of its last change
        self._order: deque[tuple[int, int]] = deque()  # (seq, ino), oldest first
        self._forgotten = 0  # changes up to this seq may be missing in _changed

    # ---- for the writer (its thread) ------------------------------------------------------------------------

    def begin(self, session: int, touched: Touched) -> Collection[tuple[int, bytes]]:
        for ino, _ in touched:
            self._changing[ino] = self._changing.get(ino, 0) + 1
        if self._unreclaimed and self._unreclaimed != {session}:
            conflicts = list(touched)
        else:
            conflicts = [(ino, name) for ino, name in touched if self._in_the_way(ino, name, session)]
        if conflicts:
            self.end(touched, 0)
        elif self._cleared:  # whoever changes a directory has it in its cache again, whatever was recalled
            inos = {ino for ino, _ in touched}
            for entry in tuple(self._cleared):
                if entry[0] in inos:
                    self._cleared.get(entry, set()).discard(session)
        return conflicts

    def end(self, touched: Touched, seq: int) -> None:
        for ino, _ in touched:
            left = self._changing[ino] - 1
            if seq:
                self._changed[ino] = seq
                self._order.append((seq, ino))
            if left:
                self._changing[ino] = left
            else:
                del self._changing[ino]
        if len(self._order) > RECENT_CHANGES:
            self._forget()

    def _in_the_way(self, ino: int, name: bytes, session: int) -> bool:
        holders = self._holders.get(ino)
        if not holders or (len(holders) == 1 and session in holders):
            return False
        cleared = self._cleared.get((ino, name), ())
        return any(holder != session and holder not in cleared for holder in tuple(holders))

    def _forget(self) -> None:
        while len(self._order) > RECENT_CHANGES // 2:
            seq, ino = self._order.popleft()
            self._forgotten = seq
            if self._changed.get(ino) == seq:
                del self._changed[ino]

    # ---- for the server (the event loop) --------------------------------------------------------------------

    def grant(self, session: int, ino: int, snapshot_seq: int) -> bool | None:
        """Note a read lease. False: not now (a change or recall is under way). None: the snapshot is too old, read
        again (the lease is noted all the same, so that the next read is the last)."""
        if ino in self._changing or ino in self._recalling:
            return False
        fresh = self._changed.get(ino, self._forgotten) <= snapshot_seq
        self._holders.setdefault(ino, {}).setdefault(session, 0)
        if ino in self._changing:  # the writer's thread marked it meanwhile, and may not have seen this lease
            self.drop(session, ino)
            return False
        self._of_session.setdefault(session, set()).add(ino)
        return True if fresh else None

    def holds(self, session: int, ino: int) -> bool:
        return session in self._holders.get(ino, ())

    def has_any(self, session: int) -> bool:
        return bool(self._of_session.get(session))

    def hold_back(self, conflicts: Iterable[tuple[int, bytes]]) -> None:
        """No lease on these inodes is granted until `let_go` of the same."""
        for ino, _ in conflicts:
            self._recalling[ino] = self._recalling.get(ino, 0) + 1

    def to_recall(self, session: int, conflicts: Iterable[tuple[int, bytes]]) -> list[RecallNeeded]:
        """Whom to ask for what, so that `session` can change these (which are held back)."""
        conflicts = tuple(conflicts)
        whole = {ino for ino, name in conflicts if not name}
        needed: list[RecallNeeded] = []
        for ino, name in conflicts:
            if name and ino in whole:
                continue
            cleared = self._cleared.get((ino, name), ())
            holders = self._holders.get(ino, {})
            for holder, count in holders.items():
                if holder != session and holder not in cleared:
                    needed.append(RecallNeeded(holder, ino, name if count < ENTRY_RECALLS else b""))
                    holders[holder] = count + 1
        return needed

    def recalled(self, done: RecallNeeded) -> None:
        """The holder has dropped what it was asked for."""
        if done.name:
            self._cleared.setdefault((done.ino, done.name), set()).add(done.session)
        else:
            self.drop(done.session, done.ino)

    def let_go(self, conflicts: Iterable[tuple[int, bytes]]) -> None:
        """The change that asked for the recalls is done or refused."""
        for ino, name in conflicts:
            self._cleared.pop((ino, name), None)
            left = self._recalling[ino] - 1
            if left:
                self._recalling[ino] = left
            else:
                del self._recalling[ino]

    @property
    def unreclaimed(self) -> frozenset[int]:
        return self._unreclaimed

    def await_reclaim(self, sessions: Iterable[int]) -> None:
        """After a restart: until these have said that they dropped what they cached, nothing is changed."""
        self._unreclaimed = frozenset(sessions)

    def reclaimed(self, session: int) -> None:
        """The session has dropped its caches of an earlier life (or has ended)."""
        self._unreclaimed -= {session}

    def drop(self, session: int, ino: int) -> None:
        holders = self._holders.get(ino)
        if holders is not None:
            holders.pop(session, None)
            if not holders:
                del self._holders[ino]
        inos = self._of_session.get(session)
        if inos is not None:
            inos.discard(ino)

    def drop_session(self, session: int) -> None:
        """The session has ended, durably."""
        self.reclaimed(session)
        for ino in tuple(self._of_session.pop(session, ())):
            self.drop(session, ino)
