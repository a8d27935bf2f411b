"""Members of one cluster over real QUIC connections: who is let in, with what, until when."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests.fakes.identities import Authority
from tests.fakes.identities import Member as Held
from trivium.admin.processes.nodedoor import NodeDoor
from trivium.cluster import wire
from trivium.cluster.clock import SystemClock
from trivium.cluster.errors import Refused, Unavailable
from trivium.cluster.identity import certificates, messages, tokens
from trivium.cluster.identity.keyfiles import Identity
from trivium.cluster.identity.keys import PrivateKey
from trivium.cluster.identity.member import Member, stranger
from trivium.cluster.identity.statements import Right, Role
from trivium.cluster.model import ChunkId
from trivium.cluster.transport.interface import Peer, Reply
from trivium.cluster.transport.quic import QuicServer
from trivium.cluster.wire import Service

PING = wire.encode_node_request(wire.Ping())
PUT, PUT_OF_8, PUT_OF_9 = (
    wire.encode_node_request(wire.PutShards((wire.PutShard(b"d" * 16, ChunkId(session, 1), 0, 4096),)))
    for session in (7, 8, 9)
)
FORMAT = wire.encode_node_request(wire.FormatDrive("/x", b"d" * 16))


class Cluster:
    """Keys of a cluster, and processes that hold them, on the machine's own clock."""

    def __init__(self, cluster: bytes = b"c" * 16) -> None:
        self.authority = Authority(cluster)
        self.clock = self.authority.clock
        self.clock.wall, self.clock.boot = SystemClock().wall_ns(), 100.0

    def member(self, *roles: Role, rights: Right = Right.READ | Right.WRITE, grant: bool = True) -> tuple[Held, Member]:
        held = self.authority.metadata if roles == (Role.METADATA,) else self.authority.member(*roles, rights=rights)
        authority, tls = self.authority, b""
        pem = certificates.cluster_certificate(authority.key, authority.cluster, 1)
        if roles and Role.CLIENT not in roles:
            tls = certificates.server_certificate(authority.key, authority.cluster, 1, held.key.public.raw, roles)
        made = Member(Identity(authority.cluster, held.key, held.statement, ((1, pem),), tls), self.clock)
        if grant and not tls:
            made.grant = authority.grant(held)
        return held, made


