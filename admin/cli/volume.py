"""trivium volume: thin block devices."""

from __future__ import annotations

from typing import Any

import click

from trivium.admin.cli.connect import connect_option, open_pool, parse_size, run, show_size
from trivium.admin.datadir import DataDir


@click.group()
def volume() -> None:
    """Create, list, resize and remove thin volumes (export them with `trivium nbd serve`)."""


async def _call(data: DataDir, operation: Any) -> Any:

    async with open_pool(data) as pool:
        return (await pool.metadata.call(operation))[0]


@volume.command("create")
@click.argument("name")
@click.argument("size")
@connect_option
def create(name: str, size: str, data: DataDir) -> None:
    """Create volume NAME of SIZE (for example 10G). It takes space only as it is written."""
    from trivium.metadata.messages import CreateVolume

    info = run(_call, data, CreateVolume(name, parse_size(size)))
    click.echo(f"volume {info.name} created: {show_size(info.size)}")


@volume.command("ls")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@connect_option
def list_(as_json: bool, data: DataDir) -> None:
    """List volumes: name, size, what it uses, who has it open."""
    import json

    from trivium.metadata.messages import ListVolumes

    async def work() -> Any:
        async with open_pool(data) as pool:
            return await pool.metadata.ask(ListVolumes())

    volumes = run(work)
    if as_json:
        rows = [{"name": v.name, "size": v.size, "used": v.used, "open": bool(v.lease_session)} for v in volumes]
        click.echo(json.dumps(rows, indent=1))
        return
    for info in volumes:
        state = "open" if info.lease_session else "closed"
        click.echo(f"{info.name:<24} {show_size(info.size):>10}  used {show_size(info.used):>10}  {state}")


@volume.command("resize")
@click.argument("name")
@click.argument("size")
@click.option("--shrink", is_flag=True, help="Allow a smaller size; what lies beyond it is lost.")
@connect_option
def resize(name: str, size: str, shrink: bool, data: DataDir) -> None:
    """Give volume NAME another SIZE; clients see it at their next connection."""
    from trivium.metadata.messages import ResizeVolume

    info = run(_call, data, ResizeVolume(name, parse_size(size), shrink))
    click.echo(f"volume {info.name} is now {show_size(info.size)}")


@volume.command("rm")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@connect_option
def remove(name: str, yes: bool, data: DataDir) -> None:
    """Remove volume NAME and all that is in it. Refused while it is open."""
    from trivium.metadata.messages import RemoveVolume

    if not yes:
        click.confirm(f"Remove volume {name} and all of its data?", abort=True)
    run(_call, data, RemoveVolume(name))
    click.echo(f"volume {name} removed")
