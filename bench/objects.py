"""Object work: wrk over presigned URLs for small ones, curl for large ones, so that no Python loads the server."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

LARGE_MIB = 64
COUNT = 8
PARALLEL = 4
SECONDS = 4

WRK_SCRIPT = """
local urls = {} for line in io.lines("%(urls)s") do urls[#urls + 1] = line end
local i, body = 0, nil
if "%(body)s" ~= "" then body = io.open("%(body)s", "rb"):read("*a") end
request = function() i = i + 1 return wrk.format("%(method)s", urls[(i - 1) %% #urls + 1], nil, body) end
done = function(s, l, r) io.write(string.format("BAD %%d\\n", s.errors.status + s.errors.connect + s.errors.read)) end
"""


def wrk(work: Path, endpoint: str, name: str, urls: list[str], method: str, body: bytes = b"") -> float | None:
    files = {"urls": work / f"{name}.urls", "body": work / f"{name}.body", "script": work / f"{name}.lua"}
    files["urls"].write_text("\n".join(urls))
    files["body"].write_bytes(body)
    files["script"].write_text(
        WRK_SCRIPT % {"urls": files["urls"], "body": files["body"] if body else "", "method": method}
    )
    command = ["wrk", "-t1", "-c16", f"-d{SECONDS}s", "-s", str(files["script"]), endpoint]
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found, bad = re.search(r"Requests/sec:\s+([\d.]+)", text), re.search(r"BAD (\d+)", text)
    return round(float(found[1]), 1) if found and bad and bad[1] == "0" else None


def curls(urls: list[str], *arguments: str) -> float | None:
    """MB/s of all transfers together, PARALLEL at once; None when one failed."""
    began, left, running, bad = time.perf_counter(), list(urls), list[subprocess.Popen[bytes]](), 0
    while left or running:
        while left and len(running) < PARALLEL:
            running.append(subprocess.Popen(["curl", "-sf", "-o", "/dev/null", *arguments, left.pop()]))
        bad += running.pop(0).wait() != 0
    return None if bad else round(len(urls) * LARGE_MIB * 1.048576 / (time.perf_counter() - began), 1)


def client(endpoint: str, key: str, secret: str) -> Any:
    import boto3
    from botocore.client import Config

    config = Config(signature_version="s3v4", s3={"addressing_style": "path"})
    return boto3.client("s3", endpoint_url=endpoint, aws_access_key_id=key, aws_secret_access_key=secret,
                        region_name="us-east-1", config=config)  # fmt: skip


def measure(work: Path, endpoint: str, key: str, secret: str) -> dict[str, float | None]:
    s3, bucket, body = client(endpoint, key, secret), "bench", os.urandom(4096)
    s3.create_bucket(Bucket=bucket)

    def presign(operation: str, keys: list[str]) -> list[str]:
        urls = [s3.generate_presigned_url(operation, {"Bucket": bucket, "Key": k}, ExpiresIn=3600) for k in keys]
        return [url.removeprefix(endpoint) for url in urls]

    out: dict[str, float | None] = {}
    out["put_4k_s"] = wrk(
        work, endpoint, "put", presign("put_object", [f"small/{n:06d}" for n in range(20000)]), "PUT", body
    )
    hot = [f"hot/{n:03d}" for n in range(200)]
    for name in hot:
        s3.put_object(Bucket=bucket, Key=name, Body=body)
    out["get_4k_s"] = wrk(work, endpoint, "get", presign("get_object", hot), "GET")
    began, keys = time.perf_counter(), 0
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        keys += page["KeyCount"]
    out["list_keys_s"] = round(keys / (time.perf_counter() - began), 1)
    large = work / "large.bin"
    large.write_bytes(os.urandom(LARGE_MIB << 20))
    names = [f"large/{n}" for n in range(COUNT)]
    out["put_64m_MBs"] = curls([endpoint + url for url in presign("put_object", names)], "-T", str(large))
    out["get_64m_MBs"] = curls([endpoint + url for url in presign("get_object", names)])
    return out
