"""Chunks on real directories, in threads, over Unix sockets: descriptors are passed and reads verified from them."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.fakes.catalog import FakeCatalog
from tests.fakes.cluster import CLUSTER, FakeNodes, real_nodes
from tests.fakes.pool import OWNER
from trivium.cluster.chunks import Chunks, PieceData, Stored
from trivium.cluster.clock import ThreadExecutor
from trivium.cluster.model import Ref
from trivium.cluster.router import Router
from trivium.cluster.transport.interface import Connection
from trivium.cluster.transport.unix import UnixConnection, UnixServer


@asynccontextmanager
async def sockets(folder: Path, drives: FakeNodes) -> AsyncIterator[Router]:
    paths = {node: str(folder / f"{number}.sock") for number, node in enumerate(drives.nodes)}

    async def connect(node: bytes) -> Connection:
        return UnixConnection(paths[node])

    router = Router(connect)
    router.update(drives.map())
    async with trio.open_nursery() as nursery:
        for node, path in paths.items():
            await nursery.start(UnixServer(path).serve, drives.nodes[node].handle)
        yield router
        await router.aclose()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("hosts", [1, 3])
def test_put_get_damage_get(tmp_path: Path, hosts: int) -> None:
    async def main() -> None:
        async with real_nodes(tmp_path, 6, nodes=hosts) as drives, sockets(tmp_path, drives) as router:
            catalog = FakeCatalog(drives.map())
            executor = ThreadExecutor(8)
            chunks = Chunks(catalog, router, cluster=CLUSTER, random=random.SystemRandom(), executor=executor)
            stored: dict[bytes, Stored] = {}

            async def put(size: int) -> None:
                data = os.urandom(size)
                one = await chunks.put(1, [PieceData(OWNER, 0, 1, data)])
                catalog.commit(one)
                chunks.settle(one)
                stored[data] = one

            async with trio.open_nursery() as nursery:
                nursery.start_soon(chunks.run)
                async with trio.open_nursery() as clients:
                    for size in (1, 5000, 70_000, 300_000, 3_000_000, 4 << 20):
                        clients.start_soon(put, size)
                for turn in range(3):  # cold, from descriptors in the page cache, with two drives' files gone
                    if turn == 2:
                        chunks.close()
                        for number in (1, 4):
                            for file in (tmp_path / f"d{number}" / "chunks").rglob("*.*"):
                                file.unlink()
                    for data, one in stored.items():
                        ref = one.refs[0]
                        assert await chunks.get(ref) == data
                        half = Ref(ref.chunk, ref.offset + len(data) // 2, len(data) - len(data) // 2)
                        assert await chunks.get(half) == data[len(data) // 2 :]
                nursery.cancel_scope.cancel()
            assert len(catalog.settled) == len({one.chunks[0].chunk for one in stored.values()})
            chunks.close()

    trio.run(main)
    assert not any("chunks/" in os.readlink(f"/proc/self/fd/{fd}") for fd in _fds())


def _fds() -> list[str]:
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")]
