"""Readers: a read that turns out long leaves the event loop; what it answers is the same."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.fakes.metadata import memory_map, recover_or_form
from tests.fakes.metalog import MemoryMetaLog
from trivium.cluster.clock import SystemClock, ThreadExecutor
from trivium.metadata.messages import MetadataError
from trivium.metadata.readers import Readers
from trivium.metadata.tx import Reader

COUNTING = "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < ?) SELECT count(*) FROM c"


def test_short_reads_run_here_and_long_ones_on_a_thread(tmp_path: Path) -> None:
    async def main() -> None:
        path = str(tmp_path / "trivium.db")
        metalog = MemoryMetaLog()
        await recover_or_form(path, metalog, memory_map(), SystemClock())
        readers = Readers(path, executor=ThreadExecutor(2), clock=SystemClock())
        threads: list[int] = []

        def count(reader: Reader, steps: int) -> int:
            threads.append(threading.get_ident())
            row = reader.one(COUNTING, steps)
            assert row is not None
            return int(row[0])

        def refuse(reader: Reader) -> Any:
            raise MetadataError("ENOENT", "no")

        async with trio.open_nursery() as nursery:
            await nursery.start(readers.run)
            here = threading.get_ident()
            assert await readers.read(lambda r: count(r, 10), here=True) == (10, metalog.last_seq)
            assert threads == [here]
            assert await readers.read(lambda r: count(r, 1_000_000), here=True) == (1_000_000, metalog.last_seq)
            assert threads[:2] == [here, here] and threads[2] != here
            with pytest.raises(MetadataError):
                await readers.read(refuse, here=True)
            assert await readers.read(lambda r: count(r, 11), here=True) == (11, metalog.last_seq)
            nursery.cancel_scope.cancel()

    trio.run(main)
