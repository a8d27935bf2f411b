"""Counters of the gateway in Prometheus' text format. Counting costs a dictionary update; nothing is locked (one
event loop)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


def _quote(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Metrics:
    """What the gateway counts. Names end in their unit, as Prometheus wants."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # (operation, status)
        self.errors: Counter[str] = Counter()  # code
        self.seconds: dict[str, list[float]] = {}  # operation: one count per bucket, +Inf, sum
        self.in_flight = 0
        self.authentication_failures = 0
        self.slow_downs = 0

    def observe(self, operation: str, status: int, elapsed_s: float, code: str = "") -> None:
        self.requests[operation, status] += 1
        if code:
            self.errors[code] += 1
            if code in ("SignatureDoesNotMatch", "InvalidAccessKeyId", "RequestTimeTooSkewed"):
                self.authentication_failures += 1
        row = self.seconds.get(operation)
        if row is None:
            row = self.seconds[operation] = [0.0] * (len(BUCKETS_S) + 2)
        index = 0
        for bound in BUCKETS_S:
            if elapsed_s <= bound:
                break
            index += 1
        row[index] += 1
        row[-1] += elapsed_s

    def render(self, gauges: Iterable[tuple[str, str, str, float]]) -> str:
        """`gauges`: more families as (name, type, help, value)."""
        lines = [
            "# HELP trivium_s3_requests_total Requests by operation and status.",
            "# TYPE trivium_s3_requests_total counter",
        ]
        for (operation, status), number in sorted(self.requests.items()):
            lines.append(f'trivium_s3_requests_total{{operation="{operation}",status="{status}"}} {number}')
        lines += [
            "# HELP trivium_s3_errors_total Answers with an S3 error code.",
            "# TYPE trivium_s3_errors_total counter",
        ]
        lines += [f'trivium_s3_errors_total{{code="{_quote(code)}"}} {n}' for code, n in sorted(self.errors.items())]
        lines += [
            "# HELP trivium_s3_request_seconds Time until the answer began.",
            "# TYPE trivium_s3_request_seconds histogram",
        ]
        for operation, row in sorted(self.seconds.items()):
            total = 0.0
            for limit, count in zip((*BUCKETS_S, "+Inf"), row, strict=False):
                total += count
                lines.append(f'trivium_s3_request_seconds_bucket{{operation="{operation}",le="{limit}"}} {total:.0f}')
            lines.append(f'trivium_s3_request_seconds_sum{{operation="{operation}"}} {row[-1]:.6f}')
            lines.append(f'trivium_s3_request_seconds_count{{operation="{operation}"}} {total:.0f}')
        own = [
            ("trivium_s3_requests_in_flight", "gauge", "Requests being worked on.", float(self.in_flight)),
            (
                "trivium_s3_authentication_failures_total",
                "counter",
                "Wrong keys, signatures and clocks.",
                float(self.authentication_failures),
            ),
            ("trivium_s3_slow_downs_total", "counter", "Requests refused at admission.", float(self.slow_downs)),
        ]
        for name, kind, text, value in (*own, *gauges):
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name} {value:g}"]
        return "\n".join(lines) + "\n"
