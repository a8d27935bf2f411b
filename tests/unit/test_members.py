"""Rows of members, tokens and keys; what a key may say to the metadata server; grants from session to node."""

from __future__ import annotations

import os

import msgspec
import pytest
import trio
import trio.testing

from tests.fakes.identities import Authority, Member
from tests.fakes.metadata import memory_client, memory_metadata
from tests.fakes.metadb import MetaDb
from trivium.cluster import wire
from trivium.cluster.clock import TrioClock
from trivium.cluster.identity import hello, statements, tokens
from trivium.cluster.identity.access import ATTRIBUTE, Access
from trivium.cluster.identity.keys import PrivateKey
from trivium.cluster.identity.registry import Connections
from trivium.cluster.identity.statements import Grant, Handover, Right, Role
from trivium.cluster.identity.trust import GRANT_S, S, Trust
from trivium.cluster.model import ChunkId
from trivium.cluster.transport.interface import Connection, Peer, Reply
from trivium.cluster.transport.memory import MemoryConnection, MemoryServer
from trivium.cluster.wire import Service
from trivium.metadata import database, fsck, messages, migrations, rights
from trivium.metadata import membermessages as said
from trivium.metadata.messages import (
    ROOT_INO,
    SESSION_ENDED,
    Admin,
    Ask,
    Create,
    Credential,
    GetAttr,
    GetCredential,
    Hello,
    MetadataError,
    Offer,
    Operation,
    Query,
    SetCredential,
    decode_answer,
    encode,
)
from trivium.metadata.operations import OPERATIONS, QUERIES

CLIENT = ("client",)


def token(db: MetaDb, lasts_s: int = 60, **fields: object) -> tokens.JoinToken:
    made = tokens.make(b"f" * 32)
    args = {"roles": CLIENT, "rights": 3, "pools": (1,), "lasts_s": lasts_s} | fields
    db.call(said.AddToken(made.id, tokens.digest(made.secret), **args))  # type: ignore[arg-type]
    return made


def join(db: MetaDb, used: tokens.JoinToken, key: bytes, name: str = "x") -> said.MemberInfo:
    found: said.MemberInfo = db.call(said.JoinCluster(used.id, tokens.digest(used.secret), key, name, 1))
    return found


def new_key() -> bytes:
    return PrivateKey.generate().public.raw


def with_key() -> MetaDb:
    db = MetaDb()
    db.call(said.AddClusterKey(1, new_key()))
    return db


def fails(code: str):  # type: ignore[no-untyped-def]
    return pytest.raises(MetadataError, match=f"^{code}")


def test_a_token_is_used_once_and_a_lost_answer_is_given_again() -> None:
    db, key = with_key(), new_key()
    made = token(db, name="disk-7")
    member = join(db, made, key)
    assert member == join(db, made, key) and member.name == "disk-7" and member.pools == (1,)
    with fails("EACCES"):
        join(db, made, new_key())
    assert db.count("members") == 1 and db.ask(said.ListTokens())[0].used_by == member.id
    assert fsck.check(db.reader()) == []


def test_why_a_token_does_not_count_is_not_said() -> None:
    db, words = with_key(), set()
    used, expired, removed, wrong = token(db), token(db, 1), token(db), token(db)
    join(db, used, new_key())
    db.now += 2 * S
    db.call(said.RemoveToken(removed.id))
    for tried in (used, expired, removed, tokens.make(b"f" * 32), tokens.JoinToken(b"p" * 16, b"no such secret!!")):
        with fails("EACCES") as caught:
            join(db, tried, new_key())
        words.add(caught.value.text)
    with fails("EACCES") as caught:  # the right id with another secret
        db.call(said.JoinCluster(wrong.id, tokens.digest(b"x" * 16), new_key(), "x", 1))
    assert len(words | {caught.value.text}) == 1
    with fails("ENOENT"):
        db.call(said.RemoveToken(removed.id))


def test_no_secret_is_in_the_database() -> None:
    db = with_key()
    made = token(db)
    stored = repr(db.db.execute("SELECT * FROM join_tokens").fetchall())
    assert repr(made.secret) not in stored and made.text() not in stored


def test_a_revoked_key_never_comes_back_and_the_list_grows() -> None:
    db, key = with_key(), new_key()
    first = token(db)
    member = join(db, first, key)
    assert db.ask(said.GetRevocations()) == said.RevocationList(0, ())
    assert db.call(said.RevokeMember(member.id)) == db.call(said.RevokeMember(member.id)) == 1
    assert db.ask(said.GetRevocations()) == said.RevocationList(1, (member.id,))
    with fails("EEXIST"):
        join(db, token(db), key)
    with fails("EEXIST"):
        join(db, first, key)
    with fails("EACCES"):
        db.call(said.EnrolMember("x", key, CLIENT, 7, (0,), 1))
    with fails("ENOENT"):
        db.call(said.RevokeMember(b"?" * 16))
    assert fsck.check(db.reader()) == []


