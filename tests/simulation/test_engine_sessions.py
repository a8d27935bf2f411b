"""Sessions, leases, slots: recalls before commits, ends before leases move, a grace (attacks 26, 35, 58)."""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from tests.fakes.engineworld import World, run_seeded
from tests.fakes.metadata import memory_client, memory_metadata
from tests.simulation.runner import run_schedules
from trivium.cluster.clock import TrioClock
from trivium.cluster.errors import Unavailable
from trivium.cluster.transport.interface import Connection
from trivium.cluster.wire import Service
from trivium.metadata import lifelock, messages
from trivium.metadata.client import HOLDS_MAX, MetadataClient
from trivium.metadata.messages import (
    ROOT_INO,
    Call,
    CloseVolume,
    Create,
    CreateVolume,
    GetAttr,
    Lookup,
    MetadataError,
    ObjectInfo,
    OpenVolume,
    Release,
    SetAttr,
    Unlink,
    VolumeState,
)


def run(main: Callable[[], Awaitable[object]], seed: int = 1) -> None:
    run_seeded(main, seed)


class Jitter:
    """An executor whose answers take their time."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    async def run(self, fn: Any, *args: Any) -> Any:
        await trio.sleep(self._rng.random() * 0.001)
        result = fn(*args)
        with trio.CancelScope(shield=True):
            await trio.sleep(self._rng.random() * 0.003)
        return result


class SlowConnection:
    """Answers travel slower than events, now and then."""

    def __init__(self, connection: Any, rng: random.Random) -> None:
        self._connection, self._rng = connection, rng
        self.local = True
        self.subscribe, self.aclose = connection.subscribe, connection.aclose

    async def request(self, *args: Any) -> Any:
        reply = await self._connection.request(*args)
        await trio.sleep(self._rng.random() * 0.01 if self._rng.random() < 0.5 else 0)
        return reply


class Cache:
    """What a face does with leases: remembers answers under them, forgets at a recall."""

    def __init__(self) -> None:
        self.client: MetadataClient
        self.modes: dict[int, int] = {}
        self.recalls: list[tuple[int, bytes]] = []
        self.ended: list[str] = []
        self.lapses = 0
        self.deaf = False

    def options(self) -> dict[str, Any]:
        return {"on_recall": self.on_recall, "on_ended": self.on_ended, "on_lapsed": self.on_lapsed}

    async def on_recall(self, ino: int, name: bytes) -> bool:
        if self.deaf:
            await trio.sleep_forever()
        self.recalls.append((ino, name))
        self.modes.pop(ino, None)
        return False

    def on_ended(self, why: str) -> None:
        self.ended.append(why)
        self.modes.clear()

    def on_lapsed(self) -> None:
        self.lapses += 1
        self.modes.clear()

    async def mode(self, ino: int) -> int:
        if ino in self.modes and self.client.leases_usable():
            return self.modes[ino]
        attr = await self.client.ask(GetAttr(ino, lease=1))
        if attr.lease:
            self.modes[ino] = attr.mode
        return int(attr.mode)


async def make(client: MetadataClient, name: bytes = b"x") -> int:
    (entry,) = await client.call(Create(ROOT_INO, name, 0o100644))
    return int(entry.attr.ino)


def test_a_change_commits_only_after_the_leases_of_others_are_gone() -> None:
    async def main() -> None:
        cache = Cache()
        async with (
            memory_metadata() as (_server, connect),
            memory_client(connect, **cache.options()) as reader,
            memory_client(connect, seed=8) as writer,
        ):
            cache.client = reader
            ino = await make(writer)
            assert await cache.mode(ino) == 0o100644 and cache.modes
            await writer.call(SetAttr(ino, mode=0o600))
            assert not cache.modes and (ino, b"") in cache.recalls
            assert await cache.mode(ino) == 0o100600
            await reader.call(SetAttr(ino, mode=0o640))  # one's own lease is no obstacle
            assert len([r for r in cache.recalls if r[0] == ino]) == 1

    run(main)


@pytest.mark.parametrize("seed", range(6))
def test_no_cache_is_ever_stale(seed: int) -> None:
    """Linearizable: a value read from a cache is never older than a change that was answered before the read began."""

    async def main() -> None:
        rng = random.Random(seed)
        caches = [Cache() for _ in range(3)]
        async with AsyncExitStack() as stack:
            _server, fast = await stack.enter_async_context(memory_metadata(seed=seed, executor=Jitter(rng)))

            async def connect() -> Any:
                return SlowConnection(await fast(), rng)

            for i, cache in enumerate(caches):
                cache.client = await stack.enter_async_context(memory_client(connect, seed=i, **cache.options()))
            inos = [await make(caches[0].client, b"%d" % i) for i in range(3)]
            history: dict[int, list[tuple[int, int]]] = {ino: [] for ino in inos}
            running: dict[int, set[int]] = {ino: set() for ino in inos}
            hits = 0

            async def work(cache: Cache, number: int) -> None:
                nonlocal hits
                for i in range(80):
                    ino = rng.choice(inos)
                    if rng.random() < 0.25:
                        mode = (number + 3 * i) & 0o777  # never the same twice
                        cache.modes.pop(ino, None)
                        running[ino].add(0o100000 | mode)
                        (attr,) = await cache.client.call(SetAttr(ino, mode=mode))
                        running[ino].remove(attr.mode)
                        cache.modes.pop(ino, None)
                        history[ino].append((attr.ctime, attr.mode))
                    else:
                        known = max(history[ino], default=(0, 0))
                        allowed = set(running[ino])
                        hits += ino in cache.modes
                        mode = await cache.mode(ino)
                        allowed |= running[ino] | {mode for ctime, mode in history[ino] if ctime >= known[0]}
                        assert not known[0] or mode in allowed, "a stale cache was served"
                    await trio.sleep(rng.random() * 0.004)

            async with trio.open_nursery() as nursery:
                for number, cache in enumerate(caches):
                    nursery.start_soon(work, cache, number)
            assert hits > 10, "the caches were never used"

    run(main, seed)


@pytest.mark.parametrize("seed", range(4))
def test_the_lease_of_a_create_is_never_stale(seed: int) -> None:
    """Others find the new name, change or remove it, while the answer of its Create is still on its way."""

    async def main() -> None:
        rng = random.Random(seed)
        caches = [Cache() for _ in range(2)]
        async with AsyncExitStack() as stack:
            _server, fast = await stack.enter_async_context(memory_metadata(seed=seed, executor=Jitter(rng)))

            async def connect() -> Any:
                return SlowConnection(await fast(), rng)

            for i, cache in enumerate(caches):
                cache.client = await stack.enter_async_context(memory_client(connect, seed=i, **cache.options()))
                await cache.client.ask(GetAttr(ROOT_INO, lease=1))  # on record: it takes leases
            maker, other = caches
            made: dict[bytes, int] = {}
            changed: dict[int, int] = {}
            leased = 0

            async def change() -> None:
                for i in range(60):
                    entry = await other.client.ask(Lookup(ROOT_INO, b"%d" % i))
                    while entry.attr is None:
                        await trio.sleep(0.001)
                        entry = await other.client.ask(Lookup(ROOT_INO, b"%d" % i))
                    (attr,) = await other.client.call(SetAttr(entry.attr.ino, mode=i))
                    changed[attr.ino] = attr.mode

            async with trio.open_nursery() as nursery:
                nursery.start_soon(change)
                for i in range(60):
                    create = Create(ROOT_INO, b"%d" % i, 0o100777, lease=1)
                    entry, above = await maker.client.call(create, messages.Stat(ROOT_INO))
                    assert above.ino == ROOT_INO and above.mtime > 0
                    made[b"%d" % i] = ino = entry.attr.ino
                    if entry.attr.lease:
                        leased += 1
                        maker.modes[ino] = entry.attr.mode
                    before = changed.get(ino)
                    mode = await maker.mode(ino)
                    assert before is None or mode == before, "a stale lease was granted"
            for name, ino in made.items():
                assert await maker.mode(ino) == 0o100000 | int(name)
            assert leased > 10

    run(main, seed)


def test_only_who_takes_leases_on_record_is_granted_one_and_none_is_stored() -> None:
    async def main() -> None:
        async with memory_metadata() as (server, connect), memory_client(connect, seed=2) as writer:
            async with memory_client(connect, seed=1) as client:
                create = Create(ROOT_INO, b"x", 0o100644, lease=1)
                (entry,) = await client.call(create)
                assert not entry.attr.lease  # it is not on record yet that this session takes leases
                await client.ask(GetAttr(ROOT_INO, lease=1))
                (entry,) = await client.call(Create(ROOT_INO, b"y", 0o100644, lease=1))
                assert entry.attr.lease and server.leases.holds(client.session, entry.attr.ino)
                rows = server.writer._db.execute(
                    "SELECT result FROM slots WHERE session = ?", (client.session,)
                ).fetchall()
                answers = [messages.decode_answer(row[0]).values[0] for row in rows]
                stored = [msgspec.convert(answer, messages.Entry).attr for answer in answers]
                assert entry.attr.ino in [attr.ino for attr in stored] and not any(attr.lease for attr in stored)
                (after, _) = await client.call(
                    Create(ROOT_INO, b"z", 0o100644, lease=1), SetAttr(entry.attr.ino, mode=0)
                )
                assert not after.attr.lease  # what follows in the list may have changed it
                await server.end_session(client.session, "it was killed")
                assert not server.leases.holds(client.session, entry.attr.ino)
                with trio.fail_after(1):
                    await writer.call(SetAttr(entry.attr.ino, mode=0o600))

    run(main)


def test_entries_of_a_directory_are_recalled_one_by_one_then_all() -> None:
    async def main() -> None:
        cache = Cache()
        async with (
            memory_metadata() as (server, connect),
            memory_client(connect, **cache.options()) as reader,
            memory_client(connect, seed=8) as writer,
        ):
            entry = await reader.ask(Lookup(ROOT_INO, b"missing", lease=1))
            assert entry.attr is None and entry.lease == 1
            for i in range(40):
                await make(writer, b"%d" % i)
            recalls = [name for ino, name in cache.recalls if ino == ROOT_INO]
            assert recalls[-1] == b"" or len(recalls) == 40
            assert len(recalls) < 40 or not server.leases.holds(reader.session, ROOT_INO)

    run(main)


def test_a_silent_holder_is_ended_by_record_before_its_lease_moves() -> None:
    async def main() -> None:
        cache = Cache()
        async with (
            memory_metadata() as (server, connect),
            memory_client(connect, **cache.options()) as reader,
            memory_client(connect, seed=8) as writer,
        ):
            cache.client = reader
            ino = await make(writer)
            await cache.mode(ino)
            cache.deaf = True
            dead = reader.session
            before = trio.current_time()
            await writer.call(SetAttr(ino, mode=0o600))
            assert trio.current_time() - before >= server.sessions.timeout_s
            assert not server.writer._db.execute("SELECT 1 FROM sessions WHERE id = ?", (dead,)).fetchall()
            await trio.sleep(1)
            assert cache.ended and reader.session != dead  # it lives on under a new session

    run(main)


def test_an_ended_session_commits_nothing() -> None:
    """Attack 26: what was cut off cannot come back, neither in this server's life nor in the next."""

    async def main() -> None:
        async with memory_metadata() as (server, connect), memory_client(connect) as client:
            session = client.session
            connection = await connect()
            await server.end_session(session, "test")
            call = Call(session, 0, 1, (Create(ROOT_INO, b"late", 0o100644),))
            reply = await connection.request(Service.METADATA, messages.encode(call))
            answer = messages.decode_answer(reply.body)
            assert isinstance(answer, messages.Failed) and answer.code == messages.SESSION_ENDED
            await trio.sleep(1)
            assert (await client.ask(Lookup(ROOT_INO, b"late"))).attr is None

    run(main)


