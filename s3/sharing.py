"""Operations on who may reach a bucket or an object: ACLs, ownership controls, the public access block."""

from __future__ import annotations

import msgspec

from trivium.metadata.messages import SetBucketConfig, SetObjectAcl
from trivium.s3 import acl
from trivium.s3.access import check_users, object_owner
from trivium.s3.context import Operate, S3Request, Service
from trivium.s3.documents import read_document, read_xml
from trivium.s3.errors import S3Error
from trivium.s3.http import Response
from trivium.s3.listing import xml_answer
from trivium.s3.objects import head
from trivium.s3.xml import Node, element

_BLOCKS = {
    "BlockPublicAcls": "block_acls",
    "IgnorePublicAcls": "ignore_acls",
    "BlockPublicPolicy": "block_policy",
    "RestrictPublicBuckets": "restrict",
}


async def _fresh(service: Service, request: S3Request) -> acl.Rules:
    service.buckets.forget(request.bucket)
    request.info = await service.buckets.get(request.bucket)
    return acl.rules_of(request.info)


async def _store(service: Service, request: S3Request, kind: str, value: bytes | None) -> None:
    try:
        await service.metadata.call(SetBucketConfig(request.bucket, kind, value))
    finally:
        service.buckets.forget(request.bucket)


async def _wanted(
    service: Service, request: S3Request, owner: str, rules: acl.Rules, *, of_bucket: bool
) -> acl.Grants | None:
    """The grants that PutBucketAcl and PutObjectAcl ask for. S3Error."""
    bucket_owner = request.info.owner if request.info else owner
    grants = acl.from_headers(request.headers, owner, bucket_owner, of_bucket=of_bucket)
    if rules.enforced:
        raise S3Error("AccessControlListNotSupported")
    if grants is None:
        document = await read_xml(service, request, "AccessControlPolicy")
        grants = acl.from_document(document, owner)
    else:
        await read_document(service, request)
    if rules.block.block_acls and acl.is_public(grants):
        raise S3Error("AccessDenied", "Public ACLs are blocked by the bucket's public access block.")
    await check_users(service, grants, owner)
    return None if grants == (acl.own(owner),) else grants


async def get_bucket_acl(service: Service, request: S3Request) -> Response:
    rules = await _fresh(service, request)
    assert request.info is not None
    grants = None if rules.enforced else rules.grants
    return xml_answer("AccessControlPolicy", acl.to_document(request.info.owner, grants))


async def put_bucket_acl(service: Service, request: S3Request) -> Response:
    rules = await _fresh(service, request)
    assert request.info is not None
    grants = await _wanted(service, request, request.info.owner, rules, of_bucket=True)
    await _store(service, request, "acl", None if grants is None else acl.encode(grants))
    return Response(200)


async def get_object_acl(service: Service, request: S3Request) -> Response:
    info = await head(service, request)
    assert request.info is not None
    grants = None if acl.rules_of(request.info).enforced else info.meta.grants
    return xml_answer("AccessControlPolicy", acl.to_document(object_owner(info, request.info), grants))


async def put_object_acl(service: Service, request: S3Request) -> Response:
    info = await head(service, request)
    assert request.info is not None
    owner = object_owner(info, request.info)
    grants = await _wanted(service, request, owner, acl.rules_of(request.info), of_bucket=False)
    await service.metadata.call(SetObjectAcl(request.bucket, request.key, info.ino, grants))
    return Response(200)


# ---- ownership controls ---------------------------------------------------------------------------------------------


async def get_ownership(service: Service, request: S3Request) -> Response:
    rules = await _fresh(service, request)
    if not rules.ownership:
        raise S3Error("OwnershipControlsNotFoundError", BucketName=request.bucket.decode())
    return xml_answer("OwnershipControls", ["<Rule>", element("ObjectOwnership", rules.ownership), "</Rule>"])


async def put_ownership(service: Service, request: S3Request) -> Response:
    document = await read_xml(service, request, "OwnershipControls")
    values = [rule.value("ObjectOwnership") for rule in document.all("Rule")]
    if len(values) != 1 or values[0] not in acl.OWNERSHIPS:
        raise S3Error("MalformedXML")
    rules = await _fresh(service, request)
    if values[0] == acl.ENFORCED and rules.grants is not None:
        raise S3Error("InvalidBucketAclWithObjectOwnership")
    await _store(service, request, "ownership", values[0].encode())
    return Response(200)


async def delete_ownership(service: Service, request: S3Request) -> Response:
    await _store(service, request, "ownership", None)
    return Response(204)


# ---- the public access block ----------------------------------------------------------------------------------------


def _flag(document: Node, name: str) -> bool:
    text = (document.value(name) or "false").lower()
    if text not in ("true", "false"):
        raise S3Error("MalformedXML")
    return text == "true"


async def put_block(service: Service, request: S3Request) -> Response:
    document = await read_xml(service, request, "PublicAccessBlockConfiguration")
    block = acl.Block(**{field: _flag(document, name) for name, field in _BLOCKS.items()})
    await _store(service, request, "public-access-block", msgspec.json.encode(block))
    return Response(200)


async def get_block(service: Service, request: S3Request) -> Response:
    rules = await _fresh(service, request)
    assert request.info is not None
    if "public-access-block" not in request.info.config:
        raise S3Error("NoSuchPublicAccessBlockConfiguration", BucketName=request.bucket.decode())
    lines = [element(name, str(getattr(rules.block, field)).lower()) for name, field in _BLOCKS.items()]
    return xml_answer("PublicAccessBlockConfiguration", lines)


async def delete_block(service: Service, request: S3Request) -> Response:
    await _store(service, request, "public-access-block", None)
    return Response(204)


HANDLERS: dict[str, Operate] = {
    "GetBucketAcl": get_bucket_acl,
    "PutBucketAcl": put_bucket_acl,
    "GetObjectAcl": get_object_acl,
    "PutObjectAcl": put_object_acl,
    "GetBucketOwnershipControls": get_ownership,
    "PutBucketOwnershipControls": put_ownership,
    "DeleteBucketOwnershipControls": delete_ownership,
    "GetPublicAccessBlock": get_block,
    "PutPublicAccessBlock": put_block,
    "DeletePublicAccessBlock": delete_block,
}
