"""Puts and gets of 4+2 chunks on real drives in a temporary directory, as ratios to the codec and the raw disk.

python -m bench.chunks DIR          prints one JSON object
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import trio

from trivium.cluster.chunks import Chunks, PieceData
from trivium.cluster.clock import ThreadExecutor
from trivium.cluster.erasure import codec_for
from trivium.cluster.files import RealFiles
from trivium.cluster.model import ClusterMap, DriveRow, Group, NodeRow, Placed, PoolRow, Profile, Ref
from trivium.cluster.node import Node
from trivium.cluster.placement import propose_group
from trivium.cluster.router import Router
from trivium.cluster.store import Store
from trivium.cluster.transport.memory import MemoryServer

CLUSTER, NODE, OWNER = b"C" * 16, b"N" * 16, b"o" * 16
MIB = 1 << 20


class BenchCatalog:
    """The smallest catalog: one session, eight groups, rows of what was put."""

    session = 1

    def __init__(self, cluster_map: ClusterMap) -> None:
        self._map, self._counter = cluster_map, 0
        self._groups: list[Group] = []
        up = {row.id for row in cluster_map.drives}
        for number in range(8):
            group = propose_group(cluster_map, cluster_map.pools[0], up, number + 1, self._groups)
            assert group is not None
            self._groups.append(group)
        self.rows: dict[object, Placed] = {}

    def map(self) -> ClusterMap:
        return self._map

    def next_counter(self) -> int:
        self._counter += 1
        return self._counter

    def settle(self, chunk: object) -> None: ...

    def give_up(self, chunk: object) -> None: ...

    def open_groups(self, pool: int) -> tuple[Group, ...]:
        return tuple(self._groups)

    async def offer(self, pool: int, without: frozenset[bytes] = frozenset()) -> Group:
        return self._groups[0]

    async def locate(self, chunks: tuple[object, ...], *, fresh: bool = False) -> tuple[Placed | None, ...]:
        return tuple(self.rows.get(chunk) for chunk in chunks)

    async def report(self, chunk: object, index: int, drive: bytes, what: str) -> None:
        raise AssertionError(f"{what}: shard {index} of {chunk}")


async def rate(
    count: int, depth: int, work: Callable[[int], Awaitable[None]], seconds: float = 2.0
) -> tuple[float, float]:
    """(calls per second, CPU seconds per call) of up to `count` calls, `depth` at a time, for some seconds."""
    numbers = iter(range(count))
    done = 0
    began, cpu = time.perf_counter(), time.process_time()

    async def worker() -> None:
        nonlocal done
        for number in numbers:
            await work(number)
            done += 1
            if time.perf_counter() - began > seconds:
                return

    async with trio.open_nursery() as nursery:
        for _ in range(depth):
            nursery.start_soon(worker)
    return done / (time.perf_counter() - began), (time.process_time() - cpu) / max(done, 1)


def raw_disk(folder: Path, size: int, count: int) -> float:
    """MB/s of `count` files of `size`, written and synced by six threads' worth of files one after another."""
    data = os.urandom(size)
    began = time.perf_counter()
    for number in range(count):
        fd = os.open(folder / f"raw{number}", os.O_CREAT | os.O_WRONLY)
        os.write(fd, data)
        os.fdatasync(fd)
        os.close(fd)
    elapsed = time.perf_counter() - began
    for number in range(count):
        os.unlink(folder / f"raw{number}")
    return size * count / elapsed / 1e6


