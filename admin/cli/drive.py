"""trivium drive, heal: the drives of the pool, and making it whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import trio

from trivium.admin.cli import drivedir
from trivium.admin.cli.connect import admin_call, connect_option, run, show_size
from trivium.admin.datadir import DataDir
from trivium.admin.errors import CommandError


@click.group()
def drive() -> None:
    """List, add, drain, remove and replace drives; look into drive directories."""


for _command in (drivedir.inspect, drivedir.verify, drivedir.export):
    drive.add_command(_command)


@drive.command("ls")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@connect_option
def list_(as_json: bool, data: DataDir) -> None:
    """List drives: name, state, space, fill, weight, where it is, why it is so.

    States: new (nothing on it yet), up, down (does not answer), out (its data is healed elsewhere), draining.
    """
    import json

    rows = run(_drives, data)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        space = f"{show_size(row['bytes_free']):>10} free of {show_size(row['bytes_total']):>10}"
        space += f" {row['percent_used']:>3} %"
        line = f"{row['name']:<6} {row['state']:<9} {space}  weight {row['weight']:<4g} {row['path']}  {row['text']}"
        click.echo(line.rstrip())


@drive.command("replace")
@click.argument("name")
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--wait/--no-wait", default=True, help="Watch the healing until it is done.")
@connect_option
def replace(name: str, path: Path | None, wait: bool, data: DataDir) -> None:
    """Put an empty directory in the place of drive NAME and heal onto it.

    PATH is the new directory (default: the same path, which must be empty or missing).
    """

    new_path = str(path.absolute()) if path else ""

    async def work() -> dict[str, Any]:
        found: dict[str, Any] = await admin_call(data, "drive_replace", name=name, path=new_path)
        return found

    answer = run(work)
    click.echo(f"drive {name} replaced by a new one at {answer['path']}; healing onto it")
    if wait:
        run(_watch, data)


@click.command()
@click.option("--watch", is_flag=True, help="Show progress until nothing is left to heal.")
@connect_option
def heal(watch: bool, data: DataDir) -> None:
    """Say what is left to heal; with --watch stay until it is whole."""
    if watch:
        run(_watch, data)
        return
    report = run(_heal, data)
    click.echo(
        "nothing to heal: whole"
        if not report["total"] - report["done"]
        else f"{report['total'] - report['done']} chunks to heal"
    )


async def _drives(data: DataDir) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await admin_call(data, "status"))["drives"]
    return found


async def _heal(data: DataDir) -> dict[str, Any]:
    found: dict[str, Any] = await admin_call(data, "heal")
    return found


async def _watch(data: DataDir) -> None:
    """A progress bar on a terminal, a line at the end elsewhere."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("healing"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} chunks"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("heal", total=None)
        while True:
            report = await _heal(data)
            progress.update(task, completed=report["done"], total=max(report["total"], 1))
            if report["waiting"]:
                raise CommandError(report["waiting"])
            if report["done"] >= report["total"]:
                break
            await trio.sleep(0.2)
    click.echo("healed: every chunk has all of its shards")
