"""A full disk under the metadata database: what is refused, what the ballast is for."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest
import trio
from trio.testing import MockClock

from tests.fakes.metadata import memory_client, memory_metadata
from tests.fakes.metalog import MemoryMetaLog
from tests.unit.test_engine_writer import names, put, run, submit
from trivium.cluster.clock import TrioClock
from trivium.metadata import database
from trivium.metadata.diskroom import BALLAST, LEAST, DiskRoom
from trivium.metadata.messages import ROOT_INO, Create, Lookup, MetadataError, Unlink
from trivium.metadata.writer import Writer


@pytest.mark.parametrize("rolled_back", [True, False])
def test_a_commit_that_meets_a_full_disk_is_repeated_from_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rolled_back: bool
) -> None:
    set_applied = database.set_applied
    full: list[int] = []

    def meets_a_full_disk(db: apsw.Connection, seq: int, chain_hash: bytes) -> None:
        if full:
            full.clear()
            if rolled_back:  # SQLite does it, or does not
                db.execute("ROLLBACK")
            raise apsw.FullError("database or disk is full")
        set_applied(db, seq, chain_hash)

    async def main(writer: Writer, metalog: MemoryMetaLog) -> None:
        await submit(writer, put("before"))
        freed: list[int] = []

        def free_ballast() -> bool:
            freed.append(1)
            return True

        writer._free_ballast = free_ballast
        monkeypatch.setattr(database, "set_applied", meets_a_full_disk)
        full.append(1)
        outcomes = await submit(writer, put("during"))
        assert outcomes[0].error is None and freed == [1]
        await submit(writer, put("after"))
        assert names(writer) == {"before", "during", "after"}

    run(tmp_path, main)  # which compares with what the log says


def test_what_is_refused_when_room_is_short(tmp_path: Path) -> None:
    free = [LEAST * 2]

    class Room(DiskRoom):
        def _free(self) -> int:
            return free[0]

    async def main() -> None:
        ballast = tmp_path / "ballast"
        room = Room(str(tmp_path), clock=TrioClock())
        async with memory_metadata(room=room) as (_server, connect), memory_client(connect) as client:
            await client.call(Create(ROOT_INO, b"a", 0o100644))
            assert ballast.stat().st_size == BALLAST
            free[0] = LEAST - 1
            await trio.sleep(1)
            with pytest.raises(MetadataError, match="ENOSPC"):
                await client.call(Create(ROOT_INO, b"b", 0o100644))
            with pytest.raises(MetadataError, match="ENOSPC"):
                await client.call(Unlink(ROOT_INO, b"a"), Create(ROOT_INO, b"b", 0o100644))  # all or none
            assert (await client.ask(Lookup(ROOT_INO, b"a"))).attr is not None
            await client.call(Unlink(ROOT_INO, b"a"))
            assert room.free_ballast() and not room.free_ballast()
            free[0] = LEAST + BALLAST
            await trio.sleep(1)
            await client.call(Create(ROOT_INO, b"b", 0o100644))
            assert not ballast.exists()  # there is no room for it yet
            free[0] = LEAST + 2 * BALLAST
            await trio.sleep(1)
            await client.call(Create(ROOT_INO, b"c", 0o100644))
            assert ballast.exists()
            free[0] = BALLAST - 1
            room.prepare()
            assert not ballast.exists()

    trio.run(main, clock=MockClock(autojump_threshold=0))
