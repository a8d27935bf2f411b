"""boto3 at default settings against a gateway in this process: over dictionaries, and over the real metadata server and
chunks on six drives."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import random
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.fakes.s3server import ALICE, BOB, ROOT, TENANT, Running, running
from trivium.metadata.messages import Credential
from trivium.s3 import checksums

MIB = 1 << 20


@pytest.fixture(scope="module", params=["dictionaries", "real"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    real = tmp_path_factory.mktemp("drives") if request.param == "real" else None
    with running(real=real) as started:
        yield started


@pytest.fixture(scope="module")
def s3(server: Running) -> Any:
    return server.client()


@pytest.fixture
def bucket(s3: Any, request: pytest.FixtureRequest) -> str:
    name = f"b-{zlib.crc32(request.node.name.encode()):08x}"
    s3.create_bucket(Bucket=name)
    return name


def data_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def code(error: pytest.ExceptionInfo[ClientError]) -> tuple[str, int]:
    answer = error.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]


@pytest.mark.parametrize("size", [0, 1, 16_384, 16_385, 65_537, 4 * MIB, 4 * MIB + 1, 11 * MIB])
def test_bodies_of_every_size_come_back(s3: Any, bucket: str, size: int) -> None:
    data = data_of(size)
    put = s3.put_object(Bucket=bucket, Key="k", Body=data, Metadata={"color": "blue"}, ContentType="text/x")
    assert put["ETag"] == f'"{hashlib.md5(data).hexdigest()}"'
    got = s3.get_object(Bucket=bucket, Key="k")
    assert got["Body"].read() == data
    assert (got["ContentType"], got["Metadata"], got["ETag"]) == ("text/x", {"color": "blue"}, put["ETag"])
    assert s3.head_object(Bucket=bucket, Key="k")["ContentLength"] == size
    if size > 1:
        part = s3.get_object(Bucket=bucket, Key="k", Range=f"bytes={size // 2}-{size - 1}")
        assert part["Body"].read() == data[size // 2 :]
        assert part["ContentRange"] == f"bytes {size // 2}-{size - 1}/{size}"


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_checksums_are_kept_and_told(s3: Any, bucket: str, algorithm: str) -> None:
    data = data_of(100_000)
    put = s3.put_object(Bucket=bucket, Key="k", Body=data, ChecksumAlgorithm=algorithm)
    got = s3.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert got["Body"].read() == data  # botocore verifies it while reading
    assert got[f"Checksum{algorithm}"] == put[f"Checksum{algorithm}"] and got["ChecksumType"] == "FULL_OBJECT"
    told = s3.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=["Checksum", "ObjectSize", "ETag"])
    assert told["Checksum"][f"Checksum{algorithm}"] == put[f"Checksum{algorithm}"] and told["ObjectSize"] == len(data)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ContentMD5": base64.b64encode(bytes(16)).decode()},
        {"ChecksumCRC32": "AAAAAA=="},
        {"ChecksumSHA256": base64.b64encode(bytes(32)).decode()},
    ],
)
@pytest.mark.parametrize("size", [10, 5 * MIB])
def test_a_wrong_digest_leaves_nothing(s3: Any, bucket: str, wrong: dict[str, str], size: int) -> None:
    with pytest.raises(ClientError) as caught:
        s3.put_object(Bucket=bucket, Key="k", Body=data_of(size), **wrong)
    assert code(caught) == ("BadDigest", 400)
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_conditional_reads_and_writes(s3: Any, bucket: str) -> None:
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"1", IfNoneMatch="*")["ETag"]
    for body in (b"2", data_of(MIB)):
        for guard in ({"IfNoneMatch": "*"}, {"IfNoneMatch": etag}, {"IfMatch": '"0123"'}):
            with pytest.raises(ClientError) as caught:
                s3.put_object(Bucket=bucket, Key="k", Body=body, **guard)
            assert code(caught) == ("PreconditionFailed", 412)
    with pytest.raises(ClientError) as caught:
        s3.get_object(Bucket=bucket, Key="k", IfNoneMatch=etag)
    assert code(caught)[1] == 304
    with pytest.raises(ClientError) as caught:
        s3.get_object(Bucket=bucket, Key="k", IfMatch='"0123"')
    assert code(caught) == ("PreconditionFailed", 412)
    assert s3.put_object(Bucket=bucket, Key="k", Body=b"3", IfMatch=etag)["ETag"] != etag
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"3"
    s3.put_object(Bucket=bucket, Key="k", Body=b"4", IfNoneMatch=etag)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"4"


def test_content_encodings_are_kept(s3: Any, bucket: str) -> None:
    for given, kept in (("deflate, gzip", "deflate, gzip"), ("gzip,aws-chunked", "gzip"), ("aws-chunked", None)):
        s3.put_object(Bucket=bucket, Key="k", Body=b"", ContentEncoding=given)
        assert s3.head_object(Bucket=bucket, Key="k").get("ContentEncoding") == kept


def test_ranges_that_are_not_there(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"12345")
    with pytest.raises(ClientError) as caught:
        s3.get_object(Bucket=bucket, Key="k", Range="bytes=5-")
    assert code(caught) == ("InvalidRange", 416)
    assert s3.get_object(Bucket=bucket, Key="k", Range="bytes=-2")["Body"].read() == b"45"


@pytest.mark.parametrize("key", ["a", "a/b", "a//b", "/a", "ü/日本", "a b+c%2F?&=", "x" * 1024, "dir/", "a\tb\x01"])
def test_keys_of_every_kind(s3: Any, bucket: str, key: str) -> None:
    s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == key.encode()
    assert [one["Key"] for one in s3.list_objects_v2(Bucket=bucket)["Contents"]] == [key]
    s3.delete_object(Bucket=bucket, Key=key)
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_a_key_too_long(s3: Any, bucket: str) -> None:
    with pytest.raises(ClientError) as caught:
        s3.put_object(Bucket=bucket, Key="x" * 1025, Body=b"")
    assert code(caught) == ("KeyTooLongError", 400)


def test_listings_are_complete_page_by_page(s3: Any, bucket: str) -> None:
    keys = sorted(f"{folder}/{number:03}" for folder in ("a", "b", "c d") for number in range(12))
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=b"")
    for name, field in (
        ("list_objects_v2", "Contents"),
        ("list_objects", "Contents"),
        ("list_object_versions", "Versions"),
    ):
        pages = s3.get_paginator(name).paginate(Bucket=bucket, PaginationConfig={"PageSize": 5})
        assert [one["Key"] for page in pages for one in page.get(field, [])] == keys
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Delimiter="/", PaginationConfig={"PageSize": 2})
    assert [one["Prefix"] for page in pages for one in page.get("CommonPrefixes", [])] == ["a/", "b/", "c d/"]
    after = s3.list_objects_v2(Bucket=bucket, StartAfter="b/005", Prefix="b/")
    assert [one["Key"] for one in after["Contents"]] == [f"b/{number:03}" for number in range(6, 12)]
    assert s3.list_objects_v2(Bucket=bucket, MaxKeys=0)["KeyCount"] == 0


def test_a_bulk_delete_tells_about_each(s3: Any, bucket: str) -> None:
    for number in range(20):
        s3.put_object(Bucket=bucket, Key=f"k{number}", Body=b"")
    objects = [{"Key": f"k{number}"} for number in range(20)] + [{"Key": "missing"}, {"Key": "x" * 2000}]
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": objects})
    assert len(answer["Deleted"]) == 21 and [one["Code"] for one in answer["Errors"]] == ["KeyTooLongError"]
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_copies(s3: Any, bucket: str) -> None:
    data = data_of(5 * MIB)
    s3.put_object(Bucket=bucket, Key="a/ü", Body=data, Metadata={"m": "1"}, ContentType="t/a", Tagging="x=1")
    s3.copy_object(Bucket=bucket, Key="b", CopySource={"Bucket": bucket, "Key": "a/ü"})
    got = s3.get_object(Bucket=bucket, Key="b")
    assert (got["Body"].read(), got["Metadata"], got["ContentType"]) == (data, {"m": "1"}, "t/a")
    s3.copy_object(
        Bucket=bucket,
        Key="b",
        CopySource=f"{bucket}/b",
        MetadataDirective="REPLACE",
        Metadata={"m": "2"},
        ChecksumAlgorithm="SHA256",
    )
    told = s3.head_object(Bucket=bucket, Key="b", ChecksumMode="ENABLED")
    assert told["Metadata"] == {"m": "2"} and told["TagCount"] == 1
    assert told["ChecksumSHA256"] == base64.b64encode(hashlib.sha256(data).digest()).decode()
    with pytest.raises(ClientError) as caught:
        s3.copy_object(Bucket=bucket, Key="b", CopySource=f"{bucket}/b")
    assert code(caught) == ("InvalidRequest", 400)
    with pytest.raises(ClientError) as caught:
        s3.copy_object(Bucket=bucket, Key="c", CopySource=f"{bucket}/none")
    assert code(caught) == ("NoSuchKey", 404)
    with pytest.raises(ClientError) as caught:
        s3.copy_object(Bucket=bucket, Key="c", CopySource=f"{bucket}/b", CopySourceIfMatch='"0"')
    assert code(caught) == ("PreconditionFailed", 412)


def test_a_multipart_upload(s3: Any, bucket: str) -> None:
    parts = [data_of(5 * MIB), data_of(5 * MIB + 7), data_of(99)]
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m", Metadata={"a": "b"})["UploadId"]
    assert [one["UploadId"] for one in s3.list_multipart_uploads(Bucket=bucket)["Uploads"]] == [upload]
    tags = []
    for number, part in reversed(list(enumerate(parts, 1))):
        done = s3.upload_part(Bucket=bucket, Key="m", UploadId=upload, PartNumber=number, Body=part)
        tags.insert(0, {"PartNumber": number, "ETag": done["ETag"]})
    listed = s3.list_parts(Bucket=bucket, Key="m", UploadId=upload, MaxParts=2)
    assert [one["Size"] for one in listed["Parts"]] == [5 * MIB, 5 * MIB + 7] and listed["IsTruncated"]
    for wrong, name in (
        ([tags[1], tags[0]], "InvalidPartOrder"),
        ([{**tags[0], "ETag": '"00"'}], "InvalidPart"),
        ([*tags, {"PartNumber": 9, "ETag": tags[0]["ETag"]}], "InvalidPart"),
    ):
        with pytest.raises(ClientError) as caught:
            s3.complete_multipart_upload(Bucket=bucket, Key="m", UploadId=upload, MultipartUpload={"Parts": wrong})
        assert code(caught) == (name, 400)
    answer = s3.complete_multipart_upload(Bucket=bucket, Key="m", UploadId=upload, MultipartUpload={"Parts": tags})
    digest = hashlib.md5(b"".join(hashlib.md5(part).digest() for part in parts)).hexdigest()
    assert answer["ETag"] == f'"{digest}-3"'
    got = s3.get_object(Bucket=bucket, Key="m")
    assert got["Body"].read() == b"".join(parts) and got["Metadata"] == {"a": "b"}
    second = s3.get_object(Bucket=bucket, Key="m", PartNumber=2)
    assert second["Body"].read() == parts[1] and second["PartsCount"] == 3
    across = s3.get_object(Bucket=bucket, Key="m", Range=f"bytes={5 * MIB - 3}-{5 * MIB + 2}")["Body"].read()
    assert across == parts[0][-3:] + parts[1][:3]
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)


def _whole_checksum(algorithm: str, kind: str, parts: list[bytes]) -> str:
    """By hashing the data itself."""

    def of(data: bytes) -> bytes:
        hashed = checksums.hasher(algorithm)
        hashed.update(data)
        return hashed.digest()

    if kind == "FULL_OBJECT":
        return base64.b64encode(of(b"".join(parts))).decode()
    return base64.b64encode(of(b"".join(map(of, parts)))).decode() + f"-{len(parts)}"


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [("CRC32", "COMPOSITE"), ("CRC32C", "FULL_OBJECT"), ("CRC64NVME", "FULL_OBJECT"), ("SHA256", "COMPOSITE")],
)
def test_the_checksum_of_a_multipart_object(s3: Any, bucket: str, algorithm: str, kind: str) -> None:
    parts = [data_of(5 * MIB), data_of(1000)]
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m", ChecksumAlgorithm=algorithm, ChecksumType=kind)[
        "UploadId"
    ]
    tags = []
    for number, part in enumerate(parts, 1):
        done = s3.upload_part(
            Bucket=bucket, Key="m", UploadId=upload, PartNumber=number, Body=part, ChecksumAlgorithm=algorithm
        )
        name = f"Checksum{algorithm}"
        tags.append({"PartNumber": number, "ETag": done["ETag"], name: done[name]})
    told = _whole_checksum(algorithm, kind, parts)
    with pytest.raises(ClientError) as caught:
        s3.complete_multipart_upload(
            Bucket=bucket,
            Key="m",
            UploadId=upload,
            MultipartUpload={"Parts": tags},
            **{f"Checksum{algorithm}": _whole_checksum(algorithm, kind, parts[:1])},
        )
    assert code(caught) == ("BadDigest", 400)
    answer = s3.complete_multipart_upload(
        Bucket=bucket, Key="m", UploadId=upload, MultipartUpload={"Parts": tags}, **{f"Checksum{algorithm}": told}
    )
    assert answer["ChecksumType"] == kind and answer[f"Checksum{algorithm}"] == told
    if kind == "COMPOSITE":
        assert answer[f"Checksum{algorithm}"].endswith("-2")
    got = s3.get_object(Bucket=bucket, Key="m", ChecksumMode="ENABLED")
    assert got["Body"].read() == b"".join(parts) and got[f"Checksum{algorithm}"] == answer[f"Checksum{algorithm}"]


def test_parts_copied_from_objects(s3: Any, bucket: str) -> None:
    data = data_of(11 * MIB)
    s3.put_object(Bucket=bucket, Key="source", Body=data)
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m")["UploadId"]
    tags = []
    for number, (first, last) in enumerate([(3, 6 * MIB), (6 * MIB + 1, 6 * MIB + 100)], 1):
        done = s3.upload_part_copy(
            Bucket=bucket,
            Key="m",
            UploadId=upload,
            PartNumber=number,
            CopySource=f"{bucket}/source",
            CopySourceRange=f"bytes={first}-{last}",
        )
        etag = done["CopyPartResult"]["ETag"]
        assert etag == f'"{hashlib.md5(data[first : last + 1]).hexdigest()}"'
        tags.append({"PartNumber": number, "ETag": etag})
    s3.complete_multipart_upload(Bucket=bucket, Key="m", UploadId=upload, MultipartUpload={"Parts": tags})
    assert s3.get_object(Bucket=bucket, Key="m")["Body"].read() == data[3 : 6 * MIB + 101]


def test_an_aborted_upload_is_gone(s3: Any, bucket: str) -> None:
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m")["UploadId"]
    s3.upload_part(Bucket=bucket, Key="m", UploadId=upload, PartNumber=1, Body=b"x")
    s3.abort_multipart_upload(Bucket=bucket, Key="m", UploadId=upload)
    for call in (s3.list_parts, s3.abort_multipart_upload):
        with pytest.raises(ClientError) as caught:
            call(Bucket=bucket, Key="m", UploadId=upload)
        assert code(caught) == ("NoSuchUpload", 404)


def test_transfers_of_the_s3transfer_manager(s3: Any, bucket: str, tmp_path: Any) -> None:
    source = tmp_path / "source"
    source.write_bytes(data_of(20 * MIB + 5))
    s3.upload_file(str(source), bucket, "big")
    s3.download_file(bucket, "big", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


def test_tags(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"", Tagging="a=1&b=%20x")
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == [
        {"Key": "a", "Value": "1"},
        {"Key": "b", "Value": " x"},
    ]
    s3.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": [{"Key": "c", "Value": "<&>"}]})
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == [{"Key": "c", "Value": "<&>"}]
    s3.delete_object_tagging(Bucket=bucket, Key="k")
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == []
    with pytest.raises(ClientError) as caught:
        s3.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": [{"Key": "c", "Value": "1"}] * 2})
    assert code(caught)[0] == "InvalidTag"
    s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": [{"Key": "t", "Value": "v"}]})
    assert s3.get_bucket_tagging(Bucket=bucket)["TagSet"] == [{"Key": "t", "Value": "v"}]
    s3.delete_bucket_tagging(Bucket=bucket)
    with pytest.raises(ClientError) as caught:
        s3.get_bucket_tagging(Bucket=bucket)
    assert code(caught) == ("NoSuchTagSet", 404)


@pytest.mark.parametrize("name", ["ab", "Upper", "a..b", "-ab", "ab-", "192.168.1.1", "a_b", "x" * 64, "xn--a"])
def test_bad_bucket_names(server: Running, name: str) -> None:
    client = server.client(parameter_validation=False)
    client.meta.events.unregister("before-parameter-build.s3", None)
    with pytest.raises(ClientError) as caught:
        client.create_bucket(Bucket=name)
    assert code(caught) == ("InvalidBucketName", 400)


def test_buckets(server: Running, s3: Any, bucket: str) -> None:
    s3.head_bucket(Bucket=bucket)
    assert bucket in [one["Name"] for one in s3.list_buckets()["Buckets"]]
    with pytest.raises(ClientError) as caught:
        server.client(ALICE).create_bucket(Bucket=bucket)
    assert code(caught) == ("BucketAlreadyExists", 409)
    s3.put_object(Bucket=bucket, Key="k", Body=b"")
    with pytest.raises(ClientError) as caught:
        s3.delete_bucket(Bucket=bucket)
    assert code(caught) == ("BucketNotEmpty", 409)
    s3.delete_object(Bucket=bucket, Key="k")
    s3.delete_bucket(Bucket=bucket)
    for call in (s3.head_bucket, s3.list_objects_v2, s3.delete_bucket):
        with pytest.raises(ClientError) as caught:
            call(Bucket=bucket)
        assert code(caught)[1] == 404
    with pytest.raises(ClientError) as caught:
        s3.put_object(Bucket=bucket, Key="k", Body=data_of(MIB))
    assert code(caught) == ("NoSuchBucket", 404)


def test_what_is_unset_is_answered_as_aws_does(s3: Any, bucket: str) -> None:
    assert "Status" not in s3.get_bucket_versioning(Bucket=bucket)
    assert s3.get_bucket_location(Bucket=bucket)["LocationConstraint"] is None
    assert s3.get_bucket_request_payment(Bucket=bucket)["Payer"] == "BucketOwner"
    assert "LoggingEnabled" not in s3.get_bucket_logging(Bucket=bucket)
    assert s3.get_bucket_acl(Bucket=bucket)["Grants"][0]["Permission"] == "FULL_CONTROL"
    for call, name in (
        ("get_bucket_cors", "NoSuchCORSConfiguration"),
        ("get_bucket_policy", "NoSuchBucketPolicy"),
        ("get_bucket_lifecycle_configuration", "NoSuchLifecycleConfiguration"),
        ("get_bucket_encryption", "ServerSideEncryptionConfigurationNotFoundError"),
        ("get_bucket_replication", "ReplicationConfigurationNotFoundError"),
        ("get_bucket_website", "NoSuchWebsiteConfiguration"),
        ("get_object_lock_configuration", "ObjectLockConfigurationNotFoundError"),
        ("get_public_access_block", "NoSuchPublicAccessBlockConfiguration"),
        ("get_bucket_ownership_controls", "OwnershipControlsNotFoundError"),
    ):
        with pytest.raises(ClientError) as caught:
            getattr(s3, call)(Bucket=bucket)
        assert code(caught) == (name, 404)
    with pytest.raises(ClientError) as caught:
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    assert code(caught) == ("NotImplemented", 501)
    with pytest.raises(ClientError) as caught:
        s3.put_object(Bucket=bucket, Key="k", Body=b"", ServerSideEncryption="AES256")
    assert code(caught) == ("NotImplemented", 501)


# ---- who may


def test_wrong_keys(server: Running, bucket: str) -> None:
    for who, name in (
        (Credential("NOBODY", "x", ""), "InvalidAccessKeyId"),
        (Credential(ROOT.access_key, "wrong", ""), "SignatureDoesNotMatch"),
    ):
        with pytest.raises(ClientError) as caught:
            server.client(who).list_buckets()
        assert code(caught) == (name, 403)


def test_others_need_a_policy(server: Running, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="open/a", Body=b"1")
    s3.put_object(Bucket=bucket, Key="shut", Body=b"2")
    bob, nobody = server.client(BOB), server.client(None)

    def refused(call: Any, **arguments: Any) -> None:
        with pytest.raises(ClientError) as caught:
            call(Bucket=bucket, **arguments)
        assert code(caught)[1] == 403

    refused(bob.get_object, Key="open/a")
    refused(nobody.get_object, Key="open/a")
    statements = [
        {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/open/*"},
        {
            "Effect": "Allow",
            "Principal": {"AWS": "arn:aws:iam:::user/bob"},
            "Action": ["s3:ListBucket", "s3:Put*"],
            "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
        },
        {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": f"arn:aws:s3:::{bucket}/open/never*"},
    ]
    document = json.dumps({"Version": "2012-10-17", "Statement": statements})
    s3.put_bucket_policy(Bucket=bucket, Policy=document)
    assert json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"]) == json.loads(document)
    assert nobody.get_object(Bucket=bucket, Key="open/a")["Body"].read() == b"1"
    refused(nobody.get_object, Key="shut")
    refused(nobody.list_objects_v2)
    assert bob.list_objects_v2(Bucket=bucket)["KeyCount"] == 2
    bob.put_object(Bucket=bucket, Key="new", Body=b"")
    refused(bob.put_object, Key="open/never", Body=b"")
    refused(bob.delete_object, Key="new")
    refused(s3.put_object, Key="open/never2", Body=b"")  # Deny binds the owner too
    s3.delete_bucket_policy(Bucket=bucket)
    refused(nobody.get_object, Key="open/a")
    with pytest.raises(ClientError) as caught:
        s3.put_bucket_policy(Bucket=bucket, Policy='{"Version": "2012-10-17", "Statement": []}')
    assert code(caught)[0] == "MalformedPolicy"


def test_a_tenant_reaches_its_bucket_alone(server: Running, s3: Any, bucket: str) -> None:
    tenant = server.client(TENANT)
    with pytest.raises(ClientError) as caught:
        tenant.list_objects_v2(Bucket=bucket)
    assert code(caught) == ("AccessDenied", 403)
    with pytest.raises(ClientError) as caught:
        tenant.create_bucket(Bucket="another-one")
    assert code(caught) == ("AccessDenied", 403)
    tenant.create_bucket(Bucket=TENANT.bucket)
    tenant.put_object(Bucket=TENANT.bucket, Key="k", Body=b"mine")
    assert [one["Name"] for one in tenant.list_buckets()["Buckets"]] == [TENANT.bucket]
    s3.delete_object(Bucket=TENANT.bucket, Key="k")
    s3.delete_bucket(Bucket=TENANT.bucket)


@pytest.mark.parametrize("version", ["default", "s3v4"])
def test_presigned_urls(server: Running, bucket: str, version: str) -> None:
    s3 = server.client() if version == "default" else server.client(signature_version=version)
    url = s3.generate_presigned_url("put_object", {"Bucket": bucket, "Key": "p q"}, ExpiresIn=60)
    connection = http.client.HTTPConnection("127.0.0.1", server.port)  # urllib would add a Content-Type of its own
    connection.request("PUT", url.removeprefix(server.url), b"presigned")
    assert connection.getresponse().status == 200
    connection.close()
    url = s3.generate_presigned_url(
        "get_object", {"Bucket": bucket, "Key": "p q", "ResponseContentType": "text/odd"}, ExpiresIn=60
    )
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"presigned" and answer.headers["Content-Type"] == "text/odd"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url.replace("p%20q", "other"))
    assert caught.value.code == 403


@pytest.mark.parametrize("version", ["default", "s3v4"])
def test_a_presigned_post(server: Running, bucket: str, version: str) -> None:
    s3 = server.client() if version == "default" else server.client(signature_version=version)
    post = s3.generate_presigned_post(
        bucket,
        "f/${filename}",
        Fields={"success_action_status": "201"},
        Conditions=[
            ["content-length-range", 1, 300_000],
            {"success_action_status": "201"},
            ["starts-with", "$key", "f/x"],
        ],
    )

    def send(data: bytes) -> int:
        body = b"".join(
            f'--B\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in post["fields"].items()
        )
        body += (
            b'--B\r\nContent-Disposition: form-data; name="file"; filename="x.bin"\r\n\r\n' + data + b"\r\n--B--\r\n"
        )
        request = urllib.request.Request(post["url"], body, {"Content-Type": "multipart/form-data; boundary=B"})
        try:
            answer = urllib.request.urlopen(request)
            assert b"<PostResponse><Location>" in answer.read()  # the one answer without a namespace
            return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert send(data_of(200_000)) == 201
    assert s3.get_object(Bucket=bucket, Key="f/x.bin")["Body"].read() == data_of(200_000)
    assert send(b"") == 400 and send(data_of(400_000)) == 400
    name = "signature" if "signature" in post["fields"] else "x-amz-signature"
    signature = post["fields"].pop(name)
    assert send(b"x") == 400
    post["fields"][name] = "no" + signature[2:]
    assert send(b"x") == 403
    post["fields"][name] = signature
    post["fields"]["x-amz-meta-more"] = "not allowed by the policy"
    assert send(b"x") == 403
    assert s3.get_object(Bucket=bucket, Key="f/x.bin")["ContentLength"] == 200_000


def test_cors(server: Running, s3: Any, bucket: str) -> None:
    rule = {
        "AllowedOrigins": ["http://*.example.com"],
        "AllowedMethods": ["GET", "PUT"],
        "AllowedHeaders": ["x-*"],
        "ExposeHeaders": ["ETag"],
        "MaxAgeSeconds": 30,
    }
    s3.put_bucket_cors(Bucket=bucket, CORSConfiguration={"CORSRules": [rule]})
    assert s3.get_bucket_cors(Bucket=bucket)["CORSRules"] == [rule]

    def preflight(origin: str, headers: str = "x-a") -> int:
        request = urllib.request.Request(
            f"{server.url}/{bucket}/k",
            method="OPTIONS",
            headers={
                "Origin": origin,
                "Access-Control-Request-Method": "PUT",
                "Access-Control-Request-Headers": headers,
            },
        )
        try:
            with urllib.request.urlopen(request) as answer:
                assert answer.headers["Access-Control-Allow-Origin"] == origin
                assert answer.headers["Access-Control-Max-Age"] == "30"
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    assert preflight("http://www.example.com") == 200
    assert preflight("http://evil.com") == 403 and preflight("http://www.example.com", "authorization") == 403
    s3.delete_bucket_cors(Bucket=bucket)
    assert preflight("http://www.example.com") == 403


def test_virtual_host_style(server: Running, bucket: str) -> None:
    url = f"http://127.0.0.1:{server.port}/some/key"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(url, headers={"Host": f"{bucket}.localhost:{server.port}"}))
    assert caught.value.code == 403 and bucket not in url  # the bucket was found by its host name


def test_health_and_metrics(server: Running, s3: Any) -> None:
    for path in ("/-/live", "/-/ready", "/-/health", "/_health", "/_ready"):
        assert urllib.request.urlopen(server.url + path).status == 200
    s3.list_buckets()
    text = urllib.request.urlopen(server.url + "/_metrics").read().decode()
    assert 'trivium_s3_requests_total{operation="ListBuckets",status="200"}' in text
