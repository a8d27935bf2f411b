"""Any m of k+m lost, any aligned range, any profile up to 8+4: the same bytes come back."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.cluster.erasure import codec_for, shard_size
from trivium.cluster.model import SHARD_ALIGN, Profile
from trivium.cluster.ranges import plan


@settings(max_examples=150, deadline=None)
@given(
    k=st.integers(1, 8),
    m=st.integers(0, 4),
    length=st.one_of(st.integers(1, 40_000), st.integers(40_000, 1_500_000)),
    seed=st.integers(0, 2**32),
)
def test_any_m_lost_shards_come_back_in_any_range(k: int, m: int, length: int, seed: int) -> None:
    rng = random.Random(seed)
    codec = codec_for(Profile(k, m))
    data = rng.randbytes(length)
    cut = rng.randrange(length + 1)
    shards = codec.encode([data[:cut], data[cut:]], length)
    assert b"".join(shards[:k])[:length] == data
    size = shard_size(length, k)
    first = rng.randrange(size // SHARD_ALIGN)
    last = rng.randrange(first, size // SHARD_ALIGN) + 1
    start, end = first * SHARD_ALIGN, last * SHARD_ALIGN
    lost = rng.sample(range(k + m), m)
    have = {i: memoryview(shards[i])[start:end] for i in rng.sample(range(k + m), k + m) if i not in lost}
    rebuilt = codec.rebuild(lost, have)
    assert {i: bytes(rebuilt[i]) for i in lost} == {i: bytes(memoryview(shards[i])[start:end]) for i in lost}


@settings(max_examples=300, deadline=None)
@given(k=st.integers(1, 8), length=st.integers(1, 3_000_000), data=st.data())
def test_a_plan_covers_its_range_with_whole_blocks_of_its_shards(k: int, length: int, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, length - 1))
    count = data.draw(st.integers(1, length - offset))
    layout = plan(offset, count, length, k)
    size = shard_size(length, k)
    assert sum(blocks.size for blocks in layout.shards.values()) == layout.size
    covered = layout.base
    for index, blocks in sorted(layout.shards.items()):
        assert index * size + blocks.start == covered and layout.at(index) == covered - layout.base
        assert blocks.start % 16384 == 0 and (blocks.end % 16384 == 0 or blocks.end == size)
        covered += blocks.size
    assert layout.base <= offset and offset + count <= covered
    assert offset - layout.base < 16384 and covered - offset - count < 16384
    source = memoryview(bytes(layout.size))
    assert len(layout.result(source)) == count
