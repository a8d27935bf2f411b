"""HELLO, grants, revocation, rotation, rights: who is let in, who is not, and in which words."""

from __future__ import annotations

import hmac
import pickle

import msgspec
import pytest

from tests.fakes.identities import Authority, Member
from trivium.admin.processes.nodedoor import NodeDoor
from trivium.cluster import wire
from trivium.cluster.errors import Refused, Unavailable
from trivium.cluster.identity import certificates, hello, messages, statements, tokens
from trivium.cluster.identity.access import ATTRIBUTE, NODE_RIGHTS, Access, tag_of
from trivium.cluster.identity.keyfiles import Identity
from trivium.cluster.identity.keys import ORDER, PrivateKey
from trivium.cluster.identity.member import Member as Process
from trivium.cluster.identity.refusals import NotAdmitted, Reason
from trivium.cluster.identity.registry import Connections
from trivium.cluster.identity.statements import Handover, Right, Role
from trivium.cluster.identity.trust import READS_GO_ON_S, S
from trivium.cluster.model import ChunkId
from trivium.cluster.transport.interface import Peer
from trivium.metadata import rights
from trivium.metadata.messages import Admin, Call, MetadataError

READ = wire.encode_node_request(wire.ReadShard(b"d" * 16, ChunkId(1, 1), 0, 0, 1))
PUT = wire.encode_node_request(wire.PutShards((wire.PutShard(b"d" * 16, ChunkId(7, 1), 0, 4096),)))

VOLUME_LOG = wire.LogHead(b"s" * 16, 2, b"o" * 16, 7, 0, 1, b"h" * 16)


def refused(reason: Reason):  # type: ignore[no-untyped-def]
    class Expected:
        def __enter__(self) -> None:
            pass

        def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
            assert isinstance(error, NotAdmitted) and isinstance(error, Refused), f"not refused: {error!r}"
            assert error.reason is reason, f"{error.reason}: {error}"
            assert len(str(error)) > 20, "a refusal is a sentence"
            return True

    return Expected()


def say(member: Member, challenge: bytes, grant: bytes = b"", cluster: bytes = b"c" * 16) -> bytes:
    return hello.answer(member.key, challenge, cluster, member.statement, grant)


def admitted(authority: Authority, member: Member, grant: bytes | None = None) -> Access:
    challenge = hello.nonce()
    given = authority.grant(member) if grant is None else grant
    return authority.node().access(challenge, say(member, challenge, given))


def test_a_client_with_a_grant_reads_and_writes() -> None:
    authority = Authority()
    client = authority.member(rights=Right.READ | Right.WRITE)
    access = admitted(authority, client)
    assert access.session == 7 and access.member == client.certificate.member
    access.allow_node(READ)
    access.allow_node(PUT)


def test_metadata_servers_need_no_grant_even_before_any_clock_is_heard_and_nodes_are_nobody_at_other_nodes() -> None:
    authority = Authority()
    admission = hello.Admission(authority.trust(), needs_grant=True)  # cold: nothing but the cluster's key
    leader, node, challenge = authority.member(Role.METADATA), authority.member(Role.NODE), hello.nonce()
    access = admission.access(challenge, say(leader, challenge))
    for message in (wire.Ping(), wire.FormatDrive("x", b"d" * 16), wire.RemoveLog(b"d" * 16, b"s" * 16)):
        access.allow_node(wire.encode_node_request(message))
    with refused(Reason.NO_GRANT):
        admission.access(challenge, say(node, challenge))


def test_a_client_without_a_grant_is_refused_by_a_node_and_taken_by_a_metadata_server() -> None:
    authority, challenge = Authority(), hello.nonce()
    client = authority.member()
    with refused(Reason.NO_GRANT):
        authority.node().access(challenge, say(client, challenge))
    access = hello.Admission(authority.trust()).access(challenge, say(client, challenge))
    access.require(Right.ADMIN)
    with refused(Reason.NO_GRANT):
        access.allow_node(READ)


