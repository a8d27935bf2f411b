"""How many chunks healing has in flight: many small ones, few large ones, always one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from trivium.cluster.model import ChunkId, ClusterMap, DriveRow, Group, Placed
from trivium.metadata import heal

DRIVES = tuple(bytes([i]) * 16 for i in range(6))
GROUP = Group(1, 1, 4, 2, DRIVES)
MAP = ClusterMap(1, tuple(DriveRow(id, f"d{i}", bytes(16), f"d{i}", 1.0) for i, id in enumerate(DRIVES)))
MIB = 1 << 20


class Mover:
    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.most = 0

    async def rebuild(self, placed: Placed, target: Group, plan_seq: int) -> int:
        self.sizes.append(placed.length)
        self.most = max(self.most, len(self.sizes))
        assert len(self.sizes) == 1 or sum(self.sizes) <= heal.IN_FLIGHT_BYTES
        await trio.sleep(1)
        self.sizes.remove(placed.length)
        return 0


class Transactions:
    async def do(self, execute: Callable[[Any], Any]) -> Any:
        await trio.lowlevel.checkpoint()
        return 0 if "lacking" in execute.__code__.co_freevars else (GROUP, 1)


@pytest.mark.parametrize(
    ("sizes", "most"),
    [([16_000] * 100, heal.IN_FLIGHT), ([4 * MIB] * 10, 3), ([20 * MIB] * 3, 1), ([20 * MIB, 1, 1, 4 * MIB, 1], 4)],
)
def test_chunks_in_flight(sizes: list[int], most: int) -> None:
    async def main() -> None:
        mover = Mover()
        healer = heal.Healer(
            Transactions(),
            None,  # type: ignore[arg-type]  # not asked
            mover,
            cluster_map=lambda: MAP,
            usable=lambda: frozenset(DRIVES),
        )
        work = [Placed(ChunkId(1, i), bytes(16), size, 1, 0, GROUP) for i, size in enumerate(sizes)]
        assert await healer._heal_all(work) == len(sizes)
        assert mover.most == most and not mover.sizes

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
