"""trivium mount, umount: the pool as a file system."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import click

from trivium.admin.cli.connect import check_there, connect_option
from trivium.admin.datadir import DataDir
from trivium.admin.errors import CommandError


@click.command()
@click.argument("mountpoint", type=click.Path(path_type=Path))
@click.option("--bucket", default="", help="Mount this bucket instead of the whole pool.")
@click.option("--foreground", is_flag=True, help="Stay in the foreground (for service managers).")
@click.option("--read-only", is_flag=True, help="Refuse every change with EROFS.")
@click.option("--allow-other/--no-allow-other", default=None, help="Let other users in [default: when root].")
@click.option(
    "--io-timeout",
    type=float,
    default=None,
    metavar="SECONDS",
    help="Give up with EIO when the pool is away for so long [default: wait].",
)
@click.option(
    "--log",
    "log_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where messages go [default: DIR/run/mount-*.log].",
)
@connect_option
def mount(
    mountpoint: Path,
    bucket: str,
    foreground: bool,
    read_only: bool,
    allow_other: bool | None,
    io_timeout: float | None,
    log_file: Path | None,
    data: DataDir,
) -> None:
    """Mount the pool (or one bucket) at MOUNTPOINT. Returns once the mount answers.

    Needs /dev/fuse, fuse3 and the `fs` extra; `trivium doctor` says what is missing.
    """
    from trivium.admin.processes.mount import MountOptions, mount_in_background, mount_in_foreground, servers
    from trivium.fs.mount import remove_dead

    check_there(data)
    if all(server.pid == os.getpid() for server in servers(mountpoint.absolute())):
        remove_dead(str(mountpoint))
    if not mountpoint.is_dir():
        raise CommandError(f"{mountpoint} is not a directory: create it first (mkdir {mountpoint}).")
    options = MountOptions(data.reach, mountpoint.absolute(), bucket, read_only, allow_other, io_timeout, log_file)
    if foreground:
        mount_in_foreground(options)
    else:
        mount_in_background(options)
        click.echo(f"mounted {bucket or 'the pool'} at {mountpoint}; unmount with: trivium umount {mountpoint}")


@click.command()
@click.argument("mountpoint")  # not click.Path: that looks at the mount point, which may not answer
@click.option("--lazy", is_flag=True, help="Detach now, finish when nobody uses it any more.")
@click.option("--force", is_flag=True, help="End it though files are open or the pool is away; what is unsent is lost.")
def umount(mountpoint: str, lazy: bool, force: bool) -> None:
    """Unmount MOUNTPOINT; returns when everything written has been flushed.

    When the pool does not answer, it gives up after some seconds, says what was lost and fails.
    """
    from trivium.admin.processes.mount import servers, wait_until_gone

    path = Path(mountpoint).absolute()
    serving = servers(path)
    if force and serving:
        for server in serving:
            server.stop()
    else:
        _detach(path, lazy=lazy or force)
    wait_until_gone(serving)
    lost = [line for server in serving for line in server.lost()]
    if lost:
        raise CommandError("\n  ".join(["the pool did not answer; unmounted, and these writes are lost:", *lost]))


def _detach(mountpoint: Path, *, lazy: bool) -> None:
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), str(mountpoint)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise CommandError("fusermount3 is missing: apt install fuse3", 4) from None
    if done.returncode:
        raise CommandError(done.stderr.strip() or f"cannot unmount {mountpoint}")
