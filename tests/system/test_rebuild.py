"""A real pool whose database, metadata log and dumps are gone is made anew from its shards, with the command line."""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path

import pytest

from tests.system.pool import SystemPool
from tests.system.test_nbd import Export
from trivium.cluster import logfile, shardfile
from trivium.cluster.model import ChunkKind

pytestmark = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK) or not all(map(shutil.which, ("fusermount3", "nbdkit", "nbdcopy"))),
    reason="needs /dev/fuse, fusermount3, nbdkit and libnbd-bin",
)
SEED = 7
MIB = 1 << 20


def destroy(pool: SystemPool) -> None:
    """The database, each file of the metadata log, each shard of a dump."""
    for path in (pool.data / "metadata").glob("trivium.db*"):
        path.unlink()
    for path in (pool.data / "drives").glob("*/log/*"):
        if logfile.parse_head(path.read_bytes())[1].kind == 1:
            path.unlink()
    for path in (pool.data / "drives").glob("*/chunks/*/*/*"):
        if shardfile.parse_header(path.read_bytes()).spec.kind == ChunkKind.DUMP:
            path.unlink()


def state_of(pool: SystemPool) -> dict[str, bytes]:
    """Every file of the pool, by path."""
    return {str(path): path.read_bytes() for path in pool.data.rglob("*") if path.is_file() and path.name != "lock"}


def test_a_pool_without_metadata_log_and_dumps_comes_back_from_its_shards(pool: SystemPool, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    bodies = [rng.randbytes(size) for size in (9_000_000, 300_000, 40_000)]
    pool.up()
    s3 = pool.boto()
    s3.create_bucket(Bucket="photos")
    for number, body in enumerate(bodies):
        s3.put_object(Bucket="photos", Key=f"object-{number}", Body=body)
    s3.put_object(Bucket="photos", Key="small", Body=b"inline")
    mount = pool.work / "mount"
    mount.mkdir()
    pool.trivium("mount", mount)
    written = bytearray(rng.randbytes(700_000))
    file = mount / "photos" / "file"
    file.write_bytes(written)
    with file.open("r+b") as stream:
        for at in (5_000, 300_000):
            part = rng.randbytes(100_000)
            written[at : at + len(part)] = part
            stream.seek(at)
            stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
    pool.trivium("umount", mount)
    pool.trivium("metadata", "dump")
    pool.trivium("volume", "create", "disk", "64M")
    disk = Export(pool, "disk")
    disk.start()
    image = bytearray(64 * MIB)
    for at, size in ((0, 20 * MIB), (30 * MIB, MIB), (4 * MIB, 8192)):
        image[at : at + size] = rng.randbytes(size)
        (tmp_path / "part").write_bytes(image[at : at + size])
        disk.shell(f"h.pwrite(open('{tmp_path / 'part'}', 'rb').read(), {at}) if {size} < 1 << 25 else 0\nh.flush()")
    disk.stop(signal.SIGKILL)
    pool.kill()
    destroy(pool)

    before = state_of(pool)
    refused = pool.trivium("rebuild-metadata", "--data", pool.data, check=False)
    assert refused.returncode == 6 and "--from-shards" in refused.stderr
    tried = pool.trivium("rebuild-metadata", "--from-shards", "--dry-run", "--data", pool.data).stdout
    assert "no name is known" in tried and "volume volume-1: " in tried and "nothing was changed" in tried, tried
    unasked = pool.trivium("rebuild-metadata", "--from-shards", "--data", pool.data, check=False, stdin=b"")
    assert unasked.returncode and "made anew" in unasked.stdout
    assert state_of(pool) == before, "neither a refusal nor a trial changes anything"
    done = pool.trivium("rebuild-metadata", "--from-shards", "--yes", "--data", pool.data).stdout
    assert "the metadata are made anew" in done, done
    assert "4 files (1 written through a mount, 3 S3 bodies or parts)" in done, done

    pool.up()  # its credential is a new one
    found = pool.trivium("fsck")
    assert found.returncode == 0, found.stdout
    assert "metadata confirm" in pool.trivium("status").stdout
    pool.trivium("mount", mount)
    lost = mount / "lost+found"
    recovered = {path.name: path.read_bytes() for path in lost.iterdir()}
    assert sorted(bodies) == sorted(body for name, body in recovered.items() if name.startswith("object-"))
    assert [body for name, body in recovered.items() if name.startswith("inode-")] == [bytes(written)]
    (lost / sorted(recovered)[0]).rename(mount / "named")
    (mount / "new").write_bytes(bodies[1])
    assert (mount / "new").read_bytes() == bodies[1] and (mount / "named").read_bytes() == recovered[min(recovered)]
    pool.boto().create_bucket(Bucket="again")
    pool.boto().put_object(Bucket="again", Key="key", Body=bodies[0])
    back = Export(pool, "volume-1")
    back.start()
    pool.run("nbdcopy", back.uri, tmp_path / "image")
    assert (tmp_path / "image").read_bytes()[: 31 * MIB] == image[: 31 * MIB]
    back.shell("h.pwrite(b'x' * 4096, 0)\nh.flush()")
    back.stop()
    pool.trivium("metadata", "dump")
    assert "confirmed" in pool.trivium("metadata", "confirm").stdout
    pool.trivium("umount", mount)
    pool.kill()
    pool.up_again()
    assert pool.boto().get_object(Bucket="again", Key="key")["Body"].read() == bodies[0]
    assert pool.trivium("fsck").returncode == 0
    pool.trivium("mount", mount)
    assert {path.name: path.read_bytes() for path in lost.iterdir()}.items() <= recovered.items()
    assert len(list(lost.iterdir())) == len(recovered) - 1, "confirmed, and nothing of it was deleted"
    pool.trivium("umount", mount)
