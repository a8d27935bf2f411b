"""Who is refused by a pool that listens over QUIC (`up --listen`), and what he is told."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.system.hosts import free_port
from tests.system.pool import TRIVIUM, SystemPool, wait_for


def test_each_who_is_refused_is_told_why(pool: SystemPool) -> None:
    address = f"127.0.0.1:{free_port()}"
    pool.up("--drives", "2", "--profile", "1+1", "--listen", address)
    pool.env["TRIVIUM_TRANSPORT"] = "quic"
    reader, writer, foreign = (pool.work / name for name in ("reader", "writer", "foreign"))
    pool.trivium("bucket", "create", "shelf")
    join(pool, writer, "--name", "writer")
    join(pool, reader, "--name", "reader", "--right", "read")
    join(pool, foreign, "--name", "foreign", "--pool", "7")

    body = os.urandom(300_000)
    wrote = pool.run(TRIVIUM, "object", "write", "shelf/a", "--connect", writer, stdin=body)
    assert "300000 bytes" in wrote.stderr
    writing = refused(pool, "object", "write", "shelf/b", "--connect", reader, "--data-literal", "x")
    assert writing == "Error: reader has no right to write\n"
    assert digest(pool, reader) == body
    assert "is for other pools than this cluster has (pool 7)" in refused(pool, "bucket", "ls", "--connect", foreign)
    assert "reader has no right to administer" in refused(pool, "cluster", "members", "--connect", reader)
    assert "whole" in pool.trivium("status", "--connect", reader).stdout

    nobody = refused(pool, "status", "--connect", address, status=3)
    assert "there is no key to reach" in nobody and "trivium cluster join TOKEN" in nobody
    there = pool.trivium("status", "--connect", address, "--identity", writer / "keys" / "client")
    assert "whole" in there.stdout
    assert "can be read by others" in refused(pool, "status", "--connect", with_open_key(writer, pool.work / "open"))
    assert "no pool answers" in refused(
        pool, "status", "--connect", f"127.0.0.1:{free_port()}", "--identity", writer / "keys" / "client", status=3
    )

    session = Writer(pool, writer)  # it has written through its open connection, and goes on
    session.write(b"one")
    done = pool.trivium("cluster", "revoke", "writer").stdout
    assert re.search("writer revoked; [1-9] connections and 1 sessions ended", done)
    assert "revoked" in session.end()
    assert "was revoked" in refused(pool, "bucket", "ls", "--connect", writer)
    assert "was revoked" in refused(pool, "status", "--connect", writer)
    assert digest(pool, reader) == body, "others go on"

    other = pool.work / "other"
    pool.trivium("up", "--data", other, "--drives", "2", "--profile", "1+1", "--s3-listen", "none", "--detach",
                 "--listen", f"127.0.0.1:{free_port()}")  # fmt: skip
    try:
        join(pool, pool.work / "theirs", connect=other)
        key = pool.work / "theirs" / "keys" / "client"
        assert "not signed by the cluster's key" in refused(pool, "status", "--connect", address, "--identity", key)
    finally:
        pool.trivium("down", "--connect", other)


def join(pool: SystemPool, folder: Path, *options: str, connect: Path | None = None) -> None:
    token = pool.trivium("cluster", "token", "create", *options, "--connect", connect or pool.data).stdout.strip()
    pool.trivium("cluster", "join", token, "--keys", folder / "keys")


def refused(pool: SystemPool, *arguments: str | Path, status: int = 1) -> str:
    done = pool.trivium(*arguments, check=False)
    assert done.returncode == status and "Traceback" not in done.stderr, (done.returncode, done.stderr)
    return done.stderr


def digest(pool: SystemPool, folder: Path) -> bytes:
    command = [TRIVIUM, "object", "read", "shelf/a", "--connect", str(folder)]
    return subprocess.run(command, env=pool.env, capture_output=True, check=True, timeout=60).stdout


def with_open_key(folder: Path, copy: Path) -> Path:
    shutil.copytree(folder, copy)
    (copy / "keys" / "client").chmod(0o644)
    return copy


class Writer:
    """A client that writes as long as it is fed."""

    def __init__(self, pool: SystemPool, folder: Path) -> None:
        command = [TRIVIUM, "object", "write", "shelf/fed", "--connect", str(folder)]
        self._process = subprocess.Popen(command, env=pool.env, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        self._pool = pool
        wait_for(lambda: "cli" in pool.trivium("status").stdout, "its session")

    def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def end(self) -> str:
        """What it says in the end."""
        _, said = self._process.communicate(timeout=60)
        assert self._process.returncode == 1
        return said.decode()