def test_a_key_that_nobody_signed_for() -> None:
    authority, stranger, challenge = Authority(), Authority(), hello.nonce()
    impostor = stranger.member()  # the same cluster id, another cluster's key
    with refused(Reason.BAD_SIGNATURE):
        authority.node().access(challenge, say(impostor, challenge))
    thief = Member(PrivateKey.generate(), authority.member().statement, impostor.certificate)
    with refused(Reason.UNKNOWN_KEY):
        authority.node().access(challenge, say(thief, challenge))


def test_another_cluster() -> None:
    authority, other, challenge = Authority(), Authority(cluster=b"o" * 16), hello.nonce()
    with refused(Reason.OTHER_CLUSTER):
        authority.node().access(challenge, say(other.member(), challenge, cluster=b"o" * 16))
    with refused(Reason.OTHER_CLUSTER):
        authority.node().access(challenge, say(other.member(), challenge))


def test_an_answer_is_worth_nothing_on_another_connection() -> None:
    authority, mine = Authority(), hello.nonce()
    client = authority.member()
    answer = say(client, mine, authority.grant(client))
    authority.node().access(mine, answer)
    for other in (hello.nonce(), mine[:-1] + bytes((mine[-1] ^ 1,)), mine + b"\0"):
        with refused(Reason.OTHER_CONNECTION):
            authority.node().access(other, answer)


def test_a_node_cannot_pass_a_clients_answer_on_to_another_node() -> None:
    """Both ends sign for the TLS certificate that they saw."""
    authority, nonce = Authority(), hello.nonce()
    client = authority.member()
    to_evil = say(client, hello.bound(nonce, b"certificate of the evil node"), authority.grant(client))
    with refused(Reason.OTHER_CONNECTION):
        authority.node().access(hello.bound(nonce, b"certificate of the good node"), to_evil)


def test_a_grant_ends_by_the_metadata_servers_clock_whatever_the_nodes_own_says() -> None:
    authority = Authority()
    client = authority.member()
    old = authority.grant(client)
    node = authority.node()
    authority.clock.wall += 3600 * S  # the node's wall clock is stepped: nothing happens
    challenge = hello.nonce()
    access = node.access(challenge, say(client, challenge, old))
    authority.clock.boot += 61
    with refused(Reason.EXPIRED):
        node.access(challenge, say(client, challenge, old))
    access.allow_node(READ)  # an open connection reads on
    with pytest.raises(Unavailable):
        access.allow_node(PUT)
    authority.clock.boot += READS_GO_ON_S
    with refused(Reason.EXPIRED):
        access.allow_node(READ)


def test_a_renewed_grant_lets_an_open_connection_write_again() -> None:
    authority = Authority()
    client = authority.member()
    access = admitted(authority, client)
    authority.clock.go_on(70)
    with pytest.raises(Unavailable):
        access.allow_node(PUT)
    newer = authority.grant(client)
    access.renew(newer)
    access.allow_node(PUT)
    with refused(Reason.UNKNOWN_KEY):
        access.renew(authority.grant(authority.member()))


def test_a_new_leader_whose_clock_is_two_minutes_behind_ends_no_grant() -> None:
    authority = Authority()
    client = authority.member()
    access = admitted(authority, client)
    authority.clock.wall -= 120 * S
    access.trust.learn(authority.revocations(1))
    access.allow_node(PUT)
    access.renew(authority.grant(client))
    access.allow_node(PUT)


def test_a_deposed_servers_grant_from_the_future_is_not_believed_while_there_is_fresh_word() -> None:
    authority = Authority()
    client, challenge, node = authority.member(), hello.nonce(), authority.node()
    future = authority.grant(client, skew_s=3600)
    with refused(Reason.NOT_YET):
        node.access(challenge, say(client, challenge, future))
    cold = hello.Admission(authority.trust(), needs_grant=True)  # has heard nothing: it believes nobody's grant
    with pytest.raises(Unavailable, match="not yet in touch"):
        cold.access(challenge, say(client, challenge, future))


