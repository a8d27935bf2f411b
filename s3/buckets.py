"""Operations on buckets and their configuration. What is not implemented is said; what is unset is answered as AWS
answers it, so that aws cli, s3cmd, rclone and Terraform go on."""

from __future__ import annotations

import json

import msgspec

from trivium.metadata.messages import BucketInfo, CreateBucket, DeleteBucket, ListBuckets, SetBucketConfig
from trivium.s3 import acl
from trivium.s3.access import check_users
from trivium.s3.attributes import read_tagging, tagging_document
from trivium.s3.context import Operate, S3Request, Service
from trivium.s3.describe import check_tags
from trivium.s3.documents import read_document, read_xml
from trivium.s3.errors import S3Error
from trivium.s3.http import Response
from trivium.s3.listing import (
    from_token,
    iso_date,
    list_multipart_uploads,
    list_object_versions,
    list_objects,
    list_objects_v2,
    owner_element,
    to_token,
    xml_answer,
)
from trivium.s3.policy import BadPolicy, CorsRule, cached_policy, parse_policy
from trivium.s3.router import is_bucket_name
from trivium.s3.xml import Malformed, Node, element, escape, parse

MAX_BUCKET_TAGS = 50
METHODS = ("GET", "PUT", "POST", "DELETE", "HEAD")


# ---- the buckets themselves ---------------------------------------------------------------------------------


async def list_buckets(service: Service, request: S3Request) -> Response:
    identity = request.identity
    buckets: tuple[BucketInfo, ...] = await service.metadata.ask(ListBuckets("" if identity.root else identity.user))
    if identity.bucket:
        buckets = tuple(bucket for bucket in buckets if bucket.name == identity.bucket.encode())
    prefix = request.query.get("prefix", "").encode("utf-8", "surrogateescape")
    token = request.query.get("continuation-token")
    after = from_token(token) if token else b""
    found = [bucket for bucket in buckets if bucket.name.startswith(prefix) and bucket.name > after]
    limit = request.number("max-buckets", 10_000, 1, 10_000)
    lines = [
        f"<Bucket><Name>{escape(bucket.name.decode('utf-8', 'replace'))}</Name>"
        f"<CreationDate>{iso_date(bucket.created)}</CreationDate><BucketRegion>{service.region}</BucketRegion></Bucket>"
        for bucket in found[:limit]
    ]
    more = f"<ContinuationToken>{to_token(found[limit - 1].name)}</ContinuationToken>" if len(found) > limit else ""
    return xml_answer(
        "ListAllMyBucketsResult",
        [
            owner_element("Owner", identity.user),
            "<Buckets>",
            *lines,
            "</Buckets>",
            more,
            f"<Prefix>{escape(request.query['prefix'])}</Prefix>" if prefix else "",
        ],
    )


async def create_bucket(service: Service, request: S3Request) -> Response:
    headers = request.headers
    if not is_bucket_name(request.bucket):
        raise S3Error("InvalidBucketName", BucketName=request.bucket.decode("utf-8", "replace"))
    if headers.get("x-amz-bucket-object-lock-enabled", "").lower() == "true":
        raise S3Error("NotImplemented", "Object lock is not implemented.")
    user, config = request.identity.user, dict[str, bytes]()
    ownership = headers.get("x-amz-object-ownership", "")
    if ownership and ownership not in acl.OWNERSHIPS:
        raise S3Error("InvalidArgument", "Invalid x-amz-object-ownership header: " + ownership[:64])
    grants = acl.from_headers(headers, user, user, of_bucket=True)
    if grants is not None and grants != (acl.own(user),):
        if ownership == acl.ENFORCED:
            raise S3Error("InvalidBucketAclWithObjectOwnership")
        await check_users(service, grants, user)
        config["acl"] = acl.encode(grants)
    if ownership:
        config["ownership"] = ownership.encode()
    tags = await _creation_document(service, request)
    if tags:
        config["tagging"] = msgspec.json.encode(tags)
    try:
        await service.metadata.call(CreateBucket(request.bucket, user, config))
    finally:
        service.buckets.forget(request.bucket)
    return Response(200, {"Location": f"/{request.bucket.decode()}"})


async def _creation_document(service: Service, request: S3Request) -> dict[str, str]:
    """The tags that it gives. The location must be this one, or one of the names that mean it."""
    if request.http.body.length == 0:
        return {}
    document = await read_document(service, request)
    if not document.strip():
        return {}
    try:
        node = parse(document, "CreateBucketConfiguration")
        place = node.value("LocationConstraint")
        tags = node.one("Tags")
        pairs = [(tag.need("Key"), tag.need("Value")) for tag in tags.all("Tag")] if tags is not None else []
    except Malformed:
        raise S3Error("MalformedXML") from None
    if place and len(place) > 63:
        raise S3Error("InvalidLocationConstraint", LocationConstraint=place[:64])
    return check_tags(pairs, MAX_BUCKET_TAGS)


