"""What was decided about a request before its object was looked at, and what the object itself must still grant.

Invariant: an Access that is still open (`needs` or `tags`) lets nothing out: the gateway refuses to send an answer
whose operation did not `check` the very object that it acted on.
"""

from __future__ import annotations

from dataclasses import dataclass

from trivium.metadata.messages import BucketInfo, Grant, ObjectInfo, UnknownUsers
from trivium.s3 import acl
from trivium.s3.context import Identity, S3Request, Service
from trivium.s3.errors import S3Error

# action -> what the bucket's ACL must grant to somebody who does not own it
BUCKET_GRANTS: dict[str, str] = {
    "s3:ListBucket": acl.READ,
    "s3:ListBucketVersions": acl.READ,
    "s3:ListBucketMultipartUploads": acl.READ,
    "s3:PutObject": acl.WRITE,
    "s3:DeleteObject": acl.WRITE,
    "s3:GetBucketAcl": acl.READ_ACP,
    "s3:PutBucketAcl": acl.WRITE_ACP,
}
# action -> what the object's ACL must grant to somebody who does not own the object
OBJECT_GRANTS: dict[str, str] = {
    "s3:GetObject": acl.READ,
    "s3:GetObjectAcl": acl.READ_ACP,
    "s3:PutObjectAcl": acl.WRITE_ACP,
}
# what the owner of an object may do with it, and the bucket's owner too
OWNERS_ONLY = frozenset({"s3:GetObjectTagging", "s3:PutObjectTagging", "s3:DeleteObjectTagging"})
# who began an upload may look at it and end it
INITIATORS = frozenset({"s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"})
OWNER = "OWNER"  # no grant gives it


@dataclass(slots=True)
class Access:
    """`needs`: a permission of the object's own ACL; `tags`: the object's tags that a policy was decided by."""

    identity: Identity
    bucket: BucketInfo | None = None
    needs: str = ""
    tags: dict[str, str] | None = None
    checked: bool = False

    @property
    def open(self) -> bool:
        return not self.checked and (bool(self.needs) or self.tags is not None)

    def check_upload(self, initiator: str) -> None:
        """The upload that is acted on. S3Error AccessDenied."""
        self.checked = True
        if self.needs and self.bucket is not None:
            user = acting_user(self.identity, self.bucket)
            if not user or user != initiator:
                raise S3Error("AccessDenied")

    def check(self, info: ObjectInfo) -> None:
        """The object that is acted on. S3Error AccessDenied."""
        if self.tags is not None and info.meta.tags != self.tags:
            raise S3Error("OperationAborted")
        self.checked = True
        if not self.needs or self.bucket is None:
            return
        rules = acl.rules_of(self.bucket)
        user = acting_user(self.identity, self.bucket)
        if user and user == object_owner(info, self.bucket):
            return
        if not acl.allows(info.meta.grants, self.needs, user, rules):
            raise S3Error("AccessDenied")


def acting_user(identity: Identity, bucket: BucketInfo) -> str:
    """Whom a requester stands for in a bucket, "" = nobody: root and credentials scoped to the bucket stand for its
    owner, so that what they put is the owner's."""
    if identity.anonymous:
        return ""
    if bucket.owner and (identity.root or identity.bucket == bucket.name.decode("utf-8", "replace")):
        return bucket.owner
    return identity.user


def object_owner(info: ObjectInfo, bucket: BucketInfo) -> str:
    """Files of a mount and objects of anonymous requests belong to the bucket's owner."""
    return bucket.owner if not info.owner or acl.rules_of(bucket).enforced else info.owner


def new_owner(request: S3Request, headers: dict[str, str]) -> tuple[str, tuple[Grant, ...] | None]:
    """(owner, grants) of an object that this request makes. S3Error AccessControlListNotSupported, AccessDenied."""
    bucket = request.info
    if bucket is None:
        return request.identity.user, None
    rules = acl.rules_of(bucket)
    canned = headers.get("x-amz-acl", "")
    if rules.enforced:
        if acl.has_headers(headers) and canned != "bucket-owner-full-control":
            raise S3Error("AccessControlListNotSupported")
        return bucket.owner, None
    owner = acting_user(request.identity, bucket) or bucket.owner
    if rules.ownership == acl.PREFERRED and canned == "bucket-owner-full-control":
        return bucket.owner, None
    grants = acl.from_headers(headers, owner, bucket.owner, of_bucket=False)
    if rules.block.block_acls and acl.is_public(grants):
        raise S3Error("AccessDenied", "Public ACLs are blocked by the bucket's public access block.")
    return owner, grants


async def check_users(service: Service, grants: tuple[Grant, ...] | None, owner: str) -> None:
    """S3Error InvalidArgument when a grant names somebody whom nobody knows."""
    named = tuple({grant.grantee: None for grant in grants or () if grant.kind == "user" and grant.grantee != owner})
    if named and (unknown := await service.metadata.ask(UnknownUsers(named))):
        raise S3Error("InvalidArgument", "Invalid id", ArgumentName="CanonicalUser/ID", ArgumentValue=unknown[0][:128])
