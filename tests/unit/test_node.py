"""The node's handler: lists over several drives, errors by class, drives made and closed while calls run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from tests.fakes.cluster import CLUSTER, PEER, FakeNodes, node_id, real_nodes, sim_nodes
from tests.fakes.identities import Authority
from tests.fakes.shards import shard_file
from trivium.cluster import logfile, wire
from trivium.cluster.clock import InlineExecutor, ThreadExecutor
from trivium.cluster.errors import ClusterError, NotFound, Refused, Unavailable
from trivium.cluster.identity.access import ATTRIBUTE, Access
from trivium.cluster.logfile import LogRecord
from trivium.cluster.model import ChunkId, ChunkKind, Piece
from trivium.cluster.node import Node
from trivium.cluster.shardfile import CODECS, ShardSpec, build_header
from trivium.cluster.store.shards import shard_name
from trivium.cluster.transport.interface import Peer
from trivium.cluster.wire import Service

CHUNK = ChunkId(7, 1)
NEW = b"N" * 16


def puts(nodes: FakeNodes, count: int) -> tuple[wire.PutShards, bytes]:
    data = [shard_file(CHUNK, i) for i in range(count)]
    entries = tuple(wire.PutShard(d, CHUNK, i, len(b)) for i, (d, b) in enumerate(zip(nodes.drives, data, strict=True)))
    return wire.PutShards(entries), b"".join(data)


@pytest.mark.parametrize("kind", ["simulated", "real"])
def test_a_put_over_six_drives_and_a_read_of_each(kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with sim_nodes(6) if kind == "simulated" else real_nodes(tmp_path, 6) as nodes:
            request, payload = puts(nodes, 6)
            answer = (await nodes.call(nodes.drives[0], request, payload)).answer
            assert answer == wire.Outcomes((wire.OK,) * 6)
            for i, drive in enumerate(nodes.drives):
                reply = await nodes.call(drive, wire.ReadShard(drive, CHUNK, i, 0, 9))
                assert bytes(reply.payload) == shard_file(CHUNK, i)
                opened = await nodes.call(drive, wire.OpenShard(drive, CHUNK, i))
                (fd,) = opened.fds
                assert os.pread(fd, 1 << 20, 0) == shard_file(CHUNK, i)
                os.close(fd)

    trio.run(main)


def test_each_entry_of_a_list_has_its_own_outcome() -> None:
    async def main() -> None:
        async with sim_nodes(3) as nodes:
            request, payload = puts(nodes, 3)
            nodes.store(nodes.drives[1]).health.fail("failed", "dead")
            await nodes.call(nodes.drives[2], wire.PutShards(request.puts[2:]), shard_file(CHUNK, 2))
            answer = (await nodes.call(nodes.drives[0], request, payload)).answer
            assert isinstance(answer, wire.Outcomes)
            kinds = [type(o.error()).__name__ if o.status else "" for o in answer.outcomes]
            assert kinds == ["", "DriveFailed", "Exists"]
            unknown = wire.DeleteShards((wire.DeleteShard(b"?" * 16, CHUNK, 0, 1),))
            outcome = (await nodes.call(nodes.drives[0], unknown)).answer.outcomes[0]  # type: ignore[union-attr]
            assert isinstance(outcome.error(), Unavailable)

    trio.run(main)


def test_appends_reach_all_drives_in_one_message() -> None:
    async def main() -> None:
        async with sim_nodes(3) as nodes:
            head = wire.LogHead(b"S" * 16, 1, bytes(16), 0, 0, 1, bytes(16))
            for drive in nodes.drives:
                await nodes.call(drive, wire.CreateLog(drive, head, 1 << 16))
            linked, _ = logfile.chained([LogRecord(0, 1, 1, 0, 0, b"", b"x")], 1, bytes(16))
            data = logfile.encode_append(linked, head.segment)
            message = wire.AppendLogs(tuple(wire.AppendLog(d, head.segment, 1, len(data)) for d in nodes.drives))
            assert (await nodes.call(nodes.drives[0], message, data * 3)).answer == wire.Outcomes((wire.OK,) * 3)
            nodes.crash("nothing")
            for drive in nodes.drives:
                state = (await nodes.call(drive, wire.StatLog(drive, head.segment))).answer
                assert isinstance(state, wire.LogState) and state.last_seq == 1

    trio.run(main)


def test_bad_messages_are_refused() -> None:
    async def main() -> None:
        async with sim_nodes(1) as nodes:
            node = nodes.nodes[node_id(0)]
            for body in (b"", b"\xc1junk", wire.encode_node_request(wire.Ping())[:-1] + b"\x99"):
                with pytest.raises(Refused):
                    await node.handle(PEER, Service.NODE, body, memoryview(b""))
            request, payload = puts(nodes, 1)
            for wrong in (payload[:-1], payload + b"x"):
                with pytest.raises(Refused):
                    await nodes.call(nodes.drives[0], request, wrong)
            drive = nodes.drives[0]
            for odd in (
                wire.ReadShard(drive, CHUNK, 0, -1, 1),
                wire.ReadShard(drive, CHUNK, 0, 0, 1 << 40),
                wire.ReadShard(drive, ChunkId(-5, -5), -1, 0, 1),
                wire.StatLog(drive, b"x" * 5000),
                wire.CreateLog(drive, wire.LogHead(b"", 1, b"", 0, 0, 1, b"")),
            ):
                with pytest.raises(ClusterError):
                    await nodes.call(drive, odd)
            report = (await nodes.call(drive, wire.Ping())).answer
            assert isinstance(report, wire.NodeReport) and report.drives[0].state == "ok"

    trio.run(main)


def test_drives_are_made_in_empty_folders_and_closed(tmp_path: Path) -> None:
    async def main() -> None:
        node = Node(
            node_id(0), [], files=nodes_files, executor=ThreadExecutor(2), cluster=CLUSTER,
            make_path=lambda p: str(tmp_path / p),
        )  # fmt: skip
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "something").write_text("mine")
        with pytest.raises(Refused, match="not empty"):
            await node.call(PEER, wire.FormatDrive("full", NEW), memoryview(b""))
        assert (tmp_path / "full" / "something").read_text() == "mine"
        await node.call(PEER, wire.FormatDrive("d7", NEW), memoryview(b""))
        with pytest.raises(Refused):
            await node.call(PEER, wire.FormatDrive("d8", NEW), memoryview(b""))
        await node.call(PEER, wire.ReadRoot(NEW), memoryview(b""))
        for _ in range(2):
            await node.call(PEER, wire.CloseDrive(NEW), memoryview(b""))
        with pytest.raises(Unavailable):
            await node.call(PEER, wire.ReadRoot(NEW), memoryview(b""))
        await node.aclose()

    from trivium.cluster.files import RealFiles

    nodes_files = RealFiles()
    trio.run(main)


def test_a_drive_is_not_closed_under_a_running_call(tmp_path: Path) -> None:
    async def main() -> None:
        async with real_nodes(tmp_path, 1) as nodes:
            drive, node = nodes.drives[0], nodes.nodes[node_id(0)]
            request, payload = puts(nodes, 1)
            results: list[object] = []

            async def write() -> None:
                results.append((await nodes.call(drive, request, payload)).answer)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                await trio.testing.wait_all_tasks_blocked()
                await node.call(PEER, wire.CloseDrive(drive), memoryview(b""))
            assert results == [wire.Outcomes((wire.OK,))]

    import trio.testing

    trio.run(main)


@pytest.mark.parametrize("executor", [ThreadExecutor(3), InlineExecutor()])
def test_executors_run_lists_and_raise_the_first_error_after_all(executor: ThreadExecutor | InlineExecutor) -> None:
    async def main() -> None:
        assert await executor.run(divmod, 7, 2) == (3, 1)
        assert await executor.run_all([lambda n=n: n * n for n in range(40)]) == [n * n for n in range(40)]  # type: ignore[misc]
        assert await executor.run_all([]) == []
        with pytest.raises(ZeroDivisionError):
            await executor.run_all([lambda: 1, lambda: 1 // 0])

    for _ in range(2):
        trio.run(main)


def test_a_client_from_elsewhere_reads_no_dump_and_no_metadata_log_and_moves_no_good_shard_aside() -> None:
    authority = Authority(CLUSTER)
    trust = authority.trust()
    client = Peer("quic:far", local=False, attributes={ATTRIBUTE: Access(trust, authority.member().certificate)})
    leader = Peer("quic:lead", local=False, attributes={ATTRIBUTE: Access(trust, authority.metadata.certificate)})

    async def main() -> None:
        async with sim_nodes(1) as nodes:
            (drive,), (node,) = nodes.drives, nodes.nodes.values()

            async def say(peer: Peer, request: wire.NodeRequest, payload: bytes = b"") -> wire.NodeAnswer:
                reply = await node.handle(peer, Service.NODE, wire.encode_node_request(request), memoryview(payload))
                return wire.decode_node_answer(reply.body)

            async def one(peer: Peer, request: wire.NodeRequest, payload: bytes = b"") -> ClusterError | None:
                answer = await say(peer, request, payload)
                assert isinstance(answer, wire.Outcomes)
                return answer.outcomes[0].error()

            body = bytes(20480)
            for counter, kind in ((1, ChunkKind.DATA), (2, ChunkKind.DUMP)):
                chunk = ChunkId(7, counter)
                piece = Piece(bytes(16), 0, 81920, 1, 0)
                spec = ShardSpec(CLUSTER, chunk, b"n" * 16, 4, 2, CODECS[1], kind, 81920, 20480, (piece,))
                data = build_header(spec, 0, body) + body
                assert await one(leader, wire.PutShards((wire.PutShard(drive, chunk, 0, len(data)),)), data) is None
            for first, with_header in ((0, True), (0, False), (1, True), (1, False)):
                await say(client, wire.ReadShard(drive, ChunkId(7, 1), 0, first, 1, with_header))
                await say(leader, wire.ReadShard(drive, ChunkId(7, 2), 0, first, 1, with_header))
                with pytest.raises(Refused, match="metadata dump"):
                    await say(client, wire.ReadShard(drive, ChunkId(7, 2), 0, first, 1, with_header))
            error = await one(client, wire.Quarantine(drive, ChunkId(7, 1), 0))
            assert isinstance(error, Refused) and "intact" in str(error)
            await say(client, wire.ReadShard(drive, ChunkId(7, 1), 0, 0, 1))
            assert await one(leader, wire.Quarantine(drive, ChunkId(7, 1), 0)) is None

            for kind in (wire.METADATA_LOG, 2):
                segment = bytes([kind]) * 16
                head = wire.LogHead(segment, kind, bytes(16), 0, 0, 1, bytes(16))
                await say(leader, wire.CreateLog(drive, head, 1 << 16))
                linked, _ = logfile.chained([LogRecord(0, 1, 1, 0, 0, b"", b"x")], 1, bytes(16))
                data = logfile.encode_append(linked, segment)
                append = wire.AppendLogs((wire.AppendLog(drive, segment, 1, len(data)),))
                requests = (wire.StatLog(drive, segment), wire.ReadLog(drive, segment, 1), wire.SealLog(drive, segment))
                if kind == wire.METADATA_LOG:
                    assert isinstance(await one(client, append, data), Refused)
                    for request in requests:
                        with pytest.raises(Refused, match="metadata log"):
                            await say(client, request)
                for peer in (leader,) if kind == wire.METADATA_LOG else (client,):
                    assert await one(peer, append, data) is None
                    for request in requests:
                        assert isinstance(await say(peer, request), wire.LogState)

    trio.run(main)


def test_a_client_from_elsewhere_moves_a_bad_shard_aside() -> None:
    authority = Authority(CLUSTER)
    access = Access(authority.trust(), authority.member().certificate)
    client = Peer("quic:far", local=False, attributes={ATTRIBUTE: access})

    async def main() -> None:
        async with sim_nodes(1) as nodes:
            (drive,), (node,) = nodes.drives, nodes.nodes.values()
            data = shard_file(CHUNK, 0)
            await nodes.call(drive, wire.PutShards((wire.PutShard(drive, CHUNK, 0, len(data)),)), data)
            store = nodes.store(drive)
            fd = store.shards._files.open(store.shards._chunks, shard_name(CHUNK, 0), write=True)
            store.shards._files.write(fd, (memoryview(b"rot"),), 8192)
            request = wire.encode_node_request(wire.Quarantine(drive, CHUNK, 0))
            reply = await node.handle(client, Service.NODE, request, memoryview(b""))
            assert wire.decode_node_answer(reply.body) == wire.Outcomes((wire.OK,))
            with pytest.raises(NotFound):
                await nodes.call(drive, wire.ReadShard(drive, CHUNK, 0, 0, 1))

    trio.run(main)
