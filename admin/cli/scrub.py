"""trivium scrub: read every shard now."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from trivium.admin.cli import watching
from trivium.admin.cli.connect import admin_call, connect_option, run, show_size
from trivium.admin.datadir import DataDir
from trivium.admin.errors import CommandError


@click.command()
@click.option("--watch", is_flag=True, help="Only watch the pass that is under way (if one was asked for).")
@click.option("--no-wait", is_flag=True, help="Begin and return at once.")
@click.option("--json", "as_json", is_flag=True, help="The result as one JSON object.")
@connect_option
def scrub(watch: bool, no_wait: bool, as_json: bool, data: DataDir) -> None:
    """Read and verify everything now: shards, dumps, log segments, root copies. What is bad is put aside and healed.

    A slow pass runs all the time (every shard within 30 days) and goes on after a restart where it was. Exits with 6
    when something was found.
    """
    import json

    if no_wait:
        run(partial(admin_call, data, "scrub", start=True))
        click.echo("begun; trivium scrub --watch shows how far it is")
        return
    report = run(_watch, data, not watch)
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        skipped = f", {report['skipped']} on drives that do not answer" if report["skipped"] else ""
        click.echo(f"verified {report['shards']} shards, {show_size(report['bytes'])}{skipped}")
        for finding in report["findings"]:
            click.echo(finding)
    if report["findings"]:
        raise CommandError(f"{len(report['findings'])} bad shards; they are being healed (trivium heal --watch)", 6)


async def _watch(data: DataDir, start: bool) -> dict[str, Any]:
    if start:
        await admin_call(data, "scrub", start=True)

    async def ask() -> dict[str, Any]:
        report: dict[str, Any] = await admin_call(data, "scrub")
        return report | {"done": report["chunks"]}

    return await watching.watch("scrub", ask, over=lambda report: not report["running"])
