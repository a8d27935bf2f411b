"""HELLO: the server challenges, the client signs, the server admits or refuses before anything costs anything.

    server --challenge (32 random bytes)--> client --signature over challenge, binding, body--> server: Access | refusal

The transport hands the same `challenge` to both ends' callables: `bound(nonce, leaf)`, the server's random bytes and
the hash of the TLS certificate *as each end saw it*. So an answer that a node got for itself is worth nothing on a
connection to another node, and an old one nothing on any later connection.

Invariants:
1. `Admission.admit` ends in attributes or in NotAdmitted, whatever the bytes are, and remembers nothing of strangers.
   Unavailable: a node that has not heard yet who is revoked lets in metadata servers only.
2. Cheap checks come first: length, form, cluster; then at most three signatures.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from hashlib import sha256

import msgspec

from trivium.cluster.errors import Unavailable
from trivium.cluster.identity.access import ATTRIBUTE, Access, common
from trivium.cluster.identity.keys import SIGNATURE_BYTES, PrivateKey, PublicKey
from trivium.cluster.identity.refusals import NotAdmitted, Reason
from trivium.cluster.identity.statements import decode
from trivium.cluster.identity.trust import Trust

NONCE_BYTES = 32
CHALLENGE_MIN = 32
HELLO_MAX = 12 * 1024
DOMAIN = b"hello"
VERSION = 1


class HelloBody(msgspec.Struct, frozen=True, array_like=True):
    version: int
    cluster: bytes
    public: bytes
    certificate: bytes = b""  # empty: a joiner
    grant: bytes = b""  # empty: to a metadata server, or from one


def nonce() -> bytes:
    return secrets.token_bytes(NONCE_BYTES)


def bound(server_nonce: bytes, leaf_der: bytes) -> bytes:
    """The challenge as both ends sign it: what the server chose and the TLS certificate that this end saw."""
    return server_nonce + sha256(leaf_der).digest()


def answer(key: PrivateKey, challenge: bytes, cluster: bytes, certificate: bytes = b"", grant: bytes = b"") -> bytes:
    if len(challenge) < CHALLENGE_MIN:
        raise NotAdmitted(Reason.MALFORMED, "the server's challenge is too short to prove anything")
    body = msgspec.msgpack.encode(HelloBody(VERSION, cluster, key.public.raw, certificate, grant))
    return key.sign(DOMAIN, _signed(challenge, body)) + body


def answerer(
    key: PrivateKey, cluster: bytes, certificate: bytes, grant: Callable[[], bytes] = lambda: b""
) -> Callable[[bytes], bytes]:
    """The client's callable for a transport. `grant` answers the newest one."""
    return lambda challenge: answer(key, challenge, cluster, certificate, grant())


class Admission:
    """The server's callable for a transport. `needs_grant`: a pure node, which has nothing to say to others (nor has
    anybody to a guest without one); `joiners`: a metadata server, which a stranger with a token may ask to join."""

    def __init__(self, trust: Trust, *, needs_grant: bool = False, joiners: bool = False) -> None:
        self.trust = trust
        self._needs_grant = needs_grant
        self._joiners = joiners

    def admit(self, challenge: bytes, hello: bytes) -> dict[str, object]:
        """Attributes of the peer; NotAdmitted."""
        return {ATTRIBUTE: self.access(challenge, hello)}

    __call__ = admit

    def access(self, challenge: bytes, hello: bytes) -> Access:
        if len(challenge) < CHALLENGE_MIN or not SIGNATURE_BYTES < len(hello) <= HELLO_MAX:
            raise NotAdmitted(Reason.MALFORMED, "this is no HELLO")
        body = decode(HelloBody, hello[SIGNATURE_BYTES:])
        if body.version != VERSION:
            raise NotAdmitted(Reason.MALFORMED, f"HELLO of version {body.version} is not known here: upgrade this side")
        if body.cluster != self.trust.cluster:
            raise NotAdmitted(
                Reason.OTHER_CLUSTER, f"this is cluster {self.trust.cluster.hex()[:8]}, the key belongs to another one"
            )
        key = PublicKey.load(body.public)
        if not body.certificate:
            return self._joiner(key, challenge, hello)
        certificate = self.trust.certificate(body.certificate)
        if certificate.public != body.public:
            raise NotAdmitted(Reason.UNKNOWN_KEY, "the certificate belongs to another key")
        _verify(key, challenge, hello)
        access = Access(self.trust, certificate)
        if body.grant:
            if self._needs_grant and not access.leads and not self.trust.in_touch:
                raise Unavailable("this node is not yet in touch with the metadata server: it knows not who is revoked")
            access.grant = self.trust.grant(body.grant, certificate)
            if not common(certificate.pools, access.grant.pools):
                raise NotAdmitted(Reason.OTHER_POOL, f"the key of {certificate.name} is for no pool of this grant")
        elif (self._needs_grant or access.guest) and not access.leads:
            raise NotAdmitted(Reason.NO_GRANT, "a client reaches a node with a grant of the metadata server only")
        return access

    def _joiner(self, key: PublicKey, challenge: bytes, hello: bytes) -> Access:
        if not self._joiners:
            raise NotAdmitted(Reason.UNKNOWN_KEY, "the key has no certificate: `trivium cluster join TOKEN` gets one")
        _verify(key, challenge, hello)
        return Access(self.trust, None)


def _verify(key: PublicKey, challenge: bytes, hello: bytes) -> None:
    try:
        key.verify(DOMAIN, _signed(challenge, hello[SIGNATURE_BYTES:]), hello[:SIGNATURE_BYTES])
    except NotAdmitted:
        raise NotAdmitted(
            Reason.OTHER_CONNECTION, "the HELLO does not answer this connection's challenge with the key that it names"
        ) from None


def _signed(challenge: bytes, body: bytes) -> bytes:
    return len(challenge).to_bytes(4) + challenge + body
