import pytest

from trivium.cluster.erasure import SLICE, Codec, codec_for, shard_size
from trivium.cluster.model import Profile


def test_a_shard_is_its_share_rounded_up_to_4_kib() -> None:
    assert [shard_size(n, 4) for n in (0, 1, 4096 * 4, 4096 * 4 + 1, 4 << 20)] == [0, 4096, 4096, 8192, 1 << 20]
    assert shard_size(5000, 1) == 8192


def test_data_shards_are_the_chunk_itself_and_whole_ones_are_not_copied() -> None:
    data = bytes(range(256)) * 64  # 16 KiB
    shards = Codec(Profile(4, 2)).encode([data], len(data))
    assert [len(shard) for shard in shards] == [4096] * 6
    assert b"".join(shards[:4]) == data
    assert all(isinstance(shard, memoryview) and shard.obj is data for shard in shards[:4])


def test_parts_are_joined_and_the_end_is_padded_with_zeros() -> None:
    shards = Codec(Profile(2, 1)).encode([b"a" * 4000, bytearray(b"b" * 200), memoryview(b"c")], 4201)
    assert b"".join(shards[:2]) == b"a" * 4000 + b"b" * 200 + b"c" + bytes(8192 - 4201)


def test_one_data_shard_means_plain_copies() -> None:
    shards = Codec(Profile(1, 3)).encode([b"x" * 5000], 5000)
    assert len(shards) == 4 and {bytes(shard) for shard in shards} == {b"x" * 5000 + bytes(3192)}
    assert Codec(Profile(1, 3)).rebuild([0, 3], {2: shards[2]}) == {0: shards[2], 3: shards[2]}


def test_no_parity() -> None:
    assert len(Codec(Profile(3, 0)).encode([b"x" * 5000], 5000)) == 3
    assert len(Codec(Profile(1, 0)).encode([b"x"], 1)) == 1


def test_an_empty_chunk_has_empty_shards() -> None:
    codec = Codec(Profile(4, 2))
    assert [len(shard) for shard in codec.encode([], 0)] == [0] * 6
    assert codec.rebuild([0], {i: b"" for i in range(1, 5)}) == {0: b""}


def test_slicing_changes_no_byte() -> None:
    """The parity of a long shard is the parity of its columns, each encoded alone."""
    codec = codec_for(Profile(4, 2))
    size = 2 * SLICE + 8192
    rows = [bytes([17 * i + 3]) * SLICE + bytes([i]) * SLICE + bytes([250 - i]) * 8192 for i in range(4)]
    whole = codec.encode([b"".join(rows)], 4 * size)
    for start, end in ((0, 4096), (SLICE, SLICE + 4096), (size - 4096, size)):
        column = codec.encode([b"".join(row[start:end] for row in rows)], 4 * 4096)
        assert [bytes(shard[start:end]) for shard in whole] == [bytes(shard) for shard in column]


def test_too_few_or_unequal_shards_are_refused() -> None:
    codec = codec_for(Profile(2, 1))
    with pytest.raises(ValueError, match="cannot rebuild"):
        codec.rebuild([0], {1: bytes(4096)})
    with pytest.raises(ValueError, match="cannot rebuild"):
        codec.rebuild([0], {1: bytes(4096), 2: bytes(8192)})
    with pytest.raises(ValueError, match="not 5"):
        codec.encode([b"1234"], 5)


@pytest.mark.parametrize("profile", [Profile(0, 2), Profile(2, -1), Profile(30, 3)])
def test_impossible_profiles_are_refused(profile: Profile) -> None:
    with pytest.raises(ValueError, match="no profile"):
        Codec(profile)
