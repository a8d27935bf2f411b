"""Sessions and their slots: who is a client, until when, and what it was answered. Pure logic; time is an argument.

    (none) --Hello, record--> live --silence for T | proof of death | no answer to a recall | break--> ending
                                |                                                                          |
                                `--Goodbye--> ending --record--> (none): leases go to others from here on--'

Invariants:
1. A session is live from its record until the record of its end; an id is never given twice.
2. Slots (as in NFSv4.1): the highest number answered, refusals too, is in memory; a lower one is never executed, an
   equal one gets the remembered answer, one in flight is joined. Successes are rows, so they survive a restart.
3. `heard` counts from a heartbeat's arrival, by a clock that runs while the machine sleeps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import trio

from trivium.metadata.messages import SESSION_ENDED, MetadataError

SLOTS_MAX = 64  # per session
STORED_MAX = 16 * 1024  # bytes of an answer that is kept in a row; a larger one is lost in a restart


@dataclass(slots=True)
class Slot:
    number: int = 0  # the highest answered
    answer: bytes = b""
    running: int = 0  # in flight; 0 = none
    done: trio.Event = field(default_factory=trio.Event)
    failure: Exception | None = None  # the flight ended without an answer


@dataclass(slots=True)
class Session:
    id: int
    client: str
    host: str
    started: int
    floor: int = 1
    leased: bool = False
    heard: float = 0.0  # boot time of the last heartbeat
    slots: dict[int, Slot] = field(default_factory=dict)
    oldest_read_seq: int = 0
    map_version: int = -1  # last sent
    beats: int = 0  # heartbeats answered in this life of the server
    top: int = 0  # the highest chunk counter that it had given at the last one
    groups: tuple[int, ...] = ()
    ending: bool = False
    gone: trio.Event = field(default_factory=trio.Event)  # its end is durable
    member: bytes = b""  # whose key said Hello; empty: a local peer


class SessionTable:
    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._sessions: dict[int, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def add(self, session: Session) -> None:
        assert session.id not in self._sessions
        self._sessions[session.id] = session

    def get(self, session: int) -> Session:
        """The live session; MetadataError SESSION_ENDED for any other."""
        found = self._sessions.get(session)
        if found is None or found.ending:
            raise MetadataError(SESSION_ENDED, "the session has ended; what it had not flushed is lost")
        return found

    def owner(self, session: int) -> bytes:
        """The member that it belongs to; empty: a local peer's, or not known."""
        found = self._sessions.get(session)
        return b"" if found is None else found.member

    def all(self) -> tuple[Session, ...]:
        return tuple(self._sessions.values())

    def is_live(self, session: int) -> bool:
        found = self._sessions.get(session)
        return found is not None and not found.ending

    def may_lease(self, session: int) -> bool:
        """It lives, and its record says that it takes leases."""
        found = self._sessions.get(session)
        return found is not None and not found.ending and found.leased

    def expired(self, now_s: float) -> list[Session]:
        return [s for s in self._sessions.values() if not s.ending and now_s - s.heard > self.timeout_s]

    def end(self, session: int) -> bool:
        """No request of it is taken from now on; its record follows. False when it is ending or gone already."""
        found = self._sessions.get(session)
        if found is None or found.ending:
            return False
        found.ending = True
        return True

    def remove(self, session: int) -> None:
        """The record of its end is durable."""
        if found := self._sessions.pop(session, None):
            found.gone.set()

    async def until_gone(self, session: int) -> None:
        """Somebody ends it: wait for the record. Returns at once when it is not known (any more)."""
        if found := self._sessions.get(session):
            await found.gone.wait()

    def oldest_read_seq(self) -> int:
        """The oldest log seq that a session still reads from; 0 = none is reported."""
        return min((s.oldest_read_seq for s in self._sessions.values() if s.oldest_read_seq), default=0)


def begin(session: Session, number_of_slot: int, number: int) -> Slot | None:
    """Look at a call. None: execute it now (the slot is marked running, `finish` follows). A slot: when `running`,
    wait for `done` and look at `answer` or `failure`; else `answer` is the answer. Raises MetadataError."""
    if not 0 <= number_of_slot < SLOTS_MAX or number <= 0:
        raise MetadataError("EINVAL", "slots are 0 to 63, numbers grow from 1")
    slot = session.slots.get(number_of_slot)
    if slot is None:
        slot = session.slots[number_of_slot] = Slot()
    if slot.running:
        if number == slot.running:
            return slot
        raise MetadataError("EINVAL", f"slot {number_of_slot} is busy with call {slot.running}, not {number}")
    if number == slot.number:
        return slot
    if number < slot.number:
        raise MetadataError("EINVAL", f"call {number} is older than call {slot.number}, which was answered")
    slot.running = number
    slot.done = trio.Event()
    slot.failure = None
    return None


def finish(slot: Slot, answer: bytes | None, failure: Exception | None = None) -> None:
    """The call in flight is answered, or (failure) its outcome is unknown and it may be sent again."""
    if answer is not None:
        slot.number, slot.answer = slot.running, answer
    slot.failure = failure
    slot.running = 0
    slot.done.set()


def load(session: Session, rows: Iterable[tuple[int, int, bytes]], lost: bytes) -> None:
    """Fill the slots from rows (slot, number, result) after a restart; `lost` answers for results not kept."""
    for slot, number, result in rows:
        session.slots[slot] = Slot(number, result or lost)
