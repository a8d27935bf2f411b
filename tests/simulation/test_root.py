"""The root register under competing candidates, partitions, power loss, rot and changes of its list.

Each successful write appends a name to a list kept in the value. Linearizable means: every list ever answered is a
prefix of every list answered by a call that began later (or equal), no name twice, none of an answered write missing.
"""

from __future__ import annotations

import random

import msgspec
import trio

from tests.fakes.cluster import sim_nodes
from tests.fakes.simdisk import SimFiles
from tests.simulation.runner import run_schedules
from tests.simulation.test_log import Wire
from trivium.cluster.errors import ClusterError, Fenced, Refused, Unavailable
from trivium.cluster.model import Leader, Root, RootSlot
from trivium.cluster.root import DriveRegister
from trivium.cluster.rootfile import HEAD_SIZE, SLOT_SIZE


def names(slot: RootSlot) -> list[str]:
    assert slot.root is not None and slot.root.leader is not None
    return slot.root.leader.address.split()


class World:
    def __init__(self, seed: int, rng: random.Random) -> None:
        self.rng = rng
        self.files = SimFiles(seed)
        self.nodes = sim_nodes(6, nodes=6, files=self.files)
        self.newest: list[str] = []  # of every answer so far
        self.rotten: bytes | None = None
        self.writes = 0

    def answered(self, floor: list[str], slot: RootSlot) -> None:
        """`floor` was the newest answer when the call began."""
        got = names(slot)
        assert len(set(got)) == len(got), f"a write happened twice: {got}"
        assert got[: len(floor)] == floor, f"an answered write is gone: {floor} then {got}"
        short, long = sorted((got, self.newest), key=len)
        assert long[: len(short)] == short, f"two histories: {got} and {self.newest}"
        self.newest = long

    async def candidate(self, number: int) -> None:
        rng = self.rng
        while True:
            await trio.sleep(rng.random() * rng.choice((0.3, 5)))
            wire = Wire(self.nodes, rng, rng.choice((0, 0.02, 0.1, 0.4)))
            wire.cut = set(rng.sample(self.nodes.drives, rng.randrange(3)))
            starter = rng.getrandbits(128).to_bytes(16, "little")
            register = DriveRegister(wire, self.nodes.drives, starter, attempt_s=1.0, patience_s=2.0)
            with trio.move_on_after(rng.random() * 15):  # dies at any await
                try:
                    floor = list(self.newest)
                    self.answered(floor, await register.claim())
                    pause_s = rng.choice((0.05, 1))
                    for count in range(10):
                        await self.write(register, f"{number}.{self.writes}.{count}")
                        await trio.sleep(rng.random() * pause_s)
                        wire.cut = set(rng.sample(self.nodes.drives, rng.randrange(3)))
                except (Fenced, Unavailable):
                    pass

    async def write(self, register: DriveRegister, name: str) -> None:
        self.writes += 1
        floor = list(self.newest)
        try:
            slot = await register.change(lambda root: self.edit(root, name))
        except Refused:
            return
        assert names(slot)[-1] == name
        self.answered(floor, slot)

    def edit(self, root: Root, name: str) -> Root:
        assert root.leader is not None
        leader = msgspec.structs.replace(root.leader, address=f"{root.leader.address} {name}")
        drives = list(root.root_drives)
        spare = [drive for drive in self.nodes.drives if drive not in drives and drive != self.rotten]
        dice = self.rng.random()
        if dice < 0.3 and spare:
            drives[self.rng.randrange(len(drives))] = self.rng.choice(spare)
        elif dice < 0.4 and spare:
            drives.append(self.rng.choice(spare))
        elif dice < 0.5 and len(drives) > 3:
            drives.pop(self.rng.randrange(len(drives)))
        return msgspec.structs.replace(root, leader=leader, root_drives=tuple(drives))

    def rot(self) -> None:
        """One drive's root file does not verify any more: it must not vote as if it were blank."""
        if self.rotten is None:
            self.rotten = self.rng.choice(self.nodes.drives)
            self.nodes.stop()
            for slot in (0, 1):
                self.files.flip(self.nodes.paths[self.rotten] + "/root", HEAD_SIZE + slot * SLOT_SIZE + 20)
            self.nodes.start()


async def schedule(seed: int, rng: random.Random) -> None:
    world = World(seed, rng)
    async with world.nodes, trio.open_nursery() as nursery:
        first = DriveRegister(world.nodes, world.nodes.drives, bytes(16))
        voters = world.nodes.drives[: rng.choice((3, 5))]
        world.answered([], await first.form(Root(world.nodes.map(), voters, (), (), Leader(bytes(16), "form", ""))))
        for number in range(3):
            nursery.start_soon(world.candidate, number)
        hurry = rng.choice((0.1, 0.5, 4))  # how soon the weather turns: between the phases of one claim, or seldom
        for _ in range(15 if hurry == 4 else 60):
            await trio.sleep(rng.random() * hurry)
            dice = rng.random()
            if dice < 0.3:
                world.nodes.crash()
            elif dice < 0.6:
                world.nodes.down = set(rng.sample(world.nodes.drives, rng.randrange(4)))
            elif dice < 0.65:
                world.rot()
        nursery.cancel_scope.cancel()
    world.nodes.start()
    world.nodes.down = set()
    last = DriveRegister(world.nodes, world.nodes.drives, b"z" * 16)
    floor = list(world.newest)
    try:
        world.answered(floor, await last.claim())
    except ClusterError:
        assert (
            world.rotten is not None
        )  # a rotten voter and a half-done change may leave no majority: refused, never wrong
    world.nodes.stop()


def test_the_register_is_linearizable() -> None:
    run_schedules(schedule, count=40)
