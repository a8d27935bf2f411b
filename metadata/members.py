"""Rows of members, join tokens and the cluster's public keys.

    token   (none) --AddToken--> open --JoinCluster--> used --its time is over--> (none); --RemoveToken--> (none)
    member  (none) --JoinCluster | EnrolMember--> in --RevokeMember--> revoked (for ever: a new key must join anew)

Invariants:
1. A token makes at most one member: its row says which, in the member's own transaction.
2. Why a token does not count is never said: unknown, used, removed and expired are one answer.
3. A revoked key never comes back, by whatever token. The list's version grows with each revocation.
4. Generations of the cluster's key follow each other without gaps; the newest is never retired.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from trivium.cluster.identity.keys import PUBLIC_BYTES, member_id
from trivium.cluster.identity.statements import Role
from trivium.metadata import membermessages as said
from trivium.metadata.membermessages import ClusterKeyInfo, MemberInfo, RevocationList, TokenInfo
from trivium.metadata.messages import MetadataError

if TYPE_CHECKING:
    from trivium.metadata.tx import Reader, Tx

S = 1_000_000_000
TOKEN_LASTS_MAX_S = 30 * 86400
TOKENS_MAX = 1000
NAME_MAX = 128
_MEMBER = "id, name, public_key, roles, rights, pools, issued, generation, revoked"
_TOKEN = "id, roles, name, rights, pools, created, expires, used_by"
_encode = msgspec.msgpack.encode


# ---- tokens -------------------------------------------------------------------------------------------------


def add_token(tx: Tx, op: said.AddToken) -> None:
    _check_fields(op.roles, op.rights, op.pools, op.name)
    if len(op.id) != 8 or len(op.hash) != 32 or not 0 < op.lasts_s <= TOKEN_LASTS_MAX_S:
        raise MetadataError("EINVAL", "a join token lasts up to 30 days")
    tx.run("DELETE FROM join_tokens WHERE expires <= ?", tx.now)
    row = tx.one("SELECT count(*) FROM join_tokens")
    if row is not None and row[0] >= TOKENS_MAX:
        raise MetadataError("EDQUOT", f"there are {TOKENS_MAX} join tokens; remove some (trivium cluster token rm)")
    tx.run(
        "INSERT INTO join_tokens (id, hash, roles, name, rights, pools, created, expires, used_by)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, x'')",
        *(op.id, op.hash, _roles(op.roles), op.name, op.rights, _encode(op.pools)),
        *(tx.now, tx.now + op.lasts_s * S),
    )


def remove_token(tx: Tx, op: said.RemoveToken) -> None:
    if not tx.run("DELETE FROM join_tokens WHERE id = ?", op.id):
        raise MetadataError("ENOENT", "there is no such join token; trivium cluster token ls has them")


def join(tx: Tx, op: said.JoinCluster) -> MemberInfo:
    _check_key(op.public_key)
    member = member_id(op.public_key)
    row = tx.one("SELECT hash, roles, name, rights, pools, expires, used_by FROM join_tokens WHERE id = ?", op.id)
    hash, roles, name, rights, pools, expires, used_by = row or (bytes(32), "", "", 0, b"\x90", 0, b"")
    counts = hmac.compare_digest(hash, op.hash) and row is not None and tx.now < expires
    if not counts or used_by not in (b"", member):
        raise MetadataError("EACCES", "the join token is not known, was used, or has expired: ask for a new one")
    found = _find(tx, member)
    if used_by == member and found is not None and not found.revoked:
        return found
    if found is not None:
        raise MetadataError("EEXIST", "this key has joined before: join with a new key")
    made = MemberInfo(
        member,
        name or op.name or member.hex()[:8],
        op.public_key,
        tuple(roles.split()),
        rights,
        tuple(msgspec.msgpack.decode(pools)),
        tx.now,
        op.generation,
    )
    _check_fields(made.roles, made.rights, made.pools, made.name)
    _put(tx, made)
    tx.run("UPDATE join_tokens SET used_by = ? WHERE id = ?", member, op.id)
    return made


def list_tokens(reader: Reader, query: said.ListTokens) -> tuple[TokenInfo, ...]:
    rows = reader.all(f"SELECT {_TOKEN} FROM join_tokens WHERE expires > ? ORDER BY created, id", reader.now)
    return tuple(
        TokenInfo(id, tuple(roles.split()), name, rights, tuple(msgspec.msgpack.decode(pools)), created, expires, used)
        for id, roles, name, rights, pools, created, expires, used in rows
    )


# ---- members ------------------------------------------------------------------------------------------------


def enrol(tx: Tx, op: said.EnrolMember) -> MemberInfo:
    _check_key(op.public_key)
    _check_fields(op.roles, op.rights, op.pools, op.name)
    found = _find(tx, member_id(op.public_key))
    if found is not None and found.revoked:
        raise MetadataError("EACCES", f"the key of {found.name} was revoked; make a new one")
    made = MemberInfo(
        member_id(op.public_key),
        op.name,
        op.public_key,
        op.roles,
        op.rights,
        op.pools,
        found.issued if found is not None else tx.now,
        op.generation,
    )
    if made != found:
        _put(tx, made)
    return made


def revoke(tx: Tx, op: said.RevokeMember) -> int:
    found = _find(tx, op.id)
    if found is None:
        raise MetadataError("ENOENT", "there is no such member; trivium cluster members has them")
    if not found.revoked:
        tx.run("UPDATE members SET revoked = ? WHERE id = ?", tx.now, op.id)
        return tx.next_id("revocations")
    return revocations(tx, said.GetRevocations()).version


def list_members(reader: Reader, query: said.ListMembers) -> tuple[MemberInfo, ...]:
    return tuple(_member(row) for row in reader.all(f"SELECT {_MEMBER} FROM members ORDER BY name, id"))


def revocations(reader: Reader, query: said.GetRevocations) -> RevocationList:
    version = reader.one("SELECT value FROM counters WHERE name = 'revocations'")
    rows = reader.all("SELECT id FROM members WHERE revoked != 0 ORDER BY id")
    return RevocationList(0 if version is None else version[0], tuple(row[0] for row in rows))


# ---- the cluster's keys --------------------------------------------------------------------------------------


def add_cluster_key(tx: Tx, op: said.AddClusterKey) -> None:
    _check_key(op.public_key)
    keys = list_cluster_keys(tx, said.ListClusterKeys())
    if any(key.generation == op.generation and key.public_key == op.public_key for key in keys):
        return
    newest = keys[-1].generation if keys else 0
    if op.generation != newest + 1:
        raise MetadataError("EEXIST", f"the cluster's key is of generation {newest}; the next one is {newest + 1}")
    if sum(not key.retired for key in keys) > 1:
        raise MetadataError("EBUSY", "a rotation is under way: end it first (trivium cluster rotate --finish)")
    tx.run(
        "INSERT INTO cluster_keys (generation, public_key, handover, created, retired) VALUES (?, ?, ?, ?, 0)",
        *(op.generation, op.public_key, op.handover, tx.now),
    )


def retire_cluster_key(tx: Tx, op: said.RetireClusterKey) -> None:
    keys = list_cluster_keys(tx, said.ListClusterKeys())
    if not keys or op.generation >= keys[-1].generation or op.generation < 1:
        raise MetadataError("EINVAL", "only an older key is retired, after trivium cluster rotate has made a new one")
    rows = tx.all("SELECT name FROM members WHERE revoked = 0 AND generation <= ? ORDER BY name", op.generation)
    if rows and not op.force:
        names = ", ".join(row[0] for row in rows[:5])
        raise MetadataError(
            "EBUSY",
            f"{len(rows)} of the members hold certificates of the old key and would be cut off: {names}. "
            "Wait until they have connected, or use --force; they can join again with a token",
        )
    tx.run("UPDATE cluster_keys SET retired = ? WHERE generation <= ? AND retired = 0", tx.now, op.generation)


def list_cluster_keys(reader: Reader, query: said.ListClusterKeys) -> tuple[ClusterKeyInfo, ...]:
    rows = reader.all("SELECT generation, public_key, handover, created, retired FROM cluster_keys ORDER BY generation")
    return tuple(ClusterKeyInfo(*row) for row in rows)


# ---- inside -------------------------------------------------------------------------------------------------


def _find(reader: Reader, member: bytes) -> MemberInfo | None:
    row = reader.one(f"SELECT {_MEMBER} FROM members WHERE id = ?", member)
    return None if row is None else _member(row)


def _member(row: tuple[Any, ...]) -> MemberInfo:
    id, name, key, roles, rights, pools, issued, generation, revoked = row
    decoded = tuple(msgspec.msgpack.decode(pools))
    return MemberInfo(id, name, key, tuple(roles.split()), rights, decoded, issued, generation, revoked)


def _put(tx: Tx, member: MemberInfo) -> None:
    values = (member.name, member.public_key, _roles(member.roles), member.rights, _encode(member.pools))
    stamps = (member.issued, member.generation, member.revoked)
    changed = tx.run(
        "UPDATE members SET name = ?, public_key = ?, roles = ?, rights = ?, pools = ?, issued = ?, generation = ?,"
        " revoked = ? WHERE id = ?",
        *(*values, *stamps, member.id),
    )
    if not changed:
        tx.run(
            "INSERT INTO members (name, public_key, roles, rights, pools, issued, generation, revoked, id)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(*values, *stamps, member.id),
        )


def _roles(roles: tuple[str, ...]) -> str:
    return " ".join(roles)


def _check_key(public_key: bytes) -> None:
    if len(public_key) != PUBLIC_BYTES or public_key[0] not in (2, 3):
        raise MetadataError("EINVAL", "this is no public key of a member")


LISTED = {role.value for role in Role if role is not Role.GUEST}  # guests have no rows


def _check_fields(roles: tuple[str, ...], rights: int, pools: tuple[int, ...], name: str) -> None:
    if not roles or len(set(roles)) != len(roles) or not set(roles) <= LISTED:
        raise MetadataError("EINVAL", "the roles are client, node and metadata")
    if not 0 <= rights <= 7 or any(pool < 0 for pool in pools) or len(pools) > 64:
        raise MetadataError("EINVAL", "the rights are read, write and admin, for at most 64 pools")
    if len(name) > NAME_MAX or not name.isprintable():
        raise MetadataError("EINVAL", f"a member's name has at most {NAME_MAX} printable characters")


MEMBER_OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {
    said.AddToken: add_token,
    said.RemoveToken: remove_token,
    said.JoinCluster: join,
    said.EnrolMember: enrol,
    said.RevokeMember: revoke,
    said.AddClusterKey: add_cluster_key,
    said.RetireClusterKey: retire_cluster_key,
}

MEMBER_QUERIES: dict[type, Callable[[Any, Any], Any]] = {
    said.ListMembers: list_members,
    said.ListTokens: list_tokens,
    said.ListClusterKeys: list_cluster_keys,
    said.GetRevocations: revocations,
}
