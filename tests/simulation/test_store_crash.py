"""A machine that stops before each file operation in turn: what a store answered is there afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from tests.fakes.cluster import CLUSTER
from tests.fakes.shards import shard_file
from tests.fakes.simdisk import Crashed, SimFiles
from trivium.cluster import logfile, shardfile
from trivium.cluster.errors import ClusterError, Fenced, NotFound, Refused
from trivium.cluster.logfile import LogRecord
from trivium.cluster.model import Ballot, ChunkId, ClusterMap, Root, RootSlot
from trivium.cluster.store import Store
from trivium.cluster.wire import DeleteShard, LogHead, PutShard

PATH = "/drives/d0"
DRIVE = b"D" * 16
SEGMENT = b"S" * 16
HEAD = LogHead(SEGMENT, 1, bytes(16), 0, 0, 1, bytes(16))
CAPACITY = 64 << 10
SEEDS = range(3)


def fresh(seed: int) -> tuple[SimFiles, Store]:
    files = SimFiles(seed)
    Store.format(files, PATH, cluster=CLUSTER, drive=DRIVE, ballast=4096)
    return files, Store.open(files, PATH, cluster=CLUSTER)


def crashes(seed: int, prepare: Callable[[Store], None], act: Callable[[Store], None]) -> Iterator[tuple[Store, bool]]:
    """Run `act` again and again, stopping before its n-th file operation, n = 0, 1 … until it gets through.

    Yields the reopened store and whether `act` had answered.
    """
    step = 0
    while True:
        files, store = fresh(seed * 1000 + step)
        prepare(store)
        files.crash_at = files.operations + step
        try:
            act(store)
            answered = True
        except Crashed:
            answered = False
        files.crash("nothing" if answered else "random")  # an answer does not lean on luck
        yield Store.open(files, PATH, cluster=CLUSTER), answered
        if answered:
            assert step > 2, "the action did nothing"
            return
        step += 1


def put(store: Store, counter: int, *, plan_seq: int = 0, replace: bool = False, fill: int = 0) -> bytes:
    data = shard_file(ChunkId(1, counter), 0, plan_seq=plan_seq, fill=fill or counter)
    store.shards.write(PutShard(DRIVE, ChunkId(1, counter), 0, len(data), replace), memoryview(data))
    return data


def whole(store: Store, counter: int) -> bytes | None:
    try:
        header, body = store.shards.read(ChunkId(1, counter), 0, 0, 8, True)
    except NotFound:
        return None
    shardfile.verify_file(header + body)
    return header + body


@pytest.mark.parametrize("seed", SEEDS)
def test_an_answered_put_is_there_and_an_unanswered_one_is_whole_or_absent(seed: int) -> None:
    want = shard_file(ChunkId(1, 2), 0, fill=2)
    for store, answered in crashes(seed, lambda s: None, lambda s: put(s, 2) and None):
        found = whole(store, 2)
        assert found == want if answered else found in (None, want)
        assert store._files.list(store._folders["tmp"]) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_healing_leaves_the_old_shard_or_the_new_one(seed: int) -> None:
    old, new = (shard_file(ChunkId(1, 2), 0, plan_seq=p, fill=p) for p in (3, 9))
    prepare = lambda s: put(s, 2, plan_seq=3, fill=3) and None  # noqa: E731
    for store, answered in crashes(seed, prepare, lambda s: put(s, 2, plan_seq=9, replace=True, fill=9) and None):
        found = whole(store, 2)
        assert found == new if answered else found in (old, new)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_answered_delete_stays_deleted(seed: int) -> None:
    delete = [DeleteShard(DRIVE, ChunkId(1, 2), 0, 5)]
    for store, answered in crashes(seed, lambda s: put(s, 2) and None, lambda s: s.shards.delete(delete) and None):
        found = whole(store, 2)
        assert found is None if answered else True


# ---- logs ---------------------------------------------------------------------------------------------------


def batches(seed: int, count: int = 5) -> list[tuple[int, bytes, list[LogRecord]]]:
    rng = random.Random(seed)
    result, seq, previous = [], 1, bytes(16)
    for _ in range(count):
        sizes = [rng.choice([10, 500, 3000]) for _ in range(rng.randint(1, 4))]
        raw = [LogRecord(0, 1, 1, 0, 0, b"", rng.randbytes(size)) for size in sizes]
        linked, previous = logfile.chained(raw, seq, previous)
        result.append((seq, logfile.encode_append(linked, SEGMENT), linked))
        seq += len(linked)
    return result


def log_records(store: Store) -> list[LogRecord]:
    state, data = store.logs.read(SEGMENT, 1, 1 << 20)
    if not data:
        assert state.last_seq == 0
        return []
    found = list(logfile.decode_append(data, SEGMENT, 1, bytes(16)).records)
    assert found[-1].seq == state.last_seq and found[-1].hash == state.last_hash
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_answered_appends_survive_and_a_torn_one_is_cut(seed: int) -> None:
    appends = batches(seed)
    sent = [record for _, _, linked in appends for record in linked]
    done: list[int] = []

    def act(store: Store) -> None:
        done.clear()
        for seq, data, linked in appends:
            store.logs.append(SEGMENT, seq, memoryview(data))
            done.append(len(linked))

    for store, _ in crashes(seed, lambda s: s.logs.create(HEAD, CAPACITY, 3) and None, act):
        found = log_records(store)
        assert found == sent[: len(found)] and len(found) >= sum(done)
        # the writer sends again what was not answered, and goes on
        for seq, data, _ in appends[len(done) :]:
            store.logs.append(SEGMENT, seq, memoryview(data))
        assert log_records(store) == sent


@pytest.mark.parametrize("seed", SEEDS)
def test_a_different_record_after_a_torn_one_is_never_mixed_with_it(seed: int) -> None:
    """A takeover closes at the answered seq and its successor writes other records over the torn bytes."""
    first, second = batches(seed, 2)
    other, _ = logfile.chained([LogRecord(0, 1, 1, 0, 0, b"", b"other")], second[0], first[2][-1].hash)
    data = logfile.encode_append(other, SEGMENT)

    def act(store: Store) -> None:
        store.logs.append(SEGMENT, second[0], memoryview(second[1]))

    def prepare(store: Store) -> None:
        store.logs.create(HEAD, CAPACITY, 3)
        store.logs.append(SEGMENT, first[0], memoryview(first[1]))

    for store, answered in crashes(seed, prepare, act):
        if answered or len(log_records(store)) > len(first[2]):
            with pytest.raises(Refused):
                store.logs.append(SEGMENT, second[0], memoryview(data))
            continue
        store.logs.append(SEGMENT, second[0], memoryview(data))
        files = store._files
        assert isinstance(files, SimFiles)
        files.crash("nothing")
        assert log_records(Store.open(files, PATH, cluster=CLUSTER)) == first[2] + other


@pytest.mark.parametrize("seed", SEEDS)
def test_an_answered_seal_refuses_for_ever_and_gives_the_same_answer(seed: int) -> None:
    seq, data, linked = batches(seed, 1)[0]
    answers = []

    def prepare(store: Store) -> None:
        answers.clear()
        store.logs.create(HEAD, CAPACITY, 3)
        store.logs.append(SEGMENT, seq, memoryview(data))

    for store, answered in crashes(seed, prepare, lambda s: answers.append(s.logs.seal(SEGMENT))):
        assert log_records(store) == linked
        if answered:
            assert store.logs.stat(SEGMENT).sealed, "a seal that was answered is durable"
        again = store.logs.seal(SEGMENT)
        assert again.sealed and again.last_seq == linked[-1].seq
        if answered:
            assert again == answers[0]
        with pytest.raises(Fenced):
            store.logs.append(SEGMENT, again.last_seq + 1, memoryview(data))


@pytest.mark.parametrize("seed", SEEDS)
def test_an_answered_create_is_there_empty(seed: int) -> None:
    for store, answered in crashes(seed, lambda s: None, lambda s: s.logs.create(HEAD, CAPACITY, 3) and None):
        try:
            assert store.logs.stat(SEGMENT).last_seq == 0
        except NotFound:
            assert not answered
        assert store.logs.create(HEAD, CAPACITY, 3).last_seq == 0


# ---- root ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_promises_and_accepted_roots_survive(seed: int) -> None:
    root = Root(ClusterMap(4), (DRIVE,), (), ())
    low, high = Ballot(3, b"a" * 16), Ballot(4, b"b" * 16)
    answered_steps: list[str] = []

    def act(store: Store) -> None:
        answered_steps.clear()
        store.root.promise(low)
        answered_steps.append("promised")
        store.root.accept(RootSlot(accepted=low, version=1, root=root))
        answered_steps.append("accepted")
        store.root.promise(high)
        answered_steps.append("higher")

    for store, _ in crashes(seed, lambda s: None, act):
        slot = store.root.read()
        if "promised" in answered_steps:
            assert slot.promised >= low
        if "accepted" in answered_steps:
            assert (slot.accepted, slot.version, slot.root) == (low, 1, root)
        if "higher" in answered_steps:
            with pytest.raises(Fenced):
                store.root.accept(RootSlot(accepted=low, version=2, root=root))


# ---- formatting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_an_interrupted_format_can_be_begun_again(seed: int) -> None:
    step, answered = 0, False
    while not answered:
        files = SimFiles(seed * 1000 + step)
        files.crash_at = step
        try:
            Store.format(files, PATH, cluster=CLUSTER, drive=DRIVE, ballast=4096)
            answered = True
        except Crashed:
            pass
        files.crash()
        try:
            store = Store.open(files, PATH, cluster=CLUSTER)
        except ClusterError:
            assert not answered
            Store.format(files, PATH, cluster=CLUSTER, drive=DRIVE, ballast=4096)
            store = Store.open(files, PATH, cluster=CLUSTER)
        assert store.drive == DRIVE and store.root.read() == RootSlot()
        step += 1
