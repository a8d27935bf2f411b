"""A drive directory without a pool: seen whole, changed by nothing, refused while a process holds it."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

from tests.fakes.cluster import CLUSTER
from tests.fakes.simdisk import SimFiles
from trivium.cluster import logfile, rootfile
from trivium.cluster.drivedir import DriveDir, ReadOnlyFiles
from trivium.cluster.driveverify import total_bytes, verify
from trivium.cluster.erasure import codec_for
from trivium.cluster.errors import ChunkLost, InUse, NotFound
from trivium.cluster.files import RealFiles
from trivium.cluster.logfile import LogRecord
from trivium.cluster.model import BLOCK, Ballot, ChunkId, ClusterMap, Piece, Profile, Root, RootSlot
from trivium.cluster.salvage import Salvage
from trivium.cluster.shardfile import ShardSpec, build_headers, shard_name
from trivium.cluster.store import Store
from trivium.cluster.wire import LogHead, PutShard

CHUNK = ChunkId(7, 0x1234)
SEGMENT = b"S" * 16
SIZE = 300_000
PATHS = [f"/pool/d{i}" for i in range(6)]


def disk() -> tuple[SimFiles, bytes]:
    """Six drives with one 4+2 chunk, a log segment and a root each; and the chunk's bytes."""
    files = SimFiles(1)
    data = random.Random(1).randbytes(SIZE)
    bodies = codec_for(Profile(4, 2)).encode([data], SIZE)
    pieces = (Piece(bytes(16), 0, SIZE, 1, 0),)
    spec = ShardSpec(CLUSTER, CHUNK, b"n" * 16, 4, 2, "isa_l_rs_cauchy", 1, SIZE, len(bodies[0]), pieces)
    for index, (path, header, body) in enumerate(zip(PATHS, build_headers(spec, bodies), bodies, strict=True)):
        drive = bytes([index]) * 16 if index else b"\xff" * 16
        Store.format(files, path, cluster=CLUSTER, drive=drive, ballast=4096)
        store = Store.open(files, path, cluster=CLUSTER)
        file = memoryview(header + bytes(body))
        store.shards.write(PutShard(drive, CHUNK, index, len(file)), file)
        store.logs.create(LogHead(SEGMENT, 1, bytes(16), 0, 0, 1, bytes(16)), 1 << 20, 0)
        linked, _ = logfile.chained([LogRecord(0, 1, 1, 0, 0, b"", b"payload")], 1, bytes(16))
        store.logs.append(SEGMENT, 1, memoryview(logfile.encode_append(linked, SEGMENT)))
        ballot = Ballot(1, b"s" * 16)
        store.root.accept(RootSlot(ballot, ballot, 1, Root(ClusterMap(), (drive,), (), ())))
        store.close()
    return files, data


def test_a_whole_drive_verifies_and_nothing_is_changed() -> None:
    files, _ = disk()
    before = {path: files.contents(path) for path in files.paths("/pool")}
    drive = DriveDir.open(files, PATHS[0])
    newest = drive.newest()
    assert newest is not None and newest.value.version == 1 and drive.cluster == CLUSTER and not drive.problems
    seen: list[int] = []
    done = verify(drive, seen.append)
    assert (done.shards, done.segments, done.records, done.faults) == (1, 1, 1, [])
    assert sum(seen) == done.bytes == total_bytes(drive)
    drive.close()
    assert before == {path: files.contents(path) for path in files.paths("/pool")}


@pytest.mark.parametrize("what", ["root", "root slot", "shard", "log record", "log head", "sealed log", "name"])
def test_what_does_not_verify_is_named(what: str) -> None:
    files, _ = disk()
    shard, log, root = f"{PATHS[0]}/chunks/{shard_name(CHUNK, 0)}", f"{PATHS[0]}/log/{SEGMENT.hex()}.open", "/root"
    if what == "root":
        files.flip(PATHS[0] + root, 30)
    elif what == "root slot":
        files.flip(PATHS[0] + root, rootfile.slot_offset(2) + 30)
    elif what == "shard":
        files.flip(shard, 4096 + 70_000)
    elif what == "log head":
        files.flip(log, 10)
    elif what == "log record":
        files.flip(log, logfile.HEAD_SIZE + 60)
    elif what == "sealed log":
        store = Store.open(files, PATHS[0], cluster=CLUSTER)
        store.logs.seal(SEGMENT)
        store.close()
        files.flip(log.replace(".open", ".sealed"), logfile.HEAD_SIZE + 60)
    else:
        folder = files.open_path(PATHS[0] + "/chunks")
        files.close(files.create(folder, f"{CHUNK.session:016x}/1/junk"))
    drive = DriveDir.open(files, PATHS[0])
    faults = verify(drive).faults
    assert len(faults) == 1 and faults[0].text, faults
    drive.close()