async def delete_bucket(service: Service, request: S3Request) -> Response:
    try:
        await service.metadata.call(DeleteBucket(request.bucket))
    finally:
        service.buckets.forget(request.bucket)
    return Response(204)


async def head_bucket(service: Service, request: S3Request) -> Response:
    service.buckets.forget(request.bucket)
    await service.buckets.get(request.bucket)
    return Response(
        200,
        {"x-amz-bucket-region": service.region, "x-amz-access-point-alias": "false", "Content-Type": "application/xml"},
    )


async def get_location(service: Service, request: S3Request) -> Response:
    await service.buckets.get(request.bucket)
    region = "" if service.region == "us-east-1" else escape(service.region)
    return xml_answer("LocationConstraint", [region])


# ---- configuration documents --------------------------------------------------------------------------------


async def stored(service: Service, request: S3Request, kind: str) -> bytes | None:
    service.buckets.forget(request.bucket)
    return (await service.buckets.get(request.bucket)).config.get(kind)


async def store(service: Service, request: S3Request, kind: str, value: bytes | None) -> None:
    try:
        await service.metadata.call(SetBucketConfig(request.bucket, kind, value))
    finally:
        service.buckets.forget(request.bucket)


async def get_policy(service: Service, request: S3Request) -> Response:
    document = await stored(service, request, "policy")
    if document is None:
        raise S3Error("NoSuchBucketPolicy", BucketName=request.bucket.decode())
    return Response(200, {"Content-Type": "application/json"}, document)


async def put_policy(service: Service, request: S3Request) -> Response:
    document = await read_document(service, request, service.limits.policy_bytes)
    try:
        policy = parse_policy(document, request.bucket.decode())
    except BadPolicy as error:
        raise S3Error("MalformedPolicy", f"{error}.") from None
    service.buckets.forget(request.bucket)
    if policy.public and acl.rules_of(await service.buckets.get(request.bucket)).block.block_policy:
        raise S3Error("AccessDenied", "Public policies are blocked by the bucket's public access block.")
    await store(service, request, "policy", document)
    return Response(204)


async def delete_policy(service: Service, request: S3Request) -> Response:
    await store(service, request, "policy", None)
    return Response(204)


async def get_policy_status(service: Service, request: S3Request) -> Response:
    service.buckets.forget(request.bucket)
    info = await service.buckets.get(request.bucket)
    document, rules = info.config.get("policy"), acl.rules_of(info)
    public = document is not None and not rules.block.restrict and cached_policy(document, info.name.decode()).public
    if not rules.enforced and not rules.block.ignore_acls and acl.is_public(rules.grants):
        public = True
    return xml_answer("PolicyStatus", [f"<IsPublic>{'true' if public else 'false'}</IsPublic>"])


def cors_rules(document: bytes | None) -> list[CorsRule]:
    return msgspec.json.decode(document, type=list[CorsRule]) if document else []


def _texts(node: Node, name: str) -> tuple[str, ...]:
    return tuple(child.text for child in node.all(name))


def _cors_rule(node: Node) -> CorsRule:
    age = node.value("MaxAgeSeconds")
    rule = CorsRule(
        _texts(node, "AllowedOrigin"),
        _texts(node, "AllowedMethod"),
        _texts(node, "AllowedHeader"),
        _texts(node, "ExposeHeader"),
        int(age) if age else None,
        node.value("ID") or "",
    )
    if not rule.origins or not rule.methods:
        raise S3Error("MalformedXML")
    for method in rule.methods:
        if method not in METHODS:
            raise S3Error(
                "InvalidRequest", f"Found unsupported HTTP method in CORS config. Unsupported method is {method[:32]}"
            )
    for text in (*rule.origins, *rule.headers):
        if text.count("*") > 1:
            raise S3Error("InvalidRequest", f'AllowedOrigin "{text[:64]}" can not have more than one wildcard.')
    return rule


async def put_cors(service: Service, request: S3Request) -> Response:
    document = await read_xml(service, request, "CORSConfiguration")
    try:
        rules = [_cors_rule(node) for node in document.all("CORSRule")]
    except (Malformed, ValueError):
        raise S3Error("MalformedXML") from None
    if not 1 <= len(rules) <= 100:
        raise S3Error("MalformedXML")
    await store(service, request, "cors", msgspec.json.encode(rules))
    return Response(200)


async def get_cors(service: Service, request: S3Request) -> Response:
    rules = cors_rules(await stored(service, request, "cors"))
    if not rules:
        raise S3Error("NoSuchCORSConfiguration", BucketName=request.bucket.decode())
    lines = []
    for rule in rules:
        inner = element("ID", rule.id or None)
        for name, texts in (
            ("AllowedHeader", rule.headers),
            ("AllowedMethod", rule.methods),
            ("AllowedOrigin", rule.origins),
            ("ExposeHeader", rule.expose),
        ):
            inner += "".join(element(name, text) for text in texts)
        lines.append(f"<CORSRule>{inner}{element('MaxAgeSeconds', rule.max_age_s)}</CORSRule>")
    return xml_answer("CORSConfiguration", lines)