def test_slots_answer_repeats_and_refuse_late_copies() -> None:
    """Attacks 35, 58: a late copy of an answered call, granted or refused, is never executed."""

    async def main() -> None:
        async with memory_metadata() as (_server, connect), memory_client(connect) as client:
            connection = await connect()

            async def send(number: int, *operations: Any) -> Any:
                call = Call(client.session, 40, number, operations)
                reply = await connection.request(Service.METADATA, messages.encode(call))
                return messages.decode_answer(reply.body)

            create, unlink = Create(ROOT_INO, b"x", 0o100644), Unlink(ROOT_INO, b"x")
            first = await send(1, create)
            assert await send(1, create) == first
            assert isinstance(await send(2, unlink), messages.Results)
            assert (await send(1, create)).code == "EINVAL"  # an older number
            refused = await send(3, unlink)
            assert refused.code == "ENOENT"
            await make(client)
            assert await send(3, unlink) == refused  # the refusal is remembered too
            assert (await client.ask(Lookup(ROOT_INO, b"x"))).attr is not None

            answers: list[Any] = []

            async def twice() -> None:
                answers.append(await send(4, unlink))

            async with trio.open_nursery() as nursery:  # a copy that arrives while the first runs joins it
                nursery.start_soon(twice)
                nursery.start_soon(twice)
            assert answers[0] == answers[1] and isinstance(answers[0], messages.Results)

    run(main)


