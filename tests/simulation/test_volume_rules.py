"""Named scenarios that must never happen to a volume, one by one."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.fakes.volumebackend import Client, PoolState
from trivium.cluster.model import MIB
from trivium.metadata.messages import Checkpoint, SetVolumeLog
from trivium.nbd.errors import BadRequest, Busy, Displaced, Full, ReadOnly
from trivium.nbd.leased import Tuning
from trivium.nbd.spacewatch import SPACE_MIN
from trivium.nbd.volume import Volume

BLOCK = 4096
SMALL = Tuning(segment_bytes=20 * BLOCK, checkpoint_chunks=1000, clean_min_blocks=1, clean_period_s=1e6)


def run(main: Callable[[PoolState], Awaitable[None]], size: int = 64 * BLOCK) -> None:
    pool = PoolState(random.Random(1), size=size)
    trio.run(main, pool, clock=trio.testing.MockClock(autojump_threshold=0))


@asynccontextmanager
async def serving(client: Client, **options: str) -> AsyncIterator[Volume]:
    """An open volume; at the end its process is gone (kill -9)."""
    volume = await Volume.open("v", metadata=client, chunks=client, logs=client, tuning=SMALL, **options)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        await nursery.start(volume.run)
        yield volume
        nursery.cancel_scope.cancel()


def block(n: int) -> bytes:
    return n.to_bytes(8, "little") * 512


async def fill(volume: Volume, start: int, count: int, n: int) -> None:
    for at in range(start, start + count):
        await volume.write(at * BLOCK, block(n))


async def sealed(volume: Volume) -> None:
    volume.core.close_open()
    volume.kick()
    await volume.held.until(lambda: not volume.core.full)


def test_a_displaced_writer_is_fenced_and_its_late_writes_are_never_seen() -> None:
    async def main(pool: PoolState) -> None:
        async with serving(pool.connect()) as old:
            await old.write(0, block(1))
            await old.flush()
            await old.write(BLOCK, block(2))  # accepted, not flushed
            async with serving(pool.connect(), takeover="break") as new:
                await new.write(0, block(3))
                await new.flush()
                with pytest.raises(Displaced):
                    await old.flush()
                with pytest.raises(Displaced):
                    await old.read(0, BLOCK)
                with pytest.raises(Displaced):
                    await old.checkpoint()
                assert await new.read(0, 2 * BLOCK) == block(3) + bytes(BLOCK)

    run(main)


def test_a_second_writer_is_refused_or_waits() -> None:
    async def main(pool: PoolState) -> None:
        async with serving(pool.connect()) as first:
            with pytest.raises(Busy, match="takeover"):
                async with serving(pool.connect()):
                    pass
            await first.write(0, block(1))

            async def second() -> None:
                async with serving(pool.connect(), takeover="wait") as volume:
                    assert await volume.read(0, BLOCK) == block(1)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(second)
                await trio.sleep(5)
                await first.close()

    run(main)


def test_sealed_chunks_survive_without_checkpoint_or_log() -> None:
    """Attack 1: the row of a chunk is what recovery reads."""

    async def main(pool: PoolState) -> None:
        async with serving(pool.connect()) as volume:
            await fill(volume, 0, 8, 1)
            await volume.zero(2 * BLOCK, BLOCK)
            await sealed(volume)
            await trio.sleep(1)
            assert not pool.log.records and pool.checkpoint is None
        pool.collect()
        async with serving(pool.connect(), takeover="break") as volume:
            assert await volume.read(0, 4 * BLOCK) == block(1) * 2 + bytes(BLOCK) + block(1)

    run(main)


@pytest.mark.parametrize("change", ["write", "trim"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_cleaners_copy_never_undoes_what_came_meanwhile(change: str, checkpointed: bool) -> None:
    """Attacks 4 and 29: the copy of x is stored after the guest's newer x was."""

    async def main(pool: PoolState) -> None:
        async with serving(pool.connect()) as volume:
            await fill(volume, 0, 10, 1)
            await sealed(volume)
            await fill(volume, 2, 8, 2)  # blocks 0 and 1 of the first chunk are left
            await sealed(volume)
            client_put = pool_put = None
            client = volume.held.chunks
            pool_put = client.put

            async def slow_put(*args: object, **options: object) -> object:
                stored = await pool_put(*args, **options)  # type: ignore[arg-type]
                if change == "write":
                    await volume.write(0, block(9))
                else:
                    await volume.trim(0, BLOCK)
                client.put = pool_put  # type: ignore[method-assign]
                await sealed(volume)
                if checkpointed:
                    await volume.checkpoint()
                return stored

            del client_put
            client.put = slow_put  # type: ignore[method-assign, assignment]
            assert await volume.cleaner.clean() == 1, "only block 1 is still where it was copied from"
            expected = (block(9) if change == "write" else bytes(BLOCK)) + block(1) + block(2)
            assert await volume.read(0, 3 * BLOCK) == expected
        pool.collect()
        async with serving(pool.connect(), takeover="break") as volume:
            assert await volume.read(0, 3 * BLOCK) == expected
            await volume.checkpoint()
            pool.collect()
        async with serving(pool.connect(), takeover="break") as volume:
            assert await volume.read(0, 3 * BLOCK) == expected

    run(main)


