"""What travels between hosts, and what strangers can do there: a captured trace, keys that do not fit, rubbish.

Everything is seen from a cable: frames are taken and put in at the switch of a network of namespaces.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import trio

from tests.system import network
from tests.system.attack import Datagram, Stranger, datagrams, mutate, rubbish
from tests.system.hostload import Shelf
from tests.system.nethosts import METADATA_PORT, NODE_PORT, ROOT_PASSWORD, QuicHosts
from tests.system.pool import TRIVIUM, wait_for
from trivium.cluster.clock import SystemClock
from trivium.cluster.errors import ClusterError
from trivium.cluster.identity import keyfiles
from trivium.cluster.identity.member import Member
from trivium.cluster.wire import NodeRequest, Service
from trivium.metadata.messages import Operation, Query, Request

pytestmark = pytest.mark.skipif(bool(network.why_not()), reason=network.why_not())

SOAK = int(os.environ.get("TRIVIUM_SOAK_HOSTS", "0") or 0)
MALFORMED = 100_000 if SOAK else 2000
CONNECTIONS = 1000 if SOAK else 30
REQUESTS = 10_000 if SOAK else 300
GROWTH_BYTES = 120 << 20


@pytest.fixture(scope="module")
def cluster() -> Iterator[QuicHosts]:
    with QuicHosts(("qh3", "aioquic")) as made:
        made.form()
        yield made


@pytest.fixture
def source() -> random.Random:
    seed = random.SystemRandom().getrandbits(32)
    print("seed", seed)
    return random.Random(seed)


# ---- the trace ----------------------------------------------------------------------------------------------


def test_a_trace_of_a_busy_cluster_holds_no_plaintext(cluster: QuicHosts, source: random.Random) -> None:
    """Gateways are asked on their own hosts (S3 itself is plain HTTP here): only the cluster's own traffic passes."""
    needles = [source.randbytes(32) for _ in range(4)]
    names = [source.randbytes(12).hex() for _ in range(4)]
    bodies = [needle * (1 << size) for needle, size in zip(needles, (16, 15, 5, 12), strict=True)]  # one is inline
    written = sum(len(body) for body in bodies)
    capture = cluster.network.capture()
    with cluster.network.on("web0"):
        s3 = cluster.gateway("web0")
        s3.create_bucket(Bucket="secrets")
        for name, body in zip(names[1:], bodies[1:], strict=True):
            s3.put_object(Bucket="secrets", Key=name, Body=body)
    with cluster.network.on("desk"):
        (cluster.mountpoint / "secrets" / names[0]).write_bytes(bodies[0])
    with cluster.network.on("web1"):
        other = cluster.gateway("web1")
        for name, body in zip(names, bodies, strict=True):
            assert other.get_object(Bucket="secrets", Key=name)["Body"].read() == body
    for name, body in zip(names[1:], bodies[1:], strict=True):
        assert (cluster.mountpoint / "secrets" / name).read_bytes() == body
    frames = capture.stop()
    seen = datagrams(frames)
    assert capture.lost == 0
    travelled = sum(len(datagram.payload) for datagram in seen)
    assert len(frames) > 300 and travelled > 3 * written, (len(frames), travelled)  # 6/4 written, read twice
    sought = [*needles, *(name.encode() for name in names), ROOT_PASSWORD.encode()]
    for needle in sought:
        assert not any(needle in frame for frame in frames)

    control = cluster.network.capture()
    with cluster.network.on("desk"):  # plain HTTP over the same cables: what the search would have found
        for name in names:
            cluster.gateway("web0").get_object(Bucket="secrets", Key=name)["Body"].read()
    frames = control.stop()
    for needle in [*needles, *(name.encode() for name in names)]:
        assert any(needle in frame for frame in frames)


# ---- keys that do not fit -----------------------------------------------------------------------------------


def refused(cluster: QuicHosts, identity: Path | str, *arguments: str, stdin: bytes | None = None) -> str:
    """A command of a client on `desk` with another key; what it says."""
    where = ["--connect", cluster.metadata_address, "--identity", str(identity)]
    done = cluster.on("desk", "desk", *arguments, *where, check=False, stdin=stdin)
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) <= 3, done.stderr
    return done.stderr


