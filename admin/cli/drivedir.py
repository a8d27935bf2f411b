"""trivium drive inspect, verify, export: drive directories without a pool. Nothing here writes to a drive."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trivium.admin.cli.connect import show_size
from trivium.admin.errors import CommandError

if TYPE_CHECKING:
    from trivium.cluster.drivedir import DriveDir

live_option = click.option(
    "--live", is_flag=True, help="Look even though a process has the drive; what it writes meanwhile may seem torn."
)
directory = click.argument("directory", type=click.Path(path_type=Path, file_okay=False))


@contextmanager
def opened(paths: tuple[Path, ...], live: bool) -> Iterator[list[DriveDir]]:
    """The drives, read-only. CommandError says what is wrong with which one."""
    from trivium.cluster.drivedir import DriveDir
    from trivium.cluster.errors import ClusterError, InUse
    from trivium.cluster.files import RealFiles

    drives: list[DriveDir] = []
    try:
        for path in paths:
            try:
                drives.append(DriveDir.open(RealFiles(), str(path.absolute()), live=live))
            except InUse as error:
                raise CommandError(str(error), 5) from None
            except ClusterError as error:
                raise CommandError(str(error)) from None
            if drives[-1].holder:
                click.echo(f"warning: {path} is in use by {drives[-1].holder}; reading it as it is now", err=True)
        yield drives
    finally:
        for drive in drives:
            drive.close()


@click.command("inspect")
@directory
@click.option("--shard", metavar="CHUNK.INDEX", help="Show one shard's header and table of contents.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@live_option
def inspect(directory: Path, shard: str | None, as_json: bool, live: bool) -> None:
    """Say what the drive directory DIRECTORY is and holds, without a pool. Changes nothing.

    Shows its identity, its copies of the root and of the map in it, its log segments and how many shards it has.
    --shard takes a shard's path below chunks/ (as `drive verify` names it), or SESSION/COUNTER.INDEX in hexadecimal.
    """
    from trivium.admin.drivefacts import facts, in_words, shard_facts

    with opened((directory,), live) as (drive,):
        if shard is None:
            found = facts(drive)
            click.echo(json.dumps(found, indent=1) if as_json else "\n".join(in_words(found)))
            return
        one = shard_facts(drive, shard)
    if as_json:
        click.echo(json.dumps(one, indent=1))
        return
    for name, value in one.items():
        if name != "pieces":
            click.echo(f"{name:<14} {value}")
    for number, piece in enumerate(one["pieces"]):
        where = f"{piece['length']} bytes at {piece['owner_offset']} of {piece['whose']}, version {piece['version']}"
        click.echo(f"piece {number:<8} {piece['flags']} {where}: at {piece['chunk_offset']} of the chunk")


@click.command("verify")
@directory
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@live_option
def verify(directory: Path, as_json: bool, live: bool) -> None:
    """Read the drive directory DIRECTORY whole and check every byte of every shard, log record and root.

    Needs no pool and changes nothing. Exits with 0 when everything verifies, with 6 when something does not.
    """
    from trivium.cluster import driveverify

    with opened((directory,), live) as (drive,):
        with progress_of(driveverify.total_bytes(drive), "verify") as progress:
            done = driveverify.verify(drive, progress)
        name = drive.path
    if as_json:
        faults = [{"path": fault.path, "text": fault.text} for fault in done.faults]
        counts = {"shards": done.shards, "segments": done.segments, "records": done.records, "bytes": done.bytes}
        click.echo(json.dumps({"drive": name, **counts, "quarantined": done.quarantined, "faults": faults}, indent=1))
    else:
        for fault in done.faults:
            click.echo(f"{fault.path or name}: {fault.text}")
        aside = f"; {done.quarantined} put aside in quarantine/ earlier" if done.quarantined else ""
        click.echo(
            f"verified {done.shards} shards, {done.records} records in {done.segments} log segments, the root: "
            f"{show_size(done.bytes)}{aside}"
        )
    if done.faults:
        raise CommandError(f"{name} does not verify: {len(done.faults)} findings", 6)


@click.command("export")
@click.argument("directories", nargs=-1, required=True, metavar="DIRECTORY...",
                type=click.Path(path_type=Path, file_okay=False))
@click.option("--to", "target", required=True, metavar="DIR", type=click.Path(path_type=Path, file_okay=False),
              help="Where to put it: a new or empty directory.")
@live_option
def export(directories: tuple[Path, ...], target: Path, live: bool) -> None:
    """Rebuild files and volumes from the drive directories DIRECTORY... of one pool, without the pool.

    k drives' shards of each chunk suffice, whichever they are. Where the drives still have the metadata (a dump and
    the log), files/ has every file by its name and volumes/ every volume as a raw image; what no metadata name goes
    to lost+found/. What could not be rebuilt is said, and marked .damaged. Drives are only read. Exits with 6 when
    something is lost.
    """
    import trio

    from trivium.admin.export import Exported, Target
    from trivium.admin.export import export as rebuild
    from trivium.cluster.clock import ThreadExecutor
    from trivium.cluster.salvage import Salvage

    target = target.absolute()
    target.mkdir(parents=True, mode=0o700, exist_ok=True)
    if any(target.iterdir()):
        raise CommandError(f"{target} is not empty: name a new directory.")
    with opened(directories, live) as drives:
        _require_one_cluster(drives)
        salvage = Salvage(drives)
        salvage.scan()
        done = Exported(lost=[f"shard {text}" for text in salvage.unreadable])
        total = sum(put.key.length for put in salvage.all())
        with progress_of(total, "export") as progress:
            trio.run(rebuild, salvage, Target(target, done, progress), ThreadExecutor(1))
    for text in done.notes:
        click.echo(text)
    for text in done.lost:
        click.echo(f"lost: {text}", err=True)
    click.echo(f"exported {done.files} files ({show_size(done.bytes)}), {done.volumes} of them volumes, to {target}")
    if done.lost:
        raise CommandError(f"{len(done.lost)} things could not be rebuilt; give more drives if there are any", 6)


def _require_one_cluster(drives: list[DriveDir]) -> None:
    clusters = {drive.cluster for drive in drives if any(drive.cluster)}
    if len(clusters) > 1:
        raise CommandError("the drives belong to different clusters: give those of one pool.")


@contextmanager
def progress_of(total: int, what: str) -> Iterator[Any]:
    """A progress bar of bytes on a terminal; elsewhere nothing. Yields the function that hears bytes done."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)
