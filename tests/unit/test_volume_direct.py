"""Threads read shards by themselves: right bytes at any offset, and nothing at all from a damaged block."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from trivium.cluster.model import BLOCK, ChunkId
from trivium.cluster.shardfile import CODECS, ShardSpec, build_header, parse_header
from trivium.cluster.shardreader import AtHand, Descriptor, OpenedShard
from trivium.nbd.direct import DirectReader

SIZE = 6 * BLOCK + 4096  # of a shard: the last block is a short one
K = 2


def chunk(folder: Path, data: bytes) -> AtHand:
    spec = ShardSpec(b"C" * 16, ChunkId(1, 2), b"n" * 16, K, 1, CODECS[0], 3, len(data), SIZE)
    shards = {}
    for index in range(K):
        body = data[index * SIZE : (index + 1) * SIZE]
        header = build_header(spec, index, body)
        (folder / str(index)).write_bytes(header + body)
        shards[index] = OpenedShard(parse_header(header), Descriptor(os.open(folder / str(index), os.O_RDONLY)))
    return AtHand(SIZE, shards)


def test_any_range_is_right_or_not_answered(tmp_path: Path) -> None:
    rng = random.Random(7)
    data = rng.randbytes(K * SIZE)
    reader = DirectReader()
    reader.publish(5, chunk(tmp_path, data))
    probe = bytearray(4096)
    if not reader.read((0, 5, 0, 4096), memoryview(probe)):
        pytest.skip("this file system cannot tell what is in the page cache")
    bad = 3 * BLOCK  # a block of shard 0 that rots half way
    for turn in range(400):
        if turn == 200:
            with open(tmp_path / "0", "r+b") as file:
                file.seek(-SIZE + bad + 100, os.SEEK_END)
                file.write(bytes([data[bad + 100] ^ 1]))
        start = rng.randrange(len(data))
        length = rng.randrange(1, len(data) - start + 1)
        out = memoryview(bytearray(length + 8))
        answered = reader.read((8, 5, start, length), out)
        touched = turn >= 200 and start < bad + BLOCK and start + length > bad
        assert not (answered and touched)
        assert not answered or out[8:] == data[start : start + length]
        assert answered or touched
    assert not reader.read((0, 6, 0, 1), memoryview(bytearray(1))), "a chunk that nobody opened"


def test_unused_chunks_are_let_go(tmp_path: Path) -> None:
    reader = DirectReader()
    reader.publish(5, chunk(tmp_path, bytes(K * SIZE)))
    reader.sweep()
    assert reader.knows(5)
    reader.sweep()
    assert not reader.knows(5)