async def bench(folder: Path) -> dict[str, float]:
    files, executor = RealFiles(), ThreadExecutor(16)
    rows = []
    for number in range(6):
        drive = b"drive" + number.to_bytes(11, "big")
        Store.format(files, str(folder / f"d{number}"), cluster=CLUSTER, drive=drive)
        rows.append(DriveRow(drive, f"d{number}", NODE, "h", 1.0))
    stores = [Store.open(files, str(folder / row.name), cluster=CLUSTER) for row in rows]
    node = Node(NODE, stores, files=files, executor=executor, cluster=CLUSTER)
    cluster_map = ClusterMap(1, tuple(rows), (NodeRow(NODE, "n"),), (PoolRow(1, "p", 4, 2),))
    catalog = BenchCatalog(cluster_map)
    server = MemoryServer()

    async def connect(_: bytes):  # type: ignore[no-untyped-def]
        return server.connect()

    router = Router(connect)
    router.update(cluster_map)
    results: dict[str, float] = {}
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, node.handle)
        chunks = Chunks(catalog, router, cluster=CLUSTER, random=random.SystemRandom(), executor=executor)
        nursery.start_soon(chunks.run)
        results |= await measure(chunks, router, cluster_map)
        nursery.cancel_scope.cancel()
    chunks.close()
    for store in stores:
        store.close()
    return results


async def measure(chunks: Chunks, router: Router, cluster_map: ClusterMap) -> dict[str, float]:
    results: dict[str, float] = {}
    refs: dict[int, list[Ref]] = {}
    for size, depths in ((4 * MIB, (1, 4)), (64 * 1024, (1, 8)), (4096, (1, 32))):
        data = os.urandom(size)
        mine = refs[size] = []

        async def put(number: int, data: bytes = data, mine: list[Ref] = mine) -> None:
            stored = await chunks.put(1, [PieceData(OWNER, number, 1, data)])
            mine.append(stored.refs[0])
            chunks.settle(stored)

        for depth in depths:
            per_s, cpu = await rate(1000 if size < MIB else 60, depth, put)
            results[f"put_{size}_qd{depth}_per_s"] = round(per_s, 1)
            results[f"put_{size}_qd{depth}_MB_s"] = round(per_s * size / 1e6, 1)
            results[f"put_{size}_qd{depth}_cpu_ms"] = round(cpu * 1e3, 3)
    for size, mine in refs.items():

        async def get(number: int, size: int = size, mine: list[Ref] = mine) -> None:
            assert len(await chunks.get(mine[number % min(len(mine), 20)])) == size

        await rate(20, 4, get)
        for depth in (1, 4):
            per_s, cpu = await rate(100_000, depth, get, 1.0)
            results[f"get_{size}_qd{depth}_per_s"] = round(per_s, 1)
            results[f"get_{size}_qd{depth}_MB_s"] = round(per_s * size / 1e6, 1)
            results[f"get_{size}_qd{depth}_cpu_ms"] = round(cpu * 1e3, 3)
        results[f"get_{size}_m_gone_of_whole"] = await with_m_gone(
            router, cluster_map, partial(rate, 100_000, 4, get, 1.0)
        )
    return results


async def with_m_gone(
    router: Router, cluster_map: ClusterMap, work: Callable[[], Awaitable[tuple[float, float]]]
) -> float:
    """Calls per second with m drives gone as a part of those with none, by turns; the median of five."""
    ratios = []
    for turn in range(5):
        whole, _ = await work()
        gone = [row.id for row in cluster_map.drives[turn % 5 : turn % 5 + 2]]
        router.update(cluster_map, gone)
        degraded, _ = await work()
        router.update(cluster_map)
        ratios.append(degraded / whole)
    return round(sorted(ratios)[2], 2)


def codec_rate() -> float:
    codec, data = codec_for(Profile(4, 2)), os.urandom(4 * MIB)
    began = time.perf_counter()
    for _ in range(20):
        codec.encode([data], len(data))
    return 20 * len(data) / (time.perf_counter() - began) / 1e6


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="bench-chunks-", dir=sys.argv[1] if len(sys.argv) > 1 else None))
    try:
        results: dict[str, float] = {"codec_MB_s": round(codec_rate(), 1)}
        results["raw_disk_1MiB_MB_s"] = round(raw_disk(folder, MIB, 200), 1)
        results |= trio.run(bench, folder)
        results["put_4MiB_of_disk"] = round(
            max(results["put_4194304_qd1_MB_s"], results["put_4194304_qd4_MB_s"])
            * 1.5 / results["raw_disk_1MiB_MB_s"], 2
        )  # fmt: skip
        print(json.dumps(results, indent=1))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
