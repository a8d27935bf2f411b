"""What operators and clients get wrong, and what machines do to them: a sentence that says what to do, the right exit
status, nothing lost, no traceback. (The protocol's own bad input is in integration/test_s3_http and property/.)"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from urllib.parse import urlsplit

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from tests.system.pool import TRIVIUM, SystemPool, wait_for

MIB = 1 << 20
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and changes of user need root")


def refused(done: CompletedProcess[str], status: int, *words: str) -> None:
    """One sentence on stderr, with these words in it."""
    assert done.returncode == status, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr + done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ") and all(word in last for word in words), last


def fill(pool: SystemPool, count: int = 4) -> dict[str, bytes]:
    s3 = pool.boto()
    s3.create_bucket(Bucket="bkt")
    bodies = {f"k{n}": os.urandom(70_000 * n + 10) for n in range(count)}
    for key, body in bodies.items():
        s3.put_object(Bucket="bkt", Key=key, Body=body)
    return bodies


def intact(pool: SystemPool, bodies: dict[str, bytes]) -> None:
    s3 = pool.boto()
    for key, body in bodies.items():
        assert s3.get_object(Bucket="bkt", Key=key)["Body"].read() == body, key


def status_of(pool: SystemPool) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(pool.trivium("status", "--json").stdout)
    return found


def down_drives(pool: SystemPool) -> dict[str, str]:
    return {drive["name"]: drive["text"] for drive in status_of(pool)["drives"] if drive["state"] in ("down", "out")}


def start(pool: SystemPool) -> CompletedProcess[str]:
    return pool.trivium("up", "--data", pool.data, "--s3-listen", "127.0.0.1:0", "--detach", check=False)


@contextmanager
def mount(*arguments: str | Path) -> Iterator[None]:
    subprocess.run(["mount", *map(str, arguments)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(arguments[-1])], check=False)


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        old = file.read(1)
        file.seek(position)
        file.write(bytes([old[0] ^ 0x55]))


# ---- clients ------------------------------------------------------------------------------------------------


def code_of(call: Callable[..., Any], **arguments: Any) -> tuple[int, str]:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    answer = caught.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]


def test_wrong_keys_a_wrong_clock_and_bodies_cut_off_leave_nothing(
    running: SystemPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3 = running.boto(retries={"max_attempts": 0})
    s3.create_bucket(Bucket="clients")
    secret = running.env["AWS_SECRET_ACCESS_KEY"]
    running.env["AWS_SECRET_ACCESS_KEY"] = "wrong"
    wrong = running.boto(retries={"max_attempts": 0})
    running.env["AWS_SECRET_ACCESS_KEY"] = secret
    assert code_of(wrong.put_object, Bucket="clients", Key="k", Body=b"x") == (403, "SignatureDoesNotMatch")

    url = s3.generate_presigned_url("put_object", Params={"Bucket": "clients", "Key": "cut"})
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port)) as client:
        head = f"PUT {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {9 * MIB}\r\n\r\n"
        client.sendall(head.encode() + b"x" * 5 * MIB)
        client.shutdown(socket.SHUT_WR)
        assert b" 400 " in client.recv(65536).splitlines()[0]
    request = AWSRequest("PUT", f"{running.endpoint}/clients/late", data=b"x")
    with monkeypatch.context() as patch:
        late = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=20)
        patch.setattr(botocore.auth, "get_current_datetime", lambda *_: late.replace(tzinfo=None))
        keys = Credentials(running.env["AWS_ACCESS_KEY_ID"], secret)
        botocore.auth.S3SigV4Auth(keys, "s3", "us-east-1").add_auth(request)
    sent = urllib.request.Request(request.url, b"x", dict(request.headers), method="PUT")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(sent)
    assert caught.value.code == 403 and b"RequestTimeTooSkewed" in caught.value.read()
    assert s3.list_objects_v2(Bucket="clients")["KeyCount"] == 0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["bucket", "create", "No_Bucket"], ["bucket"]),
        (["bucket", "rm", "not-there"], ["not-there"]),
        (["volume", "create", "a/b", "1G"], ["volume's name"]),
        (["volume", "create", "v", "0"], ["size"]),
        (["volume", "rm", "--yes", "not-there"], ["not-there"]),
        (["object", "read", "not-there/k"], ["not-there"]),
        (["drive", "replace", "d99"], ["d99", "d0"]),
        (["drive", "replace", "d0"], ["d0 is up"]),
        (["credential", "rm", "NOTTHERE"], ["NOTTHERE"]),
        (["metadata", "query", "DELETE FROM inodes"], []),
        (["metadata", "query", "SELECT nonsense"], ["nonsense"]),
    ],
)
def test_names_that_are_not_there_or_not_allowed(running: SystemPool, command: list[str], words: list[str]) -> None:
    refused(running.trivium(*command, check=False), 1, *words)


def test_wrong_usage_is_status_2(running: SystemPool) -> None:
    for command in (
        ["volume", "create", "v", "lots"],
        ["up", "--socket-mode", "9z9"],
        ["up", "--socket-group", "no such group"],
        ["up", "--profile", "4"],
        ["status", "--connect", "/etc/passwd"],
    ):
        done = running.trivium(*command, check=False)
        refused(done, 2)


# ---- places -------------------------------------------------------------------------------------------------


def test_a_refused_start_says_why_and_leaves_nothing(pool: SystemPool) -> None:
    mine = pool.work / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("x")
    for detach in ([], ["--detach"]):
        done = pool.trivium("up", "--data", mine, "--s3-listen", "none", *detach, check=False)
        refused(done, 1, "thesis.txt", "--data")
        refused(
            pool.trivium("up", "--data", "/proc/pool", "--s3-listen", "none", *detach, check=False), 1, "/proc/pool"
        )
    refused(pool.trivium("up", "--data", mine, "--clean-slate", "--yes", check=False), 1, "no pool")
    assert os.listdir(mine) == ["thesis.txt"]


@as_root
def test_another_user_is_refused_in_words(pool: SystemPool) -> None:
    pool.up("--drives", "3", "--profile", "2+1")
    pool.work.chmod(0o755)
    pool.data.chmod(0o755)
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", TRIVIUM]
    for command in (["status"], ["down"], ["mount", "/tmp"], ["nbd", "serve", "--socket", "/tmp/no.sock"]):
        refused(pool.run(*nobody, *command, check=False), 1, "Permission denied", "account that runs the pool")
    done = pool.run(*nobody, "up", "--data", pool.data, "--s3-listen", "none", "--detach", check=False)
    refused(done, 1, "Permission denied")
    assert status_of(pool)["whole"]


@as_root
def test_a_disk_that_is_read_only_or_too_small(pool: SystemPool) -> None:
    small = pool.work / "small"
    small.mkdir()
    with mount("-t", "tmpfs", "-o", "size=4m", "none", small):
        done = pool.trivium("up", "--data", small / "p", "--s3-listen", "none", "--detach", check=False)
        refused(done, 1, "d0", "full")
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        done = pool.trivium("up", "--data", small / "q", "--s3-listen", "none", "--detach", check=False)
        refused(done, 1, "Read-only", "choose a place")


@as_root
def test_without_fuse_a_mount_says_what_is_missing(running: SystemPool) -> None:
    for command, words in ((f"mount {running.work}", ("/dev/fuse", "doctor")), ("doctor", ("missing", "/dev/fuse"))):
        hidden = f"mount -t tmpfs none /dev && {TRIVIUM} {command}"
        done = running.run("unshare", "-m", "sh", "-c", hidden, check=False)
        refused(done, 4, *words)


# ---- a full disk --------------------------------------------------------------------------------------------


@as_root
def test_a_full_disk_refuses_objects_keeps_what_is_there_and_deletes(pool: SystemPool) -> None:
    pool.data.mkdir()
    with mount("-t", "tmpfs", "-o", "size=420m", "none", pool.data):
        pool.up()
        s3 = pool.boto(retries={"max_attempts": 0})
        s3.create_bucket(Bucket="bkt")
        bodies: dict[str, bytes] = {}
        answer = (200, "")
        while answer[0] == 200 and len(bodies) < 100:
            body = os.urandom(8 * MIB)
            try:
                s3.put_object(Bucket="bkt", Key=f"k{len(bodies)}", Body=body)
                bodies[f"k{len(bodies)}"] = body
            except ClientError as error:
                answer = (error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"])
        assert answer in ((507, "InsufficientStorage"), (503, "SlowDown")), answer
        assert len(bodies) > 5
        intact(pool, bodies)
        listed = [item["Key"] for item in s3.list_objects_v2(Bucket="bkt")["Contents"]]
        assert sorted(listed) == sorted(bodies)
        assert "full" in pool.trivium("status").stdout
        for key in list(bodies)[: len(bodies) // 2]:
            s3.delete_object(Bucket="bkt", Key=key)
            del bodies[key]
        intact(pool, bodies)

        def takes_again() -> bool:
            try:
                s3.put_object(Bucket="bkt", Key="again", Body=b"a" * MIB)
            except ClientError:
                return False
            return True

        wait_for(takes_again, "the room of deleted objects")
        bodies["again"] = b"a" * MIB
        pool.kill()
        pool.up()
        intact(pool, bodies)
        pool.trivium("down")


# ---- drives at start-up -------------------------------------------------------------------------------------


@as_root
def test_drives_that_cannot_be_used_are_named_and_come_back(pool: SystemPool) -> None:
    """A file where the directory was, a damaged root file, a read-only disk: two at a time (4+2)."""
    pool.up()
    bodies = fill(pool)
    pool.trivium("down")
    drives = pool.data / "drives"

    (drives / "d0").rename(pool.work / "d0")
    (drives / "d0").write_text("no directory")
    flip(drives / "d1" / "root", 2)  # the head
    pool.up()
    found = down_drives(pool)
    assert sorted(found) == ["d0", "d1"] and "directory" in found["d0"] and "root" in found["d1"], found
    intact(pool, bodies)
    pool.boto().put_object(Bucket="bkt", Key="meanwhile", Body=b"m" * 200_000)
    bodies["meanwhile"] = b"m" * 200_000
    pool.trivium("down")
    (drives / "d0").unlink()
    (pool.work / "d0").rename(drives / "d0")
    flip(drives / "d1" / "root", 2)

    with mount("--bind", drives / "d2", drives / "d2"):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(drives / "d2")], check=True)
        for position in range(4096 + 100, (drives / "d3" / "root").stat().st_size, 4096):  # both slots
            flip(drives / "d3" / "root", position)
        pool.up()
        found = down_drives(pool)
        assert "d2" in found and "Read-only" in found["d2"], found
        intact(pool, bodies)
        pool.trivium("down")
    pool.up()
    assert "d2" not in down_drives(pool)
    intact(pool, bodies)
    pool.trivium("fsck", "--no-drives")


def test_drives_of_another_pool_are_refused_by_name_and_left_alone(pool: SystemPool) -> None:
    pool.up()
    bodies = fill(pool)
    pool.trivium("down")
    other = SystemPool(pool.work / "other")
    other.work.mkdir()
    other.up()
    other.trivium("down")
    mine, theirs = pool.data / "drives", other.data / "drives"

    def swap(names: list[str]) -> None:
        for name in names:
            (mine / name).rename(pool.work / "aside")
            (theirs / name).rename(mine / name)
            (pool.work / "aside").rename(theirs / name)

    swap(["d0"])
    theirs_before = (mine / "d0" / "root").read_bytes()
    pool.up()
    assert "belongs to cluster" in down_drives(pool)["d0"]
    intact(pool, bodies)
    refused(pool.trivium("drive", "replace", "d0", check=False), 1, "not empty")
    pool.trivium("down")
    assert (mine / "d0" / "root").read_bytes() == theirs_before
    swap(["d1", "d2", "d3", "d4", "d5"])
    refused(start(pool), 1, "belongs to cluster")
    swap([f"d{n}" for n in range(6)])
    pool.up()
    assert status_of(pool)["whole"]
    intact(pool, bodies)


def test_exchanged_and_copied_drives_are_known_by_their_ids(pool: SystemPool) -> None:
    pool.up()
    bodies = fill(pool)
    pool.trivium("down")
    drives = pool.data / "drives"
    (drives / "d0").rename(pool.work / "aside")
    (drives / "d1").rename(drives / "d0")
    (pool.work / "aside").rename(drives / "d1")
    pool.up()
    assert status_of(pool)["whole"]
    intact(pool, bodies)
    pool.trivium("down")
    (drives / "d0").rename(pool.work / "aside")
    (drives / "d1").rename(drives / "d0")
    (pool.work / "aside").rename(drives / "d1")

    shutil.copytree(drives / "d0", drives / "d9", ignore=shutil.ignore_patterns("ballast"))  # sorts last; soon older
    pool.up()
    assert "copies are left alone" in pool.log() and "d9" in pool.log()
    before = sorted(path.name for path in (drives / "d9").rglob("*"))
    pool.boto().put_object(Bucket="bkt", Key="late", Body=b"l" * 300_000)
    bodies["late"] = b"l" * 300_000
    assert status_of(pool)["whole"]
    assert sorted(path.name for path in (drives / "d9").rglob("*")) == before
    pool.trivium("down")

    (drives / "d0").rename(drives / "d8")  # now nobody knows which of the two is the newer one
    pool.up()
    text = down_drives(pool)["d0"]
    assert "d8" in text and "d9" in text and "leave one" in text
    intact(pool, bodies)
    pool.trivium("down")
    shutil.rmtree(drives / "d9")
    pool.up()
    assert status_of(pool)["whole"]
    intact(pool, bodies)
    pool.trivium("fsck")


# ---- damaged records ----------------------------------------------------------------------------------------


def segments(pool: SystemPool) -> dict[str, list[Path]]:
    """The log's files by segment, and where each replica lies."""
    found: dict[str, list[Path]] = {}
    for path in sorted((pool.data / "drives").glob("*/log/*.*")):
        found.setdefault(path.stem, []).append(path)
    return found