def test_keys_follow_each_other_and_the_old_one_ends_when_nobody_needs_it() -> None:
    db, old, new = MetaDb(), PrivateKey.generate(), PrivateKey.generate()
    db.call(said.AddClusterKey(1, old.public.raw))
    db.call(said.AddClusterKey(1, old.public.raw))
    member = join(db, token(db), new_key())
    with fails("EEXIST"):
        db.call(said.AddClusterKey(3, new.public.raw))
    handover = statements.sign(old, Handover(b"C" * 16, 2, new.public.raw))
    db.call(said.AddClusterKey(2, new.public.raw, handover))
    with fails("EBUSY"):
        db.call(said.AddClusterKey(3, new_key()))
    with fails("EBUSY"):
        db.call(said.RetireClusterKey(1))
    with fails("EINVAL"):
        db.call(said.RetireClusterKey(2, True))
    db.call(said.EnrolMember(member.name, member.public_key, member.roles, member.rights, member.pools, 2))
    db.call(said.RetireClusterKey(1))
    assert [bool(key.retired) for key in db.ask(said.ListClusterKeys())] == [True, False]
    assert fsck.check(db.reader()) == []


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE members SET public_key = x'02'",
        "UPDATE members SET generation = 9",
        "UPDATE members SET roles = 'king'",
        "UPDATE members SET revoked = 5",
        "UPDATE join_tokens SET used_by = x'00'",
        "UPDATE join_tokens SET hash = x'00'",
        "UPDATE cluster_keys SET generation = 4",
        "UPDATE cluster_keys SET retired = 4",
    ],
)
def test_fsck_sees_damage(damage: str) -> None:
    db = with_key()
    join(db, token(db), new_key())
    db.db.execute(damage)
    assert any(finding.area == "members" for finding in fsck.check(db.reader()))


def test_a_pool_of_the_release_before_gets_the_tables() -> None:
    import apsw

    old = apsw.Connection(":memory:")
    old.execute("BEGIN")
    migrations.step(old, 1)
    assert 2 in migrations.pending(old)
    migrations.step(old, 2)
    assert database.schema_version(old) == 2 and old.execute("SELECT count(*) FROM members").fetchall() == [(0,)]


def test_every_operation_and_query_needs_a_right_that_somebody_chose() -> None:
    known = {*Operation.__args__, *Query.__args__}
    assert known >= rights.READS | rights.WRITES and not rights.READS & rights.WRITES
    admin = {kind.__name__ for kind in known - rights.READS - rights.WRITES}
    assert admin == {
        *("SetCredential", "GetCredential", "UnknownUsers", "AddToken", "RemoveToken", "ListTokens", "GetRevocations"),
        *("JoinCluster", "EnrolMember", "RevokeMember", "ListMembers"),
        *("AddClusterKey", "RetireClusterKey", "ListClusterKeys"),
    }
    assert {*OPERATIONS, *QUERIES} <= known


