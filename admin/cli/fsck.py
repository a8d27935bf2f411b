from __future__ import annotations

import json

import click

from trivium.admin.cli.connect import admin_call, connect_option, run
from trivium.admin.datadir import DataDir
from trivium.admin.errors import CommandError


@click.command()
@click.option("--drives/--no-drives", default=True, help="Also compare with what is on the drives.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@connect_option
def fsck(drives: bool, as_json: bool, data: DataDir) -> None:
    """Prove the pool's invariants, and say what would be repaired. Changes nothing.

    Exits with 0 when nothing was found, with 6 when something was.
    """

    async def work() -> list[dict[str, str]]:
        found: list[dict[str, str]] = await admin_call(data, "fsck", drives=drives)
        return found

    findings = run(work)
    if as_json:
        click.echo(json.dumps({"findings": findings}, indent=1))
    else:
        for finding in findings:
            click.echo(
                f"{finding['what']}: {finding['text']}"
                + (f"  repair: {finding['repair']}" if finding.get("repair") else "")
            )
        click.echo(f"fsck: {len(findings)} finding{'' if len(findings) == 1 else 's'}")
    if findings:
        raise CommandError("the pool is not clean", 6)
