"""Signatures against botocore's own signer, for arbitrary keys, queries, headers and clocks."""

from __future__ import annotations

import datetime as dt
from urllib.parse import quote, urlsplit

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.s3 import sigv4
from trivium.s3.errors import S3Error

NOW = dt.datetime(2026, 3, 4, 5, 6, 7, tzinfo=dt.UTC)
NOW_S = NOW.timestamp()
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
NAMES = st.text("abcdefghijklmnopqrstuvwxyz-_", min_size=1, max_size=12)
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
SECRETS = st.text("abcdefghijklmnopqrstuvwxyzABC0123456789+/", min_size=1, max_size=40)


def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda remove_tzinfo=True: NOW.replace(tzinfo=None))


@pytest.fixture(autouse=True, scope="module")
def _frozen_clock() -> object:
    with pytest.MonkeyPatch.context() as patch:
        frozen(patch)
        yield


def received(request: AWSRequest) -> tuple[str, sigv4.Pairs, dict[str, str]]:
    """As the server sees it: raw path, decoded query, headers in Latin-1."""
    parts = urlsplit(request.url)
    headers = {name.lower(): str(value) for name, value in request.headers.items()}
    headers["host"] = parts.netloc
    return parts.path, sigv4.split_query(parts.query), headers


def url_of(key: str, query: dict[str, str]) -> str:
    encoded = "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in query.items())
    return f"http://127.0.0.1:9000/bucket/{quote(key, safe='/~')}" + (f"?{encoded}" if encoded else "")


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["GET", "PUT", "DELETE", "POST"]),
    TEXT,
    st.dictionaries(NAMES, TEXT, max_size=4),
    st.dictionaries(NAMES, VALUES, max_size=4),
    SECRETS,
    st.binary(max_size=100),
)
def test_a_header_signature_of_botocore_is_accepted_and_any_change_is_not(
    method: str, key: str, query: dict[str, str], extra: dict[str, str], secret: str, body: bytes
) -> None:
    request = AWSRequest(method, url_of(key, query), data=body if method in ("PUT", "POST") else None)
    for name, value in extra.items():
        request.headers[f"x-amz-meta-{name}"] = value
    botocore.auth.S3SigV4Auth(Credentials("AK", secret), "s3", "us-east-1").add_auth(request)
    path, pairs, headers = received(request)
    claim = sigv4.parse(headers, pairs, NOW_S)
    assert claim is not None and claim.access_key == "AK" and claim.region == "us-east-1"
    sigv4.verify(claim, secret, method, path, pairs, headers)

    for bad in (
        (secret + "x", method, path, pairs, headers),
        (secret, "HEAD", path, pairs, headers),
        (secret, method, path + "x", pairs, headers),
        (secret, method, path, [*pairs, ("acl", "")], headers),
        (secret, method, path, pairs, {**headers, "host": "other"}),
    ):
        with pytest.raises(S3Error, match="SignatureDoesNotMatch"):
            sigv4.verify(claim, *bad)


@settings(max_examples=100, deadline=None)
@given(TEXT, st.dictionaries(NAMES, TEXT, max_size=3), SECRETS, st.integers(1, sigv4.MAX_EXPIRES_S), st.data())
def test_a_presigned_url_of_botocore_holds_until_it_expires(
    key: str, query: dict[str, str], secret: str, expires: int, data: st.DataObject
) -> None:
    request = AWSRequest("GET", url_of(key, query))
    botocore.auth.S3SigV4QueryAuth(Credentials("AK", secret), "s3", "eu-west-1", expires=expires).add_auth(request)
    path, pairs, headers = received(request)
    at_s = NOW_S + data.draw(st.integers(-sigv4.SKEW_S, expires))
    claim = sigv4.parse(headers, pairs, at_s)
    assert claim is not None and claim.presigned
    sigv4.verify(claim, secret, "GET", path, pairs, headers)
    for late_s in (NOW_S + expires + 1, NOW_S - sigv4.SKEW_S - 1):
        with pytest.raises(S3Error, match="AccessDenied"):
            sigv4.parse(headers, pairs, late_s)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["authorization", "x-amz-date", "date", "x-amz-content-sha256", "host", "x-amz-x"]),
        st.text(st.characters(max_codepoint=255), max_size=120),
    ),
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "X-Amz-Algorithm",
                    "X-Amz-Credential",
                    "X-Amz-Date",
                    "X-Amz-Expires",
                    "X-Amz-SignedHeaders",
                    "X-Amz-Signature",
                    "Signature",
                    "a",
                ]
            ),
            st.text(st.characters(max_codepoint=255), max_size=60),
        ),
        max_size=8,
    ),
)
def test_whatever_is_sent_only_s3_errors_come_out(headers: dict[str, str], query: list[tuple[str, str]]) -> None:
    try:
        claim = sigv4.parse(headers, query, NOW_S)
        if claim is not None:
            sigv4.verify(claim, "secret", "GET", "/", query, headers)
    except S3Error as error:
        assert error.status in (400, 403)
    else:
        assert claim is None


GOOD = {
    "host": "h",
    "x-amz-date": "20260304T050607Z",
    "x-amz-content-sha256": sigv4.UNSIGNED,
    "authorization": "AWS4-HMAC-SHA256 Credential=AK/20260304/us-east-1/s3/aws4_request, "
    "SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature=" + "0" * 64,
}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, None),
        ({"x-amz-date": "Wed, 04 Mar 2026 05:06:07 GMT"}, None),
        ({"x-amz-date": "20260304T052108Z"}, "RequestTimeTooSkewed"),
        ({"x-amz-date": "20260304T045106Z"}, "RequestTimeTooSkewed"),
        ({"x-amz-date": "yesterday"}, "AccessDenied"),
        ({"x-amz-content-sha256": "abc"}, "InvalidArgument"),
        ({"x-amz-acl": "public-read"}, "AccessDenied"),
        ({"authorization": "AWS AK:sig"}, "InvalidRequest"),
        ({"authorization": "AWS4-HMAC-SHA256 Credential=AK"}, "AuthorizationHeaderMalformed"),
        ({"authorization": GOOD["authorization"].replace("/s3/", "/ec2/")}, "AuthorizationHeaderMalformed"),
        ({"authorization": GOOD["authorization"].replace("20260304/", "20260303/")}, "AuthorizationHeaderMalformed"),
        ({"authorization": GOOD["authorization"].replace("host;", "")}, "AccessDenied"),
    ],
)
def test_claims_are_checked_in_words(change: dict[str, str], code: str | None) -> None:
    headers = {**GOOD, **change}
    if code is None:
        assert sigv4.parse(headers, [], NOW_S) is not None
    else:
        with pytest.raises(S3Error) as caught:
            sigv4.parse(headers, [], NOW_S)
        assert caught.value.code == code


def test_seven_days_is_the_longest() -> None:
    request = AWSRequest("GET", url_of("k", {}))
    botocore.auth.S3SigV4QueryAuth(Credentials("AK", "s"), "s3", "r", expires=604_801).add_auth(request)
    _, pairs, headers = received(request)
    with pytest.raises(S3Error, match="AuthorizationQueryParametersError"):
        sigv4.parse(headers, pairs, NOW_S)