@pytest.mark.parametrize("body", [b"\x92\xa1\xb3\x01", b"\x91" * 100_000, b"", b"\xc1"])
def test_what_is_no_message_is_the_sender_s_fault(body: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        messages.decode_request(body)


# ---- a server, a node, and connections with keys -------------------------------------------------------------------


class Keyed(MemoryConnection):
    """A connection that has said HELLO, as a transport between hosts makes it."""

    def __init__(self, server: MemoryServer, admission: hello.Admission, member: Member, grant: bytes = b"") -> None:
        super().__init__(server, local=False)
        challenge = hello.bound(os.urandom(32), b"leaf")
        said_hello = hello.answer(member.key, challenge, admission.trust.cluster, member.statement, grant)
        self._peer = Peer("elsewhere", local=False, attributes=admission(challenge, said_hello))

    @property
    def access(self) -> Access:
        found = self._peer.attributes[ATTRIBUTE]
        assert isinstance(found, Access)
        return found


class World:
    def __init__(self) -> None:
        self.authority = Authority()
        self.trust = Trust(self.authority.cluster, TrioClock())
        self.trust.pin(1, self.authority.key.public.raw)
        self.trust.clock.heard(TrioClock().wall_ns())
        self.connections = Connections(self.trust)
        self.served: list[str] = []

    def end(self, session: int) -> None:
        self.connections.end_sessions([session])

    def issue(self, access: Access, session: int) -> bytes:
        now, holder, meta = TrioClock().wall_ns(), access.holder(), self.authority.metadata
        fields = (session, holder.member, holder.rights, holder.pools, now, now + GRANT_S * S, meta.statement)
        return statements.sign(meta.key, Grant(self.authority.cluster, *fields))

    async def node(self, peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
        access = peer.attributes[ATTRIBUTE]
        assert isinstance(access, Access)
        access.allow_node(body)
        self.served.append("yes")
        return Reply(b"")


def put(session: int) -> bytes:
    return wire.encode_node_request(wire.PutShards((wire.PutShard(b"d" * 16, ChunkId(session, 1), 0, 4096),)))


def member_of(authority: Authority, right: Right = Right.READ | Right.WRITE, pools: tuple[int, ...] = (1,)) -> Member:
    return authority.member(Role.CLIENT, rights=right, pools=pools)


def test_a_session_with_a_key_gets_grants_that_a_node_takes_until_it_ends() -> None:
    async def main() -> None:
        async with memory_metadata(clock=TrioClock(), timeout_s=20) as (server, _), trio.open_nursery() as nursery:
            world = World()
            client = member_of(world.authority)
            server.issue_grant = world.issue
            server.on_session_gone = lambda session: world.end(session)
            metadata, nodes = MemoryServer(), MemoryServer()
            await nursery.start(metadata.serve, server.handle, server.events)
            await nursery.start(nodes.serve, world.node)

            async def connect() -> Connection:
                return Keyed(metadata, hello.Admission(world.trust), client)

            async with memory_client(connect) as session:
                await session.call(Create(ROOT_INO, b"file", 0o100644))
                first, number = session.grant, session.session
                assert first
                world.trust.in_touch = True
                node = hello.Admission(world.trust, needs_grant=True)
                way = Keyed(nodes, node, client, first)
                closed: list[str] = []
                world.connections.enter(way.access, closed.append)
                await way.request(Service.NODE, put(number))
                await trio.sleep(120)  # heartbeats renew it
                assert session.grant != first
                way.access.renew(session.grant)
                await way.request(Service.NODE, put(number))
                assert len(world.served) == 2
                await server.end_session(session.session, "the operator said so")
                assert len(closed) == 1 and "has ended" in closed[0]
                with pytest.raises(wire.ERRORS[9], match="ended"):
                    await way.request(Service.NODE, put(number))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_rights_pools_and_owners_at_the_metadata_server() -> None:
    async def main() -> None:
        async with memory_metadata(clock=TrioClock()) as (server, _), trio.open_nursery() as nursery:
            world = World()
            metadata = MemoryServer()
            await nursery.start(metadata.serve, server.handle, server.events)
            reader, other = member_of(world.authority, Right.READ), member_of(world.authority)

            async def connect(member: Member = reader) -> Connection:
                return Keyed(metadata, hello.Admission(world.trust), member)

            async def connect_other() -> Connection:
                return await connect(other)

            async with memory_client(connect) as reads, memory_client(connect_other, seed=8) as writes:
                await reads.ask(GetAttr(ROOT_INO))
                for request in (Create(ROOT_INO, b"f", 0o100644), SetCredential(Credential("a", "b", "c"))):
                    with fails("EACCES"):
                        await reads.call(request)
                with fails("EACCES"):
                    await writes.ask(GetCredential("root"))
                with fails("EACCES"):
                    await writes.admin("dump")
                with fails("ENOSYS"):  # who may read may look (there is no command here)
                    await reads.admin("status")
                with fails("EACCES"):
                    await writes.admin("node_join")
                answer = await reads._request(Offer(reads.session, 1))
                assert answer.code == "EACCES" and "no right to write" in answer.text
                elsewhere = await connect(member_of(world.authority, pools=(2,)))
                answer = decode_answer((await elsewhere.request(Service.METADATA, encode(Hello("x")))).body)
                assert answer.code == "EACCES" and "other pools" in answer.text
                answer = await writes._request(Offer(writes.session, 2))
                assert answer.code == "EACCES" and "not for pool 2" in answer.text
                stolen = await writes._request(Ask(reads.session, GetAttr(ROOT_INO)))
                assert stolen.code == SESSION_ENDED
                refused = await writes._request(Admin("dump"))
                assert refused.code == "EACCES"
                world.trust.revoke(1, [reader.certificate.member])
                with fails("EACCES"):
                    await reads.ask(GetAttr(ROOT_INO))
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_only_secrets_members_and_keys_are_for_admins() -> None:
    for_admins = {kind.__name__ for kind in (*OPERATIONS, *QUERIES) if kind not in rights.READS | rights.WRITES}
    assert for_admins == {
        *("SetCredential", "GetCredential", "UnknownUsers", "AddToken", "RemoveToken", "ListTokens"),
        *("JoinCluster", "EnrolMember", "RevokeMember", "ListMembers", "GetRevocations"),
        *("AddClusterKey", "RetireClusterKey", "ListClusterKeys"),
    }, "what a mount or a block device says must be listed in rights.py"