def test_a_grant_is_for_a_minute_at_most_and_from_metadata_servers_only() -> None:
    authority, challenge = Authority(), hello.nonce()
    client = authority.member()
    with refused(Reason.MALFORMED):
        authority.node().access(challenge, say(client, challenge, authority.grant(client, lasts_s=61)))
    for issuer in (client, authority.member(Role.NODE)):
        with refused(Reason.UNKNOWN_KEY):
            authority.node().access(challenge, say(client, challenge, authority.grant(client, issuer=issuer)))


def test_rights_and_pools() -> None:
    authority = Authority()
    reader = authority.member(rights=Right.READ, pools=(2,))
    access = admitted(authority, reader, authority.grant(reader, rights=Right.READ | Right.WRITE, pools=(2, 3)))
    access.allow_node(READ)
    with refused(Reason.MISSING_RIGHT):  # a grant never gives more than the certificate
        access.allow_node(PUT)
    with refused(Reason.MISSING_RIGHT):
        access.require(Right.WRITE)
    access.allow_pool(2)
    for pool in (1, 3, 0):
        with refused(Reason.OTHER_POOL):
            access.allow_pool(pool)
    nobody = authority.member(pools=(4,))
    with refused(Reason.OTHER_POOL):
        admitted(authority, nobody, authority.grant(nobody, pools=(5,)))


def test_every_node_message_is_decided_and_what_is_new_is_refused() -> None:
    tags = {kind.__struct_config__.tag for kind in wire.NodeRequest.__args__}
    assert set(NODE_RIGHTS) <= tags
    authority = Authority()
    access = admitted(authority, authority.member())
    for tag in (tags - set(NODE_RIGHTS)) | {"new_message", ""}:
        with refused(Reason.MISSING_RIGHT):
            access.allow_node(msgspec.msgpack.encode([tag]))


def test_a_client_cannot_heal_or_take_the_reserve() -> None:
    authority = Authority()
    access = admitted(authority, authority.member())
    for put in (
        wire.PutShard(b"d" * 16, ChunkId(1, 1), 0, 4096, True),
        wire.PutShard(b"d" * 16, ChunkId(1, 1), 0, 4096, False, 2),
    ):
        with refused(Reason.MISSING_RIGHT):
            access.allow_node(wire.encode_node_request(wire.PutShards((put,))))
    for head, reserve_class in ((wire.LogHead(b"s" * 16, 1, b"o" * 16, 7, 0, 1, b"h" * 16), 1), (VOLUME_LOG, 3)):
        with refused(Reason.MISSING_RIGHT):
            access.allow_node(wire.encode_node_request(wire.CreateLog(b"d" * 16, head, 1 << 20, reserve_class)))
    access.allow_node(wire.encode_node_request(wire.CreateLog(b"d" * 16, VOLUME_LOG, 1 << 20, 1)))
    with pytest.raises(Unavailable, match="of another one"):
        access.allow_node(wire.encode_node_request(wire.PutShards((wire.PutShard(b"d" * 16, ChunkId(8, 1), 0, 4096),))))
    with refused(Reason.MALFORMED):
        access.allow_node(msgspec.msgpack.encode(["put", 5]))


def test_the_tag_is_found_in_every_encoding_of_an_array() -> None:
    assert tag_of(PUT) == "put"
    assert tag_of(b"\xdc\x00\x02\xd9\x03put\x90") == "put"  # array 16, str 8: decoders take it, so it is not passed by
    assert tag_of(b"") == tag_of(b"\x90") == tag_of(b"\x91\x01") == tag_of(b"\xc1") == ""


