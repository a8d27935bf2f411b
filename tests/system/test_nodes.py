"""Separate processes: a metadata server, three nodes of two drives in three domains, a gateway and a mount.

One node is killed: reads and writes go on, status says what is away. It comes back: everything is as it was written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.pool import TRIVIUM, SystemPool, alive, wait_for

SILENCE_S = 2.0


class Processes(SystemPool):
    """A pool of processes, each started by its own TOML file and waited for by systemd's READY=1."""

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, kind: str, toml: str) -> None:
        config, log = self.work / f"{name}.toml", self.work / f"{name}.log"
        config.write_text(toml)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, log.open("ab") as output:
            path = self.work / f"{name}.notify"
            path.unlink(missing_ok=True)
            told.bind(str(path))
            told.settimeout(60)
            env = self.env | {"NOTIFY_SOCKET": str(path)}
            command = [TRIVIUM, kind, "--config", str(config)]
            process = subprocess.Popen(command, env=env, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
            self.running[name] = process
            assert told.recv(100) == b"READY=1", self.said(name)

    def begin(self, name: str, kind: str, toml: str) -> None:
        """Start one that waits for others."""
        config = self.work / f"{name}.toml"
        config.write_text(toml)
        with (self.work / f"{name}.log").open("ab") as output:
            command = [TRIVIUM, kind, "--config", str(config)]
            process = subprocess.Popen(command, env=self.env, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        self.running[name] = process

    def end(self, name: str, number: int) -> int:
        process = self.running.pop(name)
        process.send_signal(number)
        return process.wait(30)

    def said(self, name: str) -> str:
        return (self.work / f"{name}.log").read_text()[-3000:]

    def node(self, number: int) -> None:
        self.start(
            f"n{number}",
            "node",
            f'connect = "{self.data}"\n[node]\ndata = "{self.work}/n{number}"\ndrives = 2\n'
            f'domain = "rack/h{number}"\nname = "n{number}"\n',
        )

    @property
    def metadata_toml(self) -> str:
        return f'[metadata]\ndata = "{self.data}"\nprofile = "4+2"\nsilence_s = {SILENCE_S}\n'

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.trivium("status", "--json").stdout)
        return found

    def clean_up(self) -> None:
        with contextlib.suppress(Exception):
            super().clean_up()
        for process in self.running.values():
            if alive(process.pid):
                process.kill()
            process.wait()


@pytest.fixture
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="trivium-test-") as directory:
        made = Processes(Path(directory))
        try:
            yield made
        finally:
            made.clean_up()


