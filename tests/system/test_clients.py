"""The usual S3 clients at their default settings: put, get, list, multipart, delete, sync."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.system.pool import SystemPool

LARGE = 20 << 20  # more than every client's multipart threshold (s3cmd: 15 MiB)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    source = random.Random(3)
    for name, size in {
        "a.txt": 3,
        "empty": 0,
        "sub/b.bin": 70_000,
        "sub/deep/ü ~ name.bin": 5000,
        "large.bin": LARGE,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(source.randbytes(size))
    return root


def same(left: Path, right: Path) -> None:
    names = sorted(path.relative_to(left) for path in left.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(right) for path in right.rglob("*") if path.is_file())
    for name in names:
        assert (left / name).read_bytes() == (right / name).read_bytes(), name


def test_boto3(running: SystemPool, tree: Path, tmp_path: Path) -> None:
    s3 = running.boto()
    s3.create_bucket(Bucket="boto")
    body = (tree / "sub/b.bin").read_bytes()
    s3.put_object(Bucket="boto", Key="sub/b.bin", Body=body)
    assert s3.get_object(Bucket="boto", Key="sub/b.bin")["Body"].read() == body
    s3.upload_file(str(tree / "large.bin"), "boto", "large.bin")  # multipart, checksums as boto3 likes
    assert "-" in s3.head_object(Bucket="boto", Key="large.bin")["ETag"]
    s3.download_file("boto", "large.bin", str(tmp_path / "large.bin"))
    assert (tmp_path / "large.bin").read_bytes() == (tree / "large.bin").read_bytes()
    assert [item["Key"] for item in s3.list_objects_v2(Bucket="boto")["Contents"]] == ["large.bin", "sub/b.bin"]
    page = s3.list_objects_v2(Bucket="boto", Delimiter="/")
    assert [item["Prefix"] for item in page["CommonPrefixes"]] == ["sub/"]
    s3.delete_object(Bucket="boto", Key="large.bin")
    s3.delete_objects(Bucket="boto", Delete={"Objects": [{"Key": "sub/b.bin"}, {"Key": "never there"}]})
    assert s3.list_objects_v2(Bucket="boto")["KeyCount"] == 0
    s3.delete_bucket(Bucket="boto")


def test_aws_cli(running: SystemPool, tree: Path, tmp_path: Path) -> None:
    running.run("aws", "s3", "mb", "s3://awscli")
    running.run("aws", "s3", "cp", tree / "a.txt", "s3://awscli/one.txt")
    running.run("aws", "s3", "cp", "s3://awscli/one.txt", tmp_path / "one.txt")
    assert (tmp_path / "one.txt").read_bytes() == (tree / "a.txt").read_bytes()
    running.run("aws", "s3", "sync", tree, "s3://awscli/tree")
    assert "large.bin" in running.run("aws", "s3", "ls", "s3://awscli/tree/").stdout
    running.run("aws", "s3", "sync", "s3://awscli/tree", tmp_path / "tree")
    same(tree, tmp_path / "tree")
    assert running.run("aws", "s3", "sync", tree, "s3://awscli/tree").stdout.strip() == ""
    running.run("aws", "s3", "rm", "--recursive", "s3://awscli/tree")
    running.run("aws", "s3", "rb", "--force", "s3://awscli")


def test_s3cmd(running: SystemPool, tree: Path, tmp_path: Path) -> None:
    host = running.endpoint.removeprefix("http://")
    keys = [f"--access_key={running.env['AWS_ACCESS_KEY_ID']}", f"--secret_key={running.env['AWS_SECRET_ACCESS_KEY']}"]
    base = ["s3cmd", *keys, f"--host={host}", f"--host-bucket={host}", "--no-ssl", "--no-progress"]
    running.run(*base, "mb", "s3://s3cmd")
    running.run(*base, "put", tree / "large.bin", "s3://s3cmd/large.bin")
    running.run(*base, "get", "s3://s3cmd/large.bin", tmp_path / "large.bin")
    assert (tmp_path / "large.bin").read_bytes() == (tree / "large.bin").read_bytes()
    running.run(*base, "sync", f"{tree}/", "s3://s3cmd/tree/")
    assert "s3://s3cmd/tree/sub/b.bin" in running.run(*base, "ls", "-r", "s3://s3cmd/").stdout
    (tmp_path / "tree").mkdir()
    running.run(*base, "sync", "s3://s3cmd/tree/", f"{tmp_path}/tree/")
    same(tree, tmp_path / "tree")
    running.run(*base, "del", "s3://s3cmd/large.bin")
    running.run(*base, "rb", "--recursive", "--force", "s3://s3cmd")


def test_rclone(running: SystemPool, tree: Path, tmp_path: Path) -> None:
    remote = {"TYPE": "s3", "PROVIDER": "Other", "ENV_AUTH": "true", "REGION": "us-east-1"}
    remote["ENDPOINT"] = running.endpoint
    running.env |= {f"RCLONE_CONFIG_T_{name}": value for name, value in remote.items()}
    running.env |= {"RCLONE_CONFIG": str(tmp_path / "rclone.conf"), "RCLONE_S3_UPLOAD_CUTOFF": "10M"}
    (tmp_path / "rclone.conf").touch()
    running.run("rclone", "mkdir", "t:rclone")
    running.run("rclone", "copyto", tree / "a.txt", "t:rclone/one.txt")
    assert running.run("rclone", "cat", "t:rclone/one.txt").stdout.encode(errors="replace") is not None
    running.run("rclone", "sync", tree, "t:rclone/tree")
    running.run("rclone", "check", "--download", tree, "t:rclone/tree")
    assert "sub/b.bin" in running.run("rclone", "lsf", "-R", "t:rclone/tree").stdout
    running.run("rclone", "sync", "t:rclone/tree", tmp_path / "tree")
    same(tree, tmp_path / "tree")
    running.run("rclone", "deletefile", "t:rclone/one.txt")
    running.run("rclone", "purge", "t:rclone")
