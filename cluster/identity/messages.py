"""What is said about identity itself (Service.IDENTITY): joining, renewing a grant, getting a newer certificate."""

from __future__ import annotations

import msgspec

from trivium.cluster.wire import Message


class Join(Message, tag="join", frozen=True):
    """From a stranger with a token, to who has the cluster's key. Answers Joined. The connection is to a server that
    the token's pin has proved, or local."""

    secret: bytes
    public_key: bytes
    name: str = ""


class Reissue(Message, tag="reissue", frozen=True):
    """From a member, over its own connection: a certificate under the cluster's newest key. Answers Joined."""


class Present(Message, tag="present", frozen=True):
    """A newer grant for this open connection. Answers Accepted."""

    grant: bytes


class Learn(Message, tag="learn", frozen=True):
    """From a metadata server to a node: the list of the revoked with its clock, and handovers. Answers Accepted."""

    revocations: bytes
    handovers: tuple[bytes, ...] = ()


class Introduce(Message, tag="introduce", frozen=True):
    """From a process of the metadata server's own host, over its Unix socket: a certificate for the nodes of other
    hosts, for a day. No row: without the grants of its session it is worth nothing. Answers Joined."""

    public_key: bytes


class Joined(Message, tag="joined", frozen=True):
    cluster: bytes
    statement: bytes  # statements.Certificate, signed
    tls: bytes  # PEM; empty for a client
    anchors: tuple[tuple[int, bytes], ...]  # (generation, certificate PEM), oldest first
    handovers: tuple[bytes, ...] = ()
    addresses: tuple[str, ...] = ()


class Accepted(Message, tag="accepted", frozen=True):
    pass


IdentityRequest = Join | Reissue | Present | Learn | Introduce
IdentityAnswer = Joined | Accepted

encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(IdentityRequest).decode
decode_answer = msgspec.msgpack.Decoder(IdentityAnswer).decode
