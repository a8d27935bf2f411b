"""A joiner's side: ask over any connection, believe only what the token's pin proves, keep it in a key file.

The same for the Unix socket and for QUIC: the caller makes the connection. Over QUIC it first checks the server's
certificate with `certificates.verify_server(leaf, [pinned key], Role.METADATA)`.
"""

from __future__ import annotations

from contextlib import suppress

from trivium.cluster.errors import Refused
from trivium.cluster.identity import certificates, messages, statements
from trivium.cluster.identity.keyfiles import Identity
from trivium.cluster.identity.keys import PrivateKey, PublicKey
from trivium.cluster.identity.refusals import NotAdmitted, Reason
from trivium.cluster.identity.statements import Certificate
from trivium.cluster.identity.tokens import PIN_BYTES, JoinToken
from trivium.cluster.identity.trust import Trust
from trivium.cluster.transport.interface import Connection
from trivium.cluster.wire import Service


async def join(connection: Connection, token: JoinToken, key: PrivateKey, name: str = "") -> Identity:
    """Safe to repeat with the same key when the answer was lost. Refused, Unavailable."""
    request = messages.Join(token.secret, key.public.raw, name)
    reply = await connection.request(Service.IDENTITY, messages.encode(request))
    answer = statements.decode(messages.Joined, reply.body)
    return check(answer, token, key)


async def reissue(connection: Connection, identity: Identity, trust: Trust) -> Identity:
    """A certificate under the cluster's newest key, for a member that is in. Refused, Unavailable."""
    reply = await connection.request(Service.IDENTITY, messages.encode(messages.Reissue()))
    answer = statements.decode(messages.Joined, reply.body)
    for handover in answer.handovers:
        with suppress(NotAdmitted):  # of a generation before those that are known here
            trust.hand_over(handover)
    certificate = trust.certificate(answer.statement)
    if certificate.public != identity.key.public.raw:
        raise NotAdmitted(Reason.UNKNOWN_KEY, "the certificate that was answered is for another key")
    known = trust.anchors
    anchors = tuple((g, pem) for g, pem in answer.anchors if g in known and certificates.public_of(pem) == known[g].raw)
    return Identity(
        identity.cluster, identity.key, answer.statement, anchors, answer.tls, answer.addresses or identity.addresses
    )


def check(answer: messages.Joined, token: JoinToken, key: PrivateKey) -> Identity:
    """What was answered, if the pinned key has signed it for this key."""
    anchors = {generation: certificates.public_of(pem) for generation, pem in answer.anchors}
    claim = statements.peek(Certificate, answer.statement)
    signer = PublicKey.load(anchors.get(claim.generation, b""))
    certificate = statements.verify(Certificate, answer.statement, signer)
    pinned = [PublicKey.load(raw) for raw in anchors.values()]
    if not any(public.fingerprint[:PIN_BYTES] == token.pin for public in pinned):
        raise NotAdmitted(
            Reason.UNKNOWN_KEY, "who answered has not the key that the token was made with: nothing was stored"
        )
    if signer.fingerprint[:PIN_BYTES] != token.pin:
        _follow(answer, token, anchors)
    if certificate.public != key.public.raw or certificate.cluster != answer.cluster:
        raise NotAdmitted(Reason.UNKNOWN_KEY, "the certificate that was answered is for another key or cluster")
    return Identity(answer.cluster, key, answer.statement, answer.anchors, answer.tls, answer.addresses)


def _follow(answer: messages.Joined, token: JoinToken, anchors: dict[int, bytes]) -> None:
    """The cluster's key was rotated since the token was made: the pinned one must have handed over."""
    trusted = {
        g: PublicKey.load(raw) for g, raw in anchors.items() if PublicKey.load(raw).fingerprint[:16] == token.pin
    }
    for statement in answer.handovers:
        try:
            claim = statements.peek(statements.Handover, statement)
            if claim.generation - 1 in trusted:
                found = statements.verify(statements.Handover, statement, trusted[claim.generation - 1])
                trusted[found.generation] = PublicKey.load(found.public)
        except Refused:
            continue
    if any(trusted[g].raw != raw for g, raw in anchors.items() if g in trusted) or max(anchors) not in trusted:
        raise NotAdmitted(Reason.UNKNOWN_KEY, "the cluster's new key was not handed over by the one that is pinned")
