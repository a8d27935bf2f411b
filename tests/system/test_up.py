"""trivium up as an operator meets it: start, stop, kill, refuse, rebuild."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import time
from pathlib import Path

from tests.system.pool import TRIVIUM, SystemPool, wipe
from trivium.metadata.database import applied
from trivium.metadata.digest import digest_of


def test_everything_acknowledged_is_there_after_kill_and_the_pool_is_quickly_ready(pool: SystemPool) -> None:
    pool.up()
    s3 = pool.boto()
    s3.create_bucket(Bucket="bkt")
    bodies = {f"k{n}": os.urandom(n * 3000) for n in range(20)}
    for key, body in bodies.items():
        s3.put_object(Bucket="bkt", Key=key, Body=body)
    s3.delete_object(Bucket="bkt", Key="k3")
    del bodies["k3"]
    pool.kill()
    began = time.monotonic()
    pool.up()
    print(f"up again in {time.monotonic() - began:.2f} s")
    s3 = pool.boto()
    assert sorted(item["Key"] for item in s3.list_objects_v2(Bucket="bkt")["Contents"]) == sorted(bodies)
    for key, body in bodies.items():
        assert s3.get_object(Bucket="bkt", Key=key)["Body"].read() == body
    pool.trivium("fsck")


def test_without_its_database_the_metadata_is_rebuilt_from_the_drives_identically(pool: SystemPool) -> None:
    pool.up()
    s3 = pool.boto()
    s3.create_bucket(Bucket="bkt")
    for number in range(30):
        s3.put_object(Bucket="bkt", Key=f"dir{number % 3}/k{number}", Body=os.urandom(number * 2000))
    pool.trivium("metadata", "dump")
    s3.put_object(Bucket="bkt", Key="after the dump", Body=b"x")
    pool.trivium("down")
    database = str(pool.data / "metadata" / "trivium.db")
    seq, before = _applied(database), digest_of(database)
    shutil.rmtree(pool.data / "metadata")
    pool.up()
    assert f"metadata rebuilt up to record {seq}, digest {before}\n" in pool.log()
    assert pool.boto().get_object(Bucket="bkt", Key="after the dump")["Body"].read() == b"x"
    pool.trivium("fsck")


def _applied(database: str) -> int:
    import apsw

    db = apsw.Connection(database, flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return applied(db)[0]
    finally:
        db.close()


def test_a_second_process_is_refused_and_names_the_first(pool: SystemPool) -> None:
    pool.up()
    done = pool.trivium("up", "--data", pool.data, "--s3-listen", "127.0.0.1:0", check=False)
    assert done.returncode != 0
    assert str(pool.pid) in done.stderr and "in use" in done.stderr


def test_a_port_in_use_is_said_and_nothing_is_made(pool: SystemPool) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = pool.trivium("up", "--data", pool.data, "--s3-listen", f"127.0.0.1:{port}", check=False)
    assert done.returncode != 0
    assert str(port) in done.stderr and "--s3-listen" in done.stderr
    assert not (pool.data / "drives" / "d0" / "root").exists()


def test_a_newer_version_is_refused(pool: SystemPool) -> None:
    pool.up()
    pool.trivium("down")
    fields = json.loads((pool.data / "cluster").read_text())
    (pool.data / "cluster").write_text(json.dumps(fields | {"format": 99}))
    done = pool.trivium("up", "--data", pool.data, check=False)
    assert done.returncode != 0 and "newer" in done.stderr


def test_another_profile_is_refused(pool: SystemPool) -> None:
    pool.up("--profile", "2+1", "--drives", "3")
    pool.trivium("down")
    done = pool.trivium("up", "--data", pool.data, "--profile", "4+2", check=False)
    assert done.returncode != 0 and "2+1" in done.stderr


def test_a_first_start_that_was_interrupted_starts_over(pool: SystemPool) -> None:
    pool.up()
    pool.trivium("down")
    fields = json.loads((pool.data / "cluster").read_text())
    (pool.data / "cluster").write_text(json.dumps(fields | {"forming": True}))
    pool.up()
    assert pool.boto().list_buckets()["Buckets"] == []


def test_secrets_are_private(pool: SystemPool) -> None:
    pool.up()
    for path in [
        pool.data / "cluster",
        *(pool.data / "keys").iterdir(),
        pool.data / "run" / "trivium.sock",
        pool.data / "run" / "up.log",
    ]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert pool.env["AWS_SECRET_ACCESS_KEY"] not in pool.log()


def test_credentials_from_the_environment_win(pool: SystemPool) -> None:
    pool.env |= {"TRIVIUM_ROOT_USER": "operator", "TRIVIUM_ROOT_PASSWORD": "correct horse battery"}
    pool.up()
    assert pool.env["AWS_ACCESS_KEY_ID"] == "operator"
    pool.boto().create_bucket(Bucket="mine")


def test_no_pool_is_a_sentence_and_exit_status_3(pool: SystemPool) -> None:
    for arguments in (["status"], ["volume", "ls"], ["bucket", "ls"], ["fsck"]):
        done = pool.trivium(*arguments, check=False)
        assert done.returncode == 3 and "trivium up" in done.stderr, (arguments, done)


def test_two_drives_wiped_while_it_runs_and_replaced(pool: SystemPool) -> None:
    pool.up()
    s3 = pool.boto()
    s3.create_bucket(Bucket="bkt")
    bodies = {f"k{n}": os.urandom(300_000 * n) for n in range(8)}
    for key, body in bodies.items():
        s3.put_object(Bucket="bkt", Key=key, Body=body)
    for name in ("d0", "d5"):
        wipe(pool.data / "drives" / name)
    bodies["late"] = os.urandom(9_000_000)
    s3.put_object(Bucket="bkt", Key="late", Body=bodies["late"])
    for key, body in bodies.items():
        assert s3.get_object(Bucket="bkt", Key=key)["Body"].read() == body
    assert not json.loads(pool.trivium("status", "--json").stdout)["whole"]
    for name in ("d0", "d5"):
        pool.trivium("drive", "replace", name)
    assert json.loads(pool.trivium("status", "--json").stdout)["whole"]
    for key, body in bodies.items():
        assert s3.get_object(Bucket="bkt", Key=key)["Body"].read() == body
    pool.trivium("fsck")


def test_missing_drives_start_degraded_and_no_majority_refuses(pool: SystemPool) -> None:
    pool.up()
    pool.boto().create_bucket(Bucket="bkt")
    pool.boto().put_object(Bucket="bkt", Key="k", Body=b"v" * 100_000)
    pool.trivium("down")
    aside = pool.work / "aside"
    aside.mkdir()
    for name in ("d0", "d1"):
        shutil.move(pool.data / "drives" / name, aside / name)
    pool.up()
    assert pool.boto().get_object(Bucket="bkt", Key="k")["Body"].read() == b"v" * 100_000
    assert not (pool.data / "drives" / "d0").exists()
    pool.trivium("down")
    for name in ("d2", "d3", "d4"):
        shutil.move(pool.data / "drives" / name, aside / name)
    done = pool.trivium("up", "--data", pool.data, "--s3-listen", "none", check=False)
    assert done.returncode != 0 and "d2" in done.stderr
    for name in os.listdir(aside):
        shutil.move(aside / name, pool.data / "drives" / name)
    pool.up()
    assert pool.boto().get_object(Bucket="bkt", Key="k")["Body"].read() == b"v" * 100_000


def test_help_teaches_and_every_command_has_it() -> None:
    import subprocess

    top = subprocess.run([TRIVIUM, "--help"], capture_output=True, text=True, check=True).stdout
    assert "trivium up" in top and "TRIVIUM_CONNECT" in top
    for name in (
        "up",
        "down",
        "status",
        "bucket",
        "volume",
        "mount",
        "nbd",
        "drive",
        "fsck",
        "doctor",
        "metadata",
        "object",
        "credential",
    ):
        text = subprocess.run([TRIVIUM, name, "--help"], capture_output=True, text=True, check=True).stdout
        assert len(text.splitlines()) > 3, name


def test_stale_socket_is_replaced(pool: SystemPool) -> None:
    pool.up()
    pool.kill()
    assert Path(pool.data / "run" / "trivium.sock").exists()
    pool.up()
    pool.trivium("status")
