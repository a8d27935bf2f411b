"""A cluster of processes that have nothing in common but UDP: formed by tokens, used by S3 and a mount."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.hosts import Hosts
from tests.system.test_nodes import check


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with tempfile.TemporaryDirectory(prefix="trivium-test-") as directory:
        made = Hosts(Path(directory))
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
    hosts.trivium("mount", mountpoint)
    bodies["file"] = source.randbytes(3_000_000)
    (mountpoint / "shelf" / "file").write_bytes(bodies["file"])
    check(hosts, mountpoint, bodies)

    status = hosts.status()
    assert status["whole"] and [node["state"] for node in status["nodes"]] == ["up"] * 3
    assert {drive["domain"] for drive in status["drives"]} == {"rack/h0", "rack/h1", "rack/h2"}
    members = hosts.trivium("cluster", "members").stdout
    assert members.count(" node ") >= 3 and "gateway" in members
    assert hosts.trivium("umount", mountpoint).returncode == 0
