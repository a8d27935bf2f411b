"""Background work as data and lines: healing, narrow chunks, rebalancing, scrub; how fast, and how long until done."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from trivium.admin.cli.connect import show_size

if TYPE_CHECKING:
    from trivium.admin.processes.upkeep import Upkeep


async def work(upkeep: Upkeep) -> dict[str, Any]:
    """What `status`, `heal` and `scrub` show beside the drives."""
    narrow = await upkeep.widening.report()
    rebalance = upkeep.rebalancer.report()
    return {
        "narrow": narrow if narrow["left"] else None,
        "rebalance": rebalance if rebalance["total"] > rebalance["done"] else None,
        "scrub": upkeep.scrubbing.report(),
        "pace": upkeep.pacer.report(),
    }


def lines(report: dict[str, Any]) -> list[str]:
    """The same for people."""
    found = []
    if heal := report.get("heal"):
        found.append("healing: " + moving(heal, report.get("pace")))
    if narrow := report.get("narrow"):
        found.append("narrow: " + narrow_words(narrow))
    if rebalance := report.get("rebalance"):
        found.append("rebalancing: " + (rebalance["waiting"] or moving(rebalance, report.get("pace"))))
    if scrub := report.get("scrub"):
        found.append("scrub: " + scrub_words(scrub))
    return found


def moving(work: dict[str, Any], pace: dict[str, Any] | None = None) -> str:
    """3 of 40 chunks (12 MiB of 160 MiB), 30.1 MiB/s, about 5 s left."""
    text = f"{work['done']} of {work['total']} chunks"
    if work.get("bytes_total"):
        text += f" ({show_size(work['bytes_done'])} of {show_size(work['bytes_total'])})"
    text += f", {show_size(work['rate'])}/s"
    if pace and pace["slowed_by"]:
        text += f" (held to {show_size(pace['limit'])}/s for the sake of clients)"
    if work.get("seconds_left") is not None:
        text += f", about {duration(work['seconds_left'])} left"
    return text


def narrow_words(narrow: dict[str, Any]) -> str:
    left = narrow["left"]
    text = f"{left} chunk{'s' if left > 1 else ''} were written on fewer drives than the profile says"
    if narrow["volumes"]:
        text += f" ({narrow['volumes']} of volumes: by whoever serves them)"
    if narrow["begins_in_s"] is None:
        return text + "; they are written anew once the pool has been whole for 10 minutes"
    if narrow["begins_in_s"] > 0:
        return text + f"; they are written anew from in {duration(narrow['begins_in_s'])} on"
    return text + f"; they are being written anew: {moving(narrow)}"


def scrub_words(scrub: dict[str, Any]) -> str:
    share = 100 * scrub["chunks"] // max(1, scrub["total"])
    text = f"{min(100, share)} % of this pass" + (" (asked for)" if scrub["running"] else "")
    if scrub["last_ended_ns"]:
        when = datetime.fromtimestamp(scrub["last_ended_ns"] / 1e9, UTC)
        text += f"; the last whole one ended {when:%Y-%m-%d %H:%M} UTC"
    count = len(scrub["findings"])
    return text + (f"; {count} bad: {scrub['findings'][-1]}" if count else "; nothing bad found")


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 200_000 else f"{seconds / 86400:.1f} days"
