"""trivium up, down: the whole pool in one process."""

from __future__ import annotations

import os
import re
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import click

from trivium.admin.cli.connect import connect_option, parse_size, run
from trivium.admin.cli.quicoptions import engine_option, listen_options
from trivium.admin.datadir import DataDir, default_data_dir
from trivium.admin.errors import CommandError


def _profile(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,2})\+(\d)", value)
    if not match or not 1 <= int(match[1]) <= 16 or int(match[2]) > 4:
        raise click.BadParameter("write K+M, for example 4+2 (K from 1 to 16, M from 0 to 4)")
    return int(match[1]), int(match[2])


def _listen(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, int] | None:
    if value in ("", "none"):
        return None
    host, colon, port = value.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise click.BadParameter("write HOST:PORT, for example 127.0.0.1:9000 (port 0 = any free one), or none")
    return host.strip("[]") or "127.0.0.1", int(port)


def _mode(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"0?[0-7]{3}", value):
        raise click.BadParameter("write three octal digits, for example 0660")
    return value


def _group(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    import grp

    try:
        return value if value is None or grp.getgrnam(value) else None
    except KeyError:
        raise click.BadParameter(f"there is no group {value!r} on this host") from None


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="TRIVIUM_DATA",
    metavar="DIR",
    help="Data directory [env: TRIVIUM_DATA; default: ~/.local/share/trivium].",
)
@click.option(
    "--drives",
    type=click.IntRange(1, 64),
    default=None,
    help="Drive directories DIR/drives/d0 ... to make at the first start; a larger number later adds [default: those "
    "that are there, else 6].",
)
@click.option(
    "--profile",
    callback=_profile,
    default=None,
    metavar="K+M",
    help="Data and parity shards, fixed at the first start [default: 4+2].",
)
@click.option(
    "--s3-listen",
    "s3_listen",
    callback=_listen,
    default="127.0.0.1:9000",
    show_default=True,
    metavar="HOST:PORT",
    help="S3 endpoint; none = no gateway.",
)
@click.option("--region", default="us-east-1", show_default=True, help="What S3 clients must sign for.")
@listen_options("TRIVIUM_UP", "only this host's Unix socket")
@engine_option
@click.option("--socket-mode", callback=_mode, default="0600", show_default=True, help="Mode of DIR/run/trivium.sock.")
@click.option("--socket-group", callback=_group, default=None, help="Group of DIR/run/trivium.sock.")
@click.option(
    "--heal-floor",
    callback=lambda _ctx, _param, value: max(1 << 16, parse_size(value)),
    default="8M",
    show_default=True,
    envvar="TRIVIUM_HEAL_FLOOR",
    metavar="SIZE",
    help="Bytes per second that healing, rebalancing and scrub get however busy clients are [env: TRIVIUM_HEAL_FLOOR].",
)
@click.option("--clean-slate", is_flag=True, help="Remove everything in DIR first (for tests). Asks, unless --yes.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--detach", is_flag=True, help="Return once everything answers; stop with `trivium down`.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    envvar="LOG_FORMAT",
    help="Messages as lines for people or JSON objects [env: LOG_FORMAT].",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Leave out what is less important.",
)
def up(data: Path | None, clean_slate: bool, yes: bool, detach: bool, **options: Any) -> None:
    """Run metadata, drives and S3 in this process, without configuration.

    Makes a pool in DIR at the first start. Credentials are TRIVIUM_ROOT_USER and TRIVIUM_ROOT_PASSWORD, else generated
    and kept. Stops cleanly at SIGINT or SIGTERM.
    """
    directory = DataDir((data or default_data_dir()).absolute())
    if clean_slate:
        _clean(directory, yes)
    if detach:
        from trivium.admin.processes.detach import start_detached

        directory.refuse_foreign()  # before its log is made there
        facts = start_detached(["up", "--data", str(directory.path), *_repeat(options)], directory.log_file)
        click.echo(_banner(directory, facts))
        return
    from trivium.admin.processes.up import UpOptions, serve_up

    def ready(facts: dict[str, Any]) -> None:
        from trivium.admin.processes.detach import announce

        if not announce(facts):
            click.echo(_banner(directory, facts))

    status = run(serve_up, UpOptions(directory, **options), ready)
    if status:
        raise SystemExit(status)


