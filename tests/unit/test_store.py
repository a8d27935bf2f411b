"""One drive: what it refuses, what ends its use, what a full disk does; on the simulated disk and on a real one."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.cluster import CLUSTER
from tests.fakes.shards import shard_file
from tests.fakes.simdisk import SimFiles
from trivium.cluster import logfile
from trivium.cluster.errors import (
    Corrupt,
    DriveFailed,
    Exists,
    Fenced,
    InUse,
    NoSpace,
    NotFound,
    Refused,
)
from trivium.cluster.files import FileOps, RealFiles, Space
from trivium.cluster.logfile import LogRecord
from trivium.cluster.model import Ballot, ChunkId, ClusterMap, Root, RootSlot
from trivium.cluster.store import Store, space
from trivium.cluster.wire import DeleteShard, LogHead, PutShard

DRIVE = b"D" * 16
SEGMENT = b"S" * 16
HEAD = LogHead(SEGMENT, 1, bytes(16), 0, 0, 1, bytes(16))
CHUNK = ChunkId(7, 0x1234)
GIB = 1 << 30


@pytest.fixture(params=["simulated", "real"])
def drive(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[FileOps, str]]:
    files: FileOps = SimFiles(1) if request.param == "simulated" else RealFiles()
    path = "/drives/d0" if request.param == "simulated" else str(tmp_path / "d0")
    Store.format(files, path, cluster=CLUSTER, drive=DRIVE, ballast=4096)
    yield files, path


def sim() -> tuple[SimFiles, Store]:
    files = SimFiles(1)
    Store.format(files, "/drives/d0", cluster=CLUSTER, drive=DRIVE, ballast=4096)
    return files, Store.open(files, "/drives/d0", cluster=CLUSTER)


def put(store: Store, data: bytes, *, chunk: ChunkId = CHUNK, index: int = 0, replace: bool = False) -> None:
    store.shards.write(PutShard(DRIVE, chunk, index, len(data), replace), memoryview(data))


def append(store: Store, *bodies: bytes, seq: int = 1, previous: bytes = bytes(16)) -> bytes:
    linked, last = logfile.chained([LogRecord(0, 1, 1, 0, 0, b"", b) for b in bodies], seq, previous)
    store.logs.append(SEGMENT, seq, memoryview(logfile.encode_append(linked, SEGMENT)))
    return last


# ---- opening ------------------------------------------------------------------------------------------------


def test_a_second_opener_is_refused_and_hears_who_has_it(drive: tuple[FileOps, str]) -> None:
    files, path = drive
    store = Store.open(files, path, cluster=CLUSTER, holder="process 4711 (node n1)")
    with pytest.raises(InUse, match="process 4711"):
        Store.open(files, path, cluster=CLUSTER)
    store.close()
    Store.open(files, path, cluster=CLUSTER).close()


def test_other_clusters_missing_drives_and_full_folders_are_refused(drive: tuple[FileOps, str]) -> None:
    files, path = drive
    with pytest.raises(Refused, match="belongs to cluster"):
        Store.open(files, path, cluster=b"x" * 16)
    with pytest.raises(NotFound):
        Store.open(files, path + "-no", cluster=CLUSTER)
    with pytest.raises(Refused, match="not empty"):
        Store.format(files, path, cluster=CLUSTER, drive=b"E" * 16)


# ---- shards -------------------------------------------------------------------------------------------------


def test_a_shard_is_written_once_read_verified_listed_and_deleted(drive: tuple[FileOps, str]) -> None:
    files, path = drive
    store = Store.open(files, path, cluster=CLUSTER)
    data = shard_file(CHUNK, 0, size=5 * 16384 + 4096, plan_seq=4)
    put(store, data)
    with pytest.raises(Exists):
        put(store, data)
    header, body = store.shards.read(CHUNK, 0, 0, 99, True)
    assert header + body == data
    for first, blocks in ((0, 1), (1, 2), (5, 1), (5, 9), (6, 1)):
        for with_header in (True, False):
            header, body = store.shards.read(CHUNK, 0, first, blocks, with_header)
            assert body == data[4096 + first * 16384 :][: blocks * 16384]
            assert header == (data[:4096] if with_header else b"")
    store.shards.verify(CHUNK, 0)
    with pytest.raises(Corrupt):
        store.shards.verify(CHUNK, 0, b"another put's nonce"[:16])
    entries, more = store.shards.inventory((0, 0, -1), 10)
    assert [(e.chunk, e.index, e.size, e.plan_seq) for e in entries] == [(CHUNK, 0, len(data), 4)] and not more
    early, fine, again = store.shards.delete([DeleteShard(DRIVE, CHUNK, 0, s) for s in (3, 4, 5)])
    assert isinstance(early, Refused) and fine is None and again is None
    with pytest.raises(NotFound):
        store.shards.read(CHUNK, 0, 0, 1, True)
    assert store.shards.inventory((0, 0, -1), 10) == ([], False)
    put(store, shard_file(CHUNK, 1), index=1)  # the folder that the inventory tidied away comes back
    store.close()


def test_large_tables_of_contents_are_read_back(drive: tuple[FileOps, str]) -> None:
    from trivium.cluster.model import Piece
    from trivium.cluster.shardfile import ShardSpec, build_header, verify_file

    files, path = drive
    store = Store.open(files, path, cluster=CLUSTER)
    body = os.urandom(2 * 16384)
    toc = tuple(Piece(bytes(16), i, 10, 1, i * 10) for i in range(300))
    spec = ShardSpec(CLUSTER, CHUNK, b"n" * 16, 1, 1, "isa_l_rs_cauchy", 1, 3000, len(body), toc)
    data = build_header(spec, 0, body) + body
    put(store, data)
    header, got = store.shards.read(CHUNK, 0, 0, 2, True)
    assert verify_file(header + got).spec.pieces == toc
    assert store.shards.read(CHUNK, 0, 1, 1, True)[1] == body[16384:] == store.shards.read(CHUNK, 0, 1, 1, False)[1]
    store.close()


def test_healing_renames_only_under_a_higher_plan() -> None:
    _, store = sim()
    put(store, shard_file(CHUNK, 0, plan_seq=3, fill=1))
    with pytest.raises(Exists):
        put(store, shard_file(CHUNK, 0, plan_seq=3, fill=2), replace=True)
    new = shard_file(CHUNK, 0, plan_seq=4, fill=3)
    put(store, new, replace=True)
    assert b"".join(store.shards.read(CHUNK, 0, 0, 9, True)) == new


def test_what_is_corrupt_is_put_aside_never_deleted() -> None:
    files, store = sim()
    path = "/drives/d0/chunks/0000000000000007/1/1234.0"
    for seq, remove in enumerate((lambda: store.shards.delete([DeleteShard(DRIVE, CHUNK, 0, 99)]),
                                  lambda: store.shards.quarantine(CHUNK, 0),
                                  lambda: put(store, shard_file(CHUNK, 0, plan_seq=0), replace=True))):  # fmt: skip
        put(store, shard_file(CHUNK, 0, plan_seq=5))
        files.flip(path, 50)
        with pytest.raises(Corrupt):
            store.shards.verify(CHUNK, 0)
        remove()
        assert len(files.paths("/drives/d0/quarantine")) == seq + 1
    store.shards.verify(CHUNK, 0)


def test_shards_of_other_clusters_names_or_damaged_ones_are_refused() -> None:
    _, store = sim()
    with pytest.raises(Refused, match="another cluster"):
        put(store, shard_file(CHUNK, 0, cluster=b"x" * 16))
    with pytest.raises(Refused):
        put(store, shard_file(CHUNK, 1), index=0)
    bad = bytearray(shard_file(CHUNK, 0))
    bad[9000] ^= 1
    with pytest.raises(Corrupt):
        put(store, bytes(bad))
    with pytest.raises(Refused):
        store.shards.read(ChunkId(-1, 1 << 70), 0, 0, 1, True)
    assert store.shards.inventory((0, 0, -1), 9) == ([], False)


def test_inventory_pages_in_order() -> None:
    _, store = sim()
    names = [(ChunkId(s, c), i) for s in (3, 20) for c in (1, 16, 5000) for i in (0, 10)]
    for chunk, index in names:
        data = shard_file(chunk, index % 6) if index < 6 else shard_file(chunk, 5)
        put(store, data, chunk=chunk, index=index if index < 6 else 5)
    want = [(c, i if i < 6 else 5) for c, i in names]
    after, seen, more = (0, 0, -1), [], True
    while more:
        page, more = store.shards.inventory(after, 5)
        seen += [(e.chunk, e.index) for e in page]
        last = page[-1]
        after = (last.chunk.session, last.chunk.counter, last.index)
    assert seen == want


def test_many_threads_put_and_race_for_a_name(tmp_path: Path) -> None:
    files = RealFiles()
    Store.format(files, str(tmp_path / "d"), cluster=CLUSTER, drive=DRIVE, ballast=0)
    store = Store.open(files, str(tmp_path / "d"), cluster=CLUSTER)
    won: list[int] = []

    def work(number: int) -> None:
        for counter in range(6):
            put(store, shard_file(ChunkId(number, counter), 0), chunk=ChunkId(number, counter))
            try:
                put(store, shard_file(ChunkId(99, counter), 0), chunk=ChunkId(99, counter))
                won.append(counter)
            except Exists:
                pass

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(6))
    assert len(store.shards.inventory((0, 0, -1), 99)[0]) == 30
    store.close()


# ---- logs ---------------------------------------------------------------------------------------------------


def test_a_log_is_created_appended_read_sealed_and_removed(drive: tuple[FileOps, str]) -> None:
    files, path = drive
    store = Store.open(files, path, cluster=CLUSTER)
    with pytest.raises(NotFound):
        append(store, b"append never creates")
    store.logs.create(HEAD, 1 << 16, 3)
    assert store.logs.create(HEAD, 1 << 16, 3).last_seq == 0
    with pytest.raises(Exists):
        store.logs.create(LogHead(SEGMENT, 2, bytes(16), 0, 0, 1, bytes(16)), 1 << 16, 3)
    one = append(store, b"one", b"two")
    assert append(store, b"one", b"two") == one, "equal bytes again are a success"
    with pytest.raises(Refused):
        append(store, b"one", b"other")
    with pytest.raises(Refused, match="cannot begin"):
        append(store, b"gap", seq=4, previous=one)
    with pytest.raises(Refused, match="does not follow"):
        append(store, b"other chain", seq=3)
    last = append(store, b"one", b"two", b"three")  # the first two are there, the third is new
    state, data = store.logs.read(SEGMENT, 2, 1)
    assert [bytes(r.payload) for r in logfile.decode_append(data, SEGMENT, 2).records] == [b"two"]
    assert (state.last_seq, state.last_hash) == (3, last)
    store.close()

    store = Store.open(files, path, cluster=CLUSTER)
    assert store.logs.heads() == [HEAD]
    sealed = store.logs.seal(SEGMENT)
    assert (sealed.last_seq, sealed.last_hash, sealed.sealed) == (3, last, True)
    with pytest.raises(Fenced):
        append(store, b"late", seq=4, previous=last)
    assert store.logs.read(SEGMENT, 4, 100) == (sealed, b"")
    store.logs.remove(SEGMENT)
    store.logs.remove(SEGMENT)
    with pytest.raises(NotFound):
        store.logs.stat(SEGMENT)
    store.close()


def test_a_full_segment_says_so_and_a_hole_is_an_error() -> None:
    files, store = sim()
    store.logs.create(HEAD, 8192, 3)
    last = append(store, bytes(2000))
    with pytest.raises(NoSpace, match="a new segment"):
        append(store, bytes(3000), seq=2, previous=last)
    append(store, b"small", seq=2, previous=last)
    files.flip(f"/drives/d0/log/{SEGMENT.hex()}.open", 5000)
    files.crash("everything")
    store = Store.open(files, "/drives/d0", cluster=CLUSTER)
    for call in (store.logs.stat, store.logs.seal):
        with pytest.raises(Corrupt, match="hole"):
            call(SEGMENT)


# ---- root ---------------------------------------------------------------------------------------------------


def test_the_root_keeps_promises_and_versions(drive: tuple[FileOps, str]) -> None:
    files, path = drive
    store = Store.open(files, path, cluster=CLUSTER)
    a, b = Ballot(1, b"a" * 16), Ballot(2, b"b" * 16)
    root = Root(ClusterMap(1), (DRIVE,), (), ())
    store.root.promise(b)
    with pytest.raises(Fenced):
        store.root.promise(a)
    with pytest.raises(Fenced):
        store.root.accept(RootSlot(accepted=a, version=1, root=root))
    store.root.accept(RootSlot(accepted=b, version=2, root=root))
    with pytest.raises(Fenced):
        store.root.accept(RootSlot(accepted=b, version=1, root=root))
    with pytest.raises(Fenced):
        store.root.accept(RootSlot(accepted=a, version=1, root=root), hint=True)
    store.root.accept(RootSlot(accepted=a, version=3, root=root), hint=True)
    store.close()
    store = Store.open(files, path, cluster=CLUSTER)
    assert store.root.read() == RootSlot(b, a, 3, root)
    with pytest.raises(Refused):
        store.root.accept(RootSlot(accepted=b, version=4, root=Root(ClusterMap(1), (bytes(300_000),), (), ())))
    store.close()


def test_a_root_that_does_not_verify_does_not_vote() -> None:
    files, store = sim()
    store.root.promise(Ballot(1, b"a" * 16))
    store.close()
    for slot in (4096, 4096 + 256 * 1024):
        files.flip("/drives/d0/root", slot + 3)
    store = Store.open(files, "/drives/d0", cluster=CLUSTER)
    for call in (store.root.read, lambda: store.root.promise(Ballot(9, b"z" * 16))):
        with pytest.raises(Corrupt):
            call()
    put(store, shard_file(CHUNK, 0))


# ---- what ends a drive's use, and what does not -------------------------------------------------------------


def test_an_fsync_error_takes_the_drive_out_for_ever() -> None:
    files, store = sim()
    store.logs.create(HEAD, 1 << 16, 3)
    put(store, shard_file(CHUNK, 0))
    files.fail_sync = lambda inode: True
    with pytest.raises(DriveFailed):
        append(store, b"one")
    files.fail_sync = lambda inode: False
    with pytest.raises(DriveFailed):
        append(store, b"one")
    with pytest.raises(DriveFailed):
        put(store, shard_file(CHUNK, 1), index=1)
    with pytest.raises(DriveFailed):
        store.shards.read(CHUNK, 0, 0, 1, True)
    with pytest.raises(DriveFailed):
        store.root.read()
    assert store.report().state == "failed"


@pytest.mark.parametrize("how", ["wipe", "unmount"])
def test_a_wiped_or_unmounted_drive_is_noticed_and_never_made_again(how: str) -> None:
    files, store = sim()
    store.logs.create(HEAD, 1 << 16, 3)
    put(store, shard_file(CHUNK, 0))
    getattr(files, how)("/drives/d0")
    if how == "unmount":  # descriptors go on working: the heartbeat's look at the path finds it
        assert store.report().state == "missing"
    for call in (
        lambda: append(store, b"one"),
        lambda: put(store, shard_file(CHUNK, 1), index=1),
        lambda: put(store, shard_file(ChunkId(8, 1), 0), chunk=ChunkId(8, 1)),
        lambda: store.root.promise(Ballot(1, b"a" * 16)),
        lambda: store.shards.read(CHUNK, 0, 0, 1, True),
    ):
        with pytest.raises(DriveFailed):
            call()
    assert files.paths("/drives/d0") == []
    assert store.report().state == "missing"


def test_a_real_wiped_drive_is_noticed(tmp_path: Path) -> None:
    files, path = RealFiles(), str(tmp_path / "d0")
    Store.format(files, path, cluster=CLUSTER, drive=DRIVE, ballast=0)
    store = Store.open(files, path, cluster=CLUSTER)
    store.logs.create(HEAD, 1 << 16, 3)
    append(store, b"one")
    shutil.rmtree(path)
    os.mkdir(path)
    with pytest.raises(DriveFailed, match="wiped or unmounted"):
        append(store, b"one", b"two")
    assert os.listdir(path) == []
    store.close()


def test_a_full_disk_fails_the_write_only() -> None:
    files, store = sim()
    store.logs.create(HEAD, 1 << 16, 3)
    for number in (errno.ENOSPC, errno.EDQUOT):
        files.fail_write = lambda inode, n=number: n  # type: ignore[misc]
        with pytest.raises(NoSpace):
            put(store, shard_file(CHUNK, 0))
        with pytest.raises(NoSpace):
            append(store, b"one")
    assert store.report().state in ("ok", "full")
    files.fail_write = lambda inode: 0
    append(store, b"other")
    put(store, shard_file(CHUNK, 0))
    assert files.paths("/drives/d0/tmp") == []


def test_metadata_may_use_the_ballast() -> None:
    files, store = sim()
    files.capacity = files._used + 62 * 1024
    with pytest.raises(NoSpace):
        store.logs.create(HEAD, 1 << 16, space.HEALING)
    store.logs.create(HEAD, 1 << 16, space.METADATA)
    assert "/drives/d0/ballast" not in files.paths("/drives/d0")
    append(store, b"one")


def test_a_new_log_segment_is_zeroed_ahead_of_its_appends_not_when_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, written = RealFiles(), [0]
    write = files.write

    def counted(fd: int, buffers: tuple[bytes | memoryview, ...], offset: int) -> None:
        written[0] += sum(len(buffer) for buffer in buffers)
        write(fd, buffers, offset)

    monkeypatch.setattr(files, "write", counted)
    Store.format(files, str(tmp_path / "d0"), cluster=CLUSTER, drive=DRIVE, ballast=4096)
    store = Store.open(files, str(tmp_path / "d0"), cluster=CLUSTER)
    written[0] = 0
    store.logs.create(HEAD, 16 << 20, space.METADATA)
    assert written[0] <= 4096  # a restart makes one on each replica
    last = append(store, b"one")
    assert written[0] <= (1 << 20) + 8192
    written[0] = 0
    for seq in range(2, 100):
        last = append(store, b"more", seq=seq, previous=last)
    assert written[0] < 98 * 4096
    append(store, bytes(1 << 20), seq=100, previous=last)
    assert store.logs.stat(SEGMENT).last_seq == 100
    store.close()


@pytest.mark.parametrize(
    ("total", "free", "kind", "fits"),
    [
        (1000 * GIB, 140 * GIB, space.CLIENT, True),  # 86 %, but more than 20 GiB are free
        (100 * GIB, 14 * GIB, space.CLIENT, False),
        (100 * GIB, 16 * GIB, space.CLIENT, True),
        (100 * GIB, 9 * GIB, space.VOLUME_LOG, True),
        (100 * GIB, 7 * GIB, space.VOLUME_LOG, False),
        (100 * GIB, 7 * GIB, space.HEALING, True),
        (100 * GIB, 4 * GIB, space.HEALING, False),
        (100 * GIB, 1 * GIB, space.METADATA, True),
        (100 * GIB, 0, space.METADATA, False),
        (100 * GIB, 90 * GIB, 9, False),
    ],
)
def test_space_classes(total: int, free: int, kind: int, fits: bool) -> None:
    assert space.fits(Space(total, free), 4096, kind) is fits
