"""Every other parser of the S3 face: right on what is right, an S3 error on the rest, never anything else."""

from __future__ import annotations

import base64
import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.s3 import checksums, conditions, listing, policy, postform, router, xml
from trivium.s3.errors import S3Error
from trivium.s3.formparser import FormParser, boundary_of
from trivium.s3.http import HttpError, Limits, Response, body_length, encode_head, parse_head

# ---- HTTP heads


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300) | st.lists(st.binary(max_size=30), max_size=8).map(b"\r\n".join))
def test_heads_are_parsed_or_refused(data: bytes) -> None:
    for head in (data, b"GET / HTTP/1.1\r\nHost: h\r\n" + data + b"\r\n\r\n"):
        try:
            _, _, headers, *_ = parse_head(head, Limits())
            body_length(headers)
        except HttpError as error:
            assert error.code in ("BadRequest", "InvalidURI", "RequestHeaderSectionTooLarge")


@pytest.mark.parametrize(
    "lines",
    [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: chunked, identity",
        "Content-Length: -1",
        "Content-Length: 1e3",
        "Content-Length: 99999999999999999999",
        "Host: other",
        "Authorization: a\r\nAuthorization: b",
        "Broken header",
    ],
)
def test_ambiguous_heads_are_refused(lines: str) -> None:
    with pytest.raises(HttpError):
        _, _, headers, *_ = parse_head(f"PUT /b/k HTTP/1.1\r\nHost: h\r\n{lines}\r\n\r\n".encode(), Limits())
        body_length(headers)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=50))
def test_no_header_can_be_injected(value: str) -> None:
    head = encode_head(Response(200, {"x-amz-meta-a": value}), 0, True)
    assert head.count(b"\r\n\r\n") == 1
    assert [line.partition(b":")[0] for line in head.split(b"\r\n")[1:-2]] == [
        b"x-amz-meta-a",
        b"Content-Length",
        b"Date",
        b"Server",
    ]


# ---- ranges and conditions


@given(st.integers(1, 1000), st.integers(0, 1200), st.integers(0, 1200))
def test_ranges_select_what_rfc_9110_says(size: int, first: int, last: int) -> None:
    data = bytes(i % 251 for i in range(size))
    for text, wanted in (
        (f"bytes={first}-{last}", data[first : last + 1]),
        (f"bytes={first}-", data[first:]),
        (f"bytes=-{last}", data[max(0, size - last) :] if last else b""),
    ):
        if text == f"bytes={first}-{last}" and last < first:
            assert conditions.parse_range(text, size) is None
            continue
        try:
            chosen = conditions.parse_range(text, size)
        except S3Error as error:
            assert error.status == 416 and not wanted
        else:
            assert chosen is not None and data[slice(*chosen)] == wanted and wanted


@given(st.text(max_size=40), st.integers(0, 1 << 40))
def test_odd_ranges_never_crash(text: str, size: int) -> None:
    for header in (text, f"bytes={text}"):
        try:
            chosen = conditions.parse_range(header, size)
        except S3Error:
            continue
        assert chosen is None or 0 <= chosen[0] < chosen[1] <= size


@given(st.text(max_size=60))
def test_odd_dates_and_etags_never_crash(text: str) -> None:
    assert conditions.parse_date(text) >= 0 or True
    conditions.unquote_etag(text)


# ---- XML


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00￾￿"), max_size=60))
def test_text_survives_our_xml(text: str) -> None:
    printable = "".join(char for char in text if char >= " " or char in "\t\n\r")
    node = xml.parse(xml.answer("A", [xml.element("B", printable)]), "A")
    assert node.need("B") == printable


@settings(max_examples=300)
@given(st.binary(max_size=120) | st.text("<>/ab&;!?-[]\"'= xmlDOCTYPE", max_size=80).map(str.encode))
def test_garbage_is_malformed(data: bytes) -> None:
    with contextlib.suppress(xml.Malformed):
        xml.parse(data)


@pytest.mark.parametrize(
    "document",
    [
        b'<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>',
        b'<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY lol "lol"><!ENTITY l2 "&lol;&lol;">]><a>&l2;</a>',
        '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE a><a/>'.encode("utf-16"),
        b'<?xml version="1.0" encoding="utf-7"?><a/>',
        b"<a>" * 50 + b"</a>" * 50,
        b"<a><b></a></b>",
        b"<a>\xff</a>",
        b"",
    ],
)
def test_bombs_and_tricks_are_refused(document: bytes) -> None:
    with pytest.raises(xml.Malformed):
        xml.parse(document)


def test_a_million_elements_are_refused_before_they_are_parsed() -> None:
    with pytest.raises(xml.Malformed, match="too large"):
        xml.parse(b"<a>" + b"<b/>" * 400_000 + b"</a>")


# ---- router, tokens, policies, forms


