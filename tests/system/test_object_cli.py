"""trivium object read and write, against what S3 says of the same objects."""

from __future__ import annotations

import random
import subprocess

from tests.system.pool import TRIVIUM, SystemPool

MIB = 1 << 20


def read(pool: SystemPool, name: str, *options: str) -> bytes:
    done = subprocess.run(
        [TRIVIUM, "object", "read", name, *options], capture_output=True, env=pool.env, timeout=60, check=True
    )
    return done.stdout


def test_parts_of_objects_are_read_and_written_in_place(running: SystemPool) -> None:
    s3 = running.boto()
    s3.create_bucket(Bucket="parts")
    rng = random.Random(5)
    whole = bytearray(rng.randbytes(9 * MIB + 17))
    s3.put_object(Bucket="parts", Key="a/big", Body=bytes(whole))
    assert read(running, "parts/a/big") == whole
    assert read(running, "parts/a/big", "--offset", str(4 * MIB - 5), "--length", "10") == whole[4 * MIB - 5 :][:10]
    assert read(running, "parts/a/big", "--offset", str(9 * MIB), "--length", "99") == whole[9 * MIB :]
    assert read(running, "parts/a/big", "--offset", str(20 * MIB)) == b""

    patch = rng.randbytes(2 * MIB)
    running.trivium("object", "write", "parts/a/big", "--offset", str(3 * MIB + 1), stdin=patch)
    whole[3 * MIB + 1 : 5 * MIB + 1] = patch
    assert len(whole) == 9 * MIB + 17
    assert s3.get_object(Bucket="parts", Key="a/big")["Body"].read() == whole
    running.trivium("object", "write", "parts/a/big", "--offset", "7", "--length", "2", "--data-literal", "hello")
    assert read(running, "parts/a/big", "--length", "12") == bytes(whole[:7]) + b"he" + bytes(whole[9:12])


def test_new_objects_holes_and_refusals(running: SystemPool) -> None:
    s3 = running.boto()
    s3.create_bucket(Bucket="fresh")
    running.trivium("object", "write", "fresh/new", "--offset", "5", "--data-literal", "tail")
    assert s3.get_object(Bucket="fresh", Key="new")["Body"].read() == b"\0\0\0\0\0tail"
    assert read(running, "fresh/new", "--offset", "3") == b"\0\0tail"
    for arguments in (("read", "fresh/none"), ("read", "none/x"), ("write", "none/x", "--data-literal", "a")):
        refused = running.trivium("object", *arguments, check=False)
        assert refused.returncode == 1 and "Traceback" not in refused.stderr, refused
    assert running.trivium("object", "read", "fresh", check=False).returncode == 2
