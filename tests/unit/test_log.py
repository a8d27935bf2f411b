"""The log's writer: group commit, doubt, rolling, leaving lost replicas, fencing, reading, trimming."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing

from tests.fakes.chain import MemoryChain
from tests.fakes.cluster import FakeNodes, sim_nodes
from trivium.cluster import logplan, logsegment
from trivium.cluster.errors import ClusterError, Fenced, NoSpace, NotFound, Refused, Unavailable
from trivium.cluster.log import LogOptions, LogParts, LogWriter
from trivium.cluster.logfile import NO_HASH, LogRecord, chained, encode_append, scan
from trivium.cluster.logheal import heal
from trivium.cluster.logplan import LogOwner
from trivium.cluster.takeover import takeover
from trivium.cluster.wire import AppendLogs, CreateLog, NodeRequest, SealLog

OPTIONS = LogOptions(capacity=64 * 1024)


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def record(payload: bytes, seq: int = 0) -> LogRecord:
    return LogRecord(seq, 3, 1, 0, 0, NO_HASH, payload)


def parts(nodes: FakeNodes, chain: MemoryChain, count: int = 3, options: LogOptions = OPTIONS) -> LogParts:
    def choose(segment: bytes, avoid: frozenset[bytes]) -> tuple[bytes, ...]:
        up = {drive for drive in nodes.drives if nodes.is_up(drive)}
        return logplan.choose_drives(nodes.map(), up, count, segment, avoid)

    return LogParts(nodes, chain, LogOwner(1, bytes(16)), choose, random.Random(1), options)


@asynccontextmanager
async def writing(made: LogParts) -> AsyncIterator[LogWriter]:
    async with trio.open_nursery() as nursery:
        writer = await takeover(made)
        await nursery.start(writer.run)
        yield writer
        nursery.cancel_scope.cancel()


async def contents(writer: LogWriter, from_seq: int = 1) -> list[bytes]:
    return [bytes(record.payload) async for record in writer.read(from_seq)]


def test_records_come_back_in_order() -> None:
    async def main() -> None:
        async with sim_nodes(4) as nodes, writing(parts(nodes, MemoryChain())) as writer:
            assert writer.last_seq == 0
            assert await writer.append([record(b"a"), record(b"b")]) == 2
            assert await writer.append([record(b"c")]) == 3
            assert await contents(writer) == [b"a", b"b", b"c"]
            assert await contents(writer, 3) == [b"c"]
            assert await contents(writer, 4) == []

    run(main)


def test_what_does_not_continue_the_chain_is_no_record() -> None:
    segment = b"s" * 16
    (first, second), _ = chained([record(b"a"), record(b"b")], 1, NO_HASH)
    good = encode_append([first, second], segment)
    assert scan(good, segment, 1, NO_HASH).last_seq == 2
    assert scan(good, segment, 1, b"x" * 16).last_seq == 0  # another segment came before
    foreign = encode_append([first, replace(second, previous_hash=b"x" * 16)], segment)
    assert scan(foreign, segment, 1, NO_HASH).last_seq == 1


def test_an_append_is_on_every_replica_when_it_answers() -> None:
    async def main() -> None:
        async with sim_nodes(4) as nodes, writing(parts(nodes, MemoryChain())) as writer:
            await writer.append([record(b"a" * 1000)])
            entry = writer.chain[-1]
            assert len(entry.drives) == 3
            nodes.crash("none")
            for drive in entry.drives:
                assert nodes.store(drive).logs.stat(entry.segment).last_seq == 1

    run(main)


def test_appends_that_wait_together_share_one_message() -> None:
    async def main() -> None:
        async with sim_nodes(4) as nodes, writing(parts(nodes, MemoryChain())) as writer:
            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(writer.append, [record(bytes((number,)))])
            sent = [call for call in nodes.calls if isinstance(call, AppendLogs)]
            assert len(sent) <= 2 and len(sent[0].appends) == 3
            assert sorted(await contents(writer)) == [bytes((number,)) for number in range(50)]

    run(main)


def test_it_rolls_when_a_segment_is_full_and_trims_whole_segments() -> None:
    async def main() -> None:
        chain = MemoryChain()
        async with sim_nodes(5) as nodes, writing(parts(nodes, chain)) as writer:
            expected = []
            for number in range(60):
                expected.append(bytes((number,)) * 5000)
                await writer.append([record(expected[-1])])
            assert len(writer.chain) >= 5 and chain.chain == writer.chain
            assert await contents(writer) == expected
            await writer.trim(40)
            first = writer.chain[0].first_seq
            assert 20 < first <= 41
            assert await contents(writer, first) == expected[first - 1 :]
            with pytest.raises(NotFound):
                await contents(writer, first - 1)
            named = {entry.segment for entry in writer.chain}
            await trio.testing.wait_all_tasks_blocked()
            for drive in nodes.drives:
                there = {head.segment for head in nodes.store(drive).logs.heads()}
                assert there <= named

    run(main)


@pytest.mark.parametrize("stored", [True, False])
def test_an_append_in_doubt_is_sent_again(stored: bool) -> None:
    async def main() -> None:
        chain = MemoryChain()
        async with sim_nodes(3, nodes=3) as nodes, writing(parts(nodes, chain)) as writer:
            await writer.append([record(b"first")])
            failing = [3]

            def fault(drive: bytes, request: NodeRequest) -> None:
                if isinstance(request, AppendLogs) and drive == nodes.drives[0] and failing[0]:
                    failing[0] -= 1
                    raise Unavailable("lost on the way")

            if stored:
                nodes.after = fault
            else:
                nodes.before = fault
            await writer.append([record(b"second")])
            assert await contents(writer) == [b"first", b"second"]
            assert len(writer.chain) == 1  # no new segment for a short silence

    run(main)


@pytest.mark.parametrize("count", [1, 2])
def test_lost_replicas_are_left_behind_and_the_same_records_go_on_elsewhere(count: int) -> None:
    async def main() -> None:
        chain = MemoryChain()
        async with sim_nodes(6, nodes=6) as nodes, writing(parts(nodes, chain)) as writer:
            await writer.append([record(b"first")])
            lost = writer.chain[-1].drives[:count]
            nodes.down.update(lost)
            await writer.append([record(b"second")])
            assert not set(lost) & set(writer.chain[-1].drives) and len(writer.chain[-1].drives) == 3
            assert writer.chain[0].last_seq == 1 and writer.chain[1].first_seq == 2
            assert await contents(writer) == [b"first", b"second"]

    run(main)


def test_with_too_few_drives_it_goes_on_with_fewer() -> None:
    async def main() -> None:
        async with sim_nodes(3, nodes=3) as nodes, writing(parts(nodes, MemoryChain())) as writer:
            await writer.append([record(b"first")])
            nodes.down.add(nodes.drives[1])
            await writer.append([record(b"second")])
            assert len(writer.chain[-1].drives) == 2
            nodes.down.clear()
            await writer.leave()
            assert len(writer.chain[-1].drives) == 3
            await writer.append([record(b"third")])
            assert await contents(writer) == [b"first", b"second", b"third"]

    run(main)


def test_a_wiped_replica_is_noticed() -> None:
    async def main() -> None:
        async with sim_nodes(5, nodes=5) as nodes, writing(parts(nodes, MemoryChain())) as writer:
            await writer.append([record(b"first")])
            victim = writer.chain[-1].drives[0]
            nodes.files.wipe(nodes.paths[victim])  # type: ignore[attr-defined]
            await writer.append([record(b"second")])
            assert victim not in writer.chain[-1].drives and victim not in writer.chain[0].drives
            assert await contents(writer) == [b"first", b"second"]

    run(main)


def test_a_sealed_writer_is_fenced_and_acknowledges_nothing() -> None:
    async def main() -> None:
        chain = MemoryChain()
        async with sim_nodes(5, nodes=5) as nodes, writing(parts(nodes, chain)) as old:
            await old.append([record(b"first")])
            cut_off = old.chain[-1].drives[0]
            async with writing(parts(nodes, chain)) as new:
                with pytest.raises(Fenced):
                    await old.append([record(b"from the old one")])
                with pytest.raises(Fenced):
                    await old.append([record(b"and again")])
                await new.append([record(b"second")])
                assert await contents(new) == [b"first", b"second"]
            del cut_off

    run(main)


def test_a_writer_that_moves_by_itself_loses_against_a_chain_that_moved_on() -> None:
    async def main() -> None:
        chain = MemoryChain()
        async with sim_nodes(6, nodes=6) as nodes, writing(parts(nodes, chain)) as old:
            await old.append([record(b"first")])
            async with writing(parts(nodes, chain)) as new:
                with pytest.raises(Fenced):
                    await old.leave()
                with pytest.raises(Fenced):
                    await old.append([record(b"late")])
                await new.append([record(b"second")])
                assert await contents(new) == [b"first", b"second"]

    run(main)


def test_a_record_half_appended_by_the_dead_writer_is_kept_unchanged() -> None:
    async def main() -> None:
        chain = MemoryChain()
        async with sim_nodes(3, nodes=3) as nodes:
            async with writing(parts(nodes, chain)) as old:
                await old.append([record(b"first")])

                def fault(drive: bytes, request: NodeRequest) -> None:
                    if isinstance(request, AppendLogs) and drive != nodes.drives[2]:
                        raise Unavailable("cut off")

                nodes.before = fault
                with trio.move_on_after(1):
                    await old.append([record(b"second")])
                assert old.last_seq == 1
            nodes.before = None
            async with writing(parts(nodes, chain)) as new:
                assert await contents(new) == [b"first", b"second"]
                assert new.chain[0].last_seq == 1 and new.chain[1].first_seq == 2
                await new.append([record(b"third")])
                assert await contents(new) == [b"first", b"second", b"third"]

    run(main)


def test_takeover_waits_for_replicas_then_goes_on_without_them() -> None:
    async def main() -> None:
        chain = MemoryChain()
        async with sim_nodes(4, nodes=4) as nodes:
            async with writing(parts(nodes, chain)) as old:
                await old.append([record(b"first")])
                replicas = old.chain[-1].drives
            nodes.down.update(replicas[:2])
            before = trio.current_time()
            async with writing(parts(nodes, chain)) as new:
                assert trio.current_time() - before == pytest.approx(20, abs=1)
                assert await contents(new) == [b"first"]
                assert new.chain[0].drives == replicas[2:]  # unreached replicas leave the entry

    run(main)


def test_takeover_refuses_in_words_when_no_replica_answers() -> None:
    async def main() -> None:
        chain = MemoryChain()
        async with sim_nodes(6, nodes=6) as nodes:
            async with writing(parts(nodes, chain)) as old:
                await old.append([record(b"first")])
                entry = old.chain[-1]
            nodes.down.update(entry.drives)
            with pytest.raises(Unavailable, match="no drive of its last segment"):
                await takeover(parts(nodes, chain))
            nodes.down.clear()
            for drive in entry.drives:
                nodes.store(drive).logs.remove(entry.segment)  # the files were never there, or are gone: not empty
            with pytest.raises(ClusterError, match="no drive of its last segment"):
                await takeover(parts(nodes, chain))
            assert chain.chain[-1] == entry

    run(main)


def test_a_clean_stop_closes_and_the_next_start_seals_nothing() -> None:
    async def main() -> None:
        chain = MemoryChain()
        async with sim_nodes(3, nodes=3) as nodes:
            async with writing(parts(nodes, chain)) as old:
                await old.append([record(b"first")])
                await old.close()
                with pytest.raises(Unavailable):
                    await old.append([record(b"late")])
            nodes.calls.clear()
            async with writing(parts(nodes, chain)) as new:
                assert not any(isinstance(call, SealLog) for call in nodes.calls)
                await new.append([record(b"second")])
                assert await contents(new) == [b"first", b"second"]
            for _ in range(3):  # clean restarts without a record leave no segments behind
                async with writing(parts(nodes, chain)) as new:
                    await new.close()
            assert len(chain.chain) <= 3

    run(main)


def test_an_append_in_doubt_may_be_repeated_with_its_seq() -> None:
    async def main() -> None:
        async with sim_nodes(3) as nodes, writing(parts(nodes, MemoryChain())) as writer:
            first = record(b"one", seq=1)
            assert await writer.append([first]) == 1
            assert await writer.append([first]) == 1
            with pytest.raises(Refused):
                await writer.append([record(b"other", seq=1)])
            with pytest.raises(Refused):
                await writer.append([record(b"gap", seq=3)])
            with trio.CancelScope() as scope:
                scope.cancel()
                await writer.append([record(b"two", seq=2)])
            assert await writer.append([record(b"two", seq=2)]) == 2
            assert await contents(writer) == [b"one", b"two"]

    run(main)


def test_a_chain_change_in_doubt_is_settled_by_reading() -> None:
    async def main() -> None:
        chain = MemoryChain()
        async with sim_nodes(4, nodes=4) as nodes, writing(parts(nodes, chain)) as writer:
            await writer.append([record(b"first")])
            failing = [2]

            def lose() -> None:
                if failing[0]:
                    failing[0] -= 1
                    raise Unavailable("answer lost")

            chain.after = lose
            await writer.leave()
            await writer.append([record(b"second")])
            assert await contents(writer) == [b"first", b"second"]
            assert len(chain.chain) == 2

    run(main)


def test_drives_of_new_segments_are_spread_over_domains() -> None:
    nodes = sim_nodes(6, nodes=3)
    by_node = {drive: nodes.owners[drive] for drive in nodes.drives}
    for salt in range(50):
        chosen = logplan.choose_drives(nodes.map(), nodes.drives, 3, bytes((salt,)))
        assert len({by_node[drive] for drive in chosen}) == 3


def test_healing_restores_the_copies_of_every_segment() -> None:
    async def main() -> None:
        chain = MemoryChain()
        async with sim_nodes(6, nodes=6) as nodes:
            made = parts(nodes, chain)
            async with writing(made) as writer:
                expected = []
                for number in range(40):
                    expected.append(bytes((number,)) * 5000)
                    await writer.append([record(expected[-1])])
                lost = nodes.drives[0]
                nodes.down.add(lost)
                assert await heal(made, writer, {lost}) == 0
                assert all(lost not in entry.drives and len(entry.drives) == 3 for entry in writer.chain)
                for away in nodes.drives[1:3]:  # any two more: the new copies are complete
                    nodes.down = {lost, away}
                    assert await contents(writer) == expected
                assert await heal(made, writer, set()) == 0 and chain.chain == writer.chain

    run(main)


@pytest.mark.parametrize("kept", [1, 4])
def test_a_drive_that_was_left_and_returns_takes_a_copy_in_the_place_of_what_it_has(kept: int) -> None:
    """It kept an older file of the segment, sealed when it was left: the number of copies is restored all the same."""

    async def main() -> None:
        chain = MemoryChain()
        async with sim_nodes(4, nodes=4) as nodes:
            made = parts(nodes, chain)
            async with writing(made) as writer:
                expected = []
                for number in range(4):
                    expected.append(bytes((number,)) * 500)
                    await writer.append([record(expected[-1])])
                first, (other,) = writer.chain[-1], set(nodes.drives) - set(writer.chain[-1].drives)
                returns = first.drives[0]
                nodes.down = {returns, other}
                expected.append(b"without it")
                await writer.append([record(expected[-1])])
                await heal(made, writer, {returns, other})
                assert returns not in writer.chain[0].drives
                nodes.down = {other}
                records = await logsegment.read_upto(nodes, returns, first.segment, 1, kept)
                head = (await logsegment.stat(nodes, returns, first.segment)).head
                await logsegment.remove(nodes, (returns,), first.segment)
                await logsegment.create(nodes, head, (returns,), OPTIONS.capacity, 0)
                await logsegment.append(nodes, first.segment, 1, encode_append(records, first.segment), (returns,))
                await logsegment.seal(nodes, returns, first.segment)
                assert await heal(made, writer, {other}) == 0
                assert all(set(entry.drives) == set(nodes.drives) - {other} for entry in writer.chain)
                nodes.down = set(nodes.drives) - {returns}
                assert await contents(writer) == expected

    run(main)


def test_a_full_pool_is_told() -> None:
    async def main() -> None:
        async with sim_nodes(3) as nodes, trio.open_nursery() as nursery:
            made = parts(nodes, MemoryChain(), options=replace(OPTIONS, waits_for_room=False))
            writer = await takeover(made)

            async def runs() -> None:
                with pytest.raises(ExceptionGroup) as caught:
                    await writer.run()
                assert isinstance(caught.value.exceptions[0], NoSpace)

            nursery.start_soon(runs)
            await writer.append([record(b"first")])

            def full(drive: bytes, request: NodeRequest) -> None:
                if isinstance(request, CreateLog):
                    raise NoSpace("full")

            nodes.before = full
            with pytest.raises(NoSpace):
                for _ in range(100):
                    await writer.append([record(b"x" * 5000)])

    run(main)
