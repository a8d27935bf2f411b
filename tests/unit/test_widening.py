"""Narrow chunks are written anew once the pool has been whole for ten minutes, and nothing that changed meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import trio
import trio.testing

from tests.fakes.metadb import DRIVES
from tests.unit.test_metadata_compacting import start
from trivium.cluster.model import ChunkId, Group, NewChunk, Ref
from trivium.metadata import fsck, narrow
from trivium.metadata.compactor import Row
from trivium.metadata.messages import Extent, GetLayout, Write
from trivium.metadata.widen import LOOK_S, WHOLE_S, Widening, union

NARROW = Group(2, 1, 3, 2, DRIVES[:5])


class Scene:
    def __init__(self) -> None:
        self.db, self.chunks, loop, self.ino = start()
        self.db.run(self._group)
        self.whole = True
        self.asked = 0

        async def whole() -> bool:
            return self.whole

        def also() -> None:
            self.asked += 1

        self.widening = Widening(loop._read, loop._commit, self.chunks, whole=whole, also=also)  # type: ignore[arg-type]

    @staticmethod
    def _group(tx: Any) -> None:
        tx.run(
            "INSERT INTO groups (id, pool, k, m, drives, codec, open) VALUES (2, 1, 3, 2, ?, ?, 0)",
            *(b"".join(NARROW.drives), NARROW.codec),
        )

    def narrow_chunk(self, data: bytes) -> NewChunk:
        new = msgspec.structs.replace(self.db.new_chunk(len(data)), group=2, group_digest=NARROW.digest)
        self.chunks.data[new.chunk] = data
        return new

    def write(self, offset: int, data: bytes) -> NewChunk:
        new = self.narrow_chunk(data)
        self.db.call(Write(self.ino, (Extent(offset, len(data), Ref(new.chunk, 0, len(data))),)), [new])
        return new

    def read(self, length: int) -> bytes:
        out = bytearray(length)
        for e in self.db.ask(GetLayout(self.ino, 0, length)).extents:
            data = e.data if e.data is not None else b""
            if e.ref is not None:
                data = self.chunks.data[e.ref.chunk][e.ref.offset : e.ref.offset + e.ref.length]
            out[e.offset : e.offset + e.length] = data
        return bytes(out)

    def tally(self) -> narrow.Tally:
        return narrow.tally(self.db.reader())


def run(main: Callable[[Scene], Any]) -> None:
    scene = Scene()

    async def body() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.widening.run)
            await main(scene)
            nursery.cancel_scope.cancel()

    trio.run(body, clock=trio.testing.MockClock(autojump_threshold=0))
    assert not fsck.check(scene.db.reader())


def test_ten_minutes_without_a_break_then_all_is_written_anew() -> None:
    async def main(scene: Scene) -> None:
        data = bytes(range(250)) * 40
        scene.write(0, data)
        scene.write(len(data), data[::-1])
        assert scene.tally() == (2, 20_000, 0)
        await trio.sleep(WHOLE_S - 2 * LOOK_S)
        scene.whole = False
        await trio.sleep(2 * LOOK_S)
        scene.whole = True
        await trio.sleep(WHOLE_S - LOOK_S)
        report = await scene.widening.report()
        assert scene.tally().chunks == 2 and report["left"] == 2 and 0 < report["begins_in_s"] <= 2 * LOOK_S
        await trio.sleep(4 * LOOK_S)
        assert scene.db.db.execute("SELECT count(*) FROM extents WHERE session != 0").fetchone()[0] == 2
        rows = scene.db.db.execute(
            "SELECT DISTINCT c.group_id FROM extents e JOIN chunks c ON c.session = e.session AND c.counter = e.counter"
        ).fetchall()
        assert rows == [(1,)], "what names data names chunks of the pool's profile"
        assert scene.read(20_000) == data + data[::-1] and scene.asked
        assert scene.widening.progress.done == 2

    run(main)


def test_what_is_overwritten_or_deleted_while_it_is_copied_stays_so() -> None:
    async def main(scene: Scene) -> None:
        scene.write(0, b"a" * 10_000)
        scene.chunks.during_put = lambda: scene.db.call(Write(scene.ino, (Extent(4000, 100, None, b"b" * 100),)))
        await trio.sleep(WHOLE_S + 2 * LOOK_S)
        assert scene.read(10_000) == b"a" * 4000 + b"b" * 100 + b"a" * 5900
        scene.chunks.during_put = lambda: None
        await trio.sleep(3 * LOOK_S)
        assert scene.read(10_000) == b"a" * 4000 + b"b" * 100 + b"a" * 5900

    run(main)


def test_a_copy_that_comes_out_narrow_is_given_up_and_the_wait_begins_anew() -> None:
    async def main(scene: Scene) -> None:
        scene.write(0, b"a" * 10_000)
        puts: list[float] = []
        wide = scene.db.new_chunk

        def narrow_put(length: int) -> NewChunk:
            puts.append(trio.current_time())
            return msgspec.structs.replace(wide(length), group=2, group_digest=NARROW.digest)

        scene.db.new_chunk = narrow_put  # type: ignore[method-assign,assignment]
        await trio.sleep(3 * WHOLE_S)
        assert len(puts) == 2, f"not again and again: {puts}"
        assert scene.tally().chunks == 1 and scene.read(10_000) == b"a" * 10_000

    run(main)


def test_shared_bytes_are_written_once_and_neighbours_keep_their_owners() -> None:
    rows = [Row(1, 0, 0, 100, 7, 1, 0, 0), Row(2, 0, 0, 50, 7, 1, 25, 0), Row(3, 0, 0, 50, 7, 1, 100, 0),
            Row(4, 0, 9, 10, 7, 1, 145, 0)]  # fmt: skip
    assert [(begin, end, row.content) for begin, end, row in union(rows)] == [(0, 100, 1), (100, 155, 3)]


def test_chunks_of_volumes_are_left_to_their_writer() -> None:
    scene = Scene()
    scene.db.run(
        lambda tx: tx.run(
            "INSERT INTO chunks (session, counter, nonce, group_id, length, missing, plan_seq, kind)"
            " VALUES (9, 1, ?, 2, 4096, 0, 1, 2)",
            bytes(16),
        )
    )
    assert scene.tally() == (1, 4096, 1)
    assert not narrow.page(scene.db.reader(), 2, ChunkId(0, 0), 10)
