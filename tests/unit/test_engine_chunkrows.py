"""What a commit must prove about its chunks, and the groups that it may name (attacks 7, 32, 35, 48, 50, 52)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from tests.fakes.metadata import memory_client, memory_map, memory_metadata
from trivium.cluster.errors import NoSpace
from trivium.cluster.model import ChunkId, Group, NewChunk, Ref
from trivium.metadata import maprows
from trivium.metadata.client import MetadataClient
from trivium.metadata.messages import ROOT_INO, Create, Extent, Locate, MetadataError, Unlink, Write
from trivium.metadata.schema import ALL_TABLES, CHUNK_COLUMNS
from trivium.metadata.server import MetadataServer
from trivium.metadata.tx import Tx

Main = Callable[[MetadataServer, MetadataClient], Awaitable[None]]
replace = msgspec.structs.replace
SIZE = 100_000


def run(main: Main, drives: int = 6) -> None:
    async def outer() -> None:
        async with memory_metadata(cluster_map=memory_map(drives)) as (server, connect):
            async with memory_client(connect) as client:
                await main(server, client)

    trio.run(outer, clock=trio.testing.MockClock(autojump_threshold=0))


def chunk_of(client: MetadataClient, on: Group | None = None, **changes: Any) -> NewChunk:
    group = on or client.open_groups(1)[0]
    chunk = ChunkId(client.session, client.next_counter())
    return replace(NewChunk(chunk, b"n" * 16, group.id, group.digest, SIZE, 0), **changes)


async def commit(client: MetadataClient, new: NewChunk, name: bytes, *, introduce: bool = True) -> None:
    extent = Extent(0, SIZE, Ref(new.chunk, 0, SIZE))
    chunks = (new,) if introduce else ()
    await client.call(Create(ROOT_INO, name, 0o100644), Write(0, (extent,), SIZE), chunks=chunks)


async def refused(client: MetadataClient, new: NewChunk, code: str = "CHUNK_REFUSED", **options: bool) -> None:
    with pytest.raises(MetadataError) as caught:
        await commit(client, new, b"refused", **options)
    assert caught.value.code == code
    (placed,) = await client.ask(Locate((new.chunk,)))
    assert placed is None or options


async def set_reason(server: MetadataServer, name: str, reason: str) -> bytes:
    row = next(row for row in server.map.drives if row.name == name)
    await server.change_map(lambda tx: maprows.put_drive(tx, replace(row, reason=reason)))
    return row.id


def test_a_commit_stores_where_the_chunk_is() -> None:
    async def main(server: MetadataServer, client: MetadataClient) -> None:
        new = chunk_of(client, missing=1)
        await commit(client, new, b"a")
        await commit(client, new, b"b")  # a pack's second piece
        (placed,) = await client.locate((new.chunk,))
        assert placed is not None and (placed.missing, placed.nonce) == (1, new.nonce)
        assert placed.group.digest == new.group_digest

    run(main)


def test_shards_on_drives_that_are_out_count_as_missing() -> None:
    async def main(server: MetadataServer, client: MetadataClient) -> None:
        group = client.open_groups(1)[0]
        out = await set_reason(server, "d2", "out")
        new = chunk_of(client, group)
        await commit(client, new, b"a")
        (placed,) = await client.locate((new.chunk,))
        assert placed is not None and placed.missing == 1 << group.drives.index(out)
        other = 1 << next(i for i, drive in enumerate(group.drives) if drive != out)
        await refused(client, chunk_of(client, group, missing=other))  # 4 of 4+2 left: fewer than k+1
        assert all(out not in group.drives for group in server.groups.offered())

    run(main)


def test_draining_drives_count_as_present() -> None:
    async def main(server: MetadataServer, client: MetadataClient) -> None:
        group = client.open_groups(1)[0]
        for name in ("d1", "d2"):
            await set_reason(server, name, "draining")
        await commit(client, chunk_of(client, group), b"a")

    run(main)


def test_a_narrow_group_must_be_whole() -> None:
    async def main(server: MetadataServer, client: MetadataClient) -> None:
        group = client.open_groups(1)[0]
        assert (group.k, group.m) == (2, 2)
        await refused(client, chunk_of(client, group, missing=1))
        await commit(client, chunk_of(client, group), b"a")

    run(main, drives=4)


@pytest.mark.parametrize("changes", [{"group": 9_999}, {"group_digest": b"x" * 16}, {"group": 2}])
def test_group_number_and_drives_must_agree(changes: dict[str, Any]) -> None:
    async def main(server: MetadataServer, client: MetadataClient) -> None:
        await refused(client, chunk_of(client, client.open_groups(1)[0], **changes))

    run(main)


def test_ids_of_other_sessions_below_the_floor_or_queued_are_refused() -> None:
    async def main(server: MetadataServer, client: MetadataClient) -> None:
        new = chunk_of(client)
        await refused(client, replace(new, chunk=ChunkId(client.session + 1, 1)), "EPERM")
        client.settle(new.chunk)
        later = chunk_of(client)
        await trio.sleep(5)  # a heartbeat carries the floor
        await refused(client, new)

        def queue(tx: Tx) -> None:
            tx.run(
                "INSERT INTO queue VALUES (1, ?, ?, ?, x'', x'', 0)",
                *(later.chunk.session, later.chunk.counter, tx.seq),
            )

        await server.writer.do(queue)
        await refused(client, later)

    run(main)


def test_a_chunk_that_is_not_introduced_must_have_references() -> None:
    async def main(server: MetadataServer, client: MetadataClient) -> None:
        new = chunk_of(client)
        await refused(client, new, introduce=False)
        await commit(client, new, b"a")
        await commit(client, new, b"b", introduce=False)
        await client.call(Unlink(ROOT_INO, b"a"))
        await client.call(Unlink(ROOT_INO, b"b"))
        await refused(client, new, introduce=False)

    run(main)


def test_an_offer_avoids_drives_and_closes_their_groups() -> None:
    async def main(server: MetadataServer, client: MetadataClient) -> None:
        dead = client.open_groups(1)[0].drives[0]
        group = await client.offer(1, frozenset({dead}))
        assert dead not in group.drives and (group.k, group.m) == (3, 2)
        await commit(client, chunk_of(client, group), b"a")
        for row in server.map.drives:
            if row.name != "d0":
                await set_reason(server, row.name, "out")
        with pytest.raises(NoSpace):
            await client.offer(1)

    run(main)


def test_what_is_offered_has_a_row() -> None:
    async def main(server: MetadataServer, client: MetadataClient) -> None:
        for _ in range(5):
            group = await client.offer(1, frozenset({client.open_groups(1)[0].drives[0]}))
            rows = server.writer._db.execute("SELECT drives FROM groups WHERE id = ?", (group.id,)).fetchall()
            assert rows == [(b"".join(group.drives),)]

    run(main)


def test_every_column_that_names_a_chunk_is_listed() -> None:
    """Attack 55: a pair of columns that end in session and counter is in CHUNK_COLUMNS, or is the chunk itself."""
    itself = {("chunks", "session", "counter"), ("queue", "session", "counter")}
    found: set[tuple[str, str, str]] = set()
    for statement in ALL_TABLES.split("CREATE TABLE ")[1:]:
        table = statement.split()[0]
        columns = [line.split()[0] for line in statement.splitlines()[1:] if line.startswith("  ")]
        for column in columns:
            if column.endswith("counter"):
                found.add((table, column.replace("counter", "session"), column))
    assert found - itself == set(CHUNK_COLUMNS)
