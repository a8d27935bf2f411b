"""What clients do wrong, over raw sockets: each gets a clear answer, the server lives on, nothing becomes visible."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.fakes.s3server import ROOT, Running, running
from tests.property.test_s3_chunked import encode
from trivium.cluster.errors import ChunkLost, NoSpace, Unavailable
from trivium.metadata.messages import MetadataError
from trivium.s3.http import Limits

MIB = 1 << 20
QUICK = Limits(idle_s=2.0, head_s=1.0, progress_s=1.0)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(QUICK) as started:
        started.client().create_bucket(Bucket="bkt")
        yield started


@pytest.fixture(autouse=True)
def _empty(server: Running) -> Iterator[None]:
    """Each test begins with an empty bucket, whatever the one before left."""
    yield
    server.metadata.objects.clear()


class Socket:
    """A client that says exactly what it is told."""

    def __init__(self, server: Running) -> None:
        self.sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        self.data = b""

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def until(self, pattern: bytes) -> bytes:
        while not re.search(pattern, self.data, re.DOTALL):
            more = self.sock.recv(65536)
            assert more, f"closed after {self.data!r}"
            self.data += more
        return self.data

    def answer(self, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
        """The next answer, taken off the stream."""
        head, _, rest = self.until(rb"\r\n\r\n").partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        length = 0 if head_only else int(headers.get("content-length", 0))
        while len(rest) < length:
            more = self.sock.recv(65536)
            assert more, "closed inside a body"
            rest += more
        self.data = rest[length:]
        return int(lines[0].split()[1]), headers, rest[:length]

    def closed(self) -> bool:
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True


def signed(server: Running, method: str, target: str, body: bytes = b"", payload: str = "", **headers: str) -> bytes:
    """A signed head (and the body)."""
    request = AWSRequest(method, server.url + target)
    length = headers.pop("Content_Length", str(len(body)))
    headers, expect = {name: value for name, value in headers.items() if name != "Expect"}, headers.get("Expect")
    for name, value in headers.items():
        request.headers[name.replace("_", "-")] = value
    auth = botocore.auth.S3SigV4Auth(Credentials(ROOT.access_key, ROOT.secret_key), "s3", "us-east-1")
    request.headers["X-Amz-Content-SHA256"] = payload or "UNSIGNED-PAYLOAD"
    auth.payload = lambda _: payload or "UNSIGNED-PAYLOAD"  # type: ignore[method-assign]
    request.context["has_streaming_input"] = True
    auth.add_auth(request)
    lines = [f"{method} {target} HTTP/1.1", f"Host: {urlsplit(server.url).netloc}"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    lines += [f"Content-Length: {length}"] + ([f"Expect: {expect}"] if expect else [])
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def code_of(body: bytes) -> str:
    found = re.search(rb"<Code>(\w+)</Code>", body)
    return found[1].decode() if found else ""


def keys(server: Running) -> list[bytes]:
    return [key for _, key in server.metadata.objects]


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (b"GARBAGE\r\n\r\n", 400, "BadRequest"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "BadRequest"),  # no Host
        (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", 400, "BadRequest"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "BadRequest"),
        (b"GET / HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n", 400, "BadRequest"),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", 400, "RequestHeaderSectionTooLarge"),
        (b"GET / HTTP/1.1\r\nHost: h\r\n" + b"X: 1\r\n" * 12_000 + b"\r\n", 400, "RequestHeaderSectionTooLarge"),
        (
            b"GET / HTTP/1.1\r\nHost: h\r\n" + b"".join(b"X%d: 1\r\n" % i for i in range(300)) + b"\r\n",
            400,
            "RequestHeaderSectionTooLarge",
        ),
        (
            b"PUT /bkt/k HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "BadRequest",
        ),
        (b"PUT /bkt/k HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n", 400, "BadRequest"),
        (b"GET /bkt/%ff HTTP/1.1\r\nHost: h\r\n\r\n", 400, "InvalidURI"),
        (b"GET /bkt/k HTTP/1.1\r\nHost: h\r\n\r\n", 403, "AccessDenied"),
        (b"PATCH /bkt/k HTTP/1.1\r\nHost: h\r\n\r\n", 405, "MethodNotAllowed"),
        (b"DELETE / HTTP/1.1\r\nHost: h\r\n\r\n", 405, "MethodNotAllowed"),
        (b"GET /bkt HTTP/1.1\r\nHost: h\r\nAuthorization: Basic eDp5\r\n\r\n", 400, "InvalidRequest"),
    ],
)
def test_bad_requests_are_answered_in_words(server: Running, request_bytes: bytes, status: int, code: str) -> None:
    with Socket(server) as client:
        client.send(request_bytes)
        got, headers, body = client.answer()
        assert (got, code_of(body)) == (status, code)
        assert b"<RequestId>" + headers["x-amz-request-id"].encode() in body


def test_pipelined_requests_are_answered_in_order(server: Running) -> None:
    with Socket(server) as client:
        client.send(
            signed(server, "PUT", "/bkt/a", b"1")
            + signed(server, "PUT", "/bkt/b", b"22")
            + signed(server, "GET", "/bkt/a")
            + signed(server, "HEAD", "/bkt/b")
            + signed(server, "GET", "/bkt/b")
        )
        assert [client.answer()[0] for _ in range(2)] == [200, 200]
        assert client.answer()[2] == b"1"
        assert client.answer(head_only=True)[1]["content-length"] == "2"
        assert client.answer()[2] == b"22"
    server.client().delete_objects(Bucket="bkt", Delete={"Objects": [{"Key": "a"}, {"Key": "b"}]})


def test_connection_close_and_http_1_0(server: Running) -> None:
    for request in (b"GET /-/live HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", b"GET /-/live HTTP/1.0\r\n\r\n"):
        with Socket(server) as client:
            client.send(request)
            assert client.answer()[1]["connection"] == "close" and client.closed()


def test_expect_100_continue_only_when_the_body_is_wanted(server: Running) -> None:
    with Socket(server) as client:
        client.send(signed(server, "PUT", "/bkt/e", Content_Length="5", Expect="100-continue"))
        assert client.until(rb"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.data = b""
        client.send(b"hello")
        assert client.answer()[0] == 200
    with Socket(server) as client:
        client.send(signed(server, "PUT", "/none/e", Content_Length=str(MIB), Expect="100-continue"))
        status, headers, body = client.answer()
        assert (status, code_of(body), headers["connection"]) == (404, "NoSuchBucket", "close")
    server.client().delete_object(Bucket="bkt", Key="e")


def test_chunked_transfer_encoding(server: Running) -> None:
    head = signed(server, "PUT", "/bkt/t").replace(b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n")
    with Socket(server) as client:
        client.send(head + b"5\r\nhello\r\n")
        client.send(b"6;ext=1\r\n world\r\n0\r\nTrailer: x\r\n\r\n" + signed(server, "GET", "/bkt/t"))
        assert client.answer()[0] == 200
        assert client.answer()[2] == b"hello world"
    server.client().delete_object(Bucket="bkt", Key="t")
    for bad in (b"zz\r\n", b"5\r\nhelloXX\r\n", b"-1\r\n", b"11111111111111111\r\n"):
        with Socket(server) as client:
            client.send(head + bad)
            assert client.answer()[0] == 400 and client.closed()
    assert keys(server) == []


@pytest.mark.parametrize("sent", [0, 100, 5 * MIB])
def test_a_body_cut_off_leaves_nothing_and_keeps_the_old_object(server: Running, sent: int) -> None:
    s3 = server.client()
    s3.put_object(Bucket="bkt", Key="cut", Body=b"old")
    with Socket(server) as client:
        client.send(signed(server, "PUT", "/bkt/cut", Content_Length=str(9 * MIB)) + b"x" * sent)
        client.sock.shutdown(socket.SHUT_WR)
        status, _, body = client.answer()
        assert (status, code_of(body)) == (400, "IncompleteBody") and client.closed()
    assert s3.get_object(Bucket="bkt", Key="cut")["Body"].read() == b"old"
    assert not server.chunks.open, "its chunks were given up"
    s3.delete_object(Bucket="bkt", Key="cut")


def test_a_client_that_vanishes_or_stalls_leaves_nothing(server: Running) -> None:
    for stall in (False, True):
        with Socket(server) as client:
            client.send(signed(server, "PUT", "/bkt/gone", Content_Length=str(9 * MIB)) + b"x" * 5 * MIB)
            if stall:
                assert client.closed()  # cut off for lack of progress
        deadline = time.monotonic() + 5
        while server.chunks.open and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not server.chunks.open and keys(server) == []


def test_slow_heads_are_cut_off(server: Running) -> None:
    with Socket(server) as client:
        begun = time.monotonic()
        client.send(b"GET / HTT")
        assert client.closed() and time.monotonic() - begun < 5


SIGNED_STREAM = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"


@pytest.mark.parametrize("damage", ["no", "framing", "signature", "short", "length", "trailer"])
def test_chunked_bodies(server: Running, damage: str) -> None:
    kind = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    data = b"z" * 300_000
    body = encode([data[:200_000], data[200_000:]], False, "hI6lTw==")
    crc = __import__("base64").b64encode(__import__("zlib").crc32(data).to_bytes(4, "big")).decode()
    body = body.replace(b"hI6lTw==", b"AAAAAA==" if damage == "trailer" else crc.encode())
    length, payload = str(len(data)), kind
    if damage == "framing":
        body = body.replace(b"zz\r\n", b"zzzz", 1)
    if damage == "length":
        length = "299999"
    if damage == "signature":
        payload = SIGNED_STREAM
        body = encode([data], True)  # of another request's chain
    names = {"x_amz_decoded_content_length": length, "content_encoding": "aws-chunked"}
    if payload == kind:
        names["x_amz_trailer"] = "x-amz-checksum-crc32"
    sent = body[:-7] if damage == "short" else body
    with Socket(server) as client:
        client.send(signed(server, "PUT", "/bkt/c", body, payload, **names)[: -len(body)] + sent)
        if damage == "short":
            client.sock.shutdown(socket.SHUT_WR)
        status, _, answer = client.answer()
    wanted = {
        "no": "",
        "framing": "InvalidRequest",
        "signature": "SignatureDoesNotMatch",
        "short": "IncompleteBody",
        "length": "InvalidRequest",
        "trailer": "BadDigest",
    }[damage]
    assert code_of(answer) == wanted and (status == 200) == (damage == "no")
    s3 = server.client()
    if damage == "no":
        got = s3.get_object(Bucket="bkt", Key="c", ChecksumMode="ENABLED")
        assert got["Body"].read() == data and "ContentEncoding" not in got and got["ChecksumCRC32"] == crc
        s3.delete_object(Bucket="bkt", Key="c")
    assert keys(server) == [] and not server.chunks.open


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (Unavailable("away"), 503, "ServiceUnavailable"),
        (MetadataError("RETRY"), 503, "SlowDown"),
        (MetadataError("ENOSPC"), 507, "InsufficientStorage"),
        (MetadataError("ODD"), 500, "InternalError"),
        (ValueError("a bug"), 500, "InternalError"),
    ],
)
def test_troubles_below_have_codes(server: Running, failure: Exception, status: int, code: str) -> None:
    server.metadata.fail = failure
    try:
        with Socket(server) as client:
            client.send(signed(server, "GET", "/bkt?list-type=2"))
            got, _, body = client.answer()
            assert (got, code_of(body)) == (status, code)
            server.metadata.fail = None
            client.send(signed(server, "GET", "/bkt?list-type=2"))
            assert client.answer()[0] == 200  # on the same connection
    finally:
        server.metadata.fail = None


@pytest.mark.parametrize(
    ("failure", "code"), [(NoSpace("full"), "InsufficientStorage"), (Unavailable("x"), "ServiceUnavailable")]
)
def test_a_put_that_finds_no_place(server: Running, failure: Exception, code: str) -> None:
    server.chunks.fail_put = failure
    try:
        with Socket(server) as client:
            client.send(signed(server, "PUT", "/bkt/full", b"x" * 6 * MIB))
            assert code_of(client.answer()[2]) == code
    finally:
        server.chunks.fail_put = None
    assert keys(server) == [] and not server.chunks.open


def test_a_refused_chunk_is_put_again(server: Running) -> None:
    s3, data = server.client(), b"again" * MIB
    server.metadata.refuse_chunks = 2
    s3.put_object(Bucket="bkt", Key="r", Body=data)
    assert s3.get_object(Bucket="bkt", Key="r")["Body"].read() == data
    server.metadata.refuse_chunks = 9
    with Socket(server) as client:
        client.send(signed(server, "PUT", "/bkt/r", b"x" * MIB))
        assert client.answer()[0] == 503
    server.metadata.refuse_chunks = 0
    assert not server.chunks.open
    s3.delete_object(Bucket="bkt", Key="r")


def test_a_large_put_keeps_four_pieces_in_flight_at_most(server: Running) -> None:
    server.chunks.most_in_flight = 0
    server.client().put_object(Bucket="bkt", Key="large", Body=b"l" * 40 * MIB)
    assert 1 <= server.chunks.most_in_flight <= 4
    got: Any = server.client().get_object(Bucket="bkt", Key="large")["Body"]
    assert sum(len(part) for part in got.iter_chunks(MIB)) == 40 * MIB
    server.client().delete_object(Bucket="bkt", Key="large")


def test_a_read_that_breaks_off_is_cut_not_short(server: Running) -> None:
    s3 = server.client()
    s3.put_object(Bucket="bkt", Key="lost", Body=b"l" * 20 * MIB)
    lost = sorted(server.chunks.settled, key=lambda chunk: chunk.counter)[-1]
    assert lost in server.chunks.data
    del server.chunks.data[lost]
    with Socket(server) as client:
        client.send(signed(server, "GET", "/bkt/lost"))
        with pytest.raises(AssertionError, match="closed inside a body"):
            client.answer()
    deadline = time.monotonic() + 5
    while server.metadata.held and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.metadata.held == [], "the handle was given back"
    assert ChunkLost.__name__
    s3.delete_object(Bucket="bkt", Key="lost")


def test_handles_are_given_back_by_clients_that_leave(server: Running) -> None:
    server.client().put_object(Bucket="bkt", Key="held", Body=b"h" * 20 * MIB)
    for method in ("GET", "HEAD"):
        with Socket(server) as client:
            client.send(signed(server, method, "/bkt/held"))
            client.until(rb"\r\n\r\n")
    deadline = time.monotonic() + 5
    while server.metadata.held and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.metadata.held == []
    server.client().delete_object(Bucket="bkt", Key="held")


def test_a_graceful_stop_finishes_what_is_in_flight() -> None:
    with running(QUICK) as server:
        server.client().create_bucket(Bucket="bkt")
        idle, busy = Socket(server), Socket(server)
        idle.send(b"GET /-/live HTTP/1.1\r\nHost: h\r\n\r\n")
        assert idle.answer()[0] == 200
        request = signed(server, "PUT", "/bkt/k", b"x" * 100_000)
        busy.send(request[:-50_000])
        while not server.gateway.metrics.in_flight:
            time.sleep(0.005)
        server.on_loop(server.gateway.stop)
        assert idle.closed()
        busy.send(request[-50_000:])
        status, headers, _ = busy.answer()
        assert (status, headers["connection"]) == (200, "close") and keys(server) == [b"k"]
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", server.port), timeout=2).recv(1) or (_ for _ in ()).throw(OSError)
        idle.sock.close()
        busy.sock.close()
