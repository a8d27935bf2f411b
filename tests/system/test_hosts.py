"""The cluster on three hosts: one is killed, comes back, a fourth joins, another is drained; all of it under load.

At each step status must say what is so, and every body that was ever answered must be read back over every road.
"""

from __future__ import annotations

import os
import random
import shutil
from typing import Any

import pytest

from tests.system import network
from tests.system.hostload import Load, Shelf
from tests.system.nethosts import Cluster, QuicHosts, UnixHosts

pytestmark = pytest.mark.skipif(bool(network.why_not()), reason=network.why_not())

SOAK = bool(os.environ.get("TRIVIUM_SOAK_HOSTS"))


def states(status: dict[str, Any], what: str = "nodes") -> dict[str, str]:
    return {found["name"]: found["state"] for found in status[what]}


def drives_of(status: dict[str, Any], host: str) -> list[str]:
    return sorted(drive["name"] for drive in status["drives"] if drive["domain"] == f"rack/{host}")


def assert_consistent(status: dict[str, Any]) -> None:
    """What holds in any state: whole means that nothing is wrong; what is wrong is in the sentences."""
    nodes, drives = states(status), states(status, "drives")
    if status["whole"]:
        assert set(nodes.values()) == {"up"} and set(drives.values()) <= {"up", "new", "draining"}
        assert status["heal"] is None and status["summary"].startswith("whole")
    else:
        assert status["summary"].startswith("degraded")
    text = " ".join(status["sentences"])
    for name, state in nodes.items():
        assert state == "up" or f"node {name}" in text, (name, state, text)
    for name, state in drives.items():
        assert state in ("up", "new") or name in text, (name, state, text)
    if heal := status["heal"]:
        assert 0 <= heal["done"] < heal["total"]


def assert_whole(status: dict[str, Any], hosts: list[str]) -> None:
    assert_consistent(status)
    assert status["whole"], status["sentences"]
    assert sorted({drive["domain"] for drive in status["drives"]}) == [f"rack/{host}" for host in hosts]
    assert states(status) == {f"{host}{letter}": "up" for host in hosts for letter in "ab"}
    for what in ("data", "log", "root"):
        assert status["survives"][what]["hosts"] >= 1 and status["survives"][what]["drives"] >= 2, status["survives"]


def run_scenario(cluster: Cluster) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print("seed", seed)
    shelf = Shelf(cluster, random.Random(seed))
    cluster.form()
    shelf.begin()
    shelf.add("first")
    assert_whole(cluster.status(), ["h0", "h1", "h2"])
    with Load(cluster, seed) as load:
        load.still_works()
        lose_a_host(cluster, shelf, load)
        get_it_back(cluster, shelf, load)
        add_a_host(cluster, shelf, load)
        drain_a_host(cluster, shelf, load)
        assert load.stop() > 20
        shelf.verify()
        assert load.verify() > 10
    assert cluster.trivium("fsck").returncode == 0
    assert_whole(cluster.status(), ["h1", "h2", "h3"])
    assert cluster.all_alive()
    for name in ("web0", "h1a"):
        assert cluster.end(name) == 0


def lose_a_host(cluster: Cluster, shelf: Shelf, load: Load) -> None:
    gone = drives_of(cluster.ask("status"), "h1")
    cluster.kill_host("h1")
    status = cluster.wait_for_status(lambda status: states(status)["h1a"] != "up", "the silence to be noticed")
    assert_consistent(status)
    shelf.add("silent")
    load.still_works()
    shelf.verify()
    cluster.wait_for_status(
        lambda status: {states(status)[name] for name in ("h1a", "h1b")} == {"down"}, "the host's nodes to be down"
    )
    status = cluster.status()
    assert_consistent(status)
    assert not status["whole"] and status["survives"]["data"]["hosts"] == 0
    assert states(status) == {"h1a": "down", "h1b": "down"} | {f"h{n}{x}": "up" for n in (0, 2) for x in "ab"}
    assert [name for name, state in states(status, "drives").items() if state == "down"] == gone
    shelf.add("down")
    load.still_works()
    shelf.verify()