def test_clients_without_a_key_or_with_a_wrong_one_are_refused_in_words(cluster: QuicHosts) -> None:
    assert re.search("key|cluster join", refused(cluster, cluster.root / "nothing-there", "status"))

    revoked = cluster.join_client("fired", "admin", host="desk")
    cluster.on("desk", "desk", "status", "--connect", cluster.metadata_address, "--identity", str(revoked))
    cluster.trivium("cluster", "revoke", "fired")
    assert "revoked" in refused(cluster, revoked, "status")

    reader = cluster.join_client("reader", "read", host="desk")
    assert re.search("right|may not", refused(cluster, reader, "bucket", "create", "never"))

    elsewhere = cluster.join_client("elsewhere", "write", host="desk", pools=[2])
    with cluster.network.on("web0"):
        cluster.gateway("web0").create_bucket(Bucket="first-pools")
    assert "pool" in refused(cluster, elsewhere, "object", "write", "first-pools/x", stdin=bytes(200_000))


def test_a_key_of_another_cluster_is_refused_in_words(cluster: QuicHosts) -> None:
    """Made by another metadata server, on the same host as the operator."""
    other = cluster.root / "other"
    address = f"{cluster.network.addresses['meta']}:{METADATA_PORT + 50}"
    cluster.begin("meta", "other", "metadata", f'[metadata]\ndata = "{other}"\nlisten = "{address}"\n')
    try:
        wait_for((other / "run" / "trivium.sock").exists, "the other cluster's socket")
        made = cluster.run(TRIVIUM, "cluster", "token", "create", "--right", "admin", "--connect", str(other))
        cluster.on("desk", "desk", "cluster", "join", made.stdout.strip(), "--keys", str(cluster.root / "stranger"))
        said = refused(cluster, cluster.root / "stranger" / "client", "status")
        assert re.search("another|not believed|does not hold", said), said
    finally:
        cluster.end("other", 9)
        del cluster.kinds["other"]
        shutil.rmtree(other, ignore_errors=True)


# ---- rubbish ------------------------------------------------------------------------------------------------


def memory_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


class Watch:
    """The cluster must live on, at about its size, and serve a good client."""

    def __init__(self, cluster: QuicHosts, source: random.Random, bucket: str) -> None:
        self.cluster = cluster
        self.shelf = Shelf(cluster, source, bucket)
        self.shelf.begin()
        self.shelf.add("before")
        self.shelf.verify()
        self.before = self.sizes()

    def sizes(self) -> dict[str, int]:
        return {name: memory_of(running.process.pid) for name, running in self.cluster.running.items()}

    def still_well(self, what: str) -> None:
        assert self.cluster.all_alive()
        self.shelf.add(what)
        self.shelf.verify()
        grown = {name: size - self.before[name] for name, size in self.sizes().items()}
        print(f"{what}: grown by MiB", {name: size >> 20 for name, size in sorted(grown.items())})
        assert max(grown.values()) < GROWTH_BYTES, grown
        self.cluster.wait_for_status(lambda status: bool(status["whole"]), "the pool to be whole")
        for name in self.cluster.running:
            said = (self.cluster.root / f"{name}.log").read_text(errors="replace")
            assert "Traceback" not in said, said[said.index("Traceback") :][:3000]


def traffic(cluster: QuicHosts, source: random.Random) -> list[Datagram]:
    """Datagrams of every kind: a connection's beginning (a command's), its use, its end."""
    capture = cluster.network.capture()
    shelf = Shelf(cluster, source, "traffic")
    shelf.begin()
    shelf.add("captured")
    shelf.verify()
    cluster.on("web0", "web0", "status", "--connect", str(cluster.root / "web0"))
    return [found for found in datagrams(capture.stop()) if found.payload]