async def delete_cors(service: Service, request: S3Request) -> Response:
    await store(service, request, "cors", None)
    return Response(204)


async def get_tagging(service: Service, request: S3Request) -> Response:
    document = await stored(service, request, "tagging")
    if document is None:
        raise S3Error("NoSuchTagSet", BucketName=request.bucket.decode())
    return tagging_document(json.loads(document))


async def put_tagging(service: Service, request: S3Request) -> Response:
    tags = await read_tagging(service, request, MAX_BUCKET_TAGS)
    await store(service, request, "tagging", json.dumps(tags).encode())
    return Response(204)


async def delete_tagging(service: Service, request: S3Request) -> Response:
    await store(service, request, "tagging", None)
    return Response(204)


# ---- what is unset, and what cannot be set -------------------------------------------------------------------


def unset(root: str, content: str = "") -> Operate:
    """AWS's answer for a bucket where it was never set."""

    async def operate(service: Service, request: S3Request) -> Response:
        await service.buckets.get(request.bucket)
        return xml_answer(root, [content])

    return operate


def missing(code: str) -> Operate:
    async def operate(service: Service, request: S3Request) -> Response:
        await service.buckets.get(request.bucket)
        raise S3Error(code, BucketName=request.bucket.decode())

    return operate


async def nothing_to_delete(service: Service, request: S3Request) -> Response:
    """Deleting a configuration that was never set is a success."""
    await service.buckets.get(request.bucket)
    return Response(204)


async def put_versioning(service: Service, request: S3Request) -> Response:
    """Suspending what never was enabled changes nothing; enabling is not implemented and is said."""
    document = await read_xml(service, request, "VersioningConfiguration")
    status = document.value("Status")
    if status not in (None, "Suspended", "Enabled") or document.value("MfaDelete") not in (None, "Disabled"):
        raise S3Error("MalformedXML")
    if status == "Suspended":
        return Response(200)
    raise S3Error("NotImplemented", "Versioning is not implemented.")


HANDLERS: dict[str, Operate] = {
    "ListBuckets": list_buckets,
    "CreateBucket": create_bucket,
    "DeleteBucket": delete_bucket,
    "HeadBucket": head_bucket,
    "GetBucketLocation": get_location,
    "ListObjects": list_objects,
    "ListObjectsV2": list_objects_v2,
    "ListObjectVersions": list_object_versions,
    "ListMultipartUploads": list_multipart_uploads,
    "GetBucketPolicy": get_policy,
    "PutBucketPolicy": put_policy,
    "DeleteBucketPolicy": delete_policy,
    "GetBucketPolicyStatus": get_policy_status,
    "GetBucketCors": get_cors,
    "PutBucketCors": put_cors,
    "DeleteBucketCors": delete_cors,
    "GetBucketTagging": get_tagging,
    "PutBucketTagging": put_tagging,
    "DeleteBucketTagging": delete_tagging,
    "GetBucketVersioning": unset("VersioningConfiguration"),
    "PutBucketVersioning": put_versioning,
    "GetBucketAccelerateConfiguration": unset("AccelerateConfiguration"),
    "GetBucketLogging": unset("BucketLoggingStatus"),
    "GetBucketNotificationConfiguration": unset("NotificationConfiguration"),
    "GetBucketRequestPayment": unset("RequestPaymentConfiguration", "<Payer>BucketOwner</Payer>"),
    "GetBucketEncryption": missing("ServerSideEncryptionConfigurationNotFoundError"),
    "GetBucketLifecycleConfiguration": missing("NoSuchLifecycleConfiguration"),
    "GetBucketReplication": missing("ReplicationConfigurationNotFoundError"),
    "GetBucketWebsite": missing("NoSuchWebsiteConfiguration"),
    "GetObjectLockConfiguration": missing("ObjectLockConfigurationNotFoundError"),
    "GetBucketAnalyticsConfiguration": unset(
        "ListBucketAnalyticsConfigurationsResult", "<IsTruncated>false</IsTruncated>"
    ),
    "GetBucketMetricsConfiguration": unset("ListMetricsConfigurationsResult", "<IsTruncated>false</IsTruncated>"),
    "GetBucketInventoryConfiguration": unset("ListInventoryConfigurationsResult", "<IsTruncated>false</IsTruncated>"),
    "GetBucketIntelligentTieringConfiguration": unset(
        "ListBucketIntelligentTieringConfigurationsOutput", "<IsTruncated>false</IsTruncated>"
    ),
    **dict.fromkeys(
        (
            "DeleteBucketEncryption",
            "DeleteBucketLifecycle",
            "DeleteBucketReplication",
            "DeleteBucketWebsite",
            "DeleteBucketAnalyticsConfiguration",
            "DeleteBucketMetricsConfiguration",
            "DeleteBucketInventoryConfiguration",
            "DeleteBucketIntelligentTieringConfiguration",
        ),
        nothing_to_delete,
    ),
}
