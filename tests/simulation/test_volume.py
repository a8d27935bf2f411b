"""Volumes under crashes at any await: what was flushed is there, and what is there is a prefix of what was written."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import trio
import trio.testing

from tests.fakes.volumebackend import Client, PoolState
from tests.simulation.runner import run_schedules
from trivium.cluster.model import ChunkId
from trivium.nbd import core as core_module
from trivium.nbd.leased import Tuning
from trivium.nbd.volume import Volume

BLOCK = 4096
SIZE = 96 * BLOCK
SMALL = Tuning(
    cache_bytes=64 * BLOCK,
    segment_bytes=20 * BLOCK,
    checkpoint_chunks=3,
    index_rows=2,
    clean_min_blocks=2,
    clean_period_s=0.3,
)


@dataclass
class History:
    """What the guest did, in order; `flushed` operations are promised. `state` is what they made of the volume."""

    base: bytearray
    operations: list[tuple[int, bytes]] = field(default_factory=list)  # (offset, new bytes)
    flushed: int = 0
    doubtful: bool = False  # the last operation was cut off

    def now(self) -> bytearray:
        state = self.base[:]
        for offset, data in self.operations:
            state[offset : offset + len(data)] = data
        return state

    def settle(self, found: bytearray) -> None:
        """`found` must be the state after some number of operations, all flushed ones among them; the one after them
        may be there up to some byte if it is longer than a segment or not of whole blocks."""
        state = self.base[:]
        for offset, data in self.operations[: self.flushed]:
            state[offset : offset + len(data)] = data
        for offset, data in self.operations[self.flushed :]:
            if found == state or self._cut(found, state, offset, data):
                break
            state[offset : offset + len(data)] = data
        else:
            assert found == state, self._difference(found, state)
        self.base, self.operations, self.flushed = found[:], [], 0

    @staticmethod
    def _cut(found: bytearray, state: bytearray, offset: int, data: bytes) -> bool:
        end = offset + len(data)
        if not (offset | len(data)) % BLOCK and len(data) < SMALL.segment_bytes:
            return False
        if found[:offset] != state[:offset] or found[end:] != state[end:]:
            return False
        part, old = found[offset:end], state[offset:end]
        same = 0
        while same < len(data) and part[same] == data[same]:
            same = min(len(data), same + 512) if part[same : same + 512] == data[same : same + 512] else same + 1
        return part[same:] == old[same:]

    def _difference(self, found: bytearray, state: bytearray) -> str:
        blocks = [i // BLOCK for i in range(0, SIZE, BLOCK) if found[i : i + BLOCK] != state[i : i + BLOCK]]
        return f"no prefix of {len(self.operations)} operations ({self.flushed} flushed) explains blocks {blocks}"


class Crash(trio.abc.Instrument):
    """Cancels everything at one step of one task."""

    def __init__(self, steps: int, scope: trio.CancelScope) -> None:
        self._left = steps
        self._scope = scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()


async def open_volume(client: Client, **options: object) -> Volume:
    return await Volume.open("v", metadata=client, chunks=client, logs=client, tuning=SMALL, **options)  # type: ignore[arg-type]


async def guest(volume: Volume, rng: random.Random, history: History, count: int) -> None:
    """Random requests; each is in the history before it is sent."""
    for _ in range(count):
        dice = rng.random()
        offset = rng.randrange(SIZE)
        length = min(SIZE - offset, rng.choice([1, 700, BLOCK, BLOCK, 3 * BLOCK, 9000, 30 * BLOCK]))
        if rng.random() < 0.6:
            offset, length = offset // BLOCK * BLOCK, max(BLOCK, length // BLOCK * BLOCK)
        if dice < 0.55:
            data = rng.randbytes(8) * (length // 8 + 1)
            fua = rng.random() < 0.1
            history.operations.append((offset, data[:length]))
            await volume.write(offset, data[:length], fua=fua)
            if fua or volume.core.write_through:
                history.flushed = len(history.operations)
        elif dice < 0.65:
            history.operations.append((offset, bytes(length)))
            await volume.zero(offset, length)
        elif dice < 0.72:
            offset, length = offset // BLOCK * BLOCK, max(BLOCK, length // BLOCK * BLOCK)
            history.operations.append((offset, bytes(length)))
            await volume.trim(offset, length)
        elif dice < 0.8:
            promised = len(history.operations)
            await volume.flush()
            history.flushed = promised
        elif dice < 0.86:
            await trio.sleep(rng.choice([0.01, 0.5, 2]))
        elif dice < 0.88:
            await volume.checkpoint()
        elif dice < 0.9:
            await volume.cleaner.clean()
        elif dice < 0.91:
            await widen_all(volume)
        else:
            assert await volume.read(offset, length) == history.now()[offset : offset + length]
        await trio.lowlevel.checkpoint()


async def widen_all(volume: Volume) -> set[ChunkId]:
    """Every chunk is said to be narrow; answers those that were."""
    client = volume.held.metadata
    narrow: set[ChunkId] = set()
    if isinstance(client, Client):
        narrow = client.pool.narrow = set(client.pool.rows)
    await volume.widener.widen()
    return narrow


async def life(pool: PoolState, rng: random.Random, history: History, crash_after: int) -> bool:
    """Open, check, work; True when it was not cut short."""
    with trio.CancelScope() as scope:
        crash = Crash(crash_after, scope)
        trio.lowlevel.add_instrument(crash)
        try:
            client = pool.connect()
            volume = await open_volume(client, takeover="break")
            async with trio.open_nursery() as nursery:
                await nursery.start(volume.run)
                history.settle(await volume.read(0, SIZE))
                await guest(volume, rng, history, rng.randrange(10, 80))
                if rng.random() < 0.5:
                    promised = len(history.operations)
                    await volume.close()
                    history.flushed = promised
                    assert not pool.log.records, "a clean close leaves nothing in the log"
                nursery.cancel_scope.cancel()
            return True
        finally:
            trio.lowlevel.remove_instrument(crash)
    return False


async def crashes(seed: int, rng: random.Random) -> None:
    pool = PoolState(random.Random(seed), size=SIZE)
    history = History(bytearray(SIZE))
    for _ in range(12):
        await life(pool, rng, history, rng.choice([30, 100, 300, 1000, 3000]))
        if rng.random() < 0.5:
            pool.collect()
        if rng.random() < 0.2:
            pool.refuse_chunks, pool.away = rng.randrange(3), rng.randrange(4)
    with trio.fail_after(10_000):
        client = pool.connect()
        volume = await open_volume(client, takeover="break")
        async with trio.open_nursery() as nursery:
            await nursery.start(volume.run)
            history.settle(await volume.read(0, SIZE))
            await volume.close()
            nursery.cancel_scope.cancel()
    reader = await open_volume(pool.connect(), read_only=True)
    history.flushed = len(history.operations)
    history.settle(await reader.read(0, SIZE))


def test_narrow_chunks_are_written_anew_and_hold_the_same() -> None:
    async def main() -> None:
        pool, rng = PoolState(random.Random(1), size=SIZE), random.Random(2)
        history = History(bytearray(SIZE))
        volume = await open_volume(pool.connect())
        async with trio.open_nursery() as nursery:
            await nursery.start(volume.run)
            await guest(volume, rng, history, 60)
            await volume.make_durable()
            await volume.checkpoint()
            narrow = await widen_all(volume)
            assert len(narrow) > 3 and not narrow & set(pool.rows), "none of them is left"
            pool.collect()
            assert await volume.read(0, SIZE) == history.now()
            await volume.close()
            nursery.cancel_scope.cancel()
        reader = await open_volume(pool.connect(), read_only=True)
        assert await reader.read(0, SIZE) == history.now()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_flushed_writes_survive_crashes_and_what_is_there_is_a_prefix(monkeypatch):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(core_module, "LOG_REST_BLOCKS", 3)
    run_schedules(crashes, count=60)
