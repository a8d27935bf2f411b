"""Who may do what: credentials and buckets through short caches, signatures, policies.

Invariants
1. A cached credential or policy is at most CACHE_S old, so a revoked key loses its rights within that time on open
   connections too. What this gateway itself changes is forgotten at once.
2. A signature that does not match is checked once more against a fresh credential: a replaced secret works at once.
3. Nothing is cached that says "does not exist".

Rules, in order: a credential scoped to one bucket reaches that bucket alone; an explicit Deny of the bucket's policy
wins (but the root and the owner may always read, replace and delete the policy itself); root may do everything else;
the policy's Allow (under RestrictPublicBuckets a public policy allows nothing to others); the bucket's owner, except
for reading objects that others own; the bucket's ACL; the object's owner and ACL (`access.Access`); nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from trivium.metadata.messages import BucketInfo, Credential, GetBucket, GetCredential, HeadObject, MetadataError
from trivium.s3 import acl, sigv2, sigv4
from trivium.s3.access import BUCKET_GRANTS, INITIATORS, OBJECT_GRANTS, OWNER, OWNERS_ONLY, Access, acting_user
from trivium.s3.context import ANONYMOUS, Identity, Metadata, S3Request
from trivium.s3.describe import header_tags
from trivium.s3.errors import S3Error
from trivium.s3.policy import BadPolicy, cached_policy, principal_names

CACHE_S = 2.0
CACHE_ENTRIES = 4096

K = TypeVar("K")
V = TypeVar("V")

# operations whose action has another name than "s3:" + operation
ACTIONS: dict[str, str] = {
    "ListBuckets": "s3:ListAllMyBuckets",
    "HeadBucket": "s3:ListBucket",
    "ListObjects": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "ListObjectVersions": "s3:ListBucketVersions",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "ListParts": "s3:ListMultipartUploadParts",
    "HeadObject": "s3:GetObject",
    "GetObjectAttributes": "s3:GetObject",
    "CopyObject": "s3:PutObject",
    "PostObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "UploadPartCopy": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "GetBucketCors": "s3:GetBucketCORS",
    "PutBucketCors": "s3:PutBucketCORS",
    "DeleteBucketCors": "s3:PutBucketCORS",
    "DeleteBucketTagging": "s3:PutBucketTagging",
    "DeleteObjects": "",  # each key is asked for by itself
    "GetBucketEncryption": "s3:GetEncryptionConfiguration",
    "GetBucketLifecycleConfiguration": "s3:GetLifecycleConfiguration",
    "GetBucketReplication": "s3:GetReplicationConfiguration",
    "GetObjectLockConfiguration": "s3:GetBucketObjectLockConfiguration",
    "GetPublicAccessBlock": "s3:GetBucketPublicAccessBlock",
}
POLICY_ACTIONS = frozenset({"s3:GetBucketPolicy", "s3:PutBucketPolicy", "s3:DeleteBucketPolicy"})


class Recent(Generic[K, V]):
    """Values that are at most CACHE_S old; bounded."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._entries: dict[K, tuple[float, V]] = {}

    def get(self, key: K) -> V | None:
        entry = self._entries.get(key)
        if entry is None or not 0 <= self._now_s() - entry[0] <= CACHE_S:
            return None
        return entry[1]

    def put(self, key: K, value: V) -> None:
        if len(self._entries) >= CACHE_ENTRIES:
            self._entries.clear()
        self._entries[key] = (self._now_s(), value)

    def forget(self, key: K) -> None:
        self._entries.pop(key, None)


class Buckets:
    """BucketInfo, cached a moment."""

    def __init__(self, metadata: Metadata, now_s: Callable[[], float]) -> None:
        self._metadata = metadata
        self._recent: Recent[bytes, BucketInfo] = Recent(now_s)

    async def get(self, name: bytes) -> BucketInfo:
        """MetadataError NoSuchBucket."""
        found = self._recent.get(name)
        if found is None:
            found = await self._metadata.ask(GetBucket(name))
            self._recent.put(name, found)
        return found

    def forget(self, name: bytes) -> None:
        self._recent.forget(name)


