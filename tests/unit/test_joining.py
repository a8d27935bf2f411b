"""Who may say that it is a node of the map, and from where."""

from __future__ import annotations

import pytest
import trio

from trivium.admin.joining import Gathering, Joiner, ask_back, key_of, refuse_second, settled
from trivium.cluster.errors import Refused, Unavailable
from trivium.cluster.identity.keys import member_id
from trivium.cluster.model import ClusterMap, DriveRow, NodeRow
from trivium.cluster.transport.dial import Dialer
from trivium.cluster.transport.interface import Connection, Peer, Reply
from trivium.cluster.transport.memory import MemoryServer
from trivium.cluster.wire import NodeReport, encode_node_answer
from trivium.metadata import messages, rights
from trivium.metadata.messages import MetadataError

NODE = b"A" * 16
KEY, OTHER = b"\2" + b"a" * 32, b"\2" + b"e" * 32


class Hosts:
    """Nodes by address, each with the member that its TLS certificate names."""

    def __init__(self) -> None:
        self.servers: dict[str, tuple[MemoryServer, bytes]] = {}
        self.dialled: list[str] = []
        self.dialer = Dialer(local=False)
        self.dialer.register("quic", self._dial)
        self.dialer.register("unix", self._dial)

    async def _dial(self, rest: str, member: bytes = b"") -> Connection:
        await trio.lowlevel.checkpoint()
        self.dialled.append(rest)
        if rest not in self.servers:
            raise Unavailable("nobody is there")
        server, found = self.servers[rest]
        if member and found != member:
            raise Refused("another member of the cluster answers there now")
        return server.connect()

    async def run(self, nursery: trio.Nursery, address: str, process: bytes, key: bytes, node: bytes = NODE) -> None:
        async def handle(peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
            await trio.lowlevel.checkpoint()
            return Reply(encode_node_answer(NodeReport(node, (), process)))

        server = MemoryServer(address)
        await nursery.start(server.serve, handle)
        self.servers[address] = server, member_id(key)


def joiner(*addresses: str, key: bytes = KEY, local: bool = False) -> Joiner:
    return Joiner(NODE, "h2", list(addresses), "r/h2", key, local)


def test_a_node_that_says_no_name_and_no_domain_keeps_its_own() -> None:
    row = DriveRow(b"d" * 16, "d0", NODE, "rack1/h2", 1.0, "", "/d0", 1 << 40, 1)
    known = ClusterMap(1, (row,), (NodeRow(NODE, "h2", ()),), ())
    silent = Joiner(NODE, "", [], "", host="vm")
    assert (settled(silent, known).name, settled(silent, known).domain) == ("h2", "rack1/h2")
    fresh = settled(silent, ClusterMap(1, (), (), ()))
    assert (fresh.name, fresh.domain) == ("vm", "default/vm")
    moved = settled(Joiner(NODE, "", [], "rack9/h2", host="vm"), known)
    assert (moved.name, moved.domain) == ("h2", "rack9/h2")


def test_the_key_of_a_node_stays_its_own() -> None:
    row, without = NodeRow(NODE, "h2", ("quic:h2:1",), KEY), NodeRow(NODE, "h2", ("unix:node.sock",))
    assert key_of(joiner(), None) == KEY == key_of(joiner(), row) == key_of(joiner(key=b"", local=True), row)
    with pytest.raises(MetadataError, match="another key before"):
        key_of(joiner(key=OTHER), row)
    assert key_of(joiner(key=OTHER), row, {member_id(KEY)}) == OTHER
    with pytest.raises(MetadataError, match="start it once on that host with --connect DIR"):
        key_of(joiner(), without)
    assert key_of(joiner(local=True), without) == KEY


def test_the_door_says_who_is_local() -> None:
    said = messages.Admin("node_join", {"local": False, "public_key": b"p"})
    assert rights.command_of(Peer("unix", local=True), said) == {"local": True, "public_key": b"p"}


def test_a_copy_of_a_running_node_is_refused_and_a_moved_one_is_not() -> None:
    async def main() -> None:
        hosts = Hosts()
        row = NodeRow(NODE, "h2", ("unix:/run/node.sock", "quic:h2:1"), KEY)
        async with trio.open_nursery() as nursery:
            await hosts.run(nursery, "h2:1", b"first", KEY)
            await hosts.run(nursery, "h9:1", b"copy", KEY)
            copy = joiner("quic:h9:1")
            report = await ask_back(hosts.dialer, copy, KEY)
            with pytest.raises(MetadataError, match=r"h2 is running at quic:h2:1"):
                await refuse_second(hosts.dialer, copy, row, report)
            hosts.servers["h2.other:1"] = hosts.servers["h2:1"]  # the same process by another name
            same = joiner("quic:h2.other:1")
            await refuse_second(hosts.dialer, same, row, await ask_back(hosts.dialer, same, KEY))
            del hosts.servers["h2:1"]
            await refuse_second(hosts.dialer, copy, row, report)
            assert "/run/node.sock" not in hosts.dialled
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_who_is_asked_back_has_the_joiners_key() -> None:
    async def main() -> None:
        hosts = Hosts()
        async with trio.open_nursery() as nursery:
            await hosts.run(nursery, "h2:1", b"first", KEY)
            with pytest.raises(MetadataError, match="another member"):
                await ask_back(hosts.dialer, joiner("quic:h2:1", key=OTHER), OTHER)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_while_a_pool_is_formed_the_same_rules_hold() -> None:
    async def main() -> None:
        hosts = Hosts()
        gathering = Gathering(b"c" * 16, hosts.dialer, (4, 2), ())
        said = {"node": NODE, "name": "h2", "domain": "r/h2"}
        async with trio.open_nursery() as nursery:
            await hosts.run(nursery, "h2:1", b"first", KEY)
            await hosts.run(nursery, "h9:1", b"copy", KEY)
            await hosts.run(nursery, "evil:1", b"evil", OTHER)
            for _ in range(2):
                await gathering.join(said | {"addresses": ["quic:h2:1"], "public_key": KEY})
            with pytest.raises(MetadataError, match="another key before"):
                await gathering.join(said | {"addresses": ["quic:evil:1"], "public_key": OTHER})
            with pytest.raises(MetadataError, match="is running at"):
                await gathering.join(said | {"addresses": ["quic:h9:1"], "public_key": KEY})
            assert gathering.map(()).nodes == (NodeRow(NODE, "h2", ("quic:h2:1",), KEY),)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_remote_peer_does_not_choose_unix_paths_for_the_leader() -> None:
    async def main() -> None:
        hosts = Hosts()
        async with trio.open_nursery() as nursery:
            await hosts.run(nursery, "/run/other.sock", b"p", KEY)
            with pytest.raises(MetadataError, match="no address"):
                await ask_back(hosts.dialer, joiner("unix:/run/other.sock"), KEY)
            assert not hosts.dialled
            nursery.cancel_scope.cancel()

    trio.run(main)
