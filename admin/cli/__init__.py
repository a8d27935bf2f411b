"""The command line. `main` is the console script; each module beside this one holds one family of commands."""

from __future__ import annotations

import importlib
from typing import Any

import click

from trivium.admin.errors import of_os_error

_COMMANDS = {
    # name -> (module, attribute); modules are imported when used, so that `trivium --help` is instant
    "up": ("up", "up"),
    "down": ("up", "down"),
    "node": ("processes", "node"),
    "s3": ("processes", "s3"),
    "status": ("status", "status"),
    "doctor": ("doctor", "doctor"),
    "bucket": ("bucket", "bucket"),
    "object": ("object", "object_group"),
    "mount": ("mount", "mount"),
    "umount": ("mount", "umount"),
    "volume": ("volume", "volume"),
    "nbd": ("nbd", "nbd"),
    "drive": ("drivelife", "drive"),
    "maintenance": ("drivelife", "maintenance"),
    "heal": ("drive", "heal"),
    "scrub": ("scrub", "scrub"),
    "fsck": ("fsck", "fsck"),
    "rebuild-metadata": ("rebuild", "rebuild_metadata"),
    "credential": ("credential", "credential"),
    "metadata": ("metadata", "metadata"),
    "cluster": ("cluster", "cluster"),
}


class LazyGroup(click.Group):
    """Commands by name, imported on first use. What the machine refuses becomes a sentence, whoever met it."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # whoever read the output has gone: click knows how to end
            raise
        except OSError as error:
            raise of_os_error(error) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name]
        command: Any = getattr(importlib.import_module(f"trivium.admin.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="trivium", message="trivium %(version)s")
def main() -> None:
    """One erasure-coded pool of plain drives, reached as files, blocks and buckets.

    \b
    Begin:      trivium up                       a pool of six drives (4+2), S3 on 127.0.0.1:9000
    Files:      trivium mount /mnt/t             the pool as a file system
    Blocks:     trivium volume create disk 10G   a thin volume; then: trivium nbd serve --socket /tmp/t.sock
    Buckets:    trivium credential show --env    for aws, boto3, s3cmd, rclone
    Look:       trivium status                   what is wrong, what is at risk

    Client commands find the pool by --connect DIR, else $TRIVIUM_CONNECT, else ~/.local/share/trivium.
    """


if __name__ == "__main__":
    main()