def test_a_revoked_key_loses_its_open_connections_and_gets_no_new_one() -> None:
    authority = Authority()
    client, other = authority.member(), authority.member()
    node = authority.node()
    connections, closed = Connections(node.trust), []

    def connect(member: Member) -> Access:
        challenge = hello.nonce()
        access = node.access(challenge, say(member, challenge, authority.grant(member)))
        connections.enter(access, lambda why: closed.append(member.certificate.member))
        return access

    access, _ = connect(client), connect(other)
    node.trust.learn(authority.revocations(3, client))
    assert connections.check() == 1 and closed == [client.certificate.member] and len(connections) == 1
    for message in (READ, PUT):
        with refused(Reason.REVOKED):
            access.allow_node(message)
    with refused(Reason.REVOKED):
        connect(client)
    assert node.trust.learn(authority.revocations(2)) is None, "an older list changes nothing"
    with refused(Reason.REVOKED):
        connect(client)


def test_a_connection_that_is_admitted_while_its_key_is_revoked_closes_at_once() -> None:
    authority = Authority()
    client = authority.member()
    access, closed = admitted(authority, client), []
    connections = Connections(access.trust)
    connections.revoke(1, [client.certificate.member])
    leave = connections.enter(access, closed.append)
    assert len(closed) == 1 and "revoked" in closed[0] and len(connections) == 0
    leave()


def test_an_ended_session_loses_its_connections_and_its_grant() -> None:
    authority = Authority()
    client = authority.member()
    access, closed = admitted(authority, client), []
    connections = Connections(access.trust)
    leave = connections.enter(access, closed.append)
    connections.end_sessions([8])
    assert not closed
    connections.end_sessions([7])
    assert len(closed) == 1
    leave()
    challenge = hello.nonce()
    with refused(Reason.SESSION_ENDED):
        hello.Admission(access.trust).access(challenge, say(client, challenge, authority.grant(client)))


def test_a_list_from_who_is_no_metadata_server_is_refused() -> None:
    authority = Authority()
    node, client = authority.node(), authority.member()
    body = statements.Revocations(authority.cluster, 9, (client.certificate.member,), (), 1, client.statement)
    with refused(Reason.UNKNOWN_KEY):
        node.trust.learn(statements.sign(client.key, body))
    node.trust.learn(authority.revocations(1, authority.metadata))
    with refused(Reason.REVOKED):  # a revoked metadata server's word ends with it
        node.trust.learn(authority.revocations(2))


def test_rotation_overlaps_and_then_ends() -> None:
    authority = Authority()
    before = authority.member()
    trust, stranger = authority.trust(), Authority()
    new = PrivateKey.generate()
    handover = statements.sign(authority.key, Handover(authority.cluster, 2, new.public.raw))
    with refused(Reason.BAD_SIGNATURE):
        trust.hand_over(statements.sign(stranger.key, Handover(authority.cluster, 2, new.public.raw)))
    trust.hand_over(handover)
    trust.hand_over(handover)
    old_key, authority.key, authority.generation = authority.key, new, 2
    after = authority.member()
    for member in (before, after):
        assert trust.certificate(member.statement) == member.certificate
    with refused(Reason.UNKNOWN_KEY):  # a second successor
        trust.hand_over(statements.sign(old_key, Handover(authority.cluster, 2, PrivateKey.generate().public.raw)))
    trust.retire(1)
    trust.pin(1, old_key.public.raw)  # by an older key file
    assert set(trust.anchors) == {2}
    assert trust.certificate(after.statement) == after.certificate
    with refused(Reason.UNKNOWN_KEY):
        trust.certificate(before.statement)
    trust.retire(2)
    assert set(trust.anchors) == {2}, "the last key is never retired"


def test_a_certificate_may_expire() -> None:
    authority = Authority()
    client = authority.member(expires_ns=authority.clock.wall + 10 * S)
    trust = authority.trust()
    trust.certificate(client.statement)
    trust.clock.heard(authority.clock.wall + 10 * S)
    with refused(Reason.EXPIRED):
        trust.certificate(client.statement)


