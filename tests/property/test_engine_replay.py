"""Whatever is done, in whatever batches: the log alone makes exactly the database (its logical digest)."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.fakes.engineworld import World, run_seeded
from trivium.cluster.model import ChunkId, NewChunk, Ref
from trivium.metadata.client import MetadataClient
from trivium.metadata.messages import (
    ROOT_INO,
    Body,
    CloneRange,
    CopyObject,
    Create,
    CreateBucket,
    DeleteObject,
    Extent,
    Link,
    MetadataError,
    ObjectMeta,
    PutObject,
    Rename,
    Rmdir,
    SetAttr,
    SetXattr,
    Truncate,
    Unlink,
    Write,
)

NAMES = [b"a", b"b", b"c", b"d"]
KEYS = [b"a", b"a/b", b"a//b", b"b/", b"c/d/e", b"d"]


def operation(rng: random.Random, inos: list[int], client: MetadataClient) -> tuple[list[Any], list[NewChunk]]:
    """Something that may or may not be possible just now."""
    parent, ino, name = rng.choice(inos), rng.choice(inos), rng.choice(NAMES)
    kind = rng.randrange(16)
    data = rng.randbytes(rng.randrange(1, 300))
    if kind < 4:
        return [Create(parent, name, 0o100644)], []
    if kind == 4:
        return [Create(parent, name, 0o040755)], []
    if kind == 5:
        return [Unlink(parent, name, hold=rng.random() < 0.3)], []
    if kind == 6:
        return [Rmdir(parent, name)], []
    if kind == 7:
        return [Rename(parent, name, rng.choice(inos), rng.choice(NAMES), rng.choice([0, 0, 1, 2]))], []
    if kind == 8:
        return [Link(ino, parent, name)], []
    if kind == 9:
        return [Write(ino, (Extent(rng.randrange(1000), len(data), data=data),))], []
    if kind == 10:
        group = client.open_groups(1)[0]
        chunk = ChunkId(client.session, client.next_counter())
        new = NewChunk(chunk, b"n" * 16, group.id, group.digest, 5000, rng.choice([0, 0, 1]))
        return [Create(parent, name, 0o100644, exclusive=False), Write(0, (Extent(0, 5000, Ref(chunk, 0, 5000)),))], [
            new
        ]
    if kind == 11:
        return [Truncate(ino, rng.randrange(3000)), SetAttr(ino, mode=rng.randrange(0o777))], []
    if kind == 12:
        return [SetXattr(ino, b"user." + name, data), CloneRange(ino, 0, rng.choice(inos), 100, 200)], []
    bucket, key = rng.choice([b"bucket", b"other"]), rng.choice(KEYS)
    if kind == 13:
        return [PutObject(bucket, key, Body(len(data), data), "etag", ObjectMeta())], []
    if kind == 14:
        return [DeleteObject(bucket, key)], []
    return [CopyObject(bucket, key, b"other", rng.choice(KEYS))], []


@pytest.mark.parametrize("seed", range(10))
def test_the_log_alone_makes_the_database(seed: int, tmp_path: Path) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    counts = {"done": 0, "refused": 0}

    async def work(client: MetadataClient, inos: list[int]) -> None:
        for _ in range(80):
            operations, chunks = operation(rng, inos, client)
            try:
                values = await client.call(*operations, chunks=chunks)
            except MetadataError:
                counts["refused"] += 1
                continue
            counts["done"] += 1
            if isinstance(operations[0], Create):
                inos.append(values[0].attr.ino)

    async def main() -> None:
        world = World(str(tmp_path), seed)
        async with world.serving(), trio.open_nursery() as life:
            clients = [
                MetadataClient(world.connect, client=str(i), random=random.Random(i), clock=world.clock)
                for i in range(3)
            ]
            for client in clients:
                await life.start(client.run)
            inos = [ROOT_INO]
            for bucket in (b"bucket", b"other"):
                (info,) = await clients[0].call(CreateBucket(bucket, "root"))
                inos.append(info.ino)
            async with trio.open_nursery() as workers:
                for client in clients:
                    workers.start_soon(work, client, inos)
            life.cancel_scope.cancel()
        await world.check_replay(str(tmp_path))
        assert counts["done"] > 40 and counts["refused"] > 5

    run_seeded(main, seed)
