"""A whole cluster's worth of keys and statements, and a clock that tests set."""

from __future__ import annotations

from dataclasses import dataclass, field

from trivium.cluster.identity import statements
from trivium.cluster.identity.hello import Admission
from trivium.cluster.identity.keys import PrivateKey
from trivium.cluster.identity.statements import ALL_POOLS, FULL, Certificate, Grant, Revocations, Right, Role
from trivium.cluster.identity.trust import GRANT_S, S, Trust

BEGIN_NS = 1_700_000_000 * S


@dataclass
class SetClock:
    wall: int = BEGIN_NS
    boot: float = 100.0

    def wall_ns(self) -> int:
        return self.wall

    def boot_s(self) -> float:
        return self.boot

    def go_on(self, seconds: float) -> None:
        self.boot += seconds
        self.wall += int(seconds * S)


@dataclass
class Member:
    key: PrivateKey
    statement: bytes
    certificate: Certificate


@dataclass
class Authority:
    """The cluster's key and a metadata server."""

    cluster: bytes = b"c" * 16
    clock: SetClock = field(default_factory=SetClock)

    def __post_init__(self) -> None:
        self.generation = 1
        self.key = PrivateKey.generate()
        self.metadata = self.member(Role.METADATA, name="meta")

    def member(
        self,
        *roles: Role,
        name: str = "someone",
        rights: Right = FULL,
        pools: tuple[int, ...] = ALL_POOLS,
        key: PrivateKey | None = None,
        expires_ns: int = 0,
    ) -> Member:
        key = key or PrivateKey.generate()
        certificate = Certificate(
            self.cluster,
            self.generation,
            key.public.raw,
            roles or (Role.CLIENT,),
            name,
            int(rights),
            pools,
            self.clock.wall,
            expires_ns,
        )
        return Member(key, statements.sign(self.key, certificate), certificate)

    def grant(
        self,
        member: Member,
        session: int = 7,
        *,
        rights: Right | None = None,
        pools: tuple[int, ...] = ALL_POOLS,
        issuer: Member | None = None,
        lasts_s: float = GRANT_S,
        skew_s: float = 0,
    ) -> bytes:
        issuer = issuer or self.metadata
        now = self.clock.wall + int(skew_s * S)
        allowed = member.certificate.rights if rights is None else int(rights)
        body = Grant(
            self.cluster,
            session,
            member.certificate.member,
            allowed,
            pools,
            now,
            now + int(lasts_s * S),
            issuer.statement,
        )
        return statements.sign(issuer.key, body)

    def revocations(self, version: int, *members: Member, sessions: tuple[int, ...] = ()) -> bytes:
        ids = tuple(member.certificate.member for member in members)
        return statements.sign(
            self.metadata.key,
            Revocations(self.cluster, version, ids, sessions, self.clock.wall, self.metadata.statement),
        )

    def trust(self) -> Trust:
        trust = Trust(self.cluster, self.clock)
        trust.pin(self.generation, self.key.public.raw)
        return trust

    def node(self) -> Admission:
        """A node that has heard who is revoked, and the time."""
        trust = self.trust()
        trust.learn(self.revocations(0))
        return Admission(trust, needs_grant=True)