def test_silence_lapses_leases_at_half_the_time_and_ends_the_session_after_all_of_it(tmp_path: Path) -> None:
    async def main() -> None:
        world = World(str(tmp_path))
        cache = Cache()
        async with trio.open_nursery() as nursery:
            async with world.serving():
                client = MetadataClient(
                    world.connect, client="c", random=random.Random(1), clock=world.clock, **cache.options()
                )
                await nursery.start(client.run)
                cache.client = client
                ino = await make(client)
                await cache.mode(ino)
                assert client.leases_usable()
            went = trio.current_time()
            while client.leases_usable():  # noqa: ASYNC110 (time itself is what ends it)
                await trio.sleep(0.1)
            assert trio.current_time() - went <= 10.2
            await trio.sleep(0.5)
            assert cache.lapses and not cache.modes
            async with world.serving():
                assert await cache.mode(ino) == 0o100644  # the same session goes on
                assert not cache.ended
                nursery.cancel_scope.cancel()

    run(main)


def test_after_a_restart_changes_wait_for_those_who_may_still_cache(tmp_path: Path) -> None:
    async def main() -> None:
        world = World(str(tmp_path))
        cache = Cache()
        reachable = True

        async def connect() -> Any:
            if not reachable:
                raise Unavailable("cut off")
            return await world.connect()

        async with trio.open_nursery() as nursery:
            async with world.serving():
                reader = MetadataClient(
                    connect, client="r", random=random.Random(1), clock=world.clock, **cache.options()
                )
                writer = MetadataClient(world.connect, client="w", random=random.Random(2), clock=world.clock)
                await nursery.start(reader.run)
                await nursery.start(writer.run)
                cache.client = reader
                ino = await make(writer)
                await cache.mode(ino)
            reachable = False  # the reader is cut off while the server restarts; it believes in its lease for T/2
            async with world.serving():
                began = trio.current_time()
                assert await cache.mode(ino) == 0o100644 and reader.leases_usable()
                await writer.call(SetAttr(ino, mode=0o600))
                assert trio.current_time() - began >= 19
                assert not reader.leases_usable() and not cache.modes
                reachable = True
                await trio.sleep(5)
                assert len(cache.ended) == 1
                assert await cache.mode(ino) == 0o100600
            async with world.serving():  # all there: the grace is over as soon as both have answered
                began = trio.current_time()
                await writer.call(SetAttr(ino, mode=0o640))
                assert trio.current_time() - began < 2
                assert await cache.mode(ino) == 0o100640
                nursery.cancel_scope.cancel()

    run(main)


