"""trivium metadata: lead a pool without faces; its commands look into a copy of the metadata and change nothing."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from trivium.admin.cli.connect import admin_call, connect_option, run
from trivium.admin.cli.processes import lead, metadata_options
from trivium.admin.datadir import DataDir
from trivium.admin.errors import CommandError


@click.group(invoke_without_command=True)
@metadata_options
def metadata(data: DataDir | None, **options: Any) -> None:
    """Lead a pool (with --data or --config); or query, describe and export a snapshot of the metadata.

    Without a command this is the metadata server: drives may be its own and those of `trivium node` processes, which
    join through DIR/run/trivium.sock. Faces connect with --connect DIR.
    """
    context = click.get_current_context()
    if context.invoked_subcommand is not None:
        return
    if data is None:
        click.echo(context.get_help())
        return
    lead(data, options)


async def _copy(data: DataDir, target: str) -> None:
    if not data.reach.local:
        raise CommandError("a copy is written by the metadata server: give this command on its host, --connect DIR.")
    await admin_call(data, "metadata_copy", path=target)


@metadata.command("query")
@click.argument("sql")
@click.option("--csv", "as_csv", is_flag=True, help="CSV instead of JSON lines.")
@connect_option
def query(sql: str, as_csv: bool, data: DataDir) -> None:
    """Run SQL (SELECT) on a snapshot of the metadata."""
    import csv
    import sqlite3

    import sqlite_utils

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "metadata.db"
        run(_copy, data, str(path))
        database = sqlite_utils.Database(path)
        try:
            rows = database.query(sql)
            if as_csv:
                writer = csv.writer(sys.stdout)
                for number, row in enumerate(rows):
                    if number == 0:
                        writer.writerow(row)
                    writer.writerow(row.values())
            else:
                for row in rows:
                    click.echo(
                        json.dumps(row, default=lambda value: value.hex() if isinstance(value, bytes) else str(value))
                    )
        except (sqlite3.Error, ValueError) as error:
            raise CommandError(f"SQLite says: {error}") from None
        finally:
            database.conn.close()


@metadata.command("tables")
def tables() -> None:
    """Print the schema; each column is documented there."""
    from trivium.metadata.schema import ALL_TABLES

    click.echo(ALL_TABLES.strip())


@metadata.command("export")
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
@connect_option
def export(path: Path, data: DataDir) -> None:
    """Write a snapshot of the metadata to the SQLite file PATH (mode 0600: it holds secrets)."""
    if path.exists():
        raise CommandError(f"{path} exists: name a new file.")
    run(_copy, data, str(path.absolute()))
    click.echo(f"exported to {path}")


@metadata.command("dump")
@connect_option
def dump(data: DataDir) -> None:
    """Write a dump onto the drives now (one is written by itself as the log grows)."""

    async def work() -> dict[str, int]:
        found: dict[str, int] = await admin_call(data, "dump")
        return found

    answer = run(work)
    click.echo(f"dumped up to record {answer['seq']}: {answer['size']} bytes")


@metadata.command("digest")
@connect_option
def digest(data: DataDir) -> None:
    """Print seq and logical digest (rows in key order): equal on every true copy."""

    async def work() -> dict[str, str]:
        found: dict[str, str] = await admin_call(data, "digest")
        return found

    answer = run(work)
    click.echo(f"{answer['seq']} {answer['digest']}")


@metadata.command("confirm")
@click.option("--anyway", is_flag=True, help="Although chunks cannot be read: their shards elsewhere are given up.")
@connect_option
def confirm(anyway: bool, data: DataDir) -> None:
    """Confirm a pool that was rebuilt from shards: you have what there is, dead data may go.

    Until then nothing is deleted from the drives, so that another rebuild or `trivium drive export`, perhaps with more
    drives, can still find it. Look into lost+found, `trivium fsck` and `trivium fsck --lost` first.
    """

    async def work() -> dict[str, Any]:
        found: dict[str, Any] = await admin_call(data, "metadata_confirm", anyway=anyway)
        return found

    answer = run(work)
    if not answer["was"]:
        click.echo("nothing is to be confirmed: the metadata were not rebuilt from shards")
    elif answer["done"]:
        click.echo("confirmed: data that nothing names is deleted from now on")
    else:
        raise CommandError(
            f"{answer['unreadable']} chunks cannot be read (trivium fsck --lost names what they hold): bring back the "
            "drives that have their shards, or say --anyway",
            6,
        )
