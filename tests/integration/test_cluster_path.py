"""Root and log over real directories, threads, nodes and Unix sockets: the whole way that metadata's log takes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from tests.fakes.cluster import real_nodes
from trivium.cluster.errors import Unavailable
from trivium.cluster.log import LogParts
from trivium.cluster.logfile import NO_HASH, LogRecord
from trivium.cluster.logplan import LogOwner, choose_drives
from trivium.cluster.model import Root
from trivium.cluster.root import DriveRegister, RootChain
from trivium.cluster.router import Router
from trivium.cluster.takeover import takeover
from trivium.cluster.transport.interface import Connection
from trivium.cluster.transport.memory import MemoryServer
from trivium.cluster.transport.unix import UnixConnection, UnixServer
from trivium.cluster.wire import Ping


@pytest.mark.parametrize("transport", ["memory", "unix"])
def test_a_cluster_starts_from_its_drives_twice(tmp_path: Path, transport: str) -> None:
    async def main() -> None:
        with trio.fail_after(30):
            async with real_nodes(tmp_path, 4, nodes=2) as fakes:
                first = True
                for _ in range(3):
                    async with trio.open_nursery() as nursery:
                        ways: dict[bytes, Connection] = {}
                        for number, (node_id, node) in enumerate(fakes.nodes.items()):
                            if transport == "unix":
                                path = str(tmp_path / f"n{number}.sock")
                                await nursery.start(UnixServer(path).serve, node.handle)
                                ways[node_id] = UnixConnection(path)
                            else:
                                server = MemoryServer()
                                await nursery.start(server.serve, node.handle)
                                ways[node_id] = server.connect()
                        await one_life(fakes.map(), fakes.drives, ways, first)
                        nursery.cancel_scope.cancel()
                    first = False

    async def one_life(cluster_map, drives, ways, first: bool) -> None:  # type: ignore[no-untyped-def]
        async def connect(node: bytes) -> Connection:
            if node not in ways:
                raise Unavailable("no such node")
            return ways[node]

        router = Router(connect)
        router.update(cluster_map)
        rng = random.Random()
        register = DriveRegister(router, drives, rng.randbytes(16))
        if first:
            await register.form(Root(cluster_map, drives[:3], (), ()))
        else:
            await register.claim()

        def choose(segment: bytes, avoid: frozenset[bytes]) -> tuple[bytes, ...]:
            return choose_drives(cluster_map, drives, 3, segment, avoid)

        parts = LogParts(router, RootChain(register), LogOwner(1, bytes(16)), choose, rng)
        async with trio.open_nursery() as nursery:
            writer = await takeover(parts)
            await nursery.start(writer.run)
            before = writer.last_seq
            assert (before == 0) == first
            for number in range(20):
                payload = f"{before + number + 1}".encode() * 1000
                await writer.append([LogRecord(0, 1, 1, 0, 0, NO_HASH, payload)])
            got = [bytes(record.payload) async for record in writer.read(1)]
            assert got == [f"{seq}".encode() * 1000 for seq in range(1, before + 21)]
            assert await register.confirm()
            await register.release(await writer.close(change_chain=False))
            nursery.cancel_scope.cancel()
        assert (await router.call(drives[0], Ping())).answer.drives  # type: ignore[union-attr]
        assert router.is_up(drives[0]) and router.is_local(drives[0])
        router.update(cluster_map, down=drives[:1])
        assert not router.is_up(drives[0])
        with pytest.raises(Unavailable, match="no node is known"):
            await router.call(b"unknown", Ping())
        await router.aclose()

    trio.run(main)