def test_a_held_drive_is_refused_by_name_and_may_be_looked_at() -> None:
    files, _ = disk()
    store = Store.open(files, PATHS[0], cluster=CLUSTER, holder="process 4711")
    with pytest.raises(InUse, match=r"process 4711.*--live"):
        DriveDir.open(files, PATHS[0])
    drive = DriveDir.open(files, PATHS[0], live=True)
    assert drive.holder == "process 4711" and verify(drive).faults == []
    drive.close()
    store.close()


def test_no_drive_at_all_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="neither chunks/ nor log/"):
        DriveDir.open(RealFiles(), str(tmp_path))
    with pytest.raises(NotFound, match="there is no drive"):
        DriveDir.open(RealFiles(), str(tmp_path / "none"))


def test_every_writing_operation_is_refused() -> None:
    files, _ = disk()
    view = ReadOnlyFiles(files)
    top = view.open_path(PATHS[0])
    for call in (
        lambda: view.make_path("/x"), lambda: view.make_folder(top, "x"), lambda: view.create(top, "x"),
        lambda: view.create_unnamed(top), lambda: view.link_unnamed(top, top, "x"), lambda: view.unlink(top, "root"),
        lambda: view.link(top, "root", top, "x"), lambda: view.rename(top, "root", top, "x"),
        lambda: view.remove_folder(top, "tmp"), lambda: view.write(top, (b"x",), 0), lambda: view.allocate(top, 1),
        lambda: view.truncate(top, 0),
    ):  # fmt: skip
        with pytest.raises(OSError) as refused:
            call()
        assert refused.value.errno == errno.EROFS


# ---- salvage --------------------------------------------------------------------------------------------------


def salvage(files: SimFiles, paths: list[str]) -> Salvage:
    found = Salvage([DriveDir.open(files, path) for path in paths])
    found.scan()
    return found


@pytest.mark.parametrize("given", [[0, 1, 2, 3], [2, 3, 4, 5], [0, 2, 4, 5], [0, 1, 2, 3, 4, 5]])
def test_any_k_drives_give_the_chunk(given: list[int]) -> None:
    files, data = disk()
    found = salvage(files, [PATHS[i] for i in given])
    (put,) = found.all()
    assert put.complete and found.read(put) == data
    assert found.get(CHUNK, b"n" * 16, 1000, 5) == data[1000:1005]


def test_fewer_than_k_say_which_chunk_and_how_many() -> None:
    files, _ = disk()
    found = salvage(files, PATHS[:3])
    (put,) = found.all()
    assert not put.complete
    with pytest.raises(ChunkLost, match=f"chunk {CHUNK}: 3 good shards of 4\\+2"):
        found.read(put)


def test_bad_blocks_of_every_shard_are_read_around() -> None:
    """More shards are damaged than the code has parity, but no block row on more than m of them."""
    files, data = disk()
    blocks = -(-SIZE // 4 // BLOCK)
    for index in range(6):
        files.flip(f"{PATHS[index]}/chunks/{shard_name(CHUNK, index)}", 4096 + (index % blocks) * BLOCK + 5)
    found = salvage(files, PATHS)
    (put,) = found.all()
    assert found.read(put) == data


def test_a_damaged_root_file_does_not_hide_the_shards() -> None:
    files, data = disk()
    for path in PATHS:
        files.flip(f"{path}/root", 12)
    found = salvage(files, PATHS)
    (put,) = found.all()
    assert found.read(put) == data and all(drive.problems for drive in found.drives)