def test_changed_and_random_datagrams_crash_nothing(cluster: QuicHosts, source: random.Random) -> None:
    """Sent under the addresses of those that sent the originals: to servers and to clients, inside connections."""
    watch = Watch(cluster, source, "datagrams")
    captured = traffic(cluster, source)
    hosts = {address: host for host, address in cluster.network.addresses.items()}
    ports = {found.destination_port for found in captured}
    assert len(captured) > 300 and {METADATA_PORT, NODE_PORT, NODE_PORT + 1} < ports
    first = [found for found in captured if found.payload[0] & 0x80]  # of handshakes
    assert len(first) > 1
    sent = 0
    with cluster.network.send_raw() as cable:
        while sent < MALFORMED:
            found = source.choice(first if source.random() < 0.3 else captured)
            payload = mutate(source, found.payload) if source.random() < 0.95 else found.payload[:1452]  # or replayed
            cable.sendto(found.with_payload(payload), (hosts[found.destination], 0))
            sent += 1
            if sent % (MALFORMED // 5) == 0:
                watch.still_well(f"after {sent} datagrams")


def test_connections_that_talk_rubbish_crash_nothing(cluster: QuicHosts, source: random.Random) -> None:
    """The handshake needs no key: HELLO that is none, too long, never complete; other streams; frames of any size."""
    watch = Watch(cluster, source, "strangers")
    targets = [("meta", METADATA_PORT), ("h0", NODE_PORT), ("h1", NODE_PORT + 1), ("h2", NODE_PORT)]
    shaken = 0
    with cluster.network.on("desk"):
        for number in range(CONNECTIONS):
            host, port = targets[number % len(targets)]
            stranger = Stranger(cluster.network.addresses[host], port, ("aioquic", "qh3")[number // 4 % 2])
            try:
                shaken += stranger.connect()
                for _ in range(source.randint(1, 20)):
                    if stranger.closed:
                        break
                    stranger.say(rubbish(source), fin=source.random() < 0.7)
                    stranger.turn(source.choice((0, 0, 0.005)))
                answers = b"".join(stranger.answers.values())
                assert ROOT_PASSWORD.encode() not in answers
            finally:
                stranger.close()  # without a word: the server has to notice
    assert shaken > CONNECTIONS * 0.9, f"only {shaken} of {CONNECTIONS} handshakes came about"
    watch.still_well("strangers")


def test_requests_that_make_no_sense_crash_nothing(cluster: QuicHosts, source: random.Random) -> None:
    """A member whose software has gone mad: good frames, bodies and payloads that are none, on every service."""
    watch = Watch(cluster, source, "madmen")
    identity = keyfiles.load_identity(cluster.root / "desk" / "keys" / "client")
    seen: dict[str, int] = {}

    async def rave() -> None:
        member = Member(identity, SystemClock())
        with trio.fail_after(300):
            connection = member.metadata(f"quic:{cluster.metadata_address}")
            try:
                for _ in range(REQUESTS):
                    body = rubbish(source)[16:] if source.random() < 0.5 else nearly_msgpack(source)
                    service = source.choice((*Service, Service.METADATA, Service.METADATA))
                    try:
                        with trio.fail_after(20):
                            await connection.request(service, body, source.randbytes(source.choice((0, 0, 100, 5000))))
                        what = "answered"
                    except ClusterError as error:
                        what = type(error).__name__
                    seen[what] = seen.get(what, 0) + 1
            finally:
                with trio.CancelScope(shield=True):
                    await connection.aclose()

    failures: list[BaseException] = []

    def on_desk() -> None:
        cluster.network.enter("desk")
        try:
            trio.run(rave)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=on_desk)
    thread.start()
    thread.join()
    assert not failures, failures
    print("requests:", seen)
    assert sum(seen.values()) == REQUESTS
    watch.still_well("madmen")


def nearly_msgpack(source: random.Random) -> bytes:
    """A tagged array as messages are: a known tag, about as many fields as it has, values of any kind."""

    def message(kinds: tuple[type, ...], depth: int) -> list[object]:
        kind = source.choice(kinds)
        count = max(0, len(msgspec.structs.fields(kind)) + source.choice((0, 0, 0, 0, -1, 1)))
        return [kind.__struct_config__.tag, *(value(depth) for _ in range(count))]  # type: ignore[attr-defined]

    def value(depth: int) -> object:
        kind = source.randrange(10 if depth else 7)
        if kind == 7:
            return [value(depth - 1) for _ in range(source.randrange(4))]
        if kind == 8:
            return {source.randbytes(3).hex(): value(depth - 1) for _ in range(source.randrange(4))}
        if kind == 9:
            return [message(source.choice((Operation.__args__, Query.__args__)), depth - 1)]
        return (None, source.randrange(3), source.getrandbits(63), -source.getrandbits(40), source.random(),
                source.randbytes(source.choice((0, 8, 16, 40))), "name" * source.randrange(3))[kind]  # fmt: skip

    return msgspec.msgpack.encode(message(source.choice((Request.__args__, NodeRequest.__args__)), 3))
