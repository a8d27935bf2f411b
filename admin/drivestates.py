"""What each drive is, derived from its row, its report, and who is slow; never stored. Pure.

    new: in use, up, and nothing has been put on it yet         up: in use and answers
    down: in use and does not answer                            out: marked so (note says why)
    draining: leaves                                            removed: a row for ever, not shown
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from trivium.cluster.model import DriveRow, DriveState
from trivium.cluster.wire import DriveReport
from trivium.metadata.mapsettings import OutNote

WARN_PERCENT = 75  # said before anything stops
GIB = 1 << 30
STEPS = (
    (95, 5 * GIB, "healing and cleaning stop; only deletes and the metadata go on"),
    (92, 10 * GIB, "volumes take no more writes; at 95 % healing stops"),
    (85, 20 * GIB, "it takes no new data; at 92 % volumes take no more writes"),
)
"""From which share on, when less than so much is free, what holds (RULES: Space; cluster/store/space enforces it)."""


def state_of(row: DriveRow, report: DriveReport | None, used: Collection[bytes]) -> DriveState:
    """`used`: drives that some group with chunks names."""
    if row.reason:
        return DriveState(row.reason)
    if report is None or report.state not in ("ok", "full"):
        return DriveState.DOWN
    return DriveState.UP if row.id in used else DriveState.NEW


def percent_used(report: DriveReport | None) -> int:
    if report is None or not report.bytes_total:
        return 0
    return 100 - 100 * report.bytes_free // report.bytes_total


def fill_text(report: DriveReport | None) -> str:
    """What the drive's fill means, "" while it means nothing."""
    if report is None:
        return ""
    if report.state == "full":
        return "full: takes no new data"
    percent = percent_used(report)
    for limit, free, text in STEPS:
        if percent >= limit and report.bytes_free < free:
            return f"{percent} % full: {text}"
    if percent >= WARN_PERCENT:
        return f"{percent} % full: at 85 % (and under 20 GiB free) it takes no new data"
    return ""


def describe(
    row: DriveRow,
    report: DriveReport | None,
    used: Collection[bytes],
    notes: Mapping[bytes, OutNote],
    drains: Mapping[bytes, Mapping[str, Any]],
    slow: Mapping[bytes, str],
) -> dict[str, Any]:
    """One drive of status and `drive ls`."""
    state = state_of(row, report, used)
    away = state is DriveState.DOWN or report is None or report.state not in ("ok", "full")
    words = []
    if row.id in notes and state is DriveState.OUT:
        words.append(notes[row.id].text)
    elif away:
        words.append(report.text if report else "no node reports it")
    if row.id in drains:
        words.append(str(drains[row.id]["text"]))
    if row.id in slow:
        words.append(slow[row.id])
    if not away and (full := fill_text(report)):
        words.append(full)
    if not row.weight:
        words.append("weight 0: takes no new data")
    return {
        "name": row.name,
        "id": row.id.hex(),
        "state": state.value,
        "text": "; ".join(words),
        "path": row.path,
        "domain": row.domain,
        "weight": row.weight,
        "drained": bool(row.id in drains and drains[row.id]["done"]),
        "slow": row.id in slow,
        "read_errors": report.read_errors if report else 0,
        "fill": "" if away else fill_text(report),
        "percent_used": percent_used(report),
        "bytes_total": report.bytes_total if report else row.bytes_total,
        "bytes_free": report.bytes_free if report else 0,
    }