@given(st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=60), st.text(max_size=30))
def test_any_target_is_routed_or_refused(path: str, host: str) -> None:
    try:
        place = router.locate("/" + path.partition("?")[0], host, ("localhost",))
        router.operation("GET", place, {}, {})
    except S3Error as error:
        assert error.status < 500


@given(st.binary(max_size=80))
def test_tokens_return_what_they_were_given(after: bytes) -> None:
    assert listing.from_token(listing.to_token(after)) == after


@given(st.text(max_size=40))
def test_other_tokens_are_refused_or_ours(text: str) -> None:
    try:
        listing.from_token(text)
    except S3Error as error:
        assert error.code == "InvalidArgument"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "Version",
                    "Statement",
                    "Effect",
                    "Principal",
                    "Action",
                    "Resource",
                    "Condition",
                    "AWS",
                    "StringLike",
                    "s3:prefix",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
)


@settings(max_examples=300)
@given(JSON)
def test_odd_policies_are_refused_in_words(document: object) -> None:
    for text in (json.dumps(document), json.dumps({"Version": "2012-10-17", "Statement": document})):
        with contextlib.suppress(policy.BadPolicy):
            policy.parse_policy(text.encode(), "b")


def form(fields: dict[str, str], data: bytes, boundary: bytes = b"BBB") -> bytes:
    out = b""
    for name, value in fields.items():
        out += b"--" + boundary + f'\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    out += b"--" + boundary + b'\r\nContent-Disposition: form-data; name="file"; filename="f.txt"\r\n\r\n'
    return out + data + b"\r\n--" + boundary + b"--\r\n"


@settings(max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(["key", "policy", "acl", "x-amz-date"]),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=20),
    ),
    st.binary(max_size=200),
    st.lists(st.integers(1, 40), max_size=10),
)
def test_forms_come_apart_at_any_cut(fields: dict[str, str], data: bytes, cuts: list[int]) -> None:
    if b"\r\n--BBB" in b"\r\n" + data:
        return
    encoded = form(fields, data)
    parser = FormParser(b"BBB")
    out, position = b"", 0
    for cut in [*cuts, len(encoded)]:
        out += parser.feed(encoded[position : position + cut])
        position += cut
    assert parser.done and out == data and parser.fields == fields and parser.filename == "f.txt"


@settings(max_examples=200)
@given(st.binary(max_size=200), st.text(max_size=40))
def test_odd_forms_are_refused_or_wait(data: bytes, kind: str) -> None:
    try:
        FormParser(b"BBB").feed(b"--BBB\r\n" + data)
        boundary_of(kind)
    except S3Error as error:
        assert error.status == 400


@settings(max_examples=200)
@given(JSON, st.text(max_size=20))
def test_odd_post_policies_are_refused(document: object, text: str) -> None:
    for policy_text in (
        text,
        base64.b64encode(json.dumps(document).encode()).decode(),
        base64.b64encode(json.dumps({"expiration": "2030-01-01T00:00:00Z", "conditions": document}).encode()).decode(),
    ):
        try:
            postform.check_policy(policy_text, {"key": "a"}, "b", 0.0)
        except S3Error as error:
            assert error.code in ("InvalidPolicyDocument", "AccessDenied")


# ---- checksums


@given(st.sampled_from(["CRC32", "CRC32C", "CRC64NVME"]), st.lists(st.binary(max_size=100), max_size=6))
def test_combined_checksums_are_those_of_the_whole(algorithm: str, parts: list[bytes]) -> None:
    def of(data: bytes) -> bytes:
        hashed = checksums.hasher(algorithm)
        hashed.update(data)
        return hashed.digest()

    assert checksums.combine(algorithm, [(of(part), len(part)) for part in parts]) == of(b"".join(parts))


@pytest.mark.parametrize(
    ("algorithm", "digest"),
    [
        ("CRC32", "cbf43926"),
        ("CRC32C", "e3069283"),
        ("CRC64NVME", "ae8b14860a799888"),
        ("SHA1", "f7c3bc1d808e04732adf679965ccc34ca7ae3441"),
        ("SHA256", "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"),
    ],
)
def test_check_values_of_the_catalogue(algorithm: str, digest: str) -> None:
    hashed = checksums.hasher(algorithm)
    hashed.update(b"1234")
    hashed.update(b"56789")
    assert hashed.digest().hex() == digest


@given(
    st.dictionaries(
        st.sampled_from([*checksums.HEADERS, "content-md5", "x-amz-trailer", "x-amz-sdk-checksum-algorithm"]),
        st.text(max_size=40),
    )
)
def test_odd_digest_headers_are_refused(headers: dict[str, str]) -> None:
    try:
        checksums.expected(headers, "UNSIGNED-PAYLOAD")
    except S3Error as error:
        assert error.status == 400