def get_it_back(cluster: Cluster, shelf: Shelf, load: Load) -> None:
    """With one of its drives empty."""
    shutil.rmtree(cluster.root / "h1a" / "drives" / "d0")
    cluster.ready(*cluster.return_host("h1"))
    status = cluster.wait_for_status(
        lambda status: set(states(status).values()) == {"up"}, "the nodes of the host to be up"
    )
    assert_consistent(status)
    (lost,) = next(node["drives"] for node in status["nodes"] if node["name"] == "h1a")
    assert not status["whole"] and [n for n, s in states(status, "drives").items() if s != "up"] == [lost]
    cluster.trivium("drive", "replace", lost, "--no-wait")
    progress: list[tuple[int, int]] = []

    def healed(status: dict[str, Any]) -> bool:
        assert_consistent(status)
        if heal := status["heal"]:
            progress.append((heal["done"], heal["total"]))
        return bool(status["whole"])

    cluster.wait_for_status(healed, "the pool to be whole again")
    print("healing was seen at", *progress)
    assert progress, "status said nothing of the healing"
    status = cluster.status()
    assert_whole(status, ["h0", "h1", "h2"])
    assert status["narrow"] and status["narrow"]["left"] > 0  # what was written over four drives is, and says so
    load.still_works()
    shelf.verify()
    if cluster.cables:
        cut_off(cluster, shelf, load)


def cut_off(cluster: Cluster, shelf: Shelf, load: Load) -> None:
    """Another host: what was written while the first was away does not depend on it. In soaks also one way only."""
    ways: list[bool | None] = [None, True, False] if SOAK else [None]  # None: both, True: nothing comes to it
    for way in ways:
        if way is None:
            cluster.network.cut("h2")
        elif not cluster.network.cut_one_way("h2", into=way):
            continue
        shelf.verify()
        load.still_works()
        if way is None:
            cluster.network.mend("h2")
        else:
            cluster.network.mend_one_way("h2", into=way)
        cluster.wait_for_status(lambda status: bool(status["whole"]), "the pool to be whole once more")


def add_a_host(cluster: Cluster, shelf: Shelf, load: Load) -> None:
    cluster.add_host("h3")
    cluster.trivium("drive", "add", cluster.root / "h3a" / "drives" / "d1", "--node", "h3a")
    assert_whole(cluster.wait_for_status(lambda status: bool(status["whole"]), "whole"), ["h0", "h1", "h2", "h3"])
    shelf.add("more")
    load.still_works()
    status = cluster.status()
    assert_consistent(status)
    shelf.verify()
    assert all(states(status, "drives")[name] in ("up", "new") for name in drives_of(status, "h3"))


def drain_a_host(cluster: Cluster, shelf: Shelf, load: Load) -> None:
    leaving = drives_of(cluster.ask("status"), "h0")
    for name in leaving:
        cluster.trivium("drive", "drain", name, "--no-wait")
    status = cluster.status()
    assert_consistent(status)
    assert [states(status, "drives")[name] for name in leaving] == ["draining"] * 2
    shelf.add("draining")
    load.still_works()
    cluster.wait_for_status(
        lambda status: all(drive["drained"] for drive in status["drives"] if drive["name"] in leaving),
        "both drives to be empty",
        timeout_s=180,
    )
    for name in leaving:
        cluster.trivium("drive", "remove", name)
    cluster.kill_host("h0")
    shelf.verify()
    load.still_works()
    cluster.wait_for_status(lambda status: not drives_of(status, "h0"), "the host to be gone from status")


@pytest.mark.skipif(not SOAK, reason="make soak-hosts")
def test_a_host_is_lost_returns_another_joins_one_is_drained() -> None:
    """By Unix sockets, which know no hosts: the least that two busy cores can take. The rest is `make soak-hosts`."""
    with UnixHosts() as cluster:
        run_scenario(cluster)


@pytest.mark.skipif(not SOAK, reason="make soak-hosts")
@pytest.mark.parametrize("engines", ["qh3,aioquic", "aioquic", "qh3"])
def test_the_same_over_quic(engines: str) -> None:
    with QuicHosts(engines.split(",")) as cluster:
        run_scenario(cluster)