def test_what_was_logged_does_not_come_back_over_a_newer_chunk() -> None:
    """Attack 29: v1 through the log, v2 straight to a chunk."""

    async def main(pool: PoolState) -> None:
        async with serving(pool.connect()) as volume:
            await volume.write(0, block(1))
            await volume.flush()
            records = list(pool.log.records)
            await fill(volume, 0, 12, 2)
            await sealed(volume)
            await trio.sleep(0.1)
        pool.log.records[:0] = records  # the trim did not happen
        pool.log.first_seq -= len(records)
        async with serving(pool.connect(), takeover="break") as volume:
            assert await volume.read(0, BLOCK) == block(2)

    run(main)


def test_a_full_pool_refuses_writes_when_they_are_made_and_keeps_what_it_accepted() -> None:
    async def main(pool: PoolState) -> None:
        async with serving(pool.connect()) as volume:
            await fill(volume, 0, 3, 1)
            await volume.flush()
            pool.full = True
            await trio.sleep(5)
            with pytest.raises(Full):
                await volume.write(5 * BLOCK, block(2))
            await volume.trim(0, BLOCK)
            assert await volume.read(0, 2 * BLOCK) == bytes(BLOCK) + block(1)
            pool.full = False
            await trio.sleep(5)
            await volume.write(5 * BLOCK, block(3))
            await volume.flush()
        async with serving(pool.connect(), takeover="break") as volume:
            assert await volume.read(4 * BLOCK, 2 * BLOCK) == bytes(BLOCK) + block(3)

    run(main)


def test_writes_are_durable_at_once_until_the_first_flush() -> None:
    async def main(pool: PoolState) -> None:
        async with serving(pool.connect()) as volume:
            await volume.write(0, block(1))
        async with serving(pool.connect(), takeover="break") as volume:
            assert await volume.read(0, BLOCK) == block(1)
            await volume.flush()
            await volume.write(0, block(2))
            await volume.write(BLOCK, block(3))
        async with serving(pool.connect(), takeover="break") as volume:
            assert await volume.read(0, BLOCK) == block(1)

    run(main)


def test_unflushed_writes_reach_the_log_within_seconds() -> None:
    async def main(pool: PoolState) -> None:
        async with serving(pool.connect()) as volume:
            await volume.flush()
            await volume.write(0, block(1))
            await trio.sleep(3)
        async with serving(pool.connect(), takeover="break") as volume:
            assert await volume.read(0, BLOCK) == block(1)

    run(main)


