"""Bucket policies (Deny > Allow > none) and CORS rules. Pure: documents in, decisions out.

Conditions: the String*, Numeric*, Date*, Bool, IpAddress, Arn* and Null operators, with IfExists and
ForAnyValue/ForAllValues. A policy with anything else is refused when it is put, so that nothing is ever half applied.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

VERSIONS = ("2012-10-17", "2008-10-17")
Values = Mapping[str, Sequence[str]]


class BadPolicy(Exception):
    """The document is no policy for this bucket; the text says why."""


@lru_cache(maxsize=4096)
def _glob(pattern: str, ignore_case: bool = False) -> re.Pattern[str]:
    """IAM's wildcards: * and ? only."""
    text = "".join(".*" if char == "*" else "." if char == "?" else re.escape(char) for char in pattern)
    return re.compile(text, re.DOTALL | (re.IGNORECASE if ignore_case else 0))


def matches(pattern: str, text: str, ignore_case: bool = False) -> bool:
    return _glob(pattern, ignore_case).fullmatch(text) is not None


def _strings(value: Any, what: str) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, (str, int, bool)) for item in items):
        raise BadPolicy(f"{what} must be a string or a list of strings")
    return tuple(str(item).lower() if isinstance(item, bool) else str(item) for item in items)


# ---- conditions ---------------------------------------------------------------------------------------------


def _number(test: Callable[[float, float], bool]) -> Callable[[str, str], bool]:
    return lambda pattern, value: test(float(value), float(pattern))


def _moment(text: str) -> float:
    return float(text) if text.isdigit() else datetime.fromisoformat(text).timestamp()


def _date(test: Callable[[float, float], bool]) -> Callable[[str, str], bool]:
    return lambda pattern, value: test(_moment(value), _moment(pattern))


def _in_network(pattern: str, value: str) -> bool:
    return ipaddress.ip_address(value) in ipaddress.ip_network(pattern, strict=False)


_TESTS: dict[str, Callable[[str, str], bool]] = {
    "StringEquals": lambda pattern, value: pattern == value,
    "StringEqualsIgnoreCase": lambda pattern, value: pattern.lower() == value.lower(),
    "StringLike": matches,
    "ArnEquals": matches,
    "ArnLike": matches,
    "Bool": lambda pattern, value: pattern.lower() == value.lower(),
    "IpAddress": _in_network,
    "NumericEquals": _number(lambda value, limit: value == limit),
    "NumericLessThan": _number(lambda value, limit: value < limit),
    "NumericLessThanEquals": _number(lambda value, limit: value <= limit),
    "NumericGreaterThan": _number(lambda value, limit: value > limit),
    "NumericGreaterThanEquals": _number(lambda value, limit: value >= limit),
    "DateEquals": _date(lambda value, limit: value == limit),
    "DateLessThan": _date(lambda value, limit: value < limit),
    "DateLessThanEquals": _date(lambda value, limit: value <= limit),
    "DateGreaterThan": _date(lambda value, limit: value > limit),
    "DateGreaterThanEquals": _date(lambda value, limit: value >= limit),
}

_NEGATED = {
    "StringNotEquals": "StringEquals",
    "StringNotEqualsIgnoreCase": "StringEqualsIgnoreCase",
    "StringNotLike": "StringLike",
    "ArnNotEquals": "ArnEquals",
    "ArnNotLike": "ArnLike",
    "NotIpAddress": "IpAddress",
    "NumericNotEquals": "NumericEquals",
    "DateNotEquals": "DateEquals",
}


