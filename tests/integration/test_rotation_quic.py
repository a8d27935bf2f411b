"""The cluster's key is rotated while a node and a client are connected over QUIC: nobody is cut off."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.integration.test_member_quic import PING, Drives
from trivium.admin.identity import ClusterIdentity
from trivium.admin.processes.door import Door
from trivium.admin.processes.nodedoor import NodeDoor
from trivium.cluster.clock import SystemClock
from trivium.cluster.errors import ClusterError, Refused
from trivium.cluster.identity import joining, keyfiles, messages, tokens
from trivium.cluster.identity.keys import PrivateKey
from trivium.cluster.identity.member import Member, stranger
from trivium.cluster.wire import Service
from trivium.metadata import reach
from trivium.metadata.messages import MetadataError
from trivium.metadata.reach import Reach, Way

CLUSTER = b"c" * 16


async def join(identity: ClusterIdentity, address: str, role: str, path: Path) -> Member:
    made = await identity.token_create({"role": role, "rights": 3, "pools": [], "lasts_s": 60, "name": path.name})
    token, key = tokens.parse(made["token"]), PrivateKey.generate()
    connection = stranger(address, token, key)
    try:
        joined = await joining.join(connection, token, key, "somebody")
    finally:
        await connection.aclose()
    keyfiles.save_identity(path, joined)
    return Member(joined, SystemClock())


def test_a_rotation_cuts_nobody_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "TLS_LATER_S", 0.0)

    async def main() -> None:
        clock = SystemClock()
        identity = ClusterIdentity(CLUSTER, clock, tmp_path / "keys")
        await identity.wait()
        assert identity.member is not None
        door = Door(identity)
        server = identity.member.server("quic:127.0.0.1:0", joiners=True)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, door.handle, door.events)
            identity.addresses = (server.address,)
            node = await join(identity, server.address, "node", tmp_path / "n" / "node")
            client = await join(identity, server.address, "client", tmp_path / "c" / "client")
            node_door = NodeDoor(Drives(), node, tmp_path / "n")  # type: ignore[arg-type]
            node_server = node.server("quic:127.0.0.1:0", needs_grant=True)
            await nursery.start(node_server.serve, node_door.handle)
            rest = node_server.address.removeprefix("quic:")

            async def tell() -> None:
                way = await identity.dial(rest)
                await way.request(Service.IDENTITY, identity.news())
                await way.aclose()

            async def ask() -> None:
                client.grant = identity.issue_guest_grant(client.certificate.member, 7)
                way = await client.dial(rest)
                assert (await way.request(Service.NODE, PING)).body == b"served"
                await way.aclose()

            await tell()
            await ask()
            assert (await identity.rotate({}))["generation"] == 2
            await ask()  # before anybody has heard of it
            await tell()
            assert node_door.outdated.is_set() and node.outdated and not client.outdated
            await ask()
            with pytest.raises(MetadataError, match="would be cut off"):
                await identity.rotate({"finish": True})
            late = await join(identity, server.address, "client", tmp_path / "late" / "client")
            assert late.certificate.generation == 2 and set(late.trust.anchors) == {1, 2}

            for member, path in ((client, tmp_path / "c" / "client"), (node, tmp_path / "n" / "node")):
                await Way(Reach(tmp_path, (server.address,), path), clock, member).renew_certificate(member)
                assert member.certificate.generation == 2
                assert keyfiles.load_identity(path).statement == member.identity.statement
            await ask()
            assert (await identity.rotate({"finish": True}))["generation"] == 2
            await tell()
            assert set(node.trust.anchors) == {2}
            restarted = Member(keyfiles.load_identity(tmp_path / "n" / "node"), clock)
            assert set(restarted.trust.anchors) == {2}
            way = Way(Reach(tmp_path, (server.address,), tmp_path / "c" / "client"), clock)
            assert way._member is not None and set(way._member.trust.anchors) == {1, 2}
            way.heard_of_key(2, 1)  # a Pulse
            assert set(way._member.trust.anchors) == {2}
            assert [g for g, _ in keyfiles.load_identity(tmp_path / "c" / "client").anchors] == [2]
            leading = ClusterIdentity(CLUSTER, clock, tmp_path / "keys")  # the metadata server restarts
            await leading.wait()
            assert set(leading.trust.anchors) == {2}
            await ask()
            late.grant = identity.issue_guest_grant(late.certificate.member, 8)
            await (await late.dial(rest)).request(Service.NODE, PING)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_member_that_missed_a_rotation_joins_again(tmp_path: Path) -> None:
    async def main() -> None:
        identity = ClusterIdentity(CLUSTER, SystemClock(), tmp_path / "keys")
        await identity.wait()
        assert identity.member is not None
        door = Door(identity)
        server = identity.member.server("quic:127.0.0.1:0", joiners=True)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, door.handle, door.events)
            asleep = await join(identity, server.address, "client", tmp_path / "c" / "client")
            await identity.rotate({})
            await identity.rotate({"finish": True, "force": True})
            with pytest.raises(Refused, match="not signed by the cluster's key"):
                await asleep.metadata(server.address).request(Service.METADATA, b"")
            again = await join(identity, server.address, "client", tmp_path / "again" / "client")
            way = again.metadata(server.address)
            with pytest.raises(ClusterError):  # admitted: what is refused now is the message
                await way.request(Service.IDENTITY, messages.encode(messages.Present(b"x" * 80)))
            assert way.connected
            await way.aclose()
            nursery.cancel_scope.cancel()

    trio.run(main)
