"""Healing one drive against what disk and codec allow, and what clients feel meanwhile. Real drives, no processes.

Per shard that healing rebuilds it reads k and writes one. What the machine allows for that, measured in the same run:
`limit` = bytes read and written / (their cached read + codec rebuild + durable write, one after another); the steps are
given for the same bytes. Clients: 4 KiB and 1 MiB puts, alone and while healing is held to its floor.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import trio

from bench.chunks import CLUSTER, MIB, NODE, OWNER, BenchCatalog
from trivium.cluster.chunks import Chunks, PieceData
from trivium.cluster.clock import ThreadExecutor
from trivium.cluster.erasure import codec_for
from trivium.cluster.files import RealFiles
from trivium.cluster.model import ClusterMap, DriveRow, Group, NodeRow, Placed, PoolRow, Profile
from trivium.cluster.mover import Mover
from trivium.cluster.node import Node
from trivium.cluster.pacing import FLOOR_BYTES_S, Pace, Pacer, unpaced
from trivium.cluster.placement import propose_group
from trivium.cluster.router import Router
from trivium.cluster.store import Store
from trivium.cluster.transport.memory import MemoryServer
from trivium.metadata.heal import IN_FLIGHT_BYTES

CHUNKS, SIZE, K = 64, 4 * MIB, 4


class Scene:
    """Seven drives, chunks on six of them; healing rebuilds one drive's shards on the seventh."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files, self.executor = RealFiles(), ThreadExecutor(16)
        rows = []
        for number in range(7):
            drive = b"drive" + number.to_bytes(11, "big")
            Store.format(files, str(folder / f"d{number}"), cluster=CLUSTER, drive=drive)
            rows.append(DriveRow(drive, f"d{number}", NODE, "h", 1.0))
        self.spare = rows[6].id
        self.stores = [Store.open(files, str(folder / row.name), cluster=CLUSTER) for row in rows]
        self.node = Node(NODE, self.stores, files=files, executor=self.executor, cluster=CLUSTER)
        self.map = ClusterMap(1, tuple(rows), (NodeRow(NODE, "n"),), (PoolRow(1, "p", K, 2),))
        self.catalog = BenchCatalog(self.map)
        up = {row.id for row in rows[:6]}
        self.catalog._groups = []
        for number in range(8):
            group = propose_group(self.map, self.map.pools[0], up, number + 1, self.catalog._groups)
            assert group is not None
            self.catalog._groups.append(group)
        self.placed: list[Placed] = []

    async def fill(self, chunks: Chunks) -> None:
        data = random.Random(1).randbytes(SIZE)
        groups = {group.id: group for group in self.catalog._groups}
        for number in range(CHUNKS):
            stored = await chunks.put(1, [PieceData(OWNER, number, 1, data)])
            new = stored.chunks[0]
            self.placed.append(Placed(new.chunk, new.nonce, new.length, 0, 1, groups[new.group], new.kind))
            chunks.settle(stored)

    async def heal(self, router: Router, pace: Pace, plan: int, *, again: bool = False) -> float:
        """Rebuild what was on the first drive; bytes read and written per second."""
        mover = Mover(router, cluster=CLUSTER, executor=self.executor, pace=pace)
        lost = self.map.drives[0].id
        limiter = trio.CapacityLimiter(max(1, IN_FLIGHT_BYTES // SIZE))
        began, moved = time.perf_counter(), 0

        async def one(placed: Placed) -> None:
            nonlocal moved
            index = placed.group.drives.index(lost)
            drives = tuple(self.spare if drive == lost else drive for drive in placed.group.drives)
            target = Group(placed.group.id + 100, 1, K, 2, drives, placed.group.codec)
            row = Placed(placed.chunk, placed.nonce, placed.length, 1 << index, 1, placed.group, placed.kind)
            async with limiter:
                if await mover.rebuild(row, target, plan):
                    raise AssertionError("a shard was not rebuilt")
            moved += (K + 1) * (SIZE // K)

        while True:
            async with trio.open_nursery() as nursery:
                for placed in self.placed:
                    nursery.start_soon(one, placed)
            plan += 1
            if not again:
                return moved / (time.perf_counter() - began)


def allowed(folder: Path) -> dict[str, float]:
    """Bytes/s of reading k shards, rebuilding one and writing it durably, each as this machine does it alone."""
    shard, rounds = SIZE // K, 32
    codec, data = codec_for(Profile(K, 2)), os.urandom(SIZE)
    bodies = dict(enumerate(codec.encode([data], SIZE)))
    have = {index: bodies[index] for index in (1, 2, 3, 4)}
    began = time.perf_counter()
    for _ in range(rounds):
        codec.rebuild([0], have)
    rebuild_s = (time.perf_counter() - began) / rounds
    path = folder / "raw"
    path.write_bytes(data)
    began = time.perf_counter()
    for _ in range(rounds):
        path.read_bytes()
    read_s = (time.perf_counter() - began) / rounds
    began = time.perf_counter()
    for number in range(rounds):
        fd = os.open(folder / f"raw{number}", os.O_CREAT | os.O_WRONLY)
        os.write(fd, data[:shard])
        os.fdatasync(fd)
        os.close(fd)
    write_s = (time.perf_counter() - began) / rounds
    for number in range(rounds):
        (folder / f"raw{number}").unlink()
    size = (K + 1) * shard
    return {
        "codec_step_MB_s": round(size / rebuild_s / 1e6, 1),
        "write_step_MB_s": round(size / write_s / 1e6, 1),
        "limit_MB_s": round(size / (read_s + rebuild_s + write_s) / 1e6, 1),
    }


async def latencies(chunks: Chunks, seconds: float) -> dict[str, float]:
    """p99 in ms of durable puts, one client each of 4 KiB and 1 MiB."""
    found: dict[str, float] = {}

    async def client(name: str, size: int) -> None:
        data, seen, until = os.urandom(size), [], time.perf_counter() + seconds
        number = 0
        while time.perf_counter() < until:
            began = time.perf_counter()
            stored = await chunks.put(1, [PieceData(OWNER, number, 1, data)])
            seen.append(time.perf_counter() - began)
            chunks.settle(stored)
            number += 1
            await trio.sleep(0.002)
        seen.sort()
        found[name] = round(seen[min(len(seen) - 1, int(0.99 * len(seen)))] * 1e3, 2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client, "put_4k_p99_ms", 4096)
        nursery.start_soon(client, "put_1m_p99_ms", MIB)
    return found


async def bench(folder: Path, seconds: float) -> dict[str, Any]:
    scene = Scene(folder)
    server = MemoryServer()

    async def connect(_: bytes):  # type: ignore[no-untyped-def]
        return server.connect()

    router = Router(connect)
    router.update(scene.map)
    out: dict[str, Any] = {}
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, scene.node.handle)
        chunks = Chunks(scene.catalog, router, cluster=CLUSTER, random=random.SystemRandom(), executor=scene.executor)
        nursery.start_soon(chunks.run)
        await scene.fill(chunks)
        rates = []
        for turn in range(3):
            out["alone"] = allowed(folder)
            rates.append((await scene.heal(router, unpaced, 10 + turn)) / 1e6 / out["alone"]["limit_MB_s"])
            out["heal_MB_s"] = round(rates[-1] * out["alone"]["limit_MB_s"], 1)
        out["heal_of_limit"] = round(sorted(rates)[1], 2)
        quiet = await latencies(chunks, seconds)
        async with trio.open_nursery() as healing:
            pacer = Pacer(FLOOR_BYTES_S, FLOOR_BYTES_S)

            async def heal() -> None:
                await scene.heal(router, pacer, 1000, again=True)

            healing.start_soon(heal)
            busy = await latencies(chunks, seconds)
            healing.cancel_scope.cancel()
        out["clients"] = {"alone": quiet, "healing_at_floor": busy}
        out["clients"]["ratio"] = {name: round(busy[name] / quiet[name], 2) for name in quiet}
        nursery.cancel_scope.cancel()
    chunks.close()
    for store in scene.stores:
        store.close()
    return out


def measure(work: Path, seconds: float = 8.0) -> dict[str, Any]:
    folder = work / "heal"
    folder.mkdir()
    try:
        return trio.run(bench, folder, seconds)
    finally:
        shutil.rmtree(folder)
