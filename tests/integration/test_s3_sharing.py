"""ACLs, ownership and the public access block: who reaches what, seen from the outside with boto3."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.fakes.s3server import ALICE, BOB, ROOT, Running, running

ALL_USERS = "http://acs.amazonaws.com/groups/global/AllUsers"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as started:
        yield started


@pytest.fixture
def alice(server: Running) -> Any:
    return server.client(ALICE)


@pytest.fixture
def bob(server: Running) -> Any:
    return server.client(BOB)


@pytest.fixture
def nobody(server: Running) -> Any:
    return server.client(None)


@pytest.fixture
def bucket(alice: Any) -> str:
    name = f"b-{uuid.uuid4().hex[:12]}"
    alice.create_bucket(Bucket=name)
    return name


def refused(call: Any, code: str = "", status: int = 403, **arguments: Any) -> None:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    answer = caught.value.response
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == status
    assert code in ("", answer["Error"]["Code"])


def grant(user: str, permission: str) -> dict[str, Any]:
    return {"Grantee": {"Type": "CanonicalUser", "ID": user}, "Permission": permission}


def read(client: Any, bucket: str, key: str) -> bytes:
    data: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    return data


@pytest.mark.parametrize(
    ("acl", "anybody", "signed"),
    [("private", False, False), ("public-read", True, True), ("authenticated-read", False, True)],
)
def test_canned_acls_of_objects(
    alice: Any, bob: Any, nobody: Any, bucket: str, acl: str, anybody: bool, signed: bool
) -> None:
    alice.put_object(Bucket=bucket, Key="at-put", Body=b"x", ACL=acl)
    alice.put_object(Bucket=bucket, Key="later", Body=b"x")
    alice.put_object_acl(Bucket=bucket, Key="later", ACL=acl)
    alice.copy_object(Bucket=bucket, Key="copied", CopySource=f"{bucket}/later", ACL=acl)
    upload = alice.create_multipart_upload(Bucket=bucket, Key="parts", ACL=acl)["UploadId"]
    part = alice.upload_part(Bucket=bucket, Key="parts", UploadId=upload, PartNumber=1, Body=b"x")
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    alice.complete_multipart_upload(Bucket=bucket, Key="parts", UploadId=upload, MultipartUpload=parts)
    for key in ("at-put", "later", "copied", "parts"):
        assert read(alice, bucket, key) == b"x"
        for client, may in ((bob, signed), (nobody, anybody)):
            if may:
                assert read(client, bucket, key) == b"x"
                client.head_object(Bucket=bucket, Key=key)
            else:
                refused(client.get_object, Bucket=bucket, Key=key)
                refused(client.head_object, Bucket=bucket, Key=key)
                refused(client.get_object_attributes, Bucket=bucket, Key=key, ObjectAttributes=["ETag"])
            refused(client.get_object_acl, Bucket=bucket, Key=key)
            refused(client.put_object_acl, Bucket=bucket, Key=key, ACL="public-read")
            refused(client.get_object_tagging, Bucket=bucket, Key=key)
            refused(client.delete_object_tagging, Bucket=bucket, Key=key)
            refused(client.delete_object, Bucket=bucket, Key=key)
        refused(bob.list_objects_v2, Bucket=bucket)


def test_an_acl_is_never_copied_and_a_new_put_is_private(alice: Any, nobody: Any, bucket: str) -> None:
    alice.put_object(Bucket=bucket, Key="open", Body=b"x", ACL="public-read")
    alice.copy_object(Bucket=bucket, Key="copy", CopySource=f"{bucket}/open")
    refused(nobody.get_object, Bucket=bucket, Key="copy")
    alice.put_object(Bucket=bucket, Key="open", Body=b"y")
    refused(nobody.get_object, Bucket=bucket, Key="open")


def test_what_may_not_be_read_is_not_copied(alice: Any, bob: Any, bucket: str) -> None:
    alice.put_object(Bucket=bucket, Key="secret", Body=b"x" * 100_000)
    own = f"b-{uuid.uuid4().hex[:12]}"
    bob.create_bucket(Bucket=own)
    refused(bob.copy_object, Bucket=own, Key="k", CopySource=f"{bucket}/secret")
    refused(bob.copy_object, Bucket=own, Key="k", CopySource=f"{bucket}/missing")
    upload = bob.create_multipart_upload(Bucket=own, Key="k")["UploadId"]
    refused(
        bob.upload_part_copy,
        Bucket=own,
        Key="k",
        UploadId=upload,
        PartNumber=1,
        CopySource=f"{bucket}/secret",
    )


def test_large_reads_ask_the_acl_too(server: Running, alice: Any, bob: Any, bucket: str) -> None:
    alice.put_object(Bucket=bucket, Key="large", Body=bytes(5 << 20))
    refused(bob.get_object, Bucket=bucket, Key="large")
    assert not server.metadata.held
    alice.put_object_acl(Bucket=bucket, Key="large", GrantRead="id=bob")
    assert len(read(bob, bucket, "large")) == 5 << 20


@pytest.mark.parametrize("permission", ["READ", "WRITE", "READ_ACP", "WRITE_ACP", "FULL_CONTROL"])
def test_grants_on_a_bucket(alice: Any, bob: Any, bucket: str, permission: str) -> None:
    owner = alice.get_bucket_acl(Bucket=bucket)["Owner"]
    policy = {"Owner": owner, "Grants": [grant("alice", "FULL_CONTROL"), grant("bob", permission)]}
    alice.put_bucket_acl(Bucket=bucket, AccessControlPolicy=policy)
    shown = alice.get_bucket_acl(Bucket=bucket)["Grants"]
    assert {(one["Grantee"]["ID"], one["Permission"]) for one in shown} == {
        ("alice", "FULL_CONTROL"),
        ("bob", permission),
    }
    calls: list[tuple[str, Any, dict[str, Any]]] = [
        ("READ", bob.list_objects_v2, {}),
        ("READ", bob.head_bucket, {}),
        ("WRITE", bob.put_object, {"Key": "k", "Body": b"x"}),
        ("READ_ACP", bob.get_bucket_acl, {}),
        ("WRITE_ACP", bob.put_bucket_acl, {"AccessControlPolicy": policy}),
    ]
    for needed, call, arguments in calls:
        if permission in (needed, "FULL_CONTROL"):
            call(Bucket=bucket, **arguments)
        else:
            refused(call, Bucket=bucket, **arguments)
    refused(bob.put_bucket_policy, Bucket=bucket, Policy="{}")
    refused(bob.delete_bucket, Bucket=bucket)


def test_a_writers_object_is_the_writers(alice: Any, bob: Any, bucket: str) -> None:
    alice.put_bucket_acl(Bucket=bucket, ACL="public-read-write")
    bob.put_object(Bucket=bucket, Key="k", Body=b"bob's")
    assert bob.get_object_acl(Bucket=bucket, Key="k")["Owner"]["ID"] == "bob"
    refused(alice.get_object, Bucket=bucket, Key="k")
    bob.put_object_acl(Bucket=bucket, Key="k", ACL="bucket-owner-read")
    assert read(alice, bucket, "k") == b"bob's"
    alice.delete_object(Bucket=bucket, Key="k")


def test_who_began_an_upload_may_end_it(alice: Any, bob: Any, nobody: Any, bucket: str) -> None:
    alice.put_bucket_acl(Bucket=bucket, ACL="public-read-write")
    for own, other in ((bob, nobody), (alice, bob)):
        upload = own.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
        own.upload_part(Bucket=bucket, Key="k", UploadId=upload, PartNumber=1, Body=b"x")
        refused(other.list_parts, Bucket=bucket, Key="k", UploadId=upload)
        refused(other.abort_multipart_upload, Bucket=bucket, Key="k", UploadId=upload)
        assert len(own.list_parts(Bucket=bucket, Key="k", UploadId=upload)["Parts"]) == 1
        own.abort_multipart_upload(Bucket=bucket, Key="k", UploadId=upload)
        refused(own.list_parts, status=404, Bucket=bucket, Key="k", UploadId=upload)


def test_anonymous_objects_belong_to_the_bucket(alice: Any, nobody: Any, bucket: str) -> None:
    alice.put_bucket_acl(Bucket=bucket, ACL="public-read-write")
    nobody.put_object(Bucket=bucket, Key="k", Body=b"x")
    assert read(alice, bucket, "k") == b"x"
    refused(nobody.get_object, Bucket=bucket, Key="k")


def test_root_puts_for_the_owner(server: Running, alice: Any, bucket: str) -> None:
    server.client(ROOT).put_object(Bucket=bucket, Key="k", Body=b"x")
    assert read(alice, bucket, "k") == b"x"


def test_the_bucket_owner_may_own_everything(alice: Any, bob: Any, bucket: str) -> None:
    alice.put_bucket_acl(Bucket=bucket, ACL="public-read-write")
    controls = {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    refused(
        alice.put_bucket_ownership_controls,
        "InvalidBucketAclWithObjectOwnership",
        400,
        Bucket=bucket,
        OwnershipControls=controls,
    )
    alice.put_object(Bucket=bucket, Key="was-public", Body=b"x", ACL="public-read")
    alice.put_bucket_acl(Bucket=bucket, ACL="private")
    alice.put_bucket_ownership_controls(Bucket=bucket, OwnershipControls=controls)
    refused(bob.get_object, Bucket=bucket, Key="was-public")
    for call in (alice.put_bucket_acl, lambda **more: alice.put_object(Key="k", Body=b"", **more)):
        refused(call, "AccessControlListNotSupported", 400, Bucket=bucket, ACL="public-read")


def test_the_public_access_block(alice: Any, bob: Any, nobody: Any, bucket: str) -> None:
    alice.put_object(Bucket=bucket, Key="open", Body=b"x", ACL="public-read")
    names = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")

    def block(which: str) -> None:
        flags = {name: name == which for name in names}
        alice.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=flags)
        assert alice.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"] == flags

    block("BlockPublicAcls")
    refused(alice.put_bucket_acl, Bucket=bucket, ACL="public-read")
    refused(alice.put_object, Bucket=bucket, Key="k", Body=b"", ACL="authenticated-read")
    refused(alice.put_object_acl, Bucket=bucket, Key="open", ACL="public-read")
    assert read(nobody, bucket, "open") == b"x"
    block("IgnorePublicAcls")
    refused(nobody.get_object, Bucket=bucket, Key="open")
    statement = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/*"}
    public = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    block("BlockPublicPolicy")
    refused(alice.put_bucket_policy, Bucket=bucket, Policy=public)
    alice.delete_public_access_block(Bucket=bucket)
    alice.put_bucket_policy(Bucket=bucket, Policy=public)
    assert alice.get_bucket_policy_status(Bucket=bucket)["PolicyStatus"]["IsPublic"] is True
    alice.put_object(Bucket=bucket, Key="by-policy", Body=b"x")
    assert read(nobody, bucket, "by-policy") == b"x"
    block("RestrictPublicBuckets")
    refused(nobody.get_object, Bucket=bucket, Key="by-policy")
    refused(bob.get_object, Bucket=bucket, Key="by-policy")
    assert read(alice, bucket, "by-policy") == b"x"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"ACL": "log-delivery-write"}, "InvalidArgument"),
        ({"GrantRead": "id=nobody-known"}, "InvalidArgument"),
        ({"GrantRead": 'emailAddress="a@b.example"'}, "UnresolvableGrantByEmailAddress"),
        ({"GrantRead": "uri=http://example.com/group"}, "InvalidArgument"),
        ({"GrantRead": "id=bob", "ACL": "private"}, "InvalidRequest"),
    ],
)
def test_acls_that_cannot_be_understood(alice: Any, bucket: str, arguments: dict[str, str], code: str) -> None:
    refused(alice.put_object, code, 400, Bucket=bucket, Key="k", Body=b"", **arguments)
    refused(alice.head_object, status=404, Bucket=bucket, Key="k")


def test_policies_ask_for_tags(alice: Any, bob: Any, bucket: str) -> None:
    statement = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": ["s3:GetObject", "s3:GetObjectTagging"],
        "Resource": f"arn:aws:s3:::{bucket}/*",
        "Condition": {"StringEquals": {"s3:ExistingObjectTag/Class": "open"}},
    }
    alice.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    alice.put_object(Bucket=bucket, Key="open", Body=b"x", Tagging="Class=open")
    alice.put_object(Bucket=bucket, Key="shut", Body=b"x", Tagging="Class=shut")
    assert read(bob, bucket, "open") == b"x"
    assert bob.get_object_tagging(Bucket=bucket, Key="open")["TagSet"]
    refused(bob.get_object, Bucket=bucket, Key="shut")
    refused(bob.get_object, Bucket=bucket, Key="missing")
    alice.put_object(Bucket=bucket, Key="open", Body=b"y", Tagging="Class=open")  # there is one already
    alice.delete_object(Bucket=bucket, Key="shut")
    assert read(bob, bucket, "open") == b"y"


def test_a_missing_key_is_told_only_under_a_listed_prefix(alice: Any, bob: Any, bucket: str) -> None:
    statement = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:ListBucket",
        "Resource": f"arn:aws:s3:::{bucket}",
        "Condition": {"StringLike": {"s3:prefix": "public/*"}},
    }
    alice.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    refused(bob.head_object, status=404, Bucket=bucket, Key="public/k")
    refused(bob.head_object, status=403, Bucket=bucket, Key="private/k")


def test_the_owner_that_a_client_expects(alice: Any, bob: Any, bucket: str) -> None:
    own = f"b-{uuid.uuid4().hex[:12]}"
    bob.create_bucket(Bucket=own)
    alice.put_object(Bucket=bucket, Key="k", Body=b"x", ACL="public-read", ExpectedBucketOwner="alice")
    for call, more in (
        (alice.put_object, {"Key": "k", "Body": b""}),
        (alice.get_object, {"Key": "k"}),
        (alice.list_objects_v2, {}),
        (alice.delete_object, {"Key": "k"}),
        (alice.delete_objects, {"Delete": {"Objects": [{"Key": "k"}]}}),
        (alice.delete_bucket, {}),
    ):
        if call == alice.delete_objects:
            answer = call(Bucket=bucket, ExpectedBucketOwner="bob", **more)
            assert [error["Code"] for error in answer["Errors"]] == ["AccessDenied"]
        else:
            refused(call, "", 403, Bucket=bucket, ExpectedBucketOwner="bob", **more)
    copy: dict[str, Any] = {"Bucket": own, "Key": "k", "CopySource": f"{bucket}/k", "ExpectedBucketOwner": "bob"}
    refused(bob.copy_object, ExpectedSourceBucketOwner="bob", **copy)
    bob.copy_object(ExpectedSourceBucketOwner="alice", **copy)
    assert read(alice, bucket, "k") == b"x"
