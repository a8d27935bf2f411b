"""What a connection may do: made by HELLO, renewed by newer grants, asked before each message.

    admitted --grant--> granted --renewed each heartbeat--> granted --past its end--> reads only (15 min) --> nothing
        any --revoked | session ended | closed--> closed (the registry tells the transport)

Invariants:
1. What is not listed below is for metadata servers only: a new message is refused to clients until somebody decides
   otherwise.
2. Metadata servers act by the role in their certificate and need no grant; a client touches a node only under a grant,
   and never with more than certificate and grant both allow. So does a node: one stolen node's key is worth its own
   drives, not everybody's.
3. A guest has no row that could be revoked: only its session's grants open anything, and only drives.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from trivium.cluster import wire
from trivium.cluster.errors import Unavailable
from trivium.cluster.identity.refusals import NotAdmitted, Reason
from trivium.cluster.identity.statements import ALL_POOLS, Certificate, Grant, Right, Role
from trivium.cluster.identity.trust import READS_GO_ON_S, Trust
from trivium.cluster.transport.interface import Peer

ATTRIBUTE = "access"  # key in Peer.attributes
RESERVE_MAX = 1  # reserve_class of a client: puts, volume logs

NODE_RIGHTS: dict[str, Right] = {
    "read": Right.READ,
    "open": Right.READ,
    "verify": Right.READ,
    "ping": Right.READ,  # who answers?
    "log_stat": Right.READ,
    "log_read": Right.READ,
    "put": Right.WRITE,
    "quarantine": Right.WRITE,
    "log_create": Right.WRITE,
    "log_append": Right.WRITE,
    "log_seal": Right.WRITE,
}
"""Node messages (by tag) that a client may send, and the right that each needs."""


@dataclass(slots=True)
class Access:
    """Lives as long as its connection."""

    trust: Trust
    certificate: Certificate | None  # None: a joiner, who may join and nothing else
    grant: Grant | None = None
    closed: str = ""  # why, once it must not do anything any more

    @property
    def member(self) -> bytes:
        return self.certificate.member if self.certificate is not None else b""

    @property
    def session(self) -> int:
        return self.grant.session if self.grant is not None else 0

    @property
    def leads(self) -> bool:
        """A metadata server."""
        return self.certificate is not None and self.certificate.has(Role.METADATA)

    @property
    def guest(self) -> bool:
        return self.certificate is not None and self.certificate.has(Role.GUEST)

    def holder(self) -> Certificate:
        """Somebody of the cluster, not revoked; NotAdmitted for a joiner. Unavailable: its certificate has expired; it
        may connect again with a newer one."""
        if self.closed:
            raise NotAdmitted(Reason.REVOKED, self.closed)
        if self.certificate is None:
            raise NotAdmitted(Reason.UNKNOWN_KEY, "this key is not of the cluster yet: a joiner may only join")
        self.trust.check_member(self.certificate.member)
        if self.certificate.expires_ns and self.trust.past(self.certificate.expires_ns):
            raise Unavailable(f"the certificate of {self.certificate.name} has expired: connect again with a newer one")
        return self.certificate

    def renew(self, statement: bytes) -> None:
        """A newer grant arrived on the open connection."""
        found = self.trust.grant(statement, self.holder())
        if self.grant is not None and found.session == self.grant.session and found.issued_ns < self.grant.issued_ns:
            return
        self.grant = found

    def allow_node(self, body: bytes) -> None:
        """May this node message be executed? NotAdmitted: no. Unavailable: not before the grant is renewed."""
        certificate = self.holder()
        if self.leads:
            return
        tag = tag_of(body)
        right = NODE_RIGHTS.get(tag)
        if right is None:
            raise NotAdmitted(Reason.MISSING_RIGHT, f"{tag or 'this message'} is for metadata servers only")
        grant = self._alive(right)
        if not right & grant.rights & certificate.rights:
            raise NotAdmitted(Reason.MISSING_RIGHT, f"{certificate.name} has no right to {_verb(right)}")
        if tag in ("put", "log_create"):
            _check_new(body, grant.session)

    def _alive(self, right: Right) -> Grant:
        grant = self.grant
        if grant is None:
            raise NotAdmitted(Reason.NO_GRANT, "a client reaches a node with a grant of the metadata server only")
        self.trust.check_session(grant.session)
        if self.trust.past(grant.expires_ns):
            if right is not Right.READ:
                raise Unavailable("the grant has ended: writes wait until a heartbeat has renewed it")
            if self.trust.past(grant.expires_ns, READS_GO_ON_S):
                raise NotAdmitted(Reason.EXPIRED, "the grant ended more than 15 minutes ago")
        return grant

    def allow_pool(self, pool: int) -> None:
        certificate = self.holder()
        allowed = certificate.pools if self.grant is None else common(certificate.pools, self.grant.pools)
        if not in_pools(pool, allowed):
            raise NotAdmitted(Reason.OTHER_POOL, f"the key of {certificate.name} is not for pool {pool}")

    def speaker(self) -> Certificate:
        """Who may talk to a metadata server at all; guests do that by its socket."""
        certificate = self.holder()
        if self.guest:
            raise NotAdmitted(Reason.MISSING_RIGHT, "a guest's key is for drives: use the metadata server's socket")
        return certificate

    def require(self, right: Right) -> None:
        """For metadata messages: the certificate's own rights."""
        certificate = self.speaker()
        if right & Right(certificate.rights) != right:
            raise NotAdmitted(Reason.MISSING_RIGHT, f"{certificate.name} has no right to {_verb(right)}")


def in_pools(pool: int, allowed: tuple[int, ...]) -> bool:
    return allowed == ALL_POOLS or pool in allowed


def common(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    if one == ALL_POOLS:
        return other
    if other == ALL_POOLS:
        return one
    return tuple(pool for pool in one if pool in other)


def tag_of(body: bytes) -> str:
    """The tag of a message without decoding the rest: an array of at most 15 fields whose first is a short string."""
    if len(body) >= 2 and body[0] & 0xF0 == 0x90 and body[1] & 0xE0 == 0xA0:
        return bytes(body[2 : 2 + (body[1] & 0x1F)]).decode("ascii", "replace")
    try:  # other encodings of the same: rare, and never from our own encoder
        found = msgspec.msgpack.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ""
    return found[0] if isinstance(found, list) and found and isinstance(found[0], str) else ""


def is_client(peer: Peer) -> bool:
    """From elsewhere and no metadata server: dumps and the metadata log, which hold secrets, are not for it."""
    access = peer.attributes.get(ATTRIBUTE)
    return isinstance(access, Access) and not access.leads


def _check_new(body: bytes, session: int) -> None:
    try:
        request = wire.decode_node_request(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise NotAdmitted(Reason.MALFORMED, "this is no message to a node") from None
    if isinstance(request, wire.PutShards):
        if any(put.replace or put.reserve_class > RESERVE_MAX for put in request.puts):
            raise NotAdmitted(Reason.MISSING_RIGHT, "only metadata servers heal shards or use their reserve")
        if any(put.chunk.session != session for put in request.puts):  # a session that is new: its grant is on its way
            raise Unavailable(f"the grant is of session {session:016x}, the shards are of another one")
    if isinstance(request, wire.CreateLog) and (
        request.head.kind == wire.METADATA_LOG or request.reserve_class > RESERVE_MAX
    ):
        raise NotAdmitted(Reason.MISSING_RIGHT, "only metadata servers make their log or use their reserve")


def _verb(right: Right) -> str:
    return (right.name or "do that").lower().replace("admin", "administer")
