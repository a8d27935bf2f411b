"""The codec and the disk alone: what no face can beat."""

from __future__ import annotations

import os
import time
from pathlib import Path

from trivium.cluster.erasure import Codec
from trivium.cluster.model import CHUNK_SIZE, Profile


def measure(work: Path) -> dict[str, float]:
    data, codec, rounds = os.urandom(CHUNK_SIZE), Codec(Profile(4, 2)), 64
    codec.encode([data], len(data))
    began = time.perf_counter()
    for _ in range(rounds):
        codec.encode([data], len(data))
    encode = rounds * CHUNK_SIZE / 1e6 / (time.perf_counter() - began)
    began = time.perf_counter()
    with (work / "raw").open("wb", buffering=0) as file:
        for _ in range(rounds):
            file.write(data)
        os.fdatasync(file.fileno())
    disk = rounds * CHUNK_SIZE / 1e6 / (time.perf_counter() - began)
    fd, count = os.open(work / "sync", os.O_WRONLY | os.O_CREAT), 200
    os.posix_fallocate(fd, 0, count * 4096)
    os.fsync(fd)
    began = time.perf_counter()
    for number in range(count):
        os.pwrite(fd, data[:4096], number * 4096)
        os.fdatasync(fd)
    syncs = count / (time.perf_counter() - began)
    os.close(fd)
    return {"encode_4_2_MBs": round(encode, 1), "disk_write_MBs": round(disk, 1), "fdatasync_s": round(syncs, 1)}
