"""Access control lists: canned names, grant headers and documents -> grants; whether grants allow something. Pure.

Invariants
1. `None` grants mean private: full control for the owner and nothing else. An owner may always do everything with what
   is its own; grants only add to that.
2. Under BucketOwnerEnforced no grant counts, whatever was stored before; with IgnorePublicAcls no group's grant counts.
3. An ACL that cannot be understood whole is refused, never cut down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from trivium.metadata.messages import BucketInfo, Grant
from trivium.s3.errors import S3Error
from trivium.s3.xml import Malformed, Node, escape

ALL_USERS = "http://acs.amazonaws.com/groups/global/AllUsers"
AUTHENTICATED = "http://acs.amazonaws.com/groups/global/AuthenticatedUsers"
LOG_DELIVERY = "http://acs.amazonaws.com/groups/s3/LogDelivery"
GROUPS = (ALL_USERS, AUTHENTICATED, LOG_DELIVERY)
READ, WRITE, READ_ACP, WRITE_ACP, FULL_CONTROL = "READ", "WRITE", "READ_ACP", "WRITE_ACP", "FULL_CONTROL"
PERMISSIONS = (READ, WRITE, READ_ACP, WRITE_ACP, FULL_CONTROL)
MAX_GRANTS = 100
XSI = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'

ENFORCED, PREFERRED, WRITER = "BucketOwnerEnforced", "BucketOwnerPreferred", "ObjectWriter"
OWNERSHIPS = (ENFORCED, PREFERRED, WRITER)

Grants = tuple[Grant, ...]
_HEADERS = {
    "x-amz-grant-read": READ,
    "x-amz-grant-write": WRITE,
    "x-amz-grant-read-acp": READ_ACP,
    "x-amz-grant-write-acp": WRITE_ACP,
    "x-amz-grant-full-control": FULL_CONTROL,
}
_CANNED_GROUPS: dict[str, tuple[tuple[str, str], ...]] = {
    "private": (),
    "public-read": ((ALL_USERS, READ),),
    "public-read-write": ((ALL_USERS, READ), (ALL_USERS, WRITE)),
    "authenticated-read": ((AUTHENTICATED, READ),),
    "aws-exec-read": (),
}
_CANNED_BUCKET: dict[str, tuple[tuple[str, str], ...]] = {
    "log-delivery-write": ((LOG_DELIVERY, WRITE), (LOG_DELIVERY, READ_ACP)),
}
_CANNED_OBJECT = {"bucket-owner-read": READ, "bucket-owner-full-control": FULL_CONTROL}


class Block(msgspec.Struct, frozen=True):
    """PublicAccessBlockConfiguration, as it is stored."""

    block_acls: bool = False
    ignore_acls: bool = False
    block_policy: bool = False
    restrict: bool = False


NO_BLOCK = Block()


@dataclass(frozen=True, slots=True)
class Rules:
    """What a bucket's configuration says about access, beside its policy."""

    grants: Grants | None = None
    ownership: str = ""  # "" = never set: like ObjectWriter
    block: Block = NO_BLOCK

    @property
    def enforced(self) -> bool:
        return self.ownership == ENFORCED


def rules_of(info: BucketInfo) -> Rules:
    config = info.config
    return _rules(config.get("acl"), config.get("ownership", b""), config.get("public-access-block"))


@lru_cache(maxsize=1024)
def _rules(acl: bytes | None, ownership: bytes, block: bytes | None) -> Rules:
    return Rules(
        None if acl is None else msgspec.msgpack.decode(acl, type=Grants),
        ownership.decode(),
        NO_BLOCK if block is None else msgspec.json.decode(block, type=Block),
    )


def encode(grants: Grants) -> bytes:
    """As the bucket's configuration keeps it."""
    return msgspec.msgpack.encode(grants)


def own(owner: str) -> Grant:
    return Grant("user", owner, FULL_CONTROL)


def effective(grants: Grants | None, owner: str) -> Grants:
    return (own(owner),) if grants is None else grants


def is_public(grants: Grants | None) -> bool:
    return any(grant.kind == "group" and grant.grantee != LOG_DELIVERY for grant in grants or ())


def allows(grants: Grants | None, permission: str, user: str, rules: Rules) -> bool:
    """Whether the grants give `permission` to a user ("" = the anonymous one) who does not own the resource."""
    if rules.enforced:
        return False
    return any(
        grant.permission in (permission, FULL_CONTROL) and _names(grant, user, rules.block.ignore_acls)
        for grant in grants or ()
    )


def _names(grant: Grant, user: str, ignore_public: bool) -> bool:
    if grant.kind == "user":
        return bool(user) and grant.grantee == user
    if ignore_public:
        return False
    return grant.grantee == ALL_USERS or (grant.grantee == AUTHENTICATED and bool(user))