def test_a_node_learns_after_its_second_rotation_too() -> None:
    authority = Authority()
    keys = [authority.key, PrivateKey.generate(), PrivateKey.generate()]
    handovers = tuple(
        statements.sign(old, Handover(authority.cluster, n, new.public.raw))
        for n, old, new in zip((2, 3), keys, keys[1:], strict=False)
    )
    authority.key, authority.generation = keys[2], 3
    authority.metadata = authority.member(Role.METADATA)
    own = PrivateKey.generate()
    pem = certificates.cluster_certificate(keys[2], authority.cluster, 3)
    node = Process(Identity(authority.cluster, own, authority.member(key=own).statement, ((3, pem),)), authority.clock)
    news = messages.Learn(authority.revocations(4), handovers)
    NodeDoor(None, node)._learn(node, news)  # type: ignore[arg-type]
    assert node.trust.in_touch and node.trust.version == 4


def test_a_guest_reaches_drives_with_a_grant_until_its_day_is_over_and_nothing_else() -> None:
    authority, challenge = Authority(), hello.nonce()
    guest = authority.member(Role.GUEST, expires_ns=authority.clock.wall + 86_400 * S)
    for admission in (authority.node(), hello.Admission(authority.trust(), joiners=True)):
        with refused(Reason.NO_GRANT):
            admission.access(challenge, say(guest, challenge))
    access = hello.Admission(authority.trust(), joiners=True).access(
        challenge, say(guest, challenge, authority.grant(guest))
    )
    access.allow_node(READ)
    peer = Peer("quic:far", local=False, attributes={ATTRIBUTE: access})
    for command in ("status", "cluster_token_create", "node_join"):
        with pytest.raises(MetadataError, match="for drives"):
            rights.command_of(peer, Admin(command))
    with pytest.raises(MetadataError, match="for drives"):
        rights.check(peer, Call(7, 1, 1, ()), pools=(1,), owner=lambda session: access.member, pool_of=lambda group: 1)

    closed: list[str] = []
    connections = Connections(access.trust)
    connections.enter(access, closed.append)
    authority.clock.go_on(86_401)
    assert not closed
    with pytest.raises(Unavailable, match="has expired"):
        access.allow_node(READ)
    assert connections.check() == 1 and "has expired" in closed[0]


def test_a_signature_has_one_form() -> None:
    key = PrivateKey.generate()
    signature = key.sign(b"hello", b"data")
    key.public.verify(b"hello", b"data", signature)
    s = int.from_bytes(signature[32:])
    with refused(Reason.BAD_SIGNATURE):
        key.public.verify(b"hello", b"data", signature[:32] + (ORDER - s).to_bytes(32))
    with refused(Reason.BAD_SIGNATURE):
        key.public.verify(b"grant", b"data", signature)


def test_a_joiner_may_join_and_nothing_else() -> None:
    authority, challenge, key = Authority(), hello.nonce(), PrivateKey.generate()
    said = hello.answer(key, challenge, authority.cluster)
    with refused(Reason.UNKNOWN_KEY):
        authority.node().access(challenge, said)
    access = hello.Admission(authority.trust(), joiners=True).access(challenge, said)
    for forbidden in (
        lambda: access.allow_node(READ),
        lambda: access.require(Right.READ),
        lambda: access.allow_pool(1),
    ):
        with refused(Reason.UNKNOWN_KEY):
            forbidden()


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    key, token = PrivateKey.generate(), tokens.make(b"f" * 32, ("quic:127.0.0.1:7000",))
    assert "PRIVATE" not in repr(key) and key.private_pem().decode() not in f"{key}"
    assert repr(token.secret) not in repr(token) and token.text() not in repr(token)
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_a_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        asked.append((one, other))
        return real(one, other)

    monkeypatch.setattr(tokens.hmac, "compare_digest", compare)
    token = tokens.make(b"f" * 32)
    stored = tokens.digest(token.secret)
    assert tokens.matches(token.secret, stored) and not tokens.matches(b"x" * 16, stored)
    assert len(asked) == 2 and token.secret not in stored and token.secret not in token.id
