"""Two mounts against one bytearray: what was closed or synced here is what is read there, whatever was cached.

Each step is done by one mount at a time; the other may hold leases, layouts and handles. A failing seed is printed by
the test's name and replays alone.
"""

from __future__ import annotations

import os
import random

import pytest
import trio
from trio.testing import MockClock

from tests.fakes.fspool import memory_pool
from trivium.fs.filesystem import Caller, Filesystem
from trivium.metadata.messages import ROOT_INO

ROOT = Caller(0, 0)
MIB = 1 << 20


class Model:
    """One file as both mounts must see it; a mount's unsent writes are laid over it for that mount only."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, offset: int, data: bytes) -> None:
        if offset > len(self.data):
            self.data += bytes(offset - len(self.data))
        self.data[offset : offset + len(data)] = data

    def truncate(self, size: int) -> None:
        del self.data[size:]
        self.data += bytes(size - len(self.data))


class Mount:
    def __init__(self, fs: Filesystem, ino: int) -> None:
        self.fs, self.ino = fs, ino
        self.fh = self.append = 0

    async def open(self) -> None:
        self.fh = (await self.fs.open(self.ino, os.O_RDWR, ROOT))[0].fh
        self.append = (await self.fs.open(self.ino, os.O_WRONLY | os.O_APPEND, ROOT))[0].fh

    async def reopen(self) -> None:
        await self.flush()
        await self.fs.release(self.fh)
        await self.fs.release(self.append)
        await self.open()

    async def flush(self) -> None:
        await self.fs.contents.flush(self.fh)

    async def read(self, offset: int, length: int) -> bytes:
        return bytes(await self.fs.contents.read(self.fh, offset, length))


async def steps(rng: random.Random, mounts: list[Mount], model: Model, count: int) -> None:
    scale = rng.choice((200, 20_000, 6 * MIB))
    for _ in range(count):
        mount = rng.choice(mounts)
        size = len(model.data)
        what = rng.choices(
            ("write", "append", "truncate", "read", "wait", "reopen", "hole"), (40, 15, 8, 30, 4, 6, 3)
        )[0]
        if what == "write":
            for _ in range(rng.randrange(1, 5)):
                offset = rng.randrange(0, max(1, size + scale // 10)) + rng.choice((0, 0, 0, scale))
                data = rng.randbytes(rng.randrange(1, scale))
                await mount.fs.contents.write(mount.fh, offset, data)
                model.write(offset, data)
        elif what == "append":
            for _ in range(rng.randrange(1, 4)):
                data = rng.randbytes(rng.randrange(1, min(scale, MIB)))
                await mount.fs.contents.write(mount.append, 0, data)
                model.write(len(model.data), data)
        elif what == "truncate":
            new = rng.randrange(0, size + scale // 10 + 1)
            await mount.fs.setattr(mount.ino, ROOT, size=new)
            model.truncate(new)
        elif what == "hole" and size:
            offset = rng.randrange(size)
            length = rng.randrange(1, size - offset + 1)
            await mount.fs.contents.allocate(mount.fh, 3, offset, length)
            model.write(offset, bytes(length))
        elif what == "wait":
            await trio.sleep(rng.random() * 3)
        elif what == "reopen":
            await mount.reopen()
        offset = rng.randrange(0, len(model.data) + 10)
        length = rng.choice((10, scale // 10, scale, 10 * scale))
        want = bytes(model.data[offset : offset + length])
        assert await mount.read(offset, length) == want, "what this mount wrote"
        assert mount.fs.stat_of(await mount.fs.getattr(mount.ino)).size == len(model.data)
        if rng.random() < 0.8 or what in ("truncate", "hole"):
            await mount.flush()  # close-to-open: the others see it from here on
        else:
            continue_with = mount
            for _ in range(rng.randrange(3)):  # this mount goes on with unsent data
                data = rng.randbytes(rng.randrange(1, scale))
                offset = rng.randrange(0, len(model.data) + 1)
                await continue_with.fs.contents.write(continue_with.fh, offset, data)
                model.write(offset, data)
            await mount.flush()
        for other in mounts:
            offset = rng.randrange(0, len(model.data) + 10)
            assert await other.read(offset, length) == bytes(model.data[offset : offset + length])
            assert other.fs.stat_of(await other.fs.getattr(other.ino)).size == len(model.data)


@pytest.mark.parametrize("seed", range(12))
def test_two_mounts_and_a_bytearray(seed: int) -> None:
    async def main() -> None:
        async with memory_pool(seed=seed) as pool, pool.filesystem(1) as a, pool.filesystem(2) as b:
            inode, handle, _ = await a.create(ROOT_INO, b"f", 0o644, os.O_RDWR, ROOT)
            await a.release(handle.fh)
            await b.lookup(ROOT_INO, b"f")
            mounts = [Mount(a, inode.ino), Mount(b, inode.ino)]
            for mount in mounts:
                await mount.open()
            model = Model()
            await steps(random.Random(seed), mounts, model, 40)
            for mount in mounts:
                assert await mount.read(0, len(model.data) + 1) == model.data

    trio.run(main, clock=MockClock(autojump_threshold=0))
