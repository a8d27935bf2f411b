"""Open groups that have had their share make place for others, where there are drives that no open group names."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from tests.fakes.metadata import memory_client, memory_map, memory_metadata
from trivium.cluster.errors import NoSpace
from trivium.cluster.model import ChunkId, Group, NewChunk, Ref
from trivium.metadata import groups
from trivium.metadata.client import MetadataClient
from trivium.metadata.messages import ROOT_INO, Create, Extent, Write
from trivium.metadata.server import MetadataServer

SIZE = 100_000


def run(main: Callable[[MetadataServer, MetadataClient], Awaitable[None]], drives: int) -> None:
    async def outer() -> None:
        async with memory_metadata(cluster_map=memory_map(drives)) as (server, connect):
            async with memory_client(connect) as client:
                await main(server, client)

    trio.run(outer, clock=trio.testing.MockClock(autojump_threshold=0))


async def fill(client: MetadataClient, group: Group, count: int) -> None:
    for _ in range(count):
        chunk = ChunkId(client.session, client.next_counter())
        new = NewChunk(chunk, b"n" * 16, group.id, group.digest, SIZE, 0)
        extent = Extent(0, SIZE, Ref(chunk, 0, SIZE))
        name = f"{group.id}-{chunk.counter}".encode()
        await client.call(Create(ROOT_INO, name, 0o100644), Write(0, (extent,), SIZE), chunks=(new,))


def test_a_group_with_its_share_makes_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "ROTATE_CHUNKS", 3)

    async def main(server: MetadataServer, client: MetadataClient) -> None:
        first, second = server.groups.offered()[:2]
        await trio.sleep(groups.ROTATE_PAUSE_S)  # by and by all are open
        before = len(server.groups.offered())
        assert before == 17
        await fill(client, first, 3)
        await fill(client, second, 2)
        await trio.sleep(3 * groups.ROTATE_PAUSE_S)
        offered = server.groups.offered()
        assert first not in offered and second in offered and len(offered) == before
        await fill(client, second, 1)  # who was told of it before may still commit there
        await trio.sleep(3 * groups.ROTATE_PAUSE_S)
        assert second not in server.groups.offered()

    run(main, drives=100)


def test_where_all_drives_are_in_use_groups_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "ROTATE_CHUNKS", 3)

    async def main(server: MetadataServer, client: MetadataClient) -> None:
        before = server.groups.offered()
        await fill(client, before[0], 4)
        await trio.sleep(3 * groups.ROTATE_PAUSE_S)
        assert server.groups.offered() == before

    run(main, drives=6)


def test_a_commit_to_a_group_that_has_made_place_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "ROTATE_CHUNKS", 1)

    async def main(server: MetadataServer, client: MetadataClient) -> None:
        group = server.groups.offered()[0]
        await fill(client, group, 1)
        await trio.sleep(3 * groups.ROTATE_PAUSE_S)
        assert group not in server.groups.offered()
        chunk = ChunkId(client.session, client.next_counter())
        new = NewChunk(chunk, b"n" * 16, group.id, group.digest, SIZE, 0)
        await client.call(Create(ROOT_INO, b"late", 0o100644), Write(0, (Extent(0, SIZE, Ref(chunk, 0, SIZE)),), SIZE),
                          chunks=(new,))  # fmt: skip

    run(main, drives=100)
def test_drives_that_go_while_a_group_waits_for_its_record_stop_nobody() -> None:
    """The group was proposed, its record came after heartbeats of all of its drives had failed."""

    async def main(server: MetadataServer, client: MetadataClient) -> None:
        everything = frozenset(row.id for row in server.map.drives)
        without = frozenset(sorted(everything)[:2])
        looks = iter([frozenset(), frozenset(), frozenset()])
        server.groups._unfit = lambda: next(looks, everything)
        with pytest.raises(NoSpace):
            await server.groups.offer(1, without)
        server.groups._unfit = frozenset
        await client.call(Create(ROOT_INO, b"goes on", 0o100644))
        assert await server.groups.offer(1, without)

    run(main, drives=7)
