"""What a plan has written is nobody's orphan until its commit, whoever moves the chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import trio

from tests.fakes.metadb import DRIVES, GROUP, MetaDb
from trivium.cluster.model import ChunkId, ClusterMap, DriveRow, Group, Placed
from trivium.metadata import chunkrows, drain, heal, inventory, queue
from trivium.metadata.moving import Moving
from trivium.metadata.refoundrows import insert_chunk
from trivium.metadata.tx import Tx

NEW = b"N" * 16


class Pool:
    """One chunk on DRIVES, of which the first is draining, and an empty drive NEW."""

    def __init__(self) -> None:
        self.db = MetaDb()
        new = self.db.new_chunk(1 << 20)
        self.chunk = new.chunk
        self.db.run(lambda tx: insert_chunk(tx, new.chunk, new.nonce, GROUP.id, new.length, 0, 0, int(new.kind)))
        self.db.run(self._drives)
        drives = tuple(DriveRow(id, id.hex(), b"n" * 16, id.hex(), 1.0) for id in (*DRIVES, NEW))
        drained = msgspec.structs.replace(drives[0], reason=drain.DRAINING)
        self.map = ClusterMap(2, (drained, *drives[1:]))

    @staticmethod
    def _drives(tx: Tx) -> None:
        tx.run("INSERT INTO counters (name, value) VALUES ('group', 1) ON CONFLICT DO UPDATE SET value = 1")
        tx.run(
            "INSERT INTO drives SELECT ?, 'n', node, domain, weight, reason, path, bytes_total, device FROM drives"
            " LIMIT 1",
            NEW,
        )
        tx.run("UPDATE drives SET reason = ? WHERE id = ?", drain.DRAINING, DRIVES[0])

    def placed(self) -> Placed:
        found = chunkrows.placed_of(self.db.reader(), self.chunk)
        assert found is not None
        return found

    async def do(self, execute: Callable[[Tx], Any]) -> Any:
        await trio.lowlevel.checkpoint()
        return self.db.run(execute)

    async def read(self, look: Callable[[Any], Any]) -> Any:
        await trio.lowlevel.checkpoint()
        return look(self.db.reader())


class Writing:
    """A mover under whose eyes an inventory finds what was just written."""

    def __init__(self, pool: Pool, moving: Moving) -> None:
        self.pool, self.moving = pool, moving
        self.orphans = -1

    async def rebuild(self, placed: Placed, target: Group, plan_seq: int) -> int:
        found = inventory.Survey(unnamed=[(placed.chunk, target.drives.index(NEW), NEW)])
        self.orphans = await inventory.collect_orphans(self.pool.do, found, self.moving)
        return 0


def test_what_a_drain_has_written_is_no_orphan() -> None:
    async def main() -> None:
        pool, moving = Pool(), Moving()
        writing = Writing(pool, moving)
        drainer = drain.Drainer(
            pool, pool.read, writing, cluster_map=lambda: pool.map, usable=lambda: frozenset((*DRIVES, NEW)),
            moving=moving,
        )  # fmt: skip
        assert await drainer.round() == 1
        assert writing.orphans == 0 and pool.chunk not in moving
        placed = pool.placed()
        assert placed.group.drives == (NEW, *DRIVES[1:])
        (left,) = queue.page(pool.db.reader(), 1 << 62, 10)
        assert left.places() == [(0, DRIVES[0])]  # and nothing else is to be deleted

    trio.run(main)


def test_a_delete_that_was_queued_since_the_plan_refuses_the_commit() -> None:
    pool = Pool()
    placed = pool.placed()
    planned = pool.db.run(lambda tx: heal.plan(tx, placed, (NEW, *DRIVES[1:])))
    assert planned is not None
    target, seq = planned
    assert pool.db.run(lambda tx: queue.add_orphan(tx, pool.chunk, 0, NEW))  # its delete would carry a later seq
    assert not pool.db.run(lambda tx: drain.commit(tx, placed, target, seq, 0))
    assert pool.placed().group.drives == DRIVES

    again = pool.placed()  # the next plan takes the delete back, and a node refuses it for what this plan writes
    planned = pool.db.run(lambda tx: heal.plan(tx, again, (NEW, *DRIVES[1:])))
    assert planned is not None and not queue.page(pool.db.reader(), 1 << 62, 10)
    assert pool.db.run(lambda tx: drain.commit(tx, again, planned[0], planned[1], 0))


def test_the_end_of_one_plan_does_not_end_the_protection_of_another() -> None:
    moving, chunk = Moving(), ChunkId(1, 2)
    with moving.of(chunk):
        with moving.of(chunk):
            pass
        assert chunk in moving
    assert chunk not in moving