@dataclass(frozen=True, slots=True)
class Condition:
    operator: str  # without prefix and IfExists
    key: str  # in lower case
    values: tuple[str, ...]
    if_exists: bool = False
    for_all: bool = False
    any_of: bool = False

    def holds(self, context: Values) -> bool:
        found = context.get(self.key)
        if self.operator == "Null":
            return (found is None) == (self.values[0].lower() == "true")
        if found is None:
            return self.if_exists or self.for_all or self.operator in _NEGATED
        negated = self.operator in _NEGATED
        test = _TESTS[_NEGATED.get(self.operator, self.operator)]
        each = [self._any(test, value) != negated for value in found]
        return all(each) if self.for_all or not self.any_of else any(each)

    def _any(self, test: Callable[[str, str], bool], value: str) -> bool:
        try:
            return any(test(pattern, value) for pattern in self.values)
        except ValueError:
            return False


def _check_values(operator: str, texts: tuple[str, ...]) -> None:
    """A value that no request can be compared with would make the condition mean something else."""
    try:
        for text in texts:
            if operator == "IpAddress":
                ipaddress.ip_network(text, strict=False)
            elif operator.startswith("Numeric"):
                float(text)
            elif operator.startswith("Date"):
                _moment(text)
    except ValueError:
        raise BadPolicy(f"invalid value for {operator}") from None


def _conditions(document: Any) -> tuple[Condition, ...]:
    if not isinstance(document, dict):
        raise BadPolicy("Condition must be an object")
    found = []
    for name, tests in document.items():
        quantifier, colon, operator = name.rpartition(":")
        if colon and quantifier not in ("ForAllValues", "ForAnyValue"):
            raise BadPolicy(f"unknown condition {name}")
        base = operator.removesuffix("IfExists")
        if base not in _TESTS and base not in _NEGATED and base != "Null":
            raise BadPolicy(f"unknown condition {name}")
        if not isinstance(tests, dict):
            raise BadPolicy(f"{name} must be an object")
        for key, values in tests.items():
            texts = _strings(values, key)
            if not texts:
                raise BadPolicy(f"{key} has no value")
            _check_values(_NEGATED.get(base, base), texts)
            found.append(
                Condition(
                    base,
                    key.lower(),
                    texts,
                    operator != base,
                    quantifier == "ForAllValues",
                    quantifier == "ForAnyValue",
                )
            )
    return tuple(found)


# ---- statements ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Statement:
    allow: bool
    principals: tuple[str, ...]
    not_principals: bool
    actions: tuple[str, ...]
    not_actions: bool
    resources: tuple[str, ...]
    not_resources: bool
    conditions: tuple[Condition, ...]

    def applies(self, principal: Sequence[str], action: str, resource: str, context: Values) -> bool:
        return (
            any(_is_principal(pattern, principal) for pattern in self.principals) != self.not_principals
            and any(matches(pattern, action, True) for pattern in self.actions) != self.not_actions
            and any(matches(pattern, resource) for pattern in self.resources) != self.not_resources
            and all(condition.holds(context) for condition in self.conditions)
        )


def _is_principal(pattern: str, names: Sequence[str]) -> bool:
    return pattern == "*" or pattern in names


def principal_names(user: str, access_key: str) -> tuple[str, ...]:
    """What a policy may call this user; empty for the anonymous one, whom only "*" means."""
    if not access_key:
        return ()
    names = [access_key, user, f"arn:aws:iam:::user/{user}", f"arn:aws:iam::{user}:root"]
    return tuple(name for name in names if name)


@dataclass(frozen=True, slots=True)
class Policy:
    statements: tuple[Statement, ...]

    def decide(self, principal: Sequence[str], action: str, resource: str, context: Values) -> bool | None:
        """True allowed, False denied, None: says nothing."""
        decision: bool | None = None
        for statement in self.statements:
            if statement.applies(principal, action, resource, context):
                if not statement.allow:
                    return False
                decision = True
        return decision

    @property
    def public(self) -> bool:
        """Whether anybody may do something without fixed conditions (GetBucketPolicyStatus)."""
        return any(one.allow and "*" in one.principals and not one.conditions for one in self.statements)


