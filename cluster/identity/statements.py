"""What is signed: certificates, grants, handovers, lists of the revoked. A statement is signature (64) + body.

Invariants:
1. The body is verified as the bytes that arrived and decoded afterwards; what decodes differently was never signed.
2. Decoding ends in a value or in NotAdmitted, whatever the bytes are.
3. A certificate needs no table: the cluster's public key is enough to believe it (a cold cluster starts like that).
4. A grant and a list carry their issuer's certificate, whose role must be `metadata`.

    cluster's key --signs--> Certificate(member's key, roles, rights, pools)
    metadata server's key --signs--> Grant(session, 60 s), Revocations(version)
    old cluster's key --signs--> Handover(new cluster's key)
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntFlag, StrEnum
from typing import Any, TypeVar

import msgspec

from trivium.cluster.identity.keys import SIGNATURE_BYTES, PrivateKey, PublicKey, member_id
from trivium.cluster.identity.refusals import NotAdmitted, Reason

STATEMENT_MAX = 4096  # bytes of a certificate or grant: what a stranger may make us look at
LIST_MAX = 1 << 20
ALL_POOLS = (0,)  # pools are numbered from 1; an empty tuple is no pool at all
T = TypeVar("T", bound="Body")


class Role(StrEnum):
    CLIENT = "client"
    NODE = "node"
    METADATA = "metadata"
    GUEST = "guest"  # a process of a metadata server's host, for a day: drives under a grant and nothing else; no row


class Right(IntFlag):
    NONE = 0
    READ = 1
    WRITE = 2
    ADMIN = 4


FULL = Right.READ | Right.WRITE | Right.ADMIN


class Body(msgspec.Struct, frozen=True, array_like=True):
    """Base of what is signed: a msgpack array, fields only appended, with defaults."""

    cluster: bytes


class Certificate(Body, frozen=True):
    """The cluster says: this key belongs to this member, who may at most do this."""

    generation: int  # of the cluster's key that signed it
    public: bytes
    roles: tuple[Role, ...]
    name: str
    rights: int
    pools: tuple[int, ...]
    issued_ns: int
    expires_ns: int = 0  # 0 = never: it ends by revocation or rotation

    @property
    def member(self) -> bytes:
        return member_id(self.public)

    def has(self, *roles: Role) -> bool:
        return any(role in self.roles for role in roles)


class Grant(Body, frozen=True):
    """The metadata server says: this session is alive, its member may do this until then (by my clock)."""

    session: int
    member: bytes
    rights: int
    pools: tuple[int, ...]
    issued_ns: int
    expires_ns: int
    issuer: bytes  # certificate (whole statement) of the metadata server


class Handover(Body, frozen=True):
    """The cluster's key says which key follows it."""

    generation: int  # of the new key
    public: bytes


class Revocations(Body, frozen=True):
    """The metadata server says who is out. `version` grows with each change; `now_ns` is its clock."""

    version: int
    members: tuple[bytes, ...]
    sessions: tuple[int, ...]  # ended of late: grants of theirs may still be about
    now_ns: int
    issuer: bytes
    retired: int = 0  # generations of the cluster's key up to this one count no more


def sign(key: PrivateKey, body: Body) -> bytes:
    encoded = msgspec.msgpack.encode(body)
    return key.sign(_domain(type(body)), encoded) + encoded


def peek(kind: type[T], statement: bytes, limit: int = STATEMENT_MAX) -> T:
    """The body, not verified: only to find out whose key must have signed it."""
    if not SIGNATURE_BYTES < len(statement) <= limit:
        raise NotAdmitted(Reason.MALFORMED, f"a {_words(kind)} has at most {limit} bytes")
    return decode(kind, statement[SIGNATURE_BYTES:])


def verify(kind: type[T], statement: bytes, key: PublicKey, limit: int = STATEMENT_MAX) -> T:
    """The body, signed by `key`."""
    if not SIGNATURE_BYTES < len(statement) <= limit:
        raise NotAdmitted(Reason.MALFORMED, f"a {_words(kind)} has at most {limit} bytes")
    key.verify(_domain(kind), statement[SIGNATURE_BYTES:], statement[:SIGNATURE_BYTES])
    return decode(kind, statement[SIGNATURE_BYTES:])


D = TypeVar("D")


def decode(kind: type[D], data: bytes) -> D:
    decoder = _DECODERS.get(kind) or _DECODERS.setdefault(kind, msgspec.msgpack.Decoder(kind).decode)
    try:
        value: D = decoder(data)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        raise NotAdmitted(Reason.MALFORMED, f"this is no {_words(kind)}") from None
    return value


_DECODERS: dict[type, Callable[[bytes], Any]] = {}


def _domain(kind: type) -> bytes:
    return _words(kind).encode()


def _words(kind: type) -> str:
    return kind.__name__.lower()