def _repeat(options: dict[str, Any]) -> list[str]:
    """The options as they were given, for the background process."""
    arguments = []
    for name, value in options.items():
        if value in (None, "") and name != "s3_listen":
            continue
        if name == "profile":
            value = f"{value[0]}+{value[1]}"
        elif name in ("s3_listen", "listen"):
            value = "none" if value is None else f"{value[0]}:{value[1]}"
        arguments += ["--" + name.replace("_", "-"), str(value)]
    return arguments


def _banner(directory: DataDir, facts: dict[str, Any]) -> str:
    connect = "" if directory.path == default_data_dir() else f" --connect {shlex.quote(str(directory.path))}"
    lines = [f"trivium is up: pool {facts['cluster'][:8]}, {facts['summary']}", f"  data       {directory.path}"]
    if facts.get("s3"):
        lines.append(f"  S3         {facts['s3']}")
        lines.append(f"  access key {facts['access_key']}")
        lines.append(
            f"  secret key {facts['secret_key']}"
            if "secret_key" in facts
            else f"  secret key (shown by: trivium credential show{connect})"
        )
    lines += [
        f"  files      trivium mount{connect} MOUNTPOINT",
        f"  blocks     trivium volume create{connect} NAME SIZE; trivium nbd serve{connect} --socket PATH",
        f"  look       trivium status{connect}",
    ]
    if facts.get("note"):
        lines.append(f"  note       {facts['note']}")
    return "\n".join(lines)


def _clean(directory: DataDir, yes: bool) -> None:
    """Remove a pool; only ever what a pool consists of."""
    import shutil

    from trivium.admin.lock import holder_of

    if not directory.path.exists():
        return
    if holder := holder_of(directory.metadata / "lock"):
        raise CommandError(f"{directory.path} is in use by process {holder}; stop it first (trivium down).", 5)
    if directory.read() is None:
        if any(directory.path.iterdir()):
            raise CommandError(f"{directory.path} holds no pool; --clean-slate removes pools only.")
        return
    if not yes:
        click.confirm(f"Remove the pool at {directory.path} and ALL of its data?", abort=True)
    for name in ("drives", "metadata", "run", "keys"):
        shutil.rmtree(directory.path / name, ignore_errors=True)
    directory.cluster_file.unlink(missing_ok=True)


@click.command()
@click.option(
    "--timeout", "timeout_s", type=float, default=60, show_default=True, metavar="SECONDS", help="How long to wait."
)
@connect_option
def down(timeout_s: float, data: DataDir) -> None:
    """Stop the pool at --connect cleanly; returns when it has stopped."""
    from trivium.admin.lock import holder_of

    lock = data.metadata / "lock"
    pid = holder_of(lock)
    if not pid:
        click.echo(f"no pool runs at {data.path}")
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while holder_of(lock) == pid or _lives(pid):
        if time.monotonic() > deadline:
            raise CommandError(f"process {pid} has not stopped within {timeout_s:.0f} s; look at {data.log_file}.")
        time.sleep(0.02)
    click.echo("stopped")
    for waiting, what in _clients(data):
        click.echo(f"  {what} (process {waiting}) waits until the pool is up again; {_ENDS[what]}")


_ENDS = {"a mount": "trivium umount ends it", "a block export": "kill ends it"}


def _clients(data: DataDir) -> list[tuple[int, str]]:
    """Mounts and block exports of this pool: they outlive it, so that a restart is only a pause for them."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
        except OSError:
            continue
        if b"connect=" + os.fsencode(data.path) in words:
            found.append((int(entry.name), "a block export"))
        elif {b"mount", b"--foreground", os.fsencode(data.path)} <= set(words):
            found.append((int(entry.name), "a mount"))
    return sorted(found)


def _lives(pid: int) -> bool:
    """The process has not ended (one that only waits to be reaped has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
