"""What goes on while hosts go and come: users of both gateways and of the mount, strict about every answer.

Each user models what it may read (tests/system/faces.py) and takes any error for a breach: no host that goes away here
is one that it needs. `Shelf` holds bodies that were written once, to be read over every road at each step.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.system.faces import ABSENT, Face, Files, Objects, Worker, digest
from tests.system.nethosts import Cluster

GATEWAYS = ("web0", "web1")
CLIENT = "desk"  # where users are
PAUSE_S = 0.5  # users that think: two cores serve a dozen processes here
SIZES = (0, 100, 70_000, 1_000_000, 4_500_000)


class GatewayObjects(Objects):
    """Objects of one bucket through one gateway."""

    def __init__(self, cluster: Cluster, gateway: str, bucket: str, seed: int) -> None:
        super().__init__(cluster, bucket, seed)
        self.cluster, self.gateway = cluster, gateway

    def client(self) -> Any:
        if self._client is None:
            self._client = self.cluster.gateway(self.gateway)
        return self._client

    def step(self) -> None:
        super().step()
        time.sleep(PAUSE_S)


class ThinkingFiles(Files):
    def step(self) -> None:
        super().step()
        time.sleep(PAUSE_S)


class HostWorker(Worker):
    """A user on a host."""

    def __init__(self, face: Face, cluster: Cluster) -> None:
        super().__init__(face)
        self._cluster = cluster

    def run(self) -> None:
        self._cluster.network.enter(CLIENT)
        super().run()


class Load:
    """All users: a bucket by each gateway, one by the mount."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.objects = [
            GatewayObjects(cluster, gateway, bucket, seed + number)
            for number, (gateway, bucket) in enumerate(zip(GATEWAYS, ("objects-one", "objects-two"), strict=True))
        ]
        others = [f"{face.bucket}/dir{i}" for face in self.objects for i in range(3)]
        self.files = ThinkingFiles(cluster.mountpoint, "files", seed + 10, others)
        self.faces: list[Face] = [*self.objects, self.files]
        self.workers: list[HostWorker] = []

    def __enter__(self) -> Load:
        with self.cluster.network.on(CLIENT):
            for bucket in (*(face.bucket for face in self.objects), self.files.folder):
                self.objects[0].client().create_bucket(Bucket=bucket)
        self.workers = [HostWorker(face, self.cluster) for face in self.faces]
        for worker in self.workers:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.stopping.set()
        for worker in self.workers:
            worker.join(300)
        self.files.reconnect()

    def still_works(self) -> None:
        """Every user gets further from here: each has finished a step that began after this call."""
        before = [worker.steps for worker in self.workers]
        deadline = time.monotonic() + 300
        for worker, steps in zip(self.workers, before, strict=True):
            while worker.steps < steps + 2:
                assert not worker.breach, worker.breach
                assert worker.is_alive() and time.monotonic() < deadline, f"{worker.name} stands still"
                time.sleep(0.01)

    def stop(self) -> int:
        """Let all of them finish; how many answered writes there are."""
        for worker in self.workers:
            worker.stopping.set()
        for worker in self.workers:
            worker.join(300)
            assert not worker.is_alive(), f"{worker.name} hangs"
            assert not worker.breach, worker.breach
        return sum(face.model.answered for face in self.faces)

    def verify(self) -> int:
        """Every acknowledged write, over every road: each gateway and the mount. How many names were read."""
        checked = 0
        with self.cluster.network.on(CLIENT):
            for face in self.faces:
                face.check_all()
                bucket = face.name.split()[1]
                for key, allowed in sorted(face.model.allowed.items()):
                    for road in self.roads(bucket, key):
                        assert road in allowed, f"{bucket}/{key}: read {road}, allowed {allowed}"
                    checked += 1
        return checked

    def roads(self, bucket: str, key: str) -> Iterator[str]:
        for objects in self.objects:
            yield objects.read(bucket, key)
        yield self.files.read(f"{bucket}/{key}")


class Shelf:
    """Bodies that never change, with their digests."""

    def __init__(self, cluster: Cluster, source: random.Random, bucket: str = "shelf") -> None:
        self.cluster, self.source, self.bucket = cluster, source, bucket
        self.digests: dict[str, str] = {}
        self._clients: dict[str, Any] = {}

    def client(self, gateway: str) -> Any:
        """Its connections belong to the host on which the first request is made: always CLIENT."""
        if gateway not in self._clients:
            self._clients[gateway] = self.cluster.gateway(gateway)
        return self._clients[gateway]

    @contextlib.contextmanager
    def on_client(self) -> Iterator[None]:
        with self.cluster.network.on(CLIENT):
            yield

    def begin(self) -> None:
        with self.on_client():
            self.client("web0").create_bucket(Bucket=self.bucket)

    def add(self, prefix: str) -> None:
        """Objects through each gateway, files through the mount."""
        with self.on_client():
            for number, size in enumerate(SIZES):
                body, key = self.source.randbytes(size), f"{prefix}-{number}"
                if number % 3 == 2:
                    (self.path / key).write_bytes(body)
                else:
                    self.client(GATEWAYS[number % 2]).put_object(Bucket=self.bucket, Key=key, Body=body)
                self.digests[key] = digest(body)

    @property
    def path(self) -> Path:
        return self.cluster.mountpoint / self.bucket

    def verify(self) -> None:
        """Each body, by a gateway (which one alternates) and by the mount."""
        with self.on_client():
            for number, (key, expected) in enumerate(self.digests.items()):
                body = self.client(GATEWAYS[number % 2]).get_object(Bucket=self.bucket, Key=key)["Body"].read()
                assert digest(body) == expected, f"{key} by {GATEWAYS[number % 2]}"
                assert digest((self.path / key).read_bytes()) == expected, f"{key} by the mount"


__all__ = ["ABSENT", "CLIENT", "GATEWAYS", "Load", "Shelf"]