def start_all(pool: Processes) -> None:
    pool.env |= {"TRIVIUM_ROOT_USER": "test-root", "TRIVIUM_ROOT_PASSWORD": "test-secret-of-root"}
    pool.begin("metadata", "metadata", pool.metadata_toml)
    wait_for(lambda: (pool.data / "run" / "trivium.sock").exists(), "the metadata server's socket")
    for number in range(3):
        pool.node(number)
    wait_for(lambda: pool.trivium("status", check=False).returncode == 0, "the pool to be formed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pool.start("s3", "s3", f'connect = "{pool.data}"\n[s3]\nlisten = "127.0.0.1:{port}"\n')
    pool.env["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
    pool.env |= {"AWS_ACCESS_KEY_ID": "test-root", "AWS_SECRET_ACCESS_KEY": "test-secret-of-root"}


def test_a_killed_node_stops_nothing_and_comes_back_with_all_of_it(pool: Processes) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print("seed", seed)
    source = random.Random(seed)
    start_all(pool)
    s3 = pool.boto(retries={"total_max_attempts": 3}, connect_timeout=10, read_timeout=60)
    s3.create_bucket(Bucket="shelf")
    bodies = {f"k{number}": source.randbytes(size) for number, size in enumerate((100, 70_000, 1_000_000, 9_000_000))}
    for key, body in bodies.items():
        s3.put_object(Bucket="shelf", Key=key, Body=body)
    mountpoint = pool.work / "mnt"
    mountpoint.mkdir()
    pool.trivium("mount", mountpoint)

    status = pool.status()
    assert status["whole"] and [node["state"] for node in status["nodes"]] == ["up"] * 3
    assert {drive["domain"] for drive in status["drives"]} == {"rack/h0", "rack/h1", "rack/h2"}
    assert status["survives"]["data"]["hosts"] == 1 and status["survives"]["log"]["hosts"] >= 1
    assert status["survives"]["root"]["hosts"] >= 1

    pool.end("n1", signal.SIGKILL)
    status = pool.status()
    state = {n["name"]: n["state"] for n in status["nodes"]}["n1"]
    assert not status["whole"] and state in ("silent", "down")  # how long the command takes is not ours to say
    assert status["survives"]["data"]["hosts"] == 0
    check(pool, mountpoint, bodies)
    bodies["while-silent"] = source.randbytes(3_000_000)
    s3.put_object(Bucket="shelf", Key="while-silent", Body=bodies["while-silent"])
    wait_for(lambda: {n["name"]: n["state"] for n in pool.status()["nodes"]}["n1"] == "down", "the node to be down")
    assert sorted(d["state"] for d in pool.status()["drives"]) == ["down"] * 2 + ["up"] * 4
    bodies["while-down"] = source.randbytes(5_000_000)
    (mountpoint / "shelf" / "while-down").write_bytes(bodies["while-down"])
    check(pool, mountpoint, bodies)

    pool.node(1)
    wait_for(lambda: bool(pool.status()["whole"]), "the pool to be whole again")
    assert [node["state"] for node in pool.status()["nodes"]] == ["up"] * 3
    pool.end("n2", signal.SIGKILL)  # another one: what was written meanwhile must not depend on it
    check(pool, mountpoint, bodies)
    pool.node(2)
    wait_for(lambda: bool(pool.status()["whole"]), "the pool to be whole once more")
    assert pool.trivium("fsck").returncode == 0
    for name in ("s3", "n0"):
        assert pool.end(name, signal.SIGTERM) == 0


def check(pool: Processes, mountpoint: Path, bodies: dict[str, bytes]) -> None:
    s3 = pool.boto(retries={"total_max_attempts": 3}, connect_timeout=10, read_timeout=60)
    for key, body in bodies.items():
        assert digest(s3.get_object(Bucket="shelf", Key=key)["Body"].read()) == digest(body), key
        assert digest((mountpoint / "shelf" / key).read_bytes()) == digest(body), key
    os.sync()


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def test_a_cold_pool_starts_from_what_is_remembered_and_only_once(pool: Processes) -> None:
    start_all(pool)
    pool.boto().create_bucket(Bucket="kept")
    moved = f'[metadata]\ndata = "{pool.work}/elsewhere"\nsilence_s = {SILENCE_S}\n'
    (pool.work / "elsewhere").mkdir()
    facts = json.loads((pool.data / "cluster").read_text())
    (pool.work / "elsewhere" / "cluster").write_text(json.dumps(facts | {"node": "ab" * 16}))
    moved += f'nodes = ["unix:{pool.work}/n0/run/node.sock", "unix:{pool.work}/n2/run/node.sock"]\n'
    pool.begin("second", "metadata", moved)
    assert pool.running.pop("second").wait(30) == 5, pool.said("second")
    assert "is led from" in pool.said("second")
    for name in list(pool.running):
        pool.end(name, signal.SIGKILL)
    pool.begin("metadata", "metadata", pool.metadata_toml)
    for number in range(3):
        pool.node(number)
    wait_for(lambda: pool.trivium("status", check=False).returncode == 0, "the pool to be up again")
    assert "kept" in pool.trivium("bucket", "ls").stdout
    assert pool.end("metadata", signal.SIGTERM) == 0
    pool.start("second", "metadata", moved)  # the first one released the root
    pool.env["TRIVIUM_CONNECT"] = f"{pool.work}/elsewhere"
    assert "kept" in pool.trivium("bucket", "ls").stdout