def _either(document: Mapping[str, Any], name: str) -> tuple[Any, bool]:
    negative = f"Not{name}"
    if (name in document) == (negative in document):
        raise BadPolicy(f"a statement needs either {name} or {negative}")
    return (document[negative], True) if negative in document else (document[name], False)


def _principals(value: Any) -> tuple[str, ...]:
    if value == "*":
        return ("*",)
    if not isinstance(value, dict) or set(value) - {"AWS", "CanonicalUser", "Federated", "Service"}:
        raise BadPolicy("Invalid principal in policy")
    return tuple(name for kind in value for name in _strings(value[kind], "Principal"))


def _statement(document: Any, bucket: str) -> Statement:
    if not isinstance(document, dict):
        raise BadPolicy("a statement must be an object")
    unknown = set(document) - {
        "Sid",
        "Effect",
        "Principal",
        "NotPrincipal",
        "Action",
        "NotAction",
        "Resource",
        "NotResource",
        "Condition",
    }
    if unknown:
        raise BadPolicy(f"unknown element {min(unknown)}")
    if document.get("Effect") not in ("Allow", "Deny"):
        raise BadPolicy("Effect must be Allow or Deny")
    principal, not_principal = _either(document, "Principal")
    if not_principal and document["Effect"] == "Allow":  # it would allow everybody else, whoever that will be
        raise BadPolicy("Allow with NotPrincipal is not supported")
    action, not_action = _either(document, "Action")
    resource, not_resource = _either(document, "Resource")
    actions, resources = _strings(action, "Action"), _strings(resource, "Resource")
    if not all(name == "*" or name.lower().startswith("s3:") for name in actions):
        raise BadPolicy("Policy has invalid action")
    arn = f"arn:aws:s3:::{bucket}"
    for name in resources:
        rest = name.removeprefix(arn)
        covers = (
            name == "*" or (rest != name and (rest == "" or rest[0] in "/*?")) or matches(name.partition("/")[0], arn)
        )
        if not covers:
            raise BadPolicy("Policy has invalid resource")
    return Statement(
        document["Effect"] == "Allow",
        _principals(principal),
        not_principal,
        actions,
        not_action,
        resources,
        not_resource,
        _conditions(document.get("Condition", {})),
    )


def parse_policy(document: bytes, bucket: str) -> Policy:
    """The policy of `bucket`. BadPolicy."""
    try:
        value = json.loads(document)
    except (ValueError, RecursionError):
        raise BadPolicy("This policy contains invalid Json") from None
    if not isinstance(value, dict) or set(value) - {"Version", "Id", "Statement"}:
        raise BadPolicy("a policy is an object with Version, Id and Statement")
    if value.get("Version", VERSIONS[1]) not in VERSIONS:
        raise BadPolicy("The policy must contain a valid version string")
    statements = value.get("Statement")
    statements = [statements] if isinstance(statements, dict) else statements
    if not isinstance(statements, list) or not statements:
        raise BadPolicy("Missing required field Statement")
    return Policy(tuple(_statement(statement, bucket) for statement in statements))


@lru_cache(maxsize=256)
def cached_policy(document: bytes, bucket: str) -> Policy:
    return parse_policy(document, bucket)


# ---- CORS ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CorsRule:
    origins: tuple[str, ...]
    methods: tuple[str, ...]
    headers: tuple[str, ...] = ()
    expose: tuple[str, ...] = ()
    max_age_s: int | None = None
    id: str = ""

    def allows(self, origin: str, method: str, headers: Sequence[str]) -> bool:
        return (
            any(matches(pattern, origin) for pattern in self.origins)
            and method in self.methods
            and all(any(fnmatch.fnmatchcase(name.lower(), p.lower()) for p in self.headers) for name in headers)
        )


def find_rule(rules: Sequence[CorsRule], origin: str, method: str, headers: Sequence[str] = ()) -> CorsRule | None:
    return next((rule for rule in rules if rule.allows(origin, method, headers)), None)