class Drives:
    """Stands for a node: counts what came through its door."""

    def __init__(self) -> None:
        self.served = 0

    async def handle(self, peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
        self.served += 1
        return Reply(b"served")


@asynccontextmanager
async def serving(world: Cluster, node: Member, port: int = 0) -> AsyncIterator[tuple[QuicServer, Drives]]:
    node.trust.learn(world.authority.revocations(0))
    drives = Drives()
    door = NodeDoor(drives, node)  # type: ignore[arg-type]
    server = node.server(f"quic:127.0.0.1:{port}", needs_grant=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, door.handle)
        yield server, drives
        nursery.cancel_scope.cancel()


def rest(server: QuicServer) -> str:
    return server.address.removeprefix("quic:")


def test_a_client_does_what_its_grant_says_until_it_is_revoked() -> None:
    async def main() -> None:
        world = Cluster()
        _, node = world.member(Role.NODE)
        _, metadata = world.member(Role.METADATA)
        held, client = world.member(Role.CLIENT)
        other, bystander = world.member(Role.CLIENT)
        async with serving(world, node) as (server, drives):
            ways = [await member.dial(rest(server)) for member in (client, bystander, metadata)]
            for way in ways:
                assert (await way.request(Service.NODE, PUT)).body == b"served"
            with pytest.raises(Refused, match="for metadata servers only"):
                await ways[0].request(Service.NODE, FORMAT)
            await ways[2].request(Service.NODE, FORMAT)
            forged = messages.encode(messages.Learn(world.authority.revocations(1, other)))
            with pytest.raises(Refused, match="is no metadata server"):
                await ways[0].request(Service.IDENTITY, forged)
            assert len(node.connections) == 3

            news = messages.encode(messages.Learn(world.authority.revocations(1, held)))
            await ways[2].request(Service.IDENTITY, news)
            assert len(node.connections) == 2
            with pytest.raises((Refused, Unavailable), match="revoked"):
                await ways[0].request(Service.NODE, PING)
            with pytest.raises(Refused, match="revoked"):  # and it does not come in again
                await ways[0].request(Service.NODE, PING)
            await ways[1].request(Service.NODE, PING)
            assert drives.served == 5
            for way in ways:
                await way.aclose()

    trio.run(main)


def test_who_has_no_grant_no_key_or_another_clusters_is_told_why_and_costs_nothing() -> None:
    async def main() -> None:
        world, elsewhere = Cluster(), Cluster(b"e" * 16)
        _, node = world.member(Role.NODE)
        _, without = world.member(Role.CLIENT, grant=False)
        _, pure_node = world.member(Role.NODE)
        _, foreign = elsewhere.member(Role.CLIENT)
        async with serving(world, node) as (server, drives):
            with pytest.raises(Refused, match="with a grant of the metadata server only"):
                await (await without.dial(rest(server))).request(Service.NODE, PING)
            with pytest.raises(Refused, match="not signed by the cluster's key"):  # the client looks first
                await (await foreign.dial(rest(server))).request(Service.NODE, PING)
            foreign.trust.pin(2, world.authority.key.public.raw)  # a client that believes anybody
            with pytest.raises(Refused, match="belongs to another"):
                await (await foreign.dial(rest(server))).request(Service.NODE, PING)
            node_way = await pure_node.dial(rest(server))
            with pytest.raises(Refused, match="with a grant of the metadata server only"):  # a stolen node's key
                await node_way.request(Service.NODE, FORMAT)
            token = tokens.make(elsewhere.authority.key.public.fingerprint)
            way = stranger(server.address, token, PrivateKey.generate())
            with pytest.raises(Refused, match="has not the cluster's key"):
                await way.request(Service.NODE, PING)
            token = tokens.make(world.authority.key.public.fingerprint)
            way = stranger(server.address, token, PrivateKey.generate())
            with pytest.raises(Refused, match="no metadata server"):
                await way.request(Service.NODE, PING)
            assert drives.served == 0 and len(node.connections) <= 1

    trio.run(main)


def test_newer_grants_keep_an_open_connection_writing_and_an_ended_session_loses_it() -> None:
    async def main() -> None:
        world = Cluster()
        _, node = world.member(Role.NODE)
        held, client = world.member(Role.CLIENT)
        _, metadata = world.member(Role.METADATA)
        async with serving(world, node) as (server, _):
            way = await client.dial(rest(server))
            await way.request(Service.NODE, PUT)
            world.clock.go_on(50)
            client.grant = world.authority.grant(held)
            await client.present()
            world.clock.go_on(50)
            await way.request(Service.NODE, PUT)
            world.clock.go_on(50)
            with pytest.raises(Unavailable, match="writes wait"):
                await way.request(Service.NODE, PUT)
            await way.request(Service.NODE, PING)
            client.grant = world.authority.grant(held, session=8)
            await client.present()
            await way.request(Service.NODE, PUT_OF_8)
            news = messages.encode(messages.Learn(world.authority.revocations(0, sessions=(8,))))
            leader = await metadata.dial(rest(server))
            await leader.request(Service.IDENTITY, news)
            with pytest.raises((Refused, Unavailable), match="has ended"):
                await way.request(Service.NODE, PUT_OF_8)
            client.grant = world.authority.grant(held, session=9)
            await way.request(Service.NODE, PUT_OF_9)
            await way.aclose()
            await leader.aclose()

    trio.run(main)


def test_a_node_that_has_just_started_knows_the_revoked_of_before_and_waits_for_news(tmp_path: Path) -> None:
    async def main() -> None:
        world = Cluster()
        held, thief = world.member(Role.CLIENT)  # with a grant of before
        deposed = world.authority.member(Role.METADATA, name="deposed")
        _, node = world.member(Role.NODE)
        news = world.authority.revocations(1, held, deposed)
        kept = tmp_path / "keys" / "revoked"
        door = NodeDoor(Drives(), node, kept.parent)  # type: ignore[arg-type]
        learn = messages.encode(messages.Learn(news))
        await door.handle(Peer("unix"), Service.IDENTITY, learn, memoryview(b""))
        assert kept.stat().st_mode & 0o777 == 0o600

        world.clock.go_on(30 * 86_400)
        again = Member(node.identity, world.clock)  # the node restarts
        drives = Drives()
        door = NodeDoor(drives, again, kept.parent)  # type: ignore[arg-type]
        assert again.trust.revoked == {held.certificate.member, deposed.certificate.member}
        server = again.server("quic:127.0.0.1:0", needs_grant=True)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, door.handle)
            _, friend = world.member(Role.CLIENT)
            with pytest.raises((Refused, Unavailable), match="revoked"):
                await (await thief.dial(rest(server))).request(Service.NODE, PUT)
            way = await friend.dial(rest(server))
            with pytest.raises(Unavailable, match="not yet in touch"):
                await way.request(Service.NODE, PUT)
            leader = await world.member(Role.METADATA)[1].dial(rest(server))
            await leader.request(Service.NODE, FORMAT)
            await leader.request(Service.IDENTITY, messages.encode(messages.Learn(world.authority.revocations(0))))
            await way.request(Service.NODE, PUT)  # the same way tries again
            assert drives.served == 2
            for connection in (way, leader):
                await connection.aclose()
            nursery.cancel_scope.cancel()
        kept.write_bytes(b"damaged")
        NodeDoor(drives, Member(node.identity, world.clock), kept.parent)  # type: ignore[arg-type]

    trio.run(main)


