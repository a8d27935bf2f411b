"""trivium drive, heal: the drives of the pool, and making it whole."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click
import trio

from trivium.admin.cli import drivedir, watching
from trivium.admin.cli.connect import admin_call, connect_option, run, show_size
from trivium.admin.datadir import DataDir
from trivium.admin.errors import CommandError
from trivium.admin.workreport import moving

STUCK_S = 3.0


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
        run(_watch_onto, data, name)


@click.command()
@click.option("--watch", is_flag=True, help="Show progress until nothing is left to heal.")
@click.option("--json", "as_json", is_flag=True, help="What is left, how fast, how long: one JSON object.")
@connect_option
def heal(watch: bool, as_json: bool, data: DataDir) -> None:
    """Say what is left to heal; with --watch stay until it is whole.

    Healing runs by itself, what is at the greatest risk first, and yields to clients down to a floor (`trivium up
    --heal-floor`). With --watch: a bar on a terminal, else a line every few seconds. Exits with 0 when every chunk has
    all of its shards, with 1 when healing cannot go on (it says why), with 3 when the pool is gone.
    """
    import json

    if watch:
        run(_watch, data)
        return
    report = run(_heal, data)
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return
    left = report["total"] - report["done"]
    click.echo(f"healing: {moving(report)}" if left else "nothing to heal: whole")
    if left and report["waiting"]:
        click.echo(report["waiting"])


async def _drives(data: DataDir) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await admin_call(data, "status"))["drives"]
    return found


async def _heal(data: DataDir) -> dict[str, Any]:
    found: dict[str, Any] = await admin_call(data, "heal")
    return found


async def _watch(data: DataDir) -> None:
    report = await _until_over(data)
    if not whole(report):
        raise CommandError(report["waiting"])
    click.echo("healed: every chunk has all of its shards")


async def _watch_onto(data: DataDir, name: str) -> None:
    """As _watch; that other drives are to be replaced as well is no failure of this one's replacement."""
    report = await _until_over(data)
    others = [row["name"] for row in await _drives(data) if row["state"] == "out" and row["name"] != name]
    if whole(report) or not others:
        await _watch(data)
        return
    left = report["total"] - report["done"]
    click.echo(f"drive {name} has all that can be healed onto it; {left} chunks lack shards of {', '.join(others)} too")
    click.echo(report["waiting"])


async def _until_over(data: DataDir) -> dict[str, Any]:
    stuck = Stuck()
    return await watching.watch("healing", partial(_heal, data), over=lambda report: stuck.at(report) or whole(report))


def whole(report: dict[str, Any]) -> bool:
    return bool(report["done"] >= report["total"])


class Stuck:
    """Healing waits for an operator when it has said so for a while and nothing is done meanwhile."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._done = -1

    def at(self, report: dict[str, Any]) -> bool:
        now = trio.current_time()
        if not report["waiting"] or report["done"] != self._done:
            self._since, self._done = None, report["done"]
        if report["waiting"] and self._since is None:
            self._since = now
        return self._since is not None and now - self._since >= STUCK_S
