"""Whatever bytes a stranger sends: admitted for what was signed, refused in words otherwise, never another error."""

from __future__ import annotations

import contextlib
import string
from collections.abc import Callable

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fakes.identities import Authority
from trivium.cluster.errors import Unavailable
from trivium.cluster.identity import certificates, hello, keys, statements, tokens
from trivium.cluster.identity.keys import PrivateKey, PublicKey
from trivium.cluster.identity.refusals import NotAdmitted
from trivium.cluster.identity.statements import Certificate, Handover, Right, Role

AUTHORITY = Authority()
CLIENT = AUTHORITY.member(rights=Right.READ | Right.WRITE)
CHALLENGE = hello.bound(b"n" * 32, b"the certificate")
GRANT = AUTHORITY.grant(CLIENT)
HELLO = hello.answer(CLIENT.key, CHALLENGE, AUTHORITY.cluster, CLIENT.statement, GRANT)
LEAF = certificates.der_of(
    certificates.server_certificate(AUTHORITY.key, AUTHORITY.cluster, 1, CLIENT.key.public.raw, (Role.NODE,))
)
HANDOVER = statements.sign(AUTHORITY.key, Handover(AUTHORITY.cluster, 2, PrivateKey.generate().public.raw))
LIST = AUTHORITY.revocations(1, AUTHORITY.member(), sessions=(3,))
TOKEN = tokens.make(AUTHORITY.key.public.fingerprint, ("quic:127.0.0.1:7000",)).text()


def mutations(good: bytes) -> st.SearchStrategy[bytes]:
    """One change of the good bytes: a flipped bit, a cut, an insertion, a removal, bytes replaced."""
    place = st.integers(0, len(good) - 1)
    flipped = st.tuples(place, st.integers(0, 7)).map(
        lambda at: good[: at[0]] + bytes((good[at[0]] ^ 1 << at[1],)) + good[at[0] + 1 :]
    )
    cut = place.map(lambda at: good[:at])
    put = st.tuples(place, st.binary(min_size=1, max_size=8)).map(lambda at: good[: at[0]] + at[1] + good[at[0] :])
    more = st.binary(min_size=1, max_size=8).map(lambda tail: good + tail)
    gone = st.tuples(place, st.integers(1, 9)).map(lambda at: good[: at[0]] + good[at[0] + at[1] :])
    over = st.tuples(place, st.binary(min_size=1, max_size=20)).map(
        lambda at: good[: at[0]] + at[1] + good[at[0] + len(at[1]) :]
    )
    return st.one_of(flipped, cut, put, more, gone, over).filter(lambda changed: changed != good)


def refused(function: Callable[[], object], data: object) -> None:
    try:
        function()
    except NotAdmitted as error:
        assert str(error)
        return
    raise AssertionError(f"accepted: {data!r}")


@settings(max_examples=400, deadline=None)
@given(mutations(HELLO) | st.binary(max_size=300))
def test_hellos(data: bytes) -> None:
    refused(lambda: AUTHORITY.node().access(CHALLENGE, data), data)


@settings(max_examples=300, deadline=None)
@given(mutations(GRANT) | st.binary(max_size=300))
def test_grants(data: bytes) -> None:
    refused(lambda: AUTHORITY.node().trust.grant(data, CLIENT.certificate), data)


@settings(max_examples=300, deadline=None)
@given(mutations(CLIENT.statement) | st.binary(max_size=300))
def test_certificates_of_members(data: bytes) -> None:
    refused(lambda: AUTHORITY.trust().certificate(data), data)


@settings(max_examples=300, deadline=None)
@given(mutations(LEAF) | st.binary(max_size=300))
def test_certificates_of_servers(data: bytes) -> None:
    refused(lambda: certificates.verify_server(data, [AUTHORITY.key.public]), data)


@settings(max_examples=200, deadline=None)
@given(mutations(HANDOVER) | st.binary(max_size=200))
def test_handovers(data: bytes) -> None:
    refused(lambda: AUTHORITY.trust().hand_over(data), data)


@settings(max_examples=200, deadline=None)
@given(mutations(LIST) | st.binary(max_size=200))
def test_lists_of_the_revoked(data: bytes) -> None:
    refused(lambda: AUTHORITY.trust().learn(data), data)


@settings(max_examples=400, deadline=None)
@given(mutations(TOKEN.encode()).map(lambda data: data.decode("latin-1")) | st.text(max_size=100))
@example(TOKEN.upper())
@example(TOKEN + "=")
@example("tj1" + "a" * 5000)
def test_tokens(text: str) -> None:
    if text.strip() != TOKEN:
        refused(lambda: tokens.parse(text), text)


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=16, max_size=16), st.lists(st.text(string.ascii_letters + ":./-1[]", min_size=1), max_size=4))
def test_tokens_are_read_as_they_were_written(secret: bytes, addresses: list[str]) -> None:
    token = tokens.JoinToken(b"p" * 16, secret, tuple(addresses))
    assert tokens.parse(f"  {token.text()}\n") == token


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40) | st.binary(min_size=32, max_size=32).map(lambda x: b"\x02" + x))
def test_public_keys(raw: bytes) -> None:
    with contextlib.suppress(NotAdmitted):
        assert PublicKey.load(raw).raw == raw


@settings(max_examples=200, deadline=None)
@given(mutations(CLIENT.key.private_pem()))
def test_private_keys(pem: bytes) -> None:
    with contextlib.suppress(NotAdmitted):  # PEM has no checksum over its text: blanks around it may change
        PrivateKey.from_pem(pem)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=100))
def test_messages_to_a_node_are_allowed_or_refused(body: bytes) -> None:
    access = AUTHORITY.node().access(CHALLENGE, HELLO)
    with contextlib.suppress(NotAdmitted, Unavailable):
        access.allow_node(body)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"hello", b"grant", b"certificate"]))
def test_a_signature_holds_for_its_purpose_alone(data: bytes, domain: bytes) -> None:
    signature = CLIENT.key.sign(domain, data)
    CLIENT.key.public.verify(domain, data, signature)
    refused(lambda: CLIENT.key.public.verify(domain + b"x", data, signature), data)
    refused(lambda: CLIENT.key.public.verify(domain, data + b"x", signature), data)
    assert len(signature) == keys.SIGNATURE_BYTES


def test_the_good_ones_are_taken() -> None:
    """Or the tests above would prove nothing."""
    assert AUTHORITY.node().access(CHALLENGE, HELLO).member == CLIENT.certificate.member
    assert AUTHORITY.trust().certificate(CLIENT.statement) == CLIENT.certificate
    assert certificates.verify_server(LEAF, [AUTHORITY.key.public], Role.NODE).member == CLIENT.certificate.member
    assert AUTHORITY.trust().hand_over(HANDOVER).generation == 2
    learnt = AUTHORITY.trust().learn(LIST)
    assert learnt is not None and learnt.sessions == (3,)
    assert statements.peek(Certificate, CLIENT.statement).roles == (Role.CLIENT,)
