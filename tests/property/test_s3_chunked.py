"""aws-chunked bodies: whatever the cuts between reads, the payload comes out; whatever is damaged, nothing passes."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.s3 import sigv4
from trivium.s3.chunked import AwsChunked
from trivium.s3.errors import S3Error

CLAIM = sigv4.Claim("AK", "20260304", "us-east-1", "s3", ("host",), "5" * 64, "20260304T050607Z", sigv4.STREAMING)
SECRET = "secret"
TRAILER = "x-amz-checksum-crc32"
BODIES = st.lists(st.binary(min_size=1, max_size=300), max_size=6)


def sign(kind: str, previous: str, *hashes: str) -> str:
    text = "\n".join((f"AWS4-HMAC-SHA256-{kind}", CLAIM.stamp, CLAIM.scope, previous, *hashes))
    key = sigv4.signing_key(SECRET, CLAIM.date, CLAIM.region, "s3")
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def encode(chunks: list[bytes], signed: bool, trailer: str = "") -> bytes:
    """An independent encoder, straight from AWS's description."""
    out, previous = b"", CLAIM.signature
    for chunk in [*chunks, b""]:
        line = f"{len(chunk):x}"
        if signed:
            previous = sign("PAYLOAD", previous, hashlib.sha256(b"").hexdigest(), hashlib.sha256(chunk).hexdigest())
            line += f";chunk-signature={previous}"
        out += line.encode() + b"\r\n" + (chunk + b"\r\n" if chunk else b"")
    if trailer:
        out += f"{TRAILER}:{trailer}\r\n".encode()
        if signed:
            digest = hashlib.sha256(f"{TRAILER}:{trailer}\n".encode()).hexdigest()
            out += f"x-amz-trailer-signature:{sign('TRAILER', previous, digest)}\r\n".encode()
    return out + b"\r\n"


def decode(data: bytes, length: int, signed: bool, trailer: bool, cuts: list[int]) -> tuple[bytes, AwsChunked]:
    signer = sigv4.ChunkSigner(SECRET, CLAIM) if signed else None
    decoder = AwsChunked(length, signer, TRAILER if trailer else "")
    out, position = b"", 0
    for cut in [*cuts, len(data)]:
        end = min(len(data), position + max(1, cut))
        out += b"".join(bytes(view) for view in decoder.feed(memoryview(data[position:end])))
        position = end
    return out, decoder


@settings(max_examples=200, deadline=None)
@given(BODIES, st.booleans(), st.booleans(), st.lists(st.integers(1, 90), max_size=12))
def test_every_cut_gives_the_payload(chunks: list[bytes], signed: bool, trailer: bool, cuts: list[int]) -> None:
    whole = b"".join(chunks)
    data = encode(chunks, signed, "AAAAAA==" if trailer else "")
    out, decoder = decode(data, len(whole), signed, trailer, cuts)
    assert out == whole and decoder.done
    assert decoder.trailers == ({TRAILER: "AAAAAA=="} if trailer else {})


@settings(max_examples=300, deadline=None)
@given(BODIES, st.booleans(), st.data())
def test_no_flipped_byte_of_a_signed_body_passes(chunks: list[bytes], trailer: bool, data: st.DataObject) -> None:
    whole = b"".join(chunks)
    encoded = bytearray(encode(chunks, True, "AAAAAA==" if trailer else ""))
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        out, decoder = decode(bytes(encoded), len(whole), True, trailer, [])
    except S3Error:
        return
    # hex digits of a size and header names are the same in both cases: nothing else may be
    assert not decoder.done or out == whole


@settings(max_examples=200, deadline=None)
@given(BODIES, st.booleans(), st.data())
def test_a_body_that_ends_early_is_never_done(chunks: list[bytes], signed: bool, data: st.DataObject) -> None:
    encoded = encode(chunks, signed, "AAAAAA==")
    short = encoded[: data.draw(st.integers(0, len(encoded) - 1))]
    _, decoder = decode(short, sum(map(len, chunks)), signed, True, [])
    assert not decoder.done


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200) | st.text("0123456789abcdef;=\r\n:-", max_size=100).map(str.encode),
    st.integers(0, 500),
    st.booleans(),
    st.booleans(),
)
def test_garbage_gives_s3_errors_only(data: bytes, length: int, signed: bool, trailer: bool) -> None:
    try:
        decode(data, length, signed, trailer, [3, 1, 7])
    except S3Error as error:
        assert error.status in (400, 403)


@pytest.mark.parametrize(
    ("data", "length"),
    [
        (b"5\r\nhello\r\n0\r\n\r\n", 4),  # more than announced
        (b"5\r\nhello\r\n0\r\n\r\n", 6),  # less
        (b"5\r\nhelloXX0\r\n\r\n", 5),  # no CRLF after the data
        (b"5;chunk-signature=0\r\nhello\r\n0\r\n\r\n", 5),  # an extension where there is no signature
        (b"+5\r\nhello\r\n0\r\n\r\n", 5),
        (b"0x5\r\nhello\r\n0\r\n\r\n", 5),
        (b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:a\r\n\r\n", 5),  # a trailer that was not announced
        (b"5\r\nhello\r\n0\r\n\r\nmore", 5),
        (b"\r\n", 0),
        (b"5" * 2000, 5),
    ],
)
def test_bad_framing_is_refused(data: bytes, length: int) -> None:
    with pytest.raises(S3Error):
        decode(data, length, False, False, [])