def test_a_damaged_log_is_read_from_a_good_replica_or_refused(pool: SystemPool) -> None:
    pool.up()
    bodies = fill(pool)
    pool.kill()  # an open segment
    database = pool.data / "metadata" / "trivium.db"
    (replicas,) = segments(pool).values()
    assert len(replicas) == 3
    flip(replicas[0], 4096 + 300)
    _forget(database)
    pool.up()
    assert "rebuilt" in pool.log()
    intact(pool, bodies)
    pool.trivium("down")

    files = [path for paths in segments(pool).values() for path in paths]
    for path in files:
        flip(path, 4096 + 300)
    refused(start(pool), 6, "log cannot be opened", "Bring back")
    for path in files:
        flip(path, 4096 + 300)
    database.write_bytes(b"no database" * 10_000)
    _forget(database, "-wal", "-shm")
    pool.up()
    intact(pool, bodies)
    pool.trivium("fsck")


def _forget(database: Path, *suffixes: str) -> None:
    for suffix in suffixes or ("", "-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)


def test_a_tail_that_every_replica_lost_is_not_passed_over(pool: SystemPool) -> None:
    """The local file knows that records were answered which the log no longer has."""
    pool.up()
    fill(pool)
    pool.kill()
    (replicas,) = segments(pool).values()
    kept = {path: path.read_bytes() for path in replicas}
    for path, data in kept.items():
        end = len(data.rstrip(b"\0"))
        flip(path, end - 40)
    done = start(pool)
    refused(done, 6, "pool cannot start", "missing from the log", "trivium.db")
    assert (pool.data / "metadata" / "trivium.db").exists()
