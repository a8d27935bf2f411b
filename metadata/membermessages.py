"""What is said about members, join tokens and the cluster's keys. messages.py has the rest of the protocol.

Only `admin` may say these (metadata/rights.py). A joiner says JoinCluster through the process that holds the cluster's
key, which compares the token's secret and signs.
"""

from __future__ import annotations

import msgspec

from trivium.cluster.wire import Message


class MemberInfo(msgspec.Struct, frozen=True, array_like=True):
    """A key that belongs to the cluster, as its row says."""

    id: bytes  # 16: from the public key
    name: str
    public_key: bytes
    roles: tuple[str, ...]  # client, node, metadata
    rights: int  # 1 read, 2 write, 4 admin
    pools: tuple[int, ...]  # (0,) = all
    issued: int
    generation: int  # of the cluster's key that signed its newest certificate
    revoked: int = 0  # when; 0 = not


class TokenInfo(msgspec.Struct, frozen=True, array_like=True):
    """A join token, without its secret."""

    id: bytes  # 8
    roles: tuple[str, ...]
    name: str  # of the member it will make; "" = the joiner chooses
    rights: int
    pools: tuple[int, ...]
    created: int
    expires: int
    used_by: bytes = b""  # member that joined with it


class ClusterKeyInfo(msgspec.Struct, frozen=True, array_like=True):
    generation: int
    public_key: bytes
    handover: bytes  # statement of the key before it; empty for the first
    created: int
    retired: int = 0


class AddToken(Message, tag="add_token", frozen=True):
    """`hash`: tokens.digest of the secret; the secret itself is never told. Answers None."""

    id: bytes
    hash: bytes
    roles: tuple[str, ...]
    rights: int
    pools: tuple[int, ...]
    lasts_s: int
    name: str = ""


class RemoveToken(Message, tag="remove_token", frozen=True):
    """Answers None. ENOENT."""

    id: bytes


class JoinCluster(Message, tag="join_cluster", frozen=True):
    """Use a token up, once: the same key again (its answer was lost) gets the same answer. Answers MemberInfo.
    EACCES, the same for every token that does not count."""

    id: bytes
    hash: bytes
    public_key: bytes
    name: str
    generation: int


class EnrolMember(Message, tag="enrol_member", frozen=True):
    """A server enters its own key, or a member got a certificate under a newer key. Answers MemberInfo."""

    name: str
    public_key: bytes
    roles: tuple[str, ...]
    rights: int
    pools: tuple[int, ...]
    generation: int


class RevokeMember(Message, tag="revoke_member", frozen=True):
    """For ever. Answers the new version of the list. ENOENT."""

    id: bytes


class AddClusterKey(Message, tag="add_cluster_key", frozen=True):
    """The first key, or the next by handover. Answers None; the same again is a success. EEXIST for another one."""

    generation: int
    public_key: bytes
    handover: bytes = b""


class RetireClusterKey(Message, tag="retire_cluster_key", frozen=True):
    """What older generations signed counts no more. EBUSY names the members that would be cut off, unless `force`."""

    generation: int
    force: bool = False


class ListMembers(Message, tag="list_members", frozen=True):
    """Answers a tuple of MemberInfo."""


class ListTokens(Message, tag="list_tokens", frozen=True):
    """Answers a tuple of TokenInfo."""


class ListClusterKeys(Message, tag="list_cluster_keys", frozen=True):
    """Answers a tuple of ClusterKeyInfo, oldest first."""


class RevocationList(msgspec.Struct, frozen=True, array_like=True):
    version: int
    members: tuple[bytes, ...]


class GetRevocations(Message, tag="revocations", frozen=True):
    """Answers RevocationList."""


MemberOperation = AddToken | RemoveToken | JoinCluster | EnrolMember | RevokeMember | AddClusterKey | RetireClusterKey
MemberQuery = ListMembers | ListTokens | ListClusterKeys | GetRevocations

MEMBER_RESULTS: dict[type, object] = {
    JoinCluster: MemberInfo,
    EnrolMember: MemberInfo,
    RevokeMember: int,
    ListMembers: tuple[MemberInfo, ...],
    ListTokens: tuple[TokenInfo, ...],
    ListClusterKeys: tuple[ClusterKeyInfo, ...],
    GetRevocations: RevocationList,
}
