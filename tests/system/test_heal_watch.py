"""`trivium heal --watch` and `trivium scrub` as an operator meets them: lines, exit status, a restart in between."""

from __future__ import annotations

import json
import os
import subprocess

from tests.system.pool import TRIVIUM, SystemPool, wait_for, wipe

MIB = 1 << 20


def fill(pool: SystemPool, count: int, size: int) -> dict[str, bytes]:
    s3 = pool.boto()
    s3.create_bucket(Bucket="bkt")
    bodies = {f"k{n}": os.urandom(size) for n in range(count)}
    for key, body in bodies.items():
        s3.put_object(Bucket="bkt", Key=key, Body=body)
    return bodies


def test_a_lost_drive_is_watched_until_it_is_healed_even_over_a_kill(pool: SystemPool) -> None:
    pool.env["TRIVIUM_HEAL_FLOOR"] = "1M"
    pool.up()
    bodies = fill(pool, 24, 2 * MIB)
    wipe(pool.data / "drives" / "d3")
    pool.trivium("drive", "replace", "d3", "--no-wait")
    watching = subprocess.Popen(
        [TRIVIUM, "heal", "--watch"], env=pool.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        pool.kill()
        pool.up_again()
        out, err = watching.communicate(timeout=90)
    finally:
        watching.kill()
    assert watching.returncode in (0, 3), (out, err)  # 3: its very first question met the kill
    done = pool.trivium("heal", "--watch")
    assert done.stdout.splitlines()[-1] == "healed: every chunk has all of its shards"
    report = json.loads(pool.trivium("heal", "--json").stdout)
    assert report["total"] == report["done"] and report["waiting"] == ""
    status = json.loads(pool.trivium("status", "--json").stdout)
    assert status["whole"] and status["heal"] is None and status["narrow"] is None, status
    assert status["pace"]["floor"] == MIB and status["pace"]["limit"] >= MIB
    for name in ("d0", "d1"):  # whatever was rebuilt must do
        wipe(pool.data / "drives" / name)
    s3 = pool.boto()
    for key, body in bodies.items():
        assert s3.get_object(Bucket="bkt", Key=key)["Body"].read() == body


def test_a_scrub_is_watched_and_its_result_outlives_a_kill(pool: SystemPool) -> None:
    pool.up()
    fill(pool, 6, MIB)
    pool.trivium("metadata", "dump")
    pool.trivium("scrub", "--no-wait")
    done = json.loads(pool.trivium("scrub", "--watch", "--json").stdout)
    assert done["shards"] >= 36 and not done["findings"] and not done["running"]
    pool.kill()
    pool.up_again()
    wait_for(
        lambda: json.loads(pool.trivium("status", "--json").stdout)["scrub"]["last_ended_ns"] == done["last_ended_ns"],
        "the result of the last pass",
    )
    assert "the last whole one ended" in pool.trivium("status").stdout


def test_narrow_chunks_are_told_of(pool: SystemPool) -> None:
    pool.up()
    wipe(pool.data / "drives" / "d3")
    away = ("down", "out")  # out at once when something was written there first
    wait_for(lambda: json.loads(pool.trivium("status", "--json").stdout)["drives"][3]["state"] in away, "d3 away")
    fill(pool, 3, MIB)
    pool.trivium("drive", "replace", "d3")
    status = json.loads(pool.trivium("status", "--json").stdout)
    assert status["whole"] and status["narrow"]["left"] == 3 and "3 narrow chunks" in status["summary"]
    assert "written anew" in pool.trivium("status").stdout
