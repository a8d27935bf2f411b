"""A cluster of processes that have nothing in common but UDP: formed by tokens, used by S3 and a mount, restarted.

Both QUIC engines by turns; TRIVIUM_TEST_ENGINES=aioquic (or qh3) tries one alone.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.hosts import Hosts
from tests.system.pool import wait_for
from tests.system.test_nodes import check

ENGINES = tuple(os.environ.get("TRIVIUM_TEST_ENGINES", "qh3,aioquic").split(","))
NODES = "SELECT name, hex(addresses) AS addresses FROM nodes"


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with tempfile.TemporaryDirectory(prefix="trivium-test-") as directory:
        made = Hosts(Path(directory), ENGINES)
        try:
            yield made
        finally:
            print(made.said_by_all())
            made.clean_up()


def test_three_hosts_form_a_cluster_by_tokens_and_serve_s3_and_a_mount(hosts: Hosts) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print("seed", seed)
    source = random.Random(seed)
    hosts.form()
    s3 = hosts.boto(retries={"total_max_attempts": 3}, connect_timeout=10, read_timeout=60)
    s3.create_bucket(Bucket="shelf")
    bodies = {f"k{number}": source.randbytes(size) for number, size in enumerate((100, 70_000, 1_000_000, 9_000_000))}
    for key, body in bodies.items():
        s3.put_object(Bucket="shelf", Key=key, Body=body)
    mountpoint = hosts.work / "mnt"
    mountpoint.mkdir()
    hosts.join_client(hosts.work / "user", "--name", "user")  # who may write, and no more
    hosts.trivium("mount", mountpoint, "--connect", hosts.work / "user")
    bodies["file"] = source.randbytes(3_000_000)
    (mountpoint / "shelf" / "file").write_bytes(bodies["file"])
    check(hosts, mountpoint, bodies)

    status = hosts.status()
    assert status["whole"] and [node["state"] for node in status["nodes"]] == ["up"] * 3
    assert {drive["domain"] for drive in status["drives"]} == {"rack/h0", "rack/h1", "rack/h2"}
    members = hosts.trivium("cluster", "members").stdout
    assert members.count(" node ") >= 3 and "gateway" in members

    hosts.kill("n1")
    del hosts.ports["n1"]  # it comes back elsewhere
    hosts.host(1)
    port = str(hosts.port("n1")).encode().hex()
    wait_for(lambda: port in hosts.operator("metadata", "query", NODES).lower(), "its new address in the map")
    hosts.kill("metadata")
    hosts.metadata()
    hosts.wait_whole()
    hosts.kill("n0")  # so that the moved one is needed
    check(hosts, mountpoint, bodies)
    hosts.host(0)
    hosts.wait_whole()
    bodies["later"] = source.randbytes(2_000_000)
    s3.put_object(Bucket="shelf", Key="later", Body=bodies["later"])
    check(hosts, mountpoint, bodies)
    assert hosts.trivium("umount", mountpoint).returncode == 0
    for name in ("s3", "n0", "n1"):
        assert hosts.end(name, signal.SIGTERM) == 0
