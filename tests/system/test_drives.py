"""Drives of a real pool: added, drained under load, removed; copies and early removals refused; data compared."""

from __future__ import annotations

import json
import shutil
import threading
from typing import Any

from tests.system.pool import SystemPool


def drives_of(pool: SystemPool) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(pool.trivium("drive", "ls", "--json").stdout)}


def refused(pool: SystemPool, *command: str, words: str) -> None:
    done = pool.trivium(*command, check=False)
    assert done.returncode == 1 and words in done.stderr, done.stderr


def test_a_drive_is_added_another_drained_under_load_and_removed(pool: SystemPool) -> None:
    pool.up()
    s3 = pool.boto()
    s3.create_bucket(Bucket="bkt")
    bodies = {f"k{n}": bytes([n]) * (40_000 * n + 100_000) for n in range(20)}
    for key, body in bodies.items():
        s3.put_object(Bucket="bkt", Key=key, Body=body)

    refused(pool, "drive", "drain", "d2", words="add one first")
    refused(pool, "drive", "remove", "d2", words="drain d2 first")
    refused(pool, "drive", "drain", "d17", words="there are d0, d1")
    copy = pool.work / "copy"
    shutil.copytree(pool.data / "drives" / "d1", copy, ignore=shutil.ignore_patterns("ballast"))
    refused(pool, "drive", "add", str(copy), words="it is drive d1")
    assert "d6" not in drives_of(pool)

    pool.trivium("drive", "add", str(pool.work / "new disk"), "--name", "d6")
    assert drives_of(pool)["d6"]["state"] == "new"
    over = threading.Event()
    late: dict[str, bytes] = {}

    def load() -> None:
        number = 0
        while not over.is_set():
            late[f"late{number}"] = body = bytes([number % 251]) * 150_000
            s3.put_object(Bucket="bkt", Key=f"late{number}", Body=body)
            number += 1

    writer = threading.Thread(target=load)
    writer.start()
    try:
        pool.trivium("drive", "drain", "d2", "--no-wait")
        assert drives_of(pool)["d2"]["state"] == "draining"
        pool.trivium("drive", "drain", "d2", "--cancel")
        assert drives_of(pool)["d2"]["state"] in ("up", "new")
        pool.trivium("drive", "drain", "d2")
    finally:
        over.set()
        writer.join()
    assert drives_of(pool)["d2"]["drained"]
    pool.trivium("drive", "remove", "d2")
    shutil.rmtree(pool.data / "drives" / "d2")
    assert "d2" not in drives_of(pool) and drives_of(pool)["d6"]["state"] == "up"

    said = pool.trivium("maintenance", "on", "--for", "2h").stdout
    assert "no drive is marked out" in said
    pool.kill()
    shutil.rmtree(pool.data / "metadata")  # all of it is on the drives, the new one among them
    again = pool.trivium("up", "--data", pool.data, "--s3-listen", pool.listen, "--detach", "--drives", "3")
    assert "--drives 3" in again.stdout
    report = json.loads(pool.trivium("status", "--json").stdout)
    assert report["whole"] and "maintenance" in report["maintenance"], report["summary"]
    pool.trivium("maintenance", "off")
    for key, body in {**bodies, **late}.items():
        assert s3.get_object(Bucket="bkt", Key=key)["Body"].read() == body, key
    pool.trivium("fsck")
