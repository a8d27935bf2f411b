"""Membership: silence for T is down, an answer is up again; a wrong node counts as silence; nobody is down at first."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from trivium.admin.membership import SILENT, Membership
from trivium.cluster.clock import TrioClock
from trivium.cluster.errors import Unavailable
from trivium.cluster.model import ClusterMap, DriveRow, NodeRow
from trivium.cluster.transport.interface import Connection, Peer, Reply
from trivium.cluster.transport.memory import MemoryServer
from trivium.cluster.wire import DriveReport, NodeReport, encode_node_answer

OWN, FAR = b"o" * 16, b"f" * 16
MAP = ClusterMap(
    1,
    (DriveRow(b"1" * 16, "d1", OWN, "r/a", 1.0), DriveRow(b"2" * 16, "d2", FAR, "r/b", 1.0)),
    (NodeRow(OWN, "own", ("unix:a",)), NodeRow(FAR, "far", ("unix:b",))),
)


class World:
    def __init__(self) -> None:
        self.reachable = True
        self.answers_as = FAR
        self.state = "ok"
        self.servers = {node: MemoryServer() for node in (OWN, FAR)}

    async def connect(self, node: bytes) -> Connection:
        await trio.lowlevel.checkpoint()
        if node == FAR and not self.reachable:
            raise Unavailable("away")
        return self.servers[node].connect()

    async def serve(self, node: bytes, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        drive = b"1" * 16 if node == OWN else b"2" * 16

        async def handle(peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
            if node == FAR and not self.reachable:
                raise Unavailable("away")
            name = self.answers_as if node == FAR else node
            state = self.state if node == FAR else "ok"
            return Reply(encode_node_answer(NodeReport(name, (DriveReport(drive, state, "", 100, 50, 1),))))

        await self.servers[node].serve(handle, task_status=task_status)


def test_silence_is_down_after_t_and_an_answer_is_up_again() -> None:
    async def main() -> None:
        world, heard, began = World(), trio.Event(), trio.current_time()
        watch = Membership(world.connect, OWN, TrioClock(), t_s=20)

        async def changed() -> None:
            heard.set()  # the newest event: it is replaced below

        watch.listeners.append(changed)
        async with trio.open_nursery() as nursery:
            for node in (OWN, FAR):
                await nursery.start(world.serve, node)
            watch.follow(MAP)
            await watch.refresh()
            assert watch.usable() == {b"1" * 16, b"2" * 16} and not watch.away()
            nursery.start_soon(watch.run)
            world.reachable = False
            await trio.sleep(10)
            assert not watch.down() and watch.away() == {b"2" * 16}
            heard = trio.Event()
            await heard.wait()
            assert 18 <= trio.current_time() - began <= 30
            assert watch.down() == {b"2" * 16} and watch.reports[b"2" * 16].state == SILENT
            world.reachable = True
            heard = trio.Event()
            await heard.wait()
            assert not watch.down() and not watch.away()
            world.answers_as = b"x" * 16
            await trio.sleep(40)
            assert watch.down() == {b"2" * 16}
            world.answers_as, world.state = FAR, "wiped"
            await trio.sleep(5)
            assert watch.reports[b"2" * 16].state == "wiped"
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_listener_that_waits_holds_up_neither_questions_nor_routes() -> None:
    """It writes a record, the log waits for a drive that is away, and nobody but a heartbeat could tell."""

    async def main() -> None:
        world, stuck, told = World(), trio.Event(), []
        watch = Membership(world.connect, OWN, TrioClock(), t_s=20)

        async def waits() -> None:
            stuck.set()
            await trio.sleep_forever()

        watch.on_change = lambda: told.append(watch.down())
        async with trio.open_nursery() as nursery:
            for node in (OWN, FAR):
                await nursery.start(world.serve, node)
            watch.follow(MAP)
            await watch.refresh()
            watch.listeners.append(waits)
            nursery.start_soon(watch.run)
            world.state = "wiped"
            await stuck.wait()
            world.state = "ok"
            await trio.sleep(10)
            assert told[-1] == set() and not watch.down()
            world.reachable = False
            await trio.sleep(40)
            assert told[-1] == watch.down() == {b"2" * 16}
            await watch.refresh(settle=False)  # status answers
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
