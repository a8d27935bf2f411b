"""trivium scrub: read every shard now."""

from __future__ import annotations

from typing import Any

import click
import trio

from trivium.admin.cli.connect import admin_call, connect_option, run, show_size
from trivium.admin.datadir import DataDir
from trivium.admin.errors import CommandError


@click.command()
@connect_option
def scrub(data: DataDir) -> None:
    """Read and verify every shard now. What is bad is put aside and healed.

    A slow pass runs all the time (every shard within 30 days). Exits with 6 when something was found.
    """
    report = run(_watch, data)
    skipped = f", {report['skipped']} on drives that do not answer" if report["skipped"] else ""
    click.echo(f"verified {report['shards']} shards, {show_size(report['bytes'])}{skipped}")
    for finding in report["findings"]:
        click.echo(finding)
    if report["findings"]:
        raise CommandError(f"{len(report['findings'])} bad shards; they are being healed (trivium heal --watch)", 6)


async def _watch(data: DataDir) -> dict[str, Any]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("scrub"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} chunks"),
        TimeRemainingColumn(),
    )
    report: dict[str, Any] = await admin_call(data, "scrub", start=True)
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("scrub", total=None)
        while report["running"]:
            progress.update(task, completed=report["chunks"], total=max(report["total"], 1))
            await trio.sleep(0.2)
            report = await admin_call(data, "scrub")
    return report
