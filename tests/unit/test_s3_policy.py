"""Bucket policies and CORS rules: what they decide."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trivium.s3.policy import BadPolicy, CorsRule, find_rule, parse_policy, principal_names

BOB = principal_names("bob", "AKBOB")
NOBODY = principal_names("", "")


def policy(*statements: dict[str, Any]) -> bytes:
    filled = [
        {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::b/*", **one}
        for one in statements
    ]
    return json.dumps({"Version": "2012-10-17", "Statement": filled}).encode()


def decide(
    document: bytes, who: Any = BOB, action: str = "s3:GetObject", key: str = "k", **context: str
) -> bool | None:
    names = {name.replace("__", ":").replace("_", "-"): (value,) for name, value in context.items()}
    return parse_policy(document, "b").decide(who, action, f"arn:aws:s3:::b/{key}", names)


@pytest.mark.parametrize(
    ("statement", "who", "decision"),
    [
        ({}, NOBODY, True),
        ({"Principal": {"AWS": "*"}}, NOBODY, True),
        ({"Principal": {"AWS": "arn:aws:iam:::user/bob"}}, BOB, True),
        ({"Principal": {"AWS": ["x", "AKBOB"]}}, BOB, True),
        ({"Principal": {"AWS": "arn:aws:iam:::user/bob"}}, NOBODY, None),
        ({"Principal": {"AWS": "arn:aws:iam:::user/*"}}, BOB, None),  # no wildcards inside principals
        ({"Action": "s3:Get*"}, BOB, True),
        ({"Action": "S3:getobject"}, BOB, True),
        ({"Action": ["s3:PutObject"]}, BOB, None),
        ({"Resource": "arn:aws:s3:::b/?"}, BOB, True),
        ({"Resource": "arn:aws:s3:::b/K"}, BOB, None),
        ({"Effect": "Deny"}, BOB, False),
    ],
)
def test_one_statement(statement: dict[str, Any], who: Any, decision: bool | None) -> None:
    assert decide(policy(statement), who) is decision


def test_deny_wins_whatever_the_order() -> None:
    allow, deny = {"Action": "s3:*"}, {"Effect": "Deny", "Resource": "arn:aws:s3:::b/secret*"}
    for statements in ((allow, deny), (deny, allow)):
        assert decide(policy(*statements)) is True
        assert decide(policy(*statements), key="secret/x") is False


def test_not_action_and_not_principal() -> None:
    document = {"Effect": "Deny", "Principal": "*", "NotAction": "s3:GetObject", "Resource": "arn:aws:s3:::b/*"}
    both = json.dumps({"Statement": [document]}).encode()
    assert decide(both) is None and decide(both, action="s3:PutObject") is False


@pytest.mark.parametrize(
    ("condition", "context", "decision"),
    [
        ({"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, {"aws__sourceip": "10.2.3.4"}, True),
        ({"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, {"aws__sourceip": "11.2.3.4"}, None),
        ({"NotIpAddress": {"aws:SourceIp": ["10.0.0.0/8"]}}, {"aws__sourceip": "11.2.3.4"}, True),
        ({"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, {"aws__sourceip": "unix"}, None),
        ({"StringLike": {"s3:prefix": ["home/*", "x"]}}, {"s3__prefix": "home/bob"}, True),
        ({"StringEquals": {"s3:prefix": "home"}}, {}, None),
        ({"StringEqualsIfExists": {"s3:prefix": "home"}}, {}, True),
        ({"StringNotEquals": {"s3:prefix": "home"}}, {}, True),
        ({"Null": {"s3:prefix": "true"}}, {}, True),
        ({"Null": {"s3:prefix": "false"}}, {}, None),
        ({"Bool": {"aws:SecureTransport": True}}, {"aws__securetransport": "false"}, None),
        ({"NumericLessThan": {"s3:max-keys": 10}}, {"s3__max_keys": "9"}, True),
        ({"NumericLessThan": {"s3:max-keys": 10}}, {"s3__max_keys": "many"}, None),
    ],
)
def test_conditions(condition: dict[str, Any], context: dict[str, str], decision: bool | None) -> None:
    assert decide(policy({"Condition": condition}), **context) is decision


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b'{"Statement": []}',
        b'{"Version": "2020", "Statement": {}}',
        b"[" * 100_000,
        policy({"Effect": "Maybe"}),
        policy({"Action": "ec2:Run"}),
        policy({"Resource": "arn:aws:s3:::other/*"}),
        policy({"Resource": "arn:aws:s3:::bother/*"}),
        policy({"Principal": "bob"}),
        policy({"Surprise": 1}),
        policy({"Condition": {"Sounds": {"aws:SourceIp": "x"}}}),
        policy({"NotAction": "s3:*"}),
        policy({"Condition": {"NotIpAddress": {"aws:SourceIp": "10.0.0"}}}),
        policy({"Condition": {"NumericEquals": {"s3:max-keys": "ten"}}}),
    ],
)
def test_policies_that_are_refused(document: bytes) -> None:
    with pytest.raises(BadPolicy):
        parse_policy(document, "b")


def test_the_first_rule_that_allows_everything_asked_is_taken() -> None:
    rules = [CorsRule(("http://a",), ("GET",)), CorsRule(("http://*.b",), ("GET", "PUT"), ("x-amz-*",))]
    assert find_rule(rules, "http://a", "GET") is rules[0]
    assert find_rule(rules, "http://www.b", "PUT", ["X-Amz-Meta-A"]) is rules[1]
    assert find_rule(rules, "http://www.b", "PUT", ["authorization"]) is None
    assert find_rule(rules, "http://www.b.evil", "GET") is None and find_rule(rules, "http://a", "PUT") is None
