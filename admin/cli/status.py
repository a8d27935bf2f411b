"""trivium status: what is wrong, what is at risk, how long until it is whole."""

from __future__ import annotations

import json
from typing import Any

import click

from trivium.admin import workreport
from trivium.admin.cli.connect import admin_call, connect_option, run, show_size
from trivium.admin.datadir import DataDir


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@connect_option
def status(as_json: bool, data: DataDir) -> None:
    """Say in words how the pool is, what it survives now, and what is being healed."""

    async def work() -> dict[str, Any]:
        found: dict[str, Any] = await admin_call(data, "status")
        return found

    report = run(work)
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return
    click.echo("\n".join(render(report)))


def render(report: dict[str, Any]) -> list[str]:
    """The report as lines for people (the same words as in JSON)."""
    lines = [f"pool {report['cluster'][:8]}: {report['summary']}"]
    lines += [f"  {sentence}" for sentence in report["sentences"]]
    if len(report["nodes"]) > 1 or any(node["state"] != "up" for node in report["nodes"]):
        lines.append("nodes")
        for node in report["nodes"]:
            said = f"{node['name']:<12} {node['state']:<9} {', '.join(node['drives'])}  {node['text']}"
            lines.append(f"  {said}".rstrip())
    lines.append("drives")
    for drive in report["drives"]:
        used = drive["bytes_total"] - drive["bytes_free"]
        lines.append(
            f"  {drive['name']:<6} {drive['state']:<9} {show_size(used):>10} of {show_size(drive['bytes_total']):>10}"
            + (f"  {drive['text']}" if drive["text"] else "")
        )
    lines += workreport.lines(report)
    lines.append("sessions: " + (", ".join(f"{s['client']}" for s in report["sessions"]) or "none"))
    return lines
