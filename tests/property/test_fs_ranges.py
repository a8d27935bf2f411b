"""Unsent bytes and cached layouts against a bytearray."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.cluster.model import ChunkId, Ref
from trivium.fs.layers import WINDOW, batches
from trivium.fs.layoutcache import LayoutCache
from trivium.fs.ranges import Ranges
from trivium.metadata.messages import Extent, Layout

SIZE = 400
SPAN = st.tuples(st.integers(0, SIZE - 1), st.integers(1, 80)).map(lambda t: (t[0], min(SIZE, t[0] + t[1])))


class Model:
    def __init__(self) -> None:
        self.data: list[int | None] = [None] * SIZE

    def write(self, start: int, data: bytes) -> None:
        self.data[start : start + len(data)] = data

    def cut(self, start: int, stop: int) -> None:
        self.data[start:stop] = [None] * (stop - start)


def seen(ranges: Ranges, start: int, stop: int) -> list[int | None]:
    found: list[int | None] = [None] * (stop - start)
    for offset, data in ranges.overlay(start, stop):
        found[offset - start : offset - start + len(data)] = data
    return found


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(("write", "next", "cut", "read")), SPAN, st.integers(0, 255)), max_size=40))
def test_ranges_hold_the_last_write(steps: list[tuple[str, tuple[int, int], int]]) -> None:
    ranges, model, end = Ranges(), Model(), 0
    for what, (start, stop), byte in steps:
        if what == "next":  # sequential writes are joined
            start, stop = end, min(SIZE, end + stop - start)
        data = bytes((byte + i) % 256 for i in range(stop - start))
        if what in ("write", "next"):
            before = sum(x is not None for x in model.data)
            added = ranges.write(start, data)
            model.write(start, data)
            assert added == sum(x is not None for x in model.data) - before
            end = stop
        elif what == "cut":
            taken = ranges.cut(start, stop)
            assert b"".join(bytes(d) for _, d in taken) == bytes(x for x in model.data[start:stop] if x is not None)
            model.cut(start, stop)
        assert seen(ranges, 0, SIZE) == model.data
        assert seen(ranges, start, stop) == model.data[start:stop]
        assert ranges.total == sum(x is not None for x in model.data)
        assert ranges.end == max((i + 1 for i, x in enumerate(model.data) if x is not None), default=0)
    runs = [(o, n, b"".join(map(bytes, buffers))) for o, n, buffers in ranges.runs()]
    assert all(n == len(data) for _, n, data in runs)
    assert all(a[0] + a[1] < b[0] for a, b in itertools.pairwise(runs)), "runs are maximal"


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3 * WINDOW), st.sampled_from((1, 4096, WINDOW - 5, 3 * WINDOW))),
        min_size=1,
        max_size=5,
    )
)
def test_pieces_stay_inside_windows_and_lose_nothing(writes: list[tuple[int, int]]) -> None:
    ranges = Ranges()
    for number, (offset, length) in enumerate(writes):
        ranges.write(offset, bytes([number + 1]) * length)
    want = [(o, n) for o, n, _ in ranges.runs()]
    got: list[tuple[int, int]] = []
    for batch in batches(list(ranges.runs())):
        assert sum(n for _, n, _ in batch) <= WINDOW
        for offset, length, buffers in batch:
            assert length == sum(map(len, buffers)) > 0
            assert offset // WINDOW == (offset + length - 1) // WINDOW
            if got and got[-1][0] + got[-1][1] == offset:
                got[-1] = (got[-1][0], got[-1][1] + length)
            else:
                got.append((offset, length))
    assert got == want


def extent(start: int, data: bytes) -> Extent:
    return Extent(start, len(data), None, data)


@settings(max_examples=300, deadline=None)
@given(SPAN, st.lists(st.tuples(SPAN, st.integers(1, 255)), max_size=20), SPAN)
def test_a_layout_follows_commits(
    known: tuple[int, int], commits: list[tuple[tuple[int, int], int]], asked: tuple[int, int]
) -> None:
    base = bytes(i % 251 for i in range(SIZE))
    model = bytearray(base)
    start, stop = known
    layout = LayoutCache(Layout(1, SIZE, (extent(start, base[start:stop]),), (), stop), start)
    for (a, b), byte in commits:
        model[a:b] = bytes([byte]) * (b - a)
        layout.replace([extent(a, bytes([byte]) * (b - a))])
    a, b = max(asked[0], layout.start), min(asked[1], layout.stop)
    if a >= b or not layout.covers(a, b):
        return
    found = bytearray(b - a)
    for e in layout.range(a, b):
        assert e.data is not None
        found[e.offset - a : e.offset - a + e.length] = e.data
    assert found == model[a:b]


def test_references_are_cut_as_data_is() -> None:
    ref = Ref(ChunkId(1, 2), 1000, 100)
    layout = LayoutCache(Layout(1, 100, (Extent(0, 100, ref),), (), 100), 0)
    layout.replace([extent(40, b"x" * 10)])
    assert [(e.offset, e.length, e.ref and e.ref.offset) for e in layout.range(10, 90)] == [
        (10, 30, 1010),
        (40, 10, None),
        (50, 40, 1050),
    ]
