"""Events to sessions: recalls and their answers, and the word that a session has ended.

A recall stays pending until the session answers it, whatever happens to its event stream: a new stream begins with
all that is pending. No answer within `timeout_s` ends the session (`on_silent`).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import trio

from trivium.metadata.leases import LeaseTable, RecallNeeded
from trivium.metadata.messages import Ended, Event, Recall, encode


@dataclass(slots=True)
class _Pending:
    needed: RecallNeeded
    event: Recall
    done: trio.Event = field(default_factory=trio.Event)


class _Stream:
    """One subscription: what is still to be sent."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque()
        self.wake = trio.Event()
        self.closed = False

    def push(self, event: Event) -> None:
        self.events.append(event)
        self.wake.set()

    def close(self) -> None:
        self.closed = True
        self.wake.set()


class Recalls:
    def __init__(
        self, leases: LeaseTable, *, timeout_s: float, on_silent: Callable[[int, str], Awaitable[None]]
    ) -> None:
        """`on_silent` ends a session, and returns when its end is durable."""
        self._leases = leases
        self._timeout_s = timeout_s
        self._on_silent = on_silent
        self._ids = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._streams: dict[int, _Stream] = {}

    async def recall(self, needed: list[RecallNeeded]) -> None:
        """Ask for all of these at once; returns when each is answered or its session has ended."""
        async with trio.open_nursery() as nursery:
            for one in needed:
                nursery.start_soon(self._recall_one, one)

    def answered(self, session: int, recall: int) -> None:
        """The session says that it has dropped what recall asked for. Unknown and repeated answers are harmless."""
        pending = self._pending.get(recall)
        if pending is not None and pending.needed.session == session:
            del self._pending[recall]
            self._leases.recalled(pending.needed)
            pending.done.set()

    def ended(self, session: int, why: str) -> None:
        """The session's end is durable: nobody waits for it any more, and it is told."""
        self._leases.drop_session(session)
        for id, pending in tuple(self._pending.items()):
            if pending.needed.session == session:
                del self._pending[id]
                pending.done.set()
        stream = self._streams.pop(session, None)
        if stream is not None:
            stream.push(Ended(why))
            stream.close()

    async def stream(self, session: int) -> AsyncIterator[bytes]:
        """The events of one subscription; a newer one of the same session closes it."""
        stream = _Stream()
        old = self._streams.get(session)
        if old is not None:
            old.close()
        self._streams[session] = stream
        for pending in self._pending.values():
            if pending.needed.session == session:
                stream.push(pending.event)
        try:
            while True:
                while stream.events:
                    yield encode(stream.events.popleft())
                if stream.closed:
                    return
                stream.wake = trio.Event()
                await stream.wake.wait()
        finally:
            if self._streams.get(session) is stream:
                del self._streams[session]

    async def _recall_one(self, needed: RecallNeeded) -> None:
        if not self._leases.holds(needed.session, needed.ino):
            return  # its session ended since it was found in the way: nobody would answer
        id = next(self._ids)
        pending = _Pending(needed, Recall(id, needed.ino, needed.name))
        self._pending[id] = pending
        stream = self._streams.get(needed.session)
        if stream is not None:
            stream.push(pending.event)
        with trio.move_on_after(self._timeout_s):
            await pending.done.wait()
            return
        await self._on_silent(needed.session, f"it did not give back its lease on inode {needed.ino}")
        self._pending.pop(id, None)  # the session is over, whoever ended it, and its leases with it
        self._leases.drop(needed.session, needed.ino)