class Accounts:
    """Authentication and authorisation of requests."""

    def __init__(self, metadata: Metadata, buckets: Buckets, now_s: Callable[[], float]) -> None:
        self._metadata, self._buckets = metadata, buckets
        self._recent: Recent[str, Credential] = Recent(now_s)

    def forget(self, access_key: str) -> None:
        self._recent.forget(access_key)

    async def credential(self, access_key: str) -> tuple[Credential, bool]:
        """(credential, whether it came from the cache). MetadataError InvalidAccessKeyId."""
        found = self._recent.get(access_key)
        if found is not None:
            return found, True
        found = await self._metadata.ask(GetCredential(access_key))
        self._recent.put(access_key, found)
        return found, False

    async def authenticate(
        self, request: S3Request, pairs: sigv4.Pairs, now_s: float
    ) -> tuple[Identity, sigv4.Claim | None, str]:
        """Who signed the request. S3Error."""
        headers = request.headers
        claim: sigv4.Claim | sigv2.ClaimV2 | None = None
        if "authorization" not in headers:
            claim = sigv2.parse(pairs, now_s)
        claim = claim or sigv4.parse(headers, pairs, now_s)
        if claim is None:
            return ANONYMOUS, None, ""
        if headers.get("x-amz-security-token") or "X-Amz-Security-Token" in request.query:
            raise S3Error("InvalidToken")
        credential, cached = await self.credential(claim.access_key)
        try:
            self._verify(claim, credential, request, pairs)
        except S3Error:
            if not cached:
                raise
            self.forget(claim.access_key)
            credential, _ = await self.credential(claim.access_key)
            self._verify(claim, credential, request, pairs)
        return self.identity(credential), claim if isinstance(claim, sigv4.Claim) else None, credential.secret_key

    @staticmethod
    def _verify(
        claim: sigv4.Claim | sigv2.ClaimV2, credential: Credential, request: S3Request, pairs: sigv4.Pairs
    ) -> None:
        http = request.http
        if isinstance(claim, sigv2.ClaimV2):
            resource = f"/{request.bucket.decode('latin-1')}{http.path}" if request.virtual else http.path
            sigv2.verify(claim, credential.secret_key, http.method, resource, pairs, http.headers)
            return
        sigv4.verify(claim, credential.secret_key, http.method, http.path, pairs, http.headers)

    @staticmethod
    def identity(credential: Credential) -> Identity:
        return Identity(credential.access_key, credential.user, credential.root, credential.bucket)

    async def authorize(self, request: S3Request, action: str, bucket: bytes, key: bytes) -> Access:
        """S3Error AccessDenied unless the requester may do `action` on the bucket or object. What the answer still
        `needs`, the object's own ACL must say: whoever asked calls its `check` with the object."""
        identity = request.identity
        name = bucket.decode("utf-8", "replace")
        if not bucket or action == "s3:CreateBucket":
            if identity.anonymous or (identity.bucket and action == "s3:CreateBucket" and identity.bucket != name):
                raise S3Error("AccessDenied")
            return Access(identity)
        if identity.bucket and identity.bucket != name:
            raise S3Error("AccessDenied")
        info = await self._buckets.get(bucket)
        if bucket == request.bucket:
            request.info = info
        copies = "x-amz-copy-source" in request.headers and action == "s3:GetObject"
        expected = "x-amz-source-expected-bucket-owner" if copies else "x-amz-expected-bucket-owner"
        if request.headers.get(expected, info.owner) != info.owner:
            raise S3Error("AccessDenied", "The bucket is not owned by the account that you expect.")
        access = Access(identity, info)
        owner = identity.root or identity.bucket == name or (not identity.anonymous and info.owner == identity.user)
        document = info.config.get("policy")
        if document is not None and not (owner and action in POLICY_ACTIONS):
            tags = await self._tags(document, bucket, key) if action in OBJECT_GRANTS or action in OWNERS_ONLY else None
            allowed = self._by_policy(document, request, action, key, access, tags)
            if allowed and (owner or not acl.rules_of(info).block.restrict or not _is_public(document, name)):
                return access
        self._by_acl(access, action, owner)
        return access

    def _by_policy(
        self, document: bytes, request: S3Request, action: str, key: bytes, access: Access, tags: dict[str, str] | None
    ) -> bool:
        """Whether the policy allows it. S3Error AccessDenied when it denies."""
        assert access.bucket is not None
        name = access.bucket.name.decode("utf-8", "replace")
        try:
            policy = cached_policy(document, name)
        except BadPolicy:  # stored by a newer version that knows more: refuse rather than guess
            raise S3Error("AccessDenied") from None
        context = condition_context(request)
        if action == "s3:ListBucket" and key:  # may it know whether this key is there?
            context["s3:prefix"] = (key.decode("utf-8", "replace"),)
            key = b""
        if tags is not None:
            access.tags = tags
            context.update((f"s3:existingobjecttag/{tag.lower()}", (value,)) for tag, value in tags.items())
        resource = f"arn:aws:s3:::{name}" + (f"/{key.decode('utf-8', 'replace')}" if key else "")
        names = principal_names(request.identity.user, request.identity.access_key)
        decision = policy.decide(names, action, resource, context)
        if decision is False:
            raise S3Error("AccessDenied")
        return decision is True

    async def _tags(self, document: bytes, bucket: bytes, key: bytes) -> dict[str, str] | None:
        """The object's tags, when the policy asks about them and there is an object."""
        if not key or b"existingobjecttag/" not in document.lower():
            return None
        try:
            return dict((await self._metadata.ask(HeadObject(bucket, key))).meta.tags)
        except MetadataError as error:
            if error.code != "NoSuchKey":
                raise
            return None

    @staticmethod
    def _by_acl(access: Access, action: str, owner: bool) -> None:
        """Ownership and ACLs. S3Error AccessDenied."""
        info = access.bucket
        assert info is not None
        if access.identity.root:
            return
        if action in OBJECT_GRANTS:
            access.needs = OBJECT_GRANTS[action]
        elif not owner:
            if action in OWNERS_ONLY or action in INITIATORS:
                access.needs = OWNER
                return
            user = acting_user(access.identity, info)
            rules = acl.rules_of(info)
            if action not in BUCKET_GRANTS or not acl.allows(rules.grants, BUCKET_GRANTS[action], user, rules):
                raise S3Error("AccessDenied")


