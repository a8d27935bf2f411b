"""Whole shard files for tests of drives: contents follow from the arguments."""

from __future__ import annotations

import random

from tests.fakes.cluster import CLUSTER
from trivium.cluster.model import ChunkId, Piece
from trivium.cluster.shardfile import ShardSpec, build_header


def shard_file(
    chunk: ChunkId, index: int, *, size: int = 20480, plan_seq: int = 0, fill: int = 0, cluster: bytes = CLUSTER
) -> bytes:
    """A valid shard file (header and data) of a 4+2 chunk; other `fill`, other bytes and nonce."""
    rng = random.Random(f"{chunk} {index} {fill}")
    body = rng.randbytes(size)
    nonce = random.Random(f"{chunk} {fill}").randbytes(16)
    piece = Piece(bytes(16), 0, 4 * size, 1, 0)
    spec = ShardSpec(cluster, chunk, nonce, 4, 2, "isa_l_rs_cauchy", 1, 4 * size, size, (piece,), plan_seq)
    return build_header(spec, index, body) + body