def test_cleaning_and_checkpoints_give_space_back() -> None:
    async def main(pool: PoolState) -> None:
        async with serving(pool.connect()) as volume:
            await volume.flush()
            for n in range(1, 30):
                await fill(volume, (n * 7) % 40, 11, n)
            before = await volume.read(0, volume.size)
            await volume.flush()
            await sealed(volume)
            while await volume.cleaner.clean():
                pass
            await volume.checkpoint()
            pool.collect()
            assert sum(map(len, pool.chunks.values())) < 2.5 * 64 * BLOCK
            assert await volume.read(0, volume.size) == before
            await volume.trim(0, volume.size)
            await sealed(volume)
            await volume.checkpoint()
            pool.collect()
            assert sum(map(len, pool.chunks.values())) <= 3 * BLOCK
            assert pool.used == 0
            assert await volume.read(0, volume.size) == bytes(volume.size)

    run(main)


def test_a_reader_without_lease_sees_what_is_durable_and_cannot_write() -> None:
    async def main(pool: PoolState) -> None:
        async with serving(pool.connect()) as writer:
            await fill(writer, 0, 30, 1)
            await writer.flush()
            client = pool.connect()
            reader = await Volume.open("v", metadata=client, chunks=client, logs=client, tuning=SMALL, read_only=True)
            assert await reader.read(0, 30 * BLOCK) == block(1) * 30
            with pytest.raises(ReadOnly):
                await reader.write(0, block(2))
            with pytest.raises(BadRequest):
                await reader.read(reader.size - 1, 2)
            await fill(writer, 0, 1, 2)

    run(main)


def test_refused_chunks_and_an_absent_pool_are_only_delays() -> None:
    async def main(pool: PoolState) -> None:
        async with serving(pool.connect()) as volume:
            await volume.flush()
            pool.refuse_chunks, pool.away = 3, 5
            await fill(volume, 0, 40, 4)
            await volume.flush()
            pool.refuse_chunks = 1
            await volume.checkpoint()
            await volume.close()
        async with serving(pool.connect()) as volume:
            assert await volume.read(0, 40 * BLOCK) == block(4) * 40
        assert [op for op in pool.calls if isinstance(op, Checkpoint)]
        assert not [op for op in pool.calls if isinstance(op, SetVolumeLog)]

    run(main)


def test_no_more_is_accepted_than_the_pool_has_room_for() -> None:
    """Answers about room are seconds old: what was written meanwhile counts, and writers wait for a newer answer."""

    async def main(pool: PoolState) -> None:
        taken = 0

        async def reports() -> None:
            while True:
                pool.free = SPACE_MIN + (32 - taken) * MIB
                await trio.sleep(2)

        async with serving(pool.connect()) as volume, trio.open_nursery() as nursery:
            nursery.start_soon(reports)
            await trio.sleep(3)
            await volume.flush()
            with pytest.raises(Full), trio.fail_after(600):
                while taken < 100:
                    await volume.write(taken % 64 * BLOCK, block(1))
                    volume.core.credit_bytes -= MIB - BLOCK  # as if it had been a mebibyte
                    volume.core.written_bytes += MIB - BLOCK
                    taken += 1
            assert 24 <= taken <= 32
            nursery.cancel_scope.cancel()

    run(main)


def test_a_full_pool_gets_back_what_is_trimmed() -> None:
    async def main(pool: PoolState) -> None:
        async with serving(pool.connect()) as volume:
            await fill(volume, 0, 60, 1)
            await volume.flush()
            await sealed(volume)
            rows = len(pool.rows)
            pool.free = 0
            await trio.sleep(5)
            with pytest.raises(Full):
                await volume.write(0, block(2))
            await volume.trim(0, 60 * BLOCK)
            await volume.flush()
            await trio.sleep(30)
            assert len(pool.rows) < rows, "chunks without live blocks went"
            pool.free = 1 << 40
            await trio.sleep(5)
            await volume.write(0, block(3))

    run(main)