# ---- what requests say ----------------------------------------------------------------------------------------------


def has_headers(headers: Mapping[str, str]) -> bool:
    return "x-amz-acl" in headers or any(name in headers for name in _HEADERS)


def from_headers(headers: Mapping[str, str], owner: str, bucket_owner: str, *, of_bucket: bool) -> Grants | None:
    """The grants that x-amz-acl or x-amz-grant-* mean; None without either. S3Error."""
    named = [name for name in _HEADERS if name in headers]
    if "x-amz-acl" in headers:
        if named:
            raise S3Error("InvalidRequest", "Specifying both Canned ACLs and Header Grants is not allowed")
        return _canned(headers["x-amz-acl"], owner, bucket_owner, of_bucket)
    if not named:
        return None
    found: list[Grant] = []
    for name in named:
        for item in headers[name].split(","):
            found.append(_header_grant(name, item, _HEADERS[name]))
    return checked(found)


def _canned(name: str, owner: str, bucket_owner: str, of_bucket: bool) -> Grants:
    groups = _CANNED_GROUPS.get(name, _CANNED_BUCKET.get(name) if of_bucket else None)
    if groups is not None:
        return (own(owner), *(Grant("group", uri, permission) for uri, permission in groups))
    if name not in _CANNED_OBJECT or of_bucket:
        raise S3Error("InvalidArgument", "", ArgumentName="x-amz-acl", ArgumentValue=name[:64])
    if bucket_owner == owner:
        return (own(owner),)
    return (own(owner), Grant("user", bucket_owner, _CANNED_OBJECT[name]))


def _header_grant(name: str, item: str, permission: str) -> Grant:
    kind, equals, value = item.strip().partition("=")
    value = value.strip().strip('"')
    kind = kind.strip().lower()
    if equals and value and kind == "id":
        return Grant("user", value, permission)
    if equals and kind == "uri" and value in GROUPS:
        return Grant("group", value, permission)
    if equals and kind == "emailaddress":
        raise S3Error("UnresolvableGrantByEmailAddress")
    raise S3Error("InvalidArgument", "Argument format not recognized", ArgumentName=name, ArgumentValue=item[:64])


def from_document(document: Node, owner: str) -> Grants:
    """The grants of an AccessControlPolicy; its owner must be the resource's. S3Error."""
    said = document.one("Owner")
    listed = document.one("AccessControlList")
    if listed is None:
        raise S3Error("MalformedACLError")
    if said is not None and said.value("ID") not in (None, owner):
        raise S3Error("AccessDenied")
    try:
        return checked([_grant(node) for node in listed.all("Grant")])
    except Malformed:
        raise S3Error("MalformedACLError") from None


def _grant(node: Node) -> Grant:
    grantee, permission = node.one("Grantee"), node.need("Permission")
    if grantee is None or permission not in PERMISSIONS:
        raise S3Error("MalformedACLError")
    if user := grantee.value("ID"):
        return Grant("user", user, permission)
    if uri := grantee.value("URI"):
        if uri not in GROUPS:
            raise S3Error("InvalidArgument", "Invalid group uri", ArgumentName="uri", ArgumentValue=uri[:128])
        return Grant("group", uri, permission)
    if grantee.value("EmailAddress"):
        raise S3Error("UnresolvableGrantByEmailAddress")
    raise S3Error("MalformedACLError")


def checked(grants: Sequence[Grant]) -> Grants:
    if len(grants) > MAX_GRANTS:
        raise S3Error("MalformedACLError", f"An ACL has at most {MAX_GRANTS} grants.")
    return tuple(dict.fromkeys(grants))


def to_document(owner: str, grants: Grants | None) -> list[str]:
    """The parts of an AccessControlPolicy."""
    return [
        f"<Owner>{_user(owner)}</Owner><AccessControlList>",
        # the order says nothing; groups come first, as other servers have it
        *(_line(grant) for grant in sorted(effective(grants, owner), key=lambda grant: grant.kind)),
        "</AccessControlList>",
    ]


def _user(name: str) -> str:
    return f"<ID>{escape(name)}</ID><DisplayName>{escape(name)}</DisplayName>"


def _line(grant: Grant) -> str:
    kind, inner = "CanonicalUser", _user(grant.grantee)
    if grant.kind == "group":
        kind, inner = "Group", f"<URI>{escape(grant.grantee)}</URI>"
    return (
        f'<Grant><Grantee {XSI} xsi:type="{kind}">{inner}</Grantee><Permission>{grant.permission}</Permission></Grant>'
    )