def test_what_is_open_while_the_server_restarts_outlives_its_last_name(tmp_path: Path) -> None:
    """The change waits for the session that has it open, which says so with the heartbeat that ends the wait."""

    async def main() -> None:
        world = World(str(tmp_path))
        opened: list[int] = []
        async with trio.open_nursery() as nursery:
            async with world.serving():
                reader = MetadataClient(
                    world.connect, client="r", random=random.Random(1), clock=world.clock, open_inodes=lambda: opened
                )
                writer = MetadataClient(world.connect, client="w", random=random.Random(2), clock=world.clock)
                await nursery.start(reader.run)
                await nursery.start(writer.run)
                ino = await make(writer)
                await reader.ask(GetAttr(ino, lease=1))
                opened[:] = [*range(10_000, 10_000 + HOLDS_MAX), ino]  # more than one heartbeat carries; some are gone
            async with world.serving():
                await writer.call(Unlink(ROOT_INO, b"x"))
                assert (await reader.ask(GetAttr(ino))).nlink == 0
                await reader.call(Release((ino,)))
                with pytest.raises(MetadataError, match="ESTALE"):
                    await reader.ask(GetAttr(ino))
                nursery.cancel_scope.cancel()

    run(main)


def test_a_proof_of_death_ends_the_grace_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        world = World(str(tmp_path))
        world.options["proof_of_death"] = lifelock.prover(str(tmp_path))
        async with trio.open_nursery() as nursery:
            async with world.serving(), trio.open_nursery() as short:
                reader = MetadataClient(
                    world.connect, client="r", random=random.Random(1), clock=world.clock, run_directory=str(tmp_path)
                )
                await short.start(reader.run)
                ino = await make(reader)
                await reader.ask(GetAttr(ino, lease=1))
                assert (tmp_path / lifelock.path_of(reader.session)).exists()
                assert not lifelock.is_dead(str(tmp_path / lifelock.path_of(reader.session)))
                os.close(reader._lock_fd)  # kill -9: the lock goes, the file stays, nobody says goodbye
                reader._lock_fd = -1
                reader._welcome = None
                short.cancel_scope.cancel()
            async with world.serving():
                began = trio.current_time()
                writer = MetadataClient(world.connect, client="w", random=random.Random(2), clock=world.clock)
                await nursery.start(writer.run)
                await writer.call(SetAttr(ino, mode=0o600))
                assert trio.current_time() - began < 1
                nursery.cancel_scope.cancel()

    run(main)


