"""fsck of members, join tokens and the cluster's keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from trivium.cluster.errors import Refused
from trivium.cluster.identity.keys import PublicKey, member_id
from trivium.cluster.identity.statements import Handover, Role, verify
from trivium.metadata.finding import Finding

if TYPE_CHECKING:
    from trivium.metadata.tx import Reader

ROLES = {role.value for role in Role}


def check(reader: Reader) -> Iterator[Finding]:
    yield from _members(reader)
    yield from _tokens(reader)
    yield from _keys(reader)


def _members(reader: Reader) -> Iterator[Finding]:
    newest = reader.one("SELECT coalesce(max(generation), 0) FROM cluster_keys")
    revoked = 0
    for id, name, key, roles, rights, pools, generation, when in reader.all(
        "SELECT id, name, public_key, roles, rights, pools, generation, revoked FROM members"
    ):
        revoked += when != 0
        if id != member_id(key) or not _is_key(key):
            yield Finding("members", f"member {name} is not named by its key", "revoke it")
        if not _fits(roles, rights, pools) or not 1 <= generation <= (newest or (0,))[0]:
            yield Finding(
                "members", f"member {name} has roles, rights or a key generation that do not exist", "revoke it"
            )
    version = reader.one("SELECT value FROM counters WHERE name = 'revocations'")
    if (0 if version is None else version[0]) != revoked:
        yield Finding("members", "the version of the list of the revoked does not fit the members", "raise it")


def _tokens(reader: Reader) -> Iterator[Finding]:
    rows = reader.all("SELECT id, hash, roles, rights, pools, created, expires, used_by FROM join_tokens")
    for id, hash, roles, rights, pools, created, expires, used_by in rows:
        if len(id) != 8 or len(hash) != 32 or not _fits(roles, rights, pools) or created >= expires:
            yield Finding("members", f"join token {id.hex()} is not one", "remove it")
        if used_by and reader.one("SELECT 1 FROM members WHERE id = ?", used_by) is None:
            yield Finding("members", f"join token {id.hex()} made a member that has no row", "remove it")


def _keys(reader: Reader) -> Iterator[Finding]:
    rows = reader.all("SELECT generation, public_key, handover, retired FROM cluster_keys ORDER BY generation")
    before: bytes = b""
    for place, (generation, key, handover, retired) in enumerate(rows, 1):
        if generation != place or not _is_key(key) or (retired and place == len(rows)):
            yield Finding(
                "members", f"generation {generation} of the cluster's key is out of order", "ask the operator"
            )
        elif before and not _handed_over(handover, before, generation, key):
            yield Finding(
                "members", f"generation {generation} of the cluster's key was not handed over", "ask the operator"
            )
        before = key


def _handed_over(handover: bytes, before: bytes, generation: int, key: bytes) -> bool:
    try:
        said = verify(Handover, handover, PublicKey.load(before))
    except Refused:
        return False
    return (said.generation, said.public) == (generation, key)


def _is_key(raw: bytes) -> bool:
    try:
        PublicKey.load(raw)
    except Refused:
        return False
    return True


def _fits(roles: str, rights: int, pools: bytes) -> bool:
    try:
        listed = msgspec.msgpack.decode(pools, type=tuple[int, ...])
    except msgspec.MsgspecError:
        return False
    return bool(roles) and set(roles.split()) <= ROLES and 0 <= rights <= 7 and all(pool >= 0 for pool in listed)
