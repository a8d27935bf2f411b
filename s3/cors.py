"""CORS on the wire: preflights, and the headers of answers to requests from another origin."""

from __future__ import annotations

from trivium.cluster.errors import ClusterError
from trivium.metadata.messages import MetadataError
from trivium.s3.buckets import cors_rules
from trivium.s3.context import S3Request, Service
from trivium.s3.errors import S3Error
from trivium.s3.http import Response
from trivium.s3.policy import CorsRule, find_rule

VARY = "Origin, Access-Control-Request-Headers, Access-Control-Request-Method"


async def preflight(service: Service, request: S3Request) -> Response:
    """OPTIONS. S3Error AccessDenied when no rule allows what is asked."""
    origin = request.headers.get("origin")
    method = request.headers.get("access-control-request-method")
    if not origin:
        raise S3Error("BadRequest", "Insufficient information. Origin request header needed.")
    if not method:
        raise S3Error("BadRequest", "Invalid Access-Control-Request-Method: null")
    names = [name.strip() for name in request.headers.get("access-control-request-headers", "").split(",")]
    names = [name for name in names if name]
    if not request.bucket:
        raise S3Error("AccessDenied", "CORSResponse: there is no bucket in this request.")
    try:
        info = await service.buckets.get(request.bucket)
    except (MetadataError, ClusterError):
        raise S3Error("AccessDenied", "CORSResponse: Bucket not found") from None
    rules = cors_rules(info.config.get("cors"))
    if not rules:
        raise S3Error("AccessDenied", "CORSResponse: CORS is not enabled for this bucket.")
    rule = find_rule(rules, origin, method, names)
    if rule is None:
        raise S3Error(
            "AccessDenied",
            "CORSResponse: This CORS request is not allowed. This is usually because the "
            "evalution of Origin, request method / Access-Control-Request-Method or "
            "Access-Control-Request-Headers are not whitelisted by the resource's CORS spec.",
        )
    headers = _headers(rule, origin)
    if names:
        headers["Access-Control-Allow-Headers"] = ", ".join(name.lower() for name in names)
    if rule.max_age_s is not None:
        headers["Access-Control-Max-Age"] = str(rule.max_age_s)
    return Response(200, headers)


def _headers(rule: CorsRule, origin: str) -> dict[str, str]:
    anyone = "*" in rule.origins
    headers = {
        "Access-Control-Allow-Origin": "*" if anyone else origin,
        "Access-Control-Allow-Methods": ", ".join(rule.methods),
        "Vary": VARY,
    }
    if rule.expose:
        headers["Access-Control-Expose-Headers"] = ", ".join(rule.expose)
    if not anyone:
        headers["Access-Control-Allow-Credentials"] = "true"
    return headers


def add_headers(response: Response, request: S3Request) -> None:
    """To the answer of a request that a page of another origin made."""
    if request.info is None or request.operation == "Preflight":
        return
    rules = cors_rules(request.info.config.get("cors"))
    rule = find_rule(rules, request.headers["origin"], request.http.method)
    if rule is not None:
        response.headers.update(_headers(rule, request.headers["origin"]))
