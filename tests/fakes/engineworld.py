"""A metadata server that dies at chosen points and starts again on the same log and file, under clients that go on."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple, Unpack

import trio
import trio.testing

from tests.fakes.metadata import CLUSTER, Connect, default_operations, memory_map, recover_or_form
from tests.fakes.metalog import MemoryMetaLog
from trivium.cluster.clock import InlineExecutor, TrioClock
from trivium.cluster.errors import Unavailable
from trivium.cluster.transport.interface import Connection, Peer, Reply
from trivium.cluster.transport.memory import MemoryServer
from trivium.metadata import database
from trivium.metadata.digest import digest
from trivium.metadata.records import Record
from trivium.metadata.recovery import replay_log
from trivium.metadata.server import MetadataServer

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Crash(Exception):
    """The process died here."""


class Countdown:
    """Crashes at the n-th step; None never."""

    def __init__(self, steps: int | None = None) -> None:
        self.left = steps
        self.on_crash: Callable[[], None] = lambda: None

    def step(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                self.left = 1
                self.on_crash()
                raise Crash


class CrashingExecutor:
    """Inline, and each run is two steps: before and after the function."""

    def __init__(self, countdown: Countdown) -> None:
        self._countdown = countdown

    async def run(self, fn: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        await trio.lowlevel.checkpoint()
        if getattr(fn, "__name__", "") == "close":  # the world's way to drop a dead process's descriptors
            return fn(*args)
        self._countdown.step()
        result = fn(*args)
        self._countdown.step()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return result


def run_seeded(main: Callable[[], Awaitable[object]], seed: int) -> None:
    """On a virtual clock, with trio's own scheduling drawn from the seed: one seed, one schedule."""
    core = trio._core._run
    core._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[attr-defined]
    core._r.seed(seed)  # type: ignore[attr-defined]
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


class World:
    def __init__(self, directory: str, seed: int = 1, *, operations: Any = None, queries: Any = None) -> None:
        self.path = str(Path(directory) / "trivium.db")
        self.metalog = MemoryMetaLog()
        self.random = random.Random(seed)
        self.clock = TrioClock()
        known = default_operations()
        self.operations = known[0] if operations is None else operations
        self.queries = known[1] if queries is None else queries
        self.transport: MemoryServer | None = None
        self.server: MetadataServer | None = None
        self.recovered: list[str] = []
        self.options: dict[str, Any] = {}

    async def connect(self) -> Connection:
        await trio.lowlevel.checkpoint()
        if self.transport is None:
            raise Unavailable("nobody serves")
        return self.transport.connect()

    async def life(self, crash_after: int | None = None, *, started: trio.Event | None = None) -> None:
        """Recover and serve until the crash (swallowed) or cancellation. Steps count from serving."""
        self.metalog = self.metalog.reopen()
        self.recovered.append(await recover_or_form(self.path, self.metalog, memory_map(), self.clock))
        countdown = Countdown()
        dead = False

        def die() -> None:
            nonlocal dead
            dead = True

        async def before(record: Record) -> None:
            countdown.step()

        async def after(record: Record) -> None:
            countdown.step()

        countdown.on_crash = die
        self.metalog.before_append, self.metalog.after_append = before, after
        executor = CrashingExecutor(countdown)
        self.server = server = MetadataServer(
            self.path,
            self.metalog,
            cluster=CLUSTER,
            operations=self.operations,
            queries=self.queries,
            clock=self.clock,
            random=self.random,
            executor=executor,
            writer_executor=executor,
            **self.options,
        )
        transport = MemoryServer()

        async def handle(peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
            reply = await _alive(server.handle(peer, service, body, payload))
            if dead:
                raise Unavailable("the process died")
            return reply

        async def _alive(answer: Any) -> Reply:
            try:
                reply: Reply = await answer
                return reply
            except BaseException:
                if dead:
                    raise Unavailable("the process died") from None
                raise

        async def events(peer: Peer, service: int, body: bytes) -> AsyncIterator[bytes]:
            async for event in server.events(peer, service, body):
                if dead:
                    return
                yield event

        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(server.run)
                await nursery.start(lambda task_status: transport.serve(handle, events, task_status=task_status))
                self.transport = transport
                countdown.left = crash_after
                if started is not None:
                    started.set()
        except* Crash:
            pass
        finally:
            self.transport = None

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Connect]:
        """One life without a crash."""
        async with trio.open_nursery() as nursery:
            started = trio.Event()

            async def live() -> None:
                await self.life(started=started)

            nursery.start_soon(live)
            await started.wait()
            yield self.connect
            nursery.cancel_scope.cancel()

    async def check_replay(self, directory: str) -> None:
        """The file is exactly what the log makes of nothing."""
        fresh = str(Path(directory) / "replayed.db")
        Path(fresh).unlink(missing_ok=True)  # noqa: ASYNC240
        await replay_log(fresh, self.metalog, InlineExecutor())
        digests = []
        for path in (self.path, fresh):
            db = database.open_writer(path)
            digests.append((database.applied(db), digest(db)))
            db.close()
        Path(fresh).unlink()  # noqa: ASYNC240
        assert digests[0] == digests[1]