def test_a_killed_process_delays_nobody(tmp_path: Path) -> None:
    """When its events lose their reader, or when a server starts, the server looks for the proof: a volume that the
    dead one had leased goes to the next at once, whether the server was killed with it or not."""

    async def killed(world: World) -> None:
        """A client with a volume's lease and a cached inode, that ends as if by kill -9."""
        async with trio.open_nursery() as short:
            client = MetadataClient(
                world.connect, client="k", random=random.Random(1), clock=world.clock, run_directory=str(tmp_path)
            )
            await short.start(client.run)
            await client.call(OpenVolume("v"))
            await trio.testing.wait_all_tasks_blocked()  # its subscription has arrived
            os.close(client._lock_fd)
            client._lock_fd, client._welcome = -1, None
            short.cancel_scope.cancel()

    async def main() -> None:
        world = World(str(tmp_path))
        world.options |= {
            "proof_of_death": lifelock.prover(str(tmp_path)),
            "bury": lifelock.burier(str(tmp_path)),
        }
        async with trio.open_nursery() as nursery:
            writer = MetadataClient(world.connect, client="w", random=random.Random(2), clock=world.clock)

            async def take_the_lease() -> VolumeState:
                began = trio.current_time()
                while True:
                    try:
                        (state,) = await writer.call(OpenVolume("v"))
                        return state
                    except MetadataError as error:
                        assert error.code == "EBUSY" and trio.current_time() - began < 1, error
                        await trio.sleep(0.01)

            async with world.serving():
                await nursery.start(writer.run)
                (info,) = await writer.call(CreateVolume("v", 1 << 20))
                await killed(world)
                state = await take_the_lease()
                await writer.call(CloseVolume(info.id, state.lease))
                await killed(world)
            async with world.serving():  # the same, with a server that starts
                await take_the_lease()
            assert not list((tmp_path / "run" / "sessions").iterdir())
            nursery.cancel_scope.cancel()

    run(main)


def test_a_question_in_flight_when_its_session_ends_leaves_no_lease_behind() -> None:
    """Nobody would give it back: a change of that inode would wait for ever."""

    async def main() -> None:
        async with memory_metadata() as (server, connect), memory_client(connect, seed=2) as writer:
            async with memory_client(connect, seed=1) as reader:
                ino = await make(reader)
                await reader.ask(GetAttr(ino, lease=1))
                session = server.sessions.get(reader.session)
                needed = server.leases.to_recall(writer.session, [(ino, b"")])
                assert needed
                await server.end_session(session.id, "it was killed")
                with pytest.raises(MetadataError):
                    await server._hold(session, ObjectInfo(b"k", ino, 1, 1, "", 0))
                assert server.writer._db.execute("SELECT count(*) FROM held").fetchall() == [(0,)]
                await server._ask(session, GetAttr(ino, lease=1))  # its handler runs to its end
                assert not server.leases.has_any(session.id)
                with trio.fail_after(1):
                    await server.recalls.recall(needed)  # was about to be sent
                    await writer.call(SetAttr(ino, mode=0o600))

    run(main)