def _is_public(document: bytes, bucket: str) -> bool:
    try:
        return cached_policy(document, bucket).public
    except BadPolicy:
        return True


def condition_context(request: S3Request) -> dict[str, tuple[str, ...]]:
    """What a policy's conditions can ask about; names in lower case."""
    context: dict[str, tuple[str, ...]] = {
        "aws:sourceip": (request.http.peer,),
        "aws:securetransport": ("false",),
        "aws:principaltype": ("Anonymous" if request.identity.anonymous else "User",),
    }
    if not request.identity.anonymous:
        context["aws:username"] = context["aws:userid"] = (request.identity.user,)
        context["s3:authtype"] = ("REST-HEADER" if "authorization" in request.headers else "REST-QUERY-STRING",)
        context["s3:signatureversion"] = (sigv4.ALGORITHM if request.claim else "AWS",)
    for header, name in (("referer", "aws:referer"), ("user-agent", "aws:useragent")):
        if header in request.headers:
            context[name] = (request.headers[header],)
    for parameter in ("prefix", "delimiter", "max-keys"):
        if parameter in request.query:
            context[f"s3:{parameter}"] = (request.query[parameter],)
    if "x-amz-tagging" in request.headers:
        tags = header_tags(request.headers)
        context["s3:requestobjecttagkeys"] = tuple(tags)
        context.update((f"s3:requestobjecttag/{tag.lower()}", (value,)) for tag, value in tags.items())
    for header, value in request.headers.items():
        if header.startswith("x-amz-") and not header.startswith("x-amz-meta-"):
            context[f"s3:{header}"] = (value,)
    return context
