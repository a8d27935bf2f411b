"""Drives of nodes in processes of their own: replaced and added where they are, which is not where the command runs."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

from tests.system.pool import wait_for
from tests.system.test_nodes import Processes, pool, start_all

__all__ = ["pool"]


def drives_of(pool: Processes, node: str) -> list[dict[str, Any]]:
    found = [drive for drive in pool.status()["drives"] if f"/{node}" in drive["domain"].replace("/h", "/n")]
    return sorted(found, key=lambda drive: str(drive["path"]))


def whole(pool: Processes) -> bool:
    return bool(pool.status()["whole"])


def test_a_drive_of_a_node_is_replaced_on_that_node(pool: Processes) -> None:
    start_all(pool)
    s3 = pool.boto()
    s3.create_bucket(Bucket="shelf")
    body = bytes(range(256)) * 8000
    s3.put_object(Bucket="shelf", Key="k", Body=body)
    first, second = drives_of(pool, "n1")

    pool.end("n1", signal.SIGKILL)
    refused = pool.trivium("drive", "replace", first["name"], check=False)
    assert refused.returncode and "node n1" in refused.stderr and "start it first" in refused.stderr
    assert not any("replace" in path.name for path in (pool.data / "drives").glob("*"))
    pool.node(1)
    wait_for(lambda: whole(pool), "the pool to be whole")
    up = pool.trivium("drive", "replace", first["name"], check=False)
    assert up.returncode and "is up" in up.stderr

    shutil.rmtree(first["path"])  # the disk is gone, another one is in its place: the same path
    answer = pool.trivium("drive", "replace", first["name"]).stdout
    assert f"{first['path']} of node n1" in answer
    assert (Path(first["path"]) / "root").exists()
    wait_for(lambda: whole(pool), "the pool to be whole on the new drive")
    shutil.rmtree(second["path"])  # and one that is mounted elsewhere
    elsewhere = pool.work / "disk"
    full = pool.work / "full"
    full.mkdir()
    (full / "x").write_text("mine")
    refused = pool.trivium("drive", "replace", second["name"], full, check=False)
    assert refused.returncode and "node n1" in refused.stderr and "not empty" in refused.stderr
    pool.trivium("drive", "replace", second["name"], elsewhere)
    wait_for(lambda: whole(pool), "the pool to be whole on the other path")
    assert [drive["path"] for drive in drives_of(pool, "n1")] == [str(elsewhere), first["path"]]
    assert {drive["domain"] for drive in drives_of(pool, "n1")} == {"rack/h1"}
    assert not list((pool.data / "drives").iterdir()), "nothing is made on the metadata server's host"

    pool.end("n1", signal.SIGKILL)
    pool.node(1)  # it finds its new drives again, both of them
    wait_for(lambda: whole(pool), "the pool to be whole after the node was started again")
    assert s3.get_object(Bucket="shelf", Key="k")["Body"].read() == body

    refused = pool.trivium("drive", "add", pool.work / "more", check=False)
    assert refused.returncode and "--node" in refused.stderr
    refused = pool.trivium("drive", "add", pool.work / "more", "--node", "n7", check=False)
    assert refused.returncode and "there are n0, n1, n2" in refused.stderr
    pool.trivium("drive", "add", pool.work / "more", "--node", "n2")
    assert [drive["domain"] for drive in drives_of(pool, "n2")] == ["rack/h2"] * 3
    assert (pool.work / "more" / "root").exists()
    assert pool.trivium("fsck").returncode == 0