def test_a_goodbye_ends_at_once_and_drops_what_was_held() -> None:
    async def main() -> None:
        async with memory_metadata() as (server, connect):
            async with memory_client(connect) as client:
                await make(client)
                await client.call(Unlink(ROOT_INO, b"x", hold=True))
                assert server.writer._db.execute("SELECT count(*) FROM held").fetchall() == [(1,)]
            for table in ("held", "slots", "sessions"):
                assert server.writer._db.execute(f"SELECT count(*) FROM {table}").fetchall() == [(0,)]
            assert server.writer._db.execute("SELECT count(*) FROM inodes").fetchall() == [(1,)]

    run(main)


def test_a_call_given_up_does_not_block_its_slot() -> None:
    async def main() -> None:
        async with memory_metadata() as (_server, connect), memory_client(connect, slots=1) as client:
            for i in range(200):
                with trio.move_on_after(0) as scope:
                    await make(client, b"maybe%d" % i)
                assert scope.cancelled_caught
            await make(client, b"after")
            with pytest.raises(MetadataError):
                await make(client, b"after")

    run(main)


class Reluctant:
    """A connection whose requests cannot be cancelled at once."""

    local = False

    def __init__(self, connection: Connection, rng: random.Random) -> None:
        self._connection, self._rng = connection, rng

    async def request(self, service: Service, body: bytes, payload: Any = b"") -> Any:
        try:
            return await self._connection.request(service, body, payload)
        finally:
            with trio.CancelScope(shield=True):
                for _ in range(self._rng.randrange(8)):
                    await trio.lowlevel.checkpoint()

    def subscribe(self, service: Service, body: bytes) -> Any:
        return self._connection.subscribe(service, body)

    async def aclose(self) -> None:
        await self._connection.aclose()


def test_a_client_that_stops_with_calls_under_way_stops_quietly() -> None:
    """Calls and the client's own tasks are cancelled together and end in any order."""

    async def schedule(seed: int, rng: random.Random) -> None:
        async with memory_metadata() as (_server, connect):

            async def reluctant() -> Any:
                return Reluctant(await connect(), rng)

            async def work(lane: int) -> None:
                for i in range(1000):
                    await make(client, b"%d-%d" % (lane, i))

            client = MetadataClient(reluctant, client="c", random=rng, clock=TrioClock())
            async with trio.open_nursery() as nursery:
                await nursery.start(client.run)
                for lane in range(6):
                    nursery.start_soon(work, lane)
                for _ in range(rng.randrange(40)):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()

    run_schedules(schedule, 20)


class Slow(Reluctant):
    """A server that takes a tenth of a second, as a loaded machine does."""

    async def request(self, service: Service, body: bytes, payload: Any = b"") -> Any:
        await trio.sleep(0.1)
        return await self._connection.request(service, body, payload)


def test_a_slow_server_keeps_sessions_whose_leases_have_lapsed() -> None:
    """After T/2 without an answer a heartbeat has as much time as any other."""

    async def main() -> None:
        async with memory_metadata() as (_server, connect), trio.open_nursery() as nursery:
            away = trio.current_time() + 15

            async def slow() -> Any:
                if trio.current_time() < away:
                    raise Unavailable("it is starting")
                return Slow(await connect(), random.Random(1))

            client = MetadataClient(slow, client="c", random=random.Random(1), clock=TrioClock())
            await nursery.start(client.run)  # its Hello was first sent 15 s ago
            session = client.session
            await trio.sleep(60)
            assert client.session == session and client.leases_usable()
            client._incarnation = b"of a server's earlier life"
            await trio.sleep(60)
            assert client.session == session and client.leases_usable()
            nursery.cancel_scope.cancel()

    run(main)
