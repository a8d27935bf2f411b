"""Rot on a drive is found by a scrub, put aside and healed, and never read."""

from __future__ import annotations

import os
import random
from pathlib import Path

from tests.system.pool import SystemPool


def flip_a_bit(shard: Path, source: random.Random) -> None:
    with shard.open("r+b") as file:
        position = source.randrange(shard.stat().st_size)
        file.seek(position)
        old = file.read(1)[0]
        file.seek(position)
        file.write(bytes([old ^ (1 << source.randrange(8))]))


def test_rot_is_found_healed_and_never_read(pool: SystemPool) -> None:
    pool.up()
    s3 = pool.boto()
    s3.create_bucket(Bucket="rot")
    bodies = {f"k{n}": os.urandom(200_000 * (n + 1)) for n in range(6)}
    for key, body in bodies.items():
        s3.put_object(Bucket="rot", Key=key, Body=body)
    source = random.Random(5)
    spoiled = 0
    for name in ("d2", "d3"):  # up to m = 2 shards of a chunk
        for shard in sorted((pool.data / "drives" / name / "chunks").rglob("*.*")):
            flip_a_bit(shard, source)
            spoiled += 1
    assert spoiled >= 12
    for key, body in bodies.items():
        assert s3.get_object(Bucket="rot", Key=key)["Body"].read() == body
    done = pool.trivium("scrub", check=False)
    assert done.returncode in (0, 6), done  # what reads have reported already is no finding any more
    pool.trivium("heal", "--watch")
    assert "verified" in pool.trivium("scrub").stdout
    pool.trivium("fsck")
    aside = [path for name in ("d2", "d3") for path in (pool.data / "drives" / name / "quarantine").rglob("*.*")]
    assert aside
    for key, body in bodies.items():
        assert s3.get_object(Bucket="rot", Key=key)["Body"].read() == body
