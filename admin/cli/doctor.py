from __future__ import annotations

import json

import click

from trivium.admin.errors import CommandError


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def doctor(as_json: bool) -> None:
    """Say what is missing on this machine, with the command that installs it.

    Exits with 4 when something is missing. S3 alone needs neither FUSE nor nbdkit.
    """
    from dataclasses import asdict

    from trivium.admin.doctor import examine

    findings = examine()
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            click.echo(f"{'ok     ' if finding.ok else 'MISSING'}  {finding.name:<22} {finding.seen}")
            if not finding.ok:
                click.echo(f"         needed for {finding.needed_for}: {finding.remedy}")
    if missing := [finding for finding in findings if not finding.ok]:
        raise CommandError(f"{len(missing)} missing: " + ", ".join(finding.name for finding in missing), 4)
