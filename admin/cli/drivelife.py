"""trivium drive add, drain, remove, weight, in; trivium maintenance."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import trio

from trivium.admin.cli.connect import admin_call, connect_option, run
from trivium.admin.cli.drive import drive
from trivium.admin.datadir import DataDir
from trivium.admin.errors import CommandError


@drive.command("add")
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--name", default="", help="What to call it [default: the next free d<N>].")
@click.option("--node", default="", help="The node that has PATH [default: the process that leads the pool].")
@connect_option
def add(path: Path | None, name: str, node: str, data: DataDir) -> None:
    """Make the empty directory PATH a drive of the pool; new data uses it at once.

    PATH is best a file system of its own on a disk of its own (default: DIR/drives/NAME). It is made if it is missing;
    a directory that holds anything is refused and left as it is. What is stored stays where it is.
    """
    at = str(path.absolute()) if path else ""

    async def work() -> dict[str, Any]:
        found: dict[str, Any] = await admin_call(data, "drive_add", name=name, path=at, node=node)
        return found

    answer = run(work)
    click.echo(f"drive {answer['name']} added at {answer['path']}")


@drive.command("drain")
@click.argument("name")
@click.option("--cancel", is_flag=True, help="End the drain: the drive is in use again; what has moved stays moved.")
@click.option("--wait/--no-wait", default=True, help="Watch until nothing is left on it.")
@connect_option
def drain(name: str, cancel: bool, wait: bool, data: DataDir) -> None:
    """Move everything off drive NAME while all goes on; then it can be removed.

    No new data goes there, chunks, log segments, votes and dumps move to other drives. The drain goes on in the pool
    when this command is interrupted, and over restarts: trivium drive ls shows how far it is.
    """
    if cancel:
        run(_call, data, "drive_drain_cancel", name)
        click.echo(f"drive {name} is in use again")
        return
    answer = run(_call, data, "drive_drain", name)
    if wait:
        answer = run(_watch, data, name)
    click.echo(f"drive {name}: {answer['text']}")


@drive.command("remove")
@click.argument("name")
@connect_option
def remove(name: str, data: DataDir) -> None:
    """Take drive NAME off the pool for good: a drained one, or one that is out or lost.

    Refused while anything needs it, or when data would be lost. Its directory is left as it is.
    """
    answer = run(_call, data, "drive_remove", name)
    click.echo(f"drive {name} is removed; nothing uses {answer['path']} any more")


@drive.command("weight")
@click.argument("name")
@click.argument("weight", type=float)
@connect_option
def weight(name: str, weight: float, data: DataDir) -> None:
    """Let new data use drive NAME in proportion to WEIGHT (drives begin with 1; 0: nothing new)."""

    async def work() -> None:
        await admin_call(data, "drive_weight", name=name, weight=weight)

    run(work)
    click.echo(f"drive {name} has weight {weight:g}")


@drive.command("in")
@click.argument("name")
@connect_option
def in_(name: str, data: DataDir) -> None:
    """Use drive NAME again that was marked out after I/O errors (after mere silence it comes back by itself)."""
    run(_call, data, "drive_in", name)
    click.echo(f"drive {name} is in use again")


@click.command()
@click.argument("what", type=click.Choice(["on", "off"]), required=False)
@click.option("--for", "how_long", default=None, metavar="TIME", help="End by itself after 90m, 2h, 1d ...")
@connect_option
def maintenance(what: str | None, how_long: str | None, data: DataDir) -> None:
    """Begin or end maintenance: while it lasts no drive is marked out, however long it is away.

    Without on or off: say whether it is on.
    """
    if how_long is not None and what != "on":
        raise click.UsageError("--for goes with on: trivium maintenance on --for 2h")
    seconds = None if what is None else 0.0 if what == "off" else parse_period(how_long) if how_long else -1.0

    async def work() -> dict[str, Any]:
        found: dict[str, Any] = await admin_call(data, "maintenance", seconds=seconds)
        return found

    click.echo(run(work)["text"] or "maintenance is off")


def parse_period(text: str) -> float:
    """Seconds of "90s", "15m", "2h", "1d"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip().lower())
    if not match or not float(match[1]):
        raise click.BadParameter(f"{text!r} is no period: write for example 90m, 2h or 1d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


async def _call(data: DataDir, command: str, name: str) -> Any:
    return await admin_call(data, command, name=name)


async def _watch(data: DataDir, name: str) -> dict[str, Any]:
    """A progress bar on a terminal, until the drain is done."""
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("draining"), BarColumn(), TextColumn("{task.completed}/{task.total} chunks"))
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("drain", total=None)
        while True:
            report: dict[str, Any] = await _call(data, "drive_drain_report", name)
            total = report["chunks"]
            progress.update(task, completed=total - report["chunks_left"], total=max(total, 1))
            if report["done"]:
                return report
            if report["waiting"] and report["chunks_left"]:
                raise CommandError(report["waiting"])
            await trio.sleep(0.2)
