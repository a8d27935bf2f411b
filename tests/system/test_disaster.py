"""More is gone than parity covers: what is lost is named, the rest reads; drives without a pool give their files."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from tests.system.pool import SystemPool

SEED = 5
BIG = 9_000_000


def shard_files(pool: SystemPool, session: int, counter: int) -> list[Path]:
    leaf = f"{session & (1 << 64) - 1:016x}/{counter >> 12:x}/{counter:x}."
    return sorted(path for path in (pool.data / "drives").glob("*/chunks/*/*/*") if leaf in str(path))


def chunks_of(pool: SystemPool, key: str) -> list[tuple[int, int]]:
    sql = (
        "SELECT e.session, e.counter FROM extents e JOIN inodes i ON i.content = e.content"
        f" JOIN dirents d ON d.ino = i.ino WHERE CAST(d.sort_name AS TEXT) = '{key}' ORDER BY e.offset"
    )
    rows = [json.loads(line) for line in pool.trivium("metadata", "query", sql).stdout.splitlines()]
    return [(row["session"], row["counter"]) for row in rows]


def test_what_is_lost_is_named_and_the_rest_is_read_and_exported(pool: SystemPool, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    bodies = {"big": rng.randbytes(BIG), "whole": rng.randbytes(300_000), "small": b"inline"}
    pool.up()
    s3 = pool.boto(retries={"max_attempts": 1})
    s3.create_bucket(Bucket="photos")
    for key, body in bodies.items():
        s3.put_object(Bucket="photos", Key=key, Body=body)
    pool.trivium("metadata", "dump")
    pool.trivium("volume", "create", "disk", "16M")
    assert "0 chunks lost, 0 away" in pool.trivium("fsck", "--lost").stdout
    lost = chunks_of(pool, "big")[1]
    for path in shard_files(pool, *lost):
        if path.suffix in (".0", ".1", ".2"):
            path.unlink()
    said = pool.trivium("fsck", "--lost", check=False)
    assert said.returncode == 6
    assert f"file /photos/big: bytes {4 << 20} to {(8 << 20) - 1}: lost" in said.stdout, said.stdout
    assert "1 chunks lost, 0 away: 1 and 0 names" in said.stdout
    assert "1 chunks are lost" in pool.trivium("status").stdout
    first = s3.get_object(Bucket="photos", Key="big", Range=f"bytes=0-{(4 << 20) - 1}")["Body"].read()
    assert first == bodies["big"][: 4 << 20]
    assert s3.get_object(Bucket="photos", Key="whole")["Body"].read() == bodies["whole"]
    with pytest.raises(ClientError, match="are lost"):
        s3.get_object(Bucket="photos", Key="big", Range=f"bytes={4 << 20}-{(4 << 20) + 9}")

    drives = sorted((pool.data / "drives").iterdir())
    assert pool.trivium("drive", "verify", drives[0], check=False).returncode == 5, "a living pool has it"
    pool.kill()
    seen = json.loads(pool.trivium("drive", "inspect", "--json", drives[0]).stdout)
    assert seen["name"] == drives[0].name and seen["shards"] and len(seen["map"]["drives"]) == 6
    assert pool.trivium("drive", "verify", drives[0]).stdout.startswith("verified ")
    done = pool.trivium("drive", "export", *drives, "--to", tmp_path / "out", check=False)
    assert done.returncode == 6 and f"bytes {4 << 20} to {(7 << 20) - 1}" in done.stderr, "one data shard survives"
    files = tmp_path / "out" / "files" / "photos"
    assert sorted(os.listdir(files)) == ["big.damaged", "small", "whole"]
    assert (files / "whole").read_bytes() == bodies["whole"] and (files / "small").read_bytes() == bodies["small"]
    damaged = (files / "big.damaged").read_bytes()
    hole = slice(4 << 20, 7 << 20)
    assert damaged[: 4 << 20] == first and damaged[7 << 20 :] == bodies["big"][7 << 20 :] and not any(damaged[hole])

    database = pool.data / "metadata" / "trivium.db"
    database.unlink()
    assert "up to record" in pool.trivium("rebuild-metadata", "--data", pool.data).stdout and database.exists()
    pool.up_again()
    assert s3.get_object(Bucket="photos", Key="whole")["Body"].read() == bodies["whole"]
    assert pool.trivium("rebuild-metadata", "--data", pool.data, check=False).returncode == 5, "the pool is up"
    pool.kill()

    for drive in drives:  # neither root nor log: only the shards themselves
        (drive / "root").unlink()
    pool.trivium("drive", "export", *drives[2:], "--to", tmp_path / "bare", check=False)
    refused = pool.trivium("rebuild-metadata", "--data", pool.data, check=False)
    assert refused.returncode == 6 and "drive export" in refused.stderr and database.exists()
    found = [path.read_bytes() for path in (tmp_path / "bare" / "lost+found").glob("object-*")]
    assert bodies["whole"] in found, "assembled by its table of contents alone"