def test_a_connection_does_not_follow_an_address_to_another_node() -> None:
    async def main() -> None:
        world = Cluster()
        _, client = world.member(Role.CLIENT)
        async with serving(world, world.member(Role.NODE)[1]) as (server, _):
            port = int(server.address.rpartition(":")[2])
            way = await client.dial(rest(server))
            await way.request(Service.NODE, PING)
        async with serving(world, world.member(Role.NODE)[1], port) as (server, drives):
            with pytest.raises((Refused, Unavailable)):
                await way.request(Service.NODE, PING)
            with pytest.raises(Refused, match="another member of the cluster answers there"):
                await way.request(Service.NODE, PING)
            assert way.broken and drives.served == 0  # type: ignore[attr-defined]
            await (await client.dial(rest(server))).request(Service.NODE, PING)

    trio.run(main)


def test_a_node_whose_key_the_map_has_is_nobody_else() -> None:
    async def main() -> None:
        world = Cluster()
        _, client = world.member(Role.CLIENT)
        meant, other = (world.member(Role.NODE)[1] for _ in range(2))
        async with serving(world, other) as (server, drives):
            with pytest.raises(Refused, match="another member of the cluster answers there"):
                await (await client.dial(rest(server), meant.certificate.member)).request(Service.NODE, PING)
            assert drives.served == 0
            way = await client.dial(rest(server), other.certificate.member)
            await way.request(Service.NODE, PING)
            await way.aclose()

    trio.run(main)


def test_a_members_newer_certificate_is_shown_to_who_comes_next() -> None:
    async def main() -> None:
        world = Cluster()
        held, node = world.member(Role.NODE)
        _, client = world.member(Role.CLIENT)
        async with serving(world, node) as (server, _):
            tls = certificates.server_certificate(
                world.authority.key, world.authority.cluster, 1, held.key.public.raw, (Role.NODE, Role.METADATA)
            )
            node.adopt(replace(node.identity, tls=tls))
            way = client.metadata(server.address)  # only a metadata server's certificate will do
            with pytest.raises(Refused, match="with a grant"):  # let in as far as HELLO, where it shows none
                await way.request(Service.NODE, PING)

    trio.run(main)


def test_a_joiner_without_a_token_has_one_small_request_and_stays_half_open() -> None:
    async def main() -> None:
        world = Cluster()
        metadata = world.member(Role.METADATA)[1]
        server = metadata.server("quic:127.0.0.1:0", joiners=True)
        token = tokens.make(world.authority.key.public.fingerprint)

        async def handle(peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
            return Reply(body)

        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, handle)
            for body, payload in ((bytes(17 << 10), b""), (b"", b"x")):
                way = stranger(server.address, token, PrivateKey.generate())
                with pytest.raises(Refused, match="the limit is"):
                    await way.request(Service.IDENTITY, body, payload)
                assert server.half_open == 1
                link = list(server._cids)[-1]
                await way.aclose()
                await link.ended.wait()
            way = stranger(server.address, token, PrivateKey.generate())
            assert (await way.request(Service.IDENTITY, b"join")).body == b"join"
            with pytest.raises(Unavailable):
                await way.request(Service.IDENTITY, b"more")
            assert server.half_open == 0 and not way.connected
            quiet = stranger(server.address, token, PrivateKey.generate())
            assert (await quiet.request(Service.IDENTITY, b"join")).body == b"join"
            await list(server._cids)[-1].ended.wait()  # by the server, after its answer
            client = world.member(Role.CLIENT)[1].metadata(server.address)
            for _ in range(3):
                await client.request(Service.IDENTITY, bytes(17 << 10), b"x")
            assert server.half_open == 0
            await client.aclose()
            nursery.cancel_scope.cancel()

    trio.run(main)
