"""Health and metrics under names that no bucket can have: `/-/live|ready|health|metrics`, `/_health`, `/_ready`,
`/_metrics`. They need no signature and tell nothing about contents."""

from __future__ import annotations

import json
from collections.abc import Callable

from trivium.s3.http import Response

LIVE, READY, HEALTH, METRICS = "live", "ready", "health", "metrics"

PATHS = {
    "/-/live": LIVE,
    "/-/ready": READY,
    "/-/health": HEALTH,
    "/-/metrics": METRICS,
    "/_live": LIVE,
    "/_ready": READY,
    "/_health": HEALTH,
    "/_metrics": METRICS,
}


def answer(kind: str, problems: list[str], render: Callable[[], str]) -> Response:
    """`problems`: why the gateway cannot serve now, in sentences; empty when it can."""
    if kind == METRICS:
        return Response(200, {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}, render().encode())
    if kind == LIVE:
        problems = []
    body = json.dumps({"status": "unavailable" if problems else "ok", "problems": problems}).encode()
    return Response(503 if problems else 200, {"Content-Type": "application/json", "Cache-Control": "no-store"}, body)
