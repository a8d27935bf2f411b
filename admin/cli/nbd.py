"""trivium nbd: volumes as network block devices."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import click

from trivium.admin.cli.connect import check_there, connect_option
from trivium.admin.datadir import DataDir


@click.group()
def nbd() -> None:
    """Export volumes over NBD (needs nbdkit and its Python plugin)."""


@nbd.command("serve")
@click.option(
    "--socket",
    "socket_path",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Unix socket to listen on (mode 0600).",
)
@click.option("--detach", is_flag=True, help="Return once it listens.")
@click.option("--pid-file", type=click.Path(path_type=Path, dir_okay=False), help="Write the server's process id here.")
@click.option("--read-only", is_flag=True, help="Share without taking leases; writes are refused.")
@click.option(
    "--takeover",
    type=click.Choice(["wait", "fail", "break"]),
    default="fail",
    show_default=True,
    help="When another process has the volume: wait for it, fail, or fence it.",
)
@click.option(
    "--threads", type=click.IntRange(1, 256), default=16, show_default=True, help="Requests served side by side."
)
@connect_option
def serve(
    socket_path: Path, detach: bool, pid_file: Path | None, read_only: bool, takeover: str, threads: int, data: DataDir
) -> None:
    """Export every volume by its name.

    \b
    nbd-client -unix /tmp/t.sock /dev/nbd0 -N disk         a kernel device
    nbdinfo 'nbd+unix:///disk?socket=/tmp/t.sock'          look at it
    qemu-system-x86_64 -drive file=nbd:unix:/tmp/t.sock:exportname=disk
    """
    from trivium.admin.processes.nbd import serve_nbd

    check_there(data)
    serve_nbd(
        data.reach,
        socket_path.absolute(),
        detach=detach,
        pid_file=pid_file.absolute() if pid_file else None,
        read_only=read_only,
        takeover=takeover,
        threads=threads,
    )
    if detach:
        example = f"nbd+unix:///NAME?socket={quote(str(socket_path.absolute()))}"
        click.echo(f"serving volumes at {socket_path}, for example {example}")
