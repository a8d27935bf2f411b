"""Sessions that end while calls, copies of calls and heartbeats of theirs are under way, on a log that takes its time.

The model: from the moment that an end begins nothing of that session is answered but refusals (an answered heartbeat
would keep its leases alive beyond the record that gives them to others); what is not done when the end is durable is
never done; and nothing is left of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import trio

from tests.fakes.metadata import memory_metadata
from tests.fakes.metalog import MemoryMetaLog
from tests.simulation.runner import run_schedules
from trivium.cluster.errors import ClusterError
from trivium.cluster.transport.interface import Connection
from trivium.cluster.wire import Service
from trivium.metadata import messages
from trivium.metadata.messages import ROOT_INO, SESSION_ENDED, Call, Create, Failed, GetAttr
from trivium.metadata.server import MetadataServer


class Ends:
    """Raw sessions against one server."""

    def __init__(self, rng: random.Random, server: MetadataServer, connection: Connection) -> None:
        self.rng, self.server, self.connection = rng, server, connection
        self.done: set[bytes] = set()  # answered with success
        self.at_end: dict[int, set[bytes]] = {}  # what was there of a session when its end was durable

    async def send(self, request: Any) -> Any:
        reply = await self.connection.request(Service.METADATA, messages.encode(request))
        return messages.decode_answer(reply.body)

    async def checked(self, session: int, request: Any) -> Any:
        """Once its end has begun a session hears refusals."""
        ended = not self.server.sessions.is_live(session)
        answer = await self.send(request)
        if ended:
            refused = isinstance(answer, Failed) and answer.code == SESSION_ENDED
            what = f"{type(request).__name__} was answered {type(answer).__name__}"
            assert refused, f"{what} although its session is being ended"
        return answer

    async def life(self, number: int) -> None:
        for _ in range(4):
            session = (await self.send(messages.Hello(f"c{number}", "host"))).session
            async with trio.open_nursery() as nursery:
                for slot in range(2):
                    nursery.start_soon(self.call, session, slot)
                nursery.start_soon(self.beat, session)
                await trio.sleep(self.rng.random() * 3)
                how: Callable[[], Any] = self.rng.choice((
                    lambda session=session: self.server.end_session(session, "test"),
                    lambda session=session: self.send(messages.Goodbye(session)),
                ))  # fmt: skip
                await how()
                self.at_end[session] = self.names(session)
            assert not self.server.sessions.is_live(session)

    async def call(self, session: int, slot: int) -> None:
        """Calls one after another, now and then an older one once more, to beyond the end."""
        sent: list[Call] = []
        for number in range(1, 200):
            name = b"%x.%d.%d" % (session, slot, number)
            sent.append(Call(session, slot, number, (Create(ROOT_INO, name, 0o100644),)))
            async with trio.open_nursery() as nursery:
                if self.rng.random() < 0.3:
                    nursery.start_soon(self.copy, session, self.rng.choice(sent))
                answer = await self.checked(session, sent[-1])
            if isinstance(answer, messages.Results):
                self.done.add(name)
            elif answer.code == SESSION_ENDED and self.rng.random() < 0.5:
                return
            await trio.sleep(self.rng.random() * 0.3)
            if session in self.at_end and self.rng.random() < 0.3:
                return

    async def copy(self, session: int, call: Call) -> None:
        await trio.sleep(self.rng.random() * 0.5)
        await self.checked(session, call)

    async def beat(self, session: int) -> None:
        while session not in self.at_end:
            answer = await self.checked(session, messages.Heartbeat(session, 1))
            if isinstance(answer, messages.Pulse):
                await self.checked(session, messages.Ask(session, GetAttr(ROOT_INO)))
            await trio.sleep(self.rng.random() * 0.5)

    def names(self, session: int) -> set[bytes]:
        rows = self.server.writer._db.execute("SELECT sort_name FROM dirents WHERE parent = ?", (ROOT_INO,)).fetchall()
        return {name for (name,) in rows if name.startswith(b"%x." % session)}

    def check(self) -> None:
        db = self.server.writer._db
        for session, names in self.at_end.items():
            assert self.names(session) == names, "done after its session had ended"
        for table, column in (("sessions", "id"), ("slots", "session"), ("held", "session")):
            left = {row[0] for row in db.execute(f"SELECT {column} FROM {table}").fetchall()}
            assert not left & set(self.at_end), f"an ended session has left rows in {table}"
        there = set().union(*self.at_end.values())
        assert self.done <= there, "answered and not done"


async def schedule(seed: int, rng: random.Random) -> None:
    log = MemoryMetaLog()
    longest_s = rng.choice((0.01, 0.3, 1.0))

    async def slow(record: object) -> None:
        await trio.sleep(rng.random() * longest_s)
        if rng.random() < 0.1:
            raise ClusterError("in doubt")

    async with memory_metadata(metalog=log, seed=seed) as (server, connect):
        log.before_append = log.after_append = slow
        ends = Ends(rng, server, await connect())
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(ends.life, number)
        ends.check()
        log.before_append = log.after_append = None


def test_nothing_of_a_session_is_taken_once_its_end_has_begun() -> None:
    run_schedules(schedule, count=8)
