"""trivium cluster: who belongs to it, and how others join."""

from __future__ import annotations

import re
import secrets
import sys
import time
from pathlib import Path
from typing import Any

import click

from trivium.admin.cli.connect import admin_call, connect_option, run
from trivium.admin.datadir import DataDir, default_data_dir
from trivium.admin.errors import CommandError
from trivium.cluster.errors import NotFound, Refused

RIGHTS = {"read": 1, "write": 3, "admin": 7}  # each includes those before it
DAY_S = 86400


@click.group()
def cluster() -> None:
    """Keys and members: let machines and clients join, revoke them, change the cluster's key."""


def _data(_ctx: click.Context, _param: click.Parameter, value: Path | None) -> DataDir:
    return DataDir((value or default_data_dir()).absolute())


@cluster.command("init")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="TRIVIUM_DATA",
    callback=_data,
    metavar="DIR",
    help="Data directory [env: TRIVIUM_DATA; default: ~/.local/share/trivium].",
)
def init(data: DataDir) -> None:
    """Make the cluster's key in DIR/keys/cluster, if there is none, and print its fingerprint.

    `trivium up` does this by itself at its first start; run it before to note the fingerprint or to back the key up.
    Never overwrites a key.
    """
    from trivium.admin.identity import make_cluster_keys
    from trivium.admin.lock import LifeLock
    from trivium.cluster.errors import InUse
    from trivium.cluster.identity.keyfiles import load_cluster, save_cluster

    data.refuse_foreign()
    path = data.keys / "cluster"
    try:
        keys = load_cluster(path)
    except NotFound:
        formed = data.read()
        if formed is not None and not formed.forming:
            raise CommandError(f"{data.path} holds a pool: `trivium up` makes its key at the next start.") from None
        for directory in (data.path, data.keys, data.metadata):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            lock = LifeLock(data.metadata / "lock", str(data.path))
        except InUse as error:
            raise CommandError(str(error), 5) from None
        try:
            keys = make_cluster_keys(secrets.token_bytes(16))
            save_cluster(path, keys)
        finally:
            lock.close()
        click.echo(f"made {path}; back it up: who has it is the cluster")
    except Refused as error:
        raise CommandError(str(error)) from None
    click.echo(f"cluster      {keys.cluster.hex()}")
    click.echo(f"fingerprint  {keys.keys[-1].key.public.fingerprint.hex()}")


@cluster.group("token")
def token() -> None:
    """One-time tokens with which others join."""


def _duration(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
    match = re.fullmatch(r"(\d{1,5})([smhd])", value)
    seconds = int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": DAY_S}[match[2]] if match else 0
    if not 0 < seconds <= 30 * DAY_S:
        raise click.BadParameter("write for example 30m, 24h or 7d, at most 30d")
    return seconds


@token.command("create")
@click.option(
    "--role",
    type=click.Choice(["client", "node", "metadata"]),
    default="client",
    show_default=True,
    help="What the joiner will be: a client (mount, nbd, s3), a node with drives, or a metadata server.",
)
@click.option(
    "--right",
    type=click.Choice(list(RIGHTS)),
    default="write",
    show_default=True,
    help="The most that a client may do; each includes those before it. An S3 gateway needs admin.",
)
@click.option("--pool", "pools", type=click.IntRange(1), multiple=True, help="Only this pool (again for more).")
@click.option("--name", default="", help="Name of the new member; default: what the joiner calls itself.")
@click.option("--expires", callback=_duration, default="24h", show_default=True, help="Until when it can be used.")
@connect_option
def create(role: str, right: str, pools: tuple[int, ...], name: str, expires: int, data: DataDir) -> None:
    """Print a new join token: it lets one process join, once. Treat it as a password; it is shown this once."""
    rights = {"client": RIGHTS[right], "node": 0}.get(role, 7)
    made = run(
        _admin,
        data,
        "cluster_token_create",
        {"role": role, "rights": rights, "pools": list(pools), "name": name, "lasts_s": expires},
    )
    click.echo(made["token"])
    there = "trivium node --data DIR --join TOKEN" if role == "node" else "trivium cluster join TOKEN"
    click.echo(f"there: {there}", err=True)


@token.command("ls")
@connect_option
def token_ls(data: DataDir) -> None:
    """List join tokens (never their secrets)."""
    for row in run(_admin, data, "cluster_token_list", {}):
        state = "used" if row["used"] else f"until {_when(row['expires'])}"
        click.echo(
            f"{row['id']}  {','.join(row['roles']):<9} {_rights(row):<6} {_pools(row):<12} {state}  {row['name']}"
        )


@token.command("rm")
@click.argument("id")
@connect_option
def token_rm(id: str, data: DataDir) -> None:
    """Remove the join token ID: nobody can use it any more."""
    if not re.fullmatch("[0-9a-f]{16}", id):
        raise CommandError(f"{id} is no token's id: `trivium cluster token ls` has them.")
    run(_admin, data, "cluster_token_remove", {"id": id})
    click.echo(f"token {id} removed")


@cluster.command("join")
@click.argument("token")
@click.option("--name", default="", help="What this member is called in lists; default: the token's, else the host's.")
@click.option(
    "--keys",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where the key file is made [default: keys in the default data directory].",
)
@connect_option
def join(token: str, name: str, keys: Path | None, data: DataDir) -> None:
    """Join a cluster with TOKEN: make a key here, have it certified, pin the cluster's key.

    The token says where the metadata server is and what its key is; nothing else is needed. Stores KEYS/client, or
    KEYS/node for a token of role node or metadata (mode 0600). Afterwards every command here finds the cluster by
    itself: trivium status, trivium mount /mnt. TOKEN may be - to read it from standard input, which keeps it out of
    the shell's history. A node joins by `trivium node --join TOKEN` alone.
    """
    from trivium.admin.tokenjoin import join_and_store

    text = sys.stdin.readline() if token == "-" else token
    folder = keys or default_data_dir() / "keys"
    identity, path = run(join_and_store, data, text, name, folder.absolute())
    click.echo(f"joined cluster {identity.cluster.hex()[:8]} as {identity.name}; key in {path}")


@cluster.command("members")
@connect_option
def members(data: DataDir) -> None:
    """List who belongs to the cluster: id, name, role, rights, pools, since when, and who was revoked."""
    for row in run(_admin, data, "cluster_members", {}):
        state = f"revoked {_when(row['revoked'])}" if row["revoked"] else f"since {_when(row['issued'])}"
        roles = ",".join(row["roles"])
        click.echo(
            f"{row['id'][:12]}  {row['name']:<20} {roles:<14} {_rights(row):<6} {_pools(row):<12}"
            f" key {row['generation']}  {state}"
        )


@cluster.command("revoke")
@click.argument("member")
@connect_option
def revoke(member: str, data: DataDir) -> None:
    """Revoke the key of MEMBER (its name, or how its id begins) for ever; its connections and sessions end now."""
    done = run(_admin, data, "cluster_revoke", {"member": member})
    click.echo(f"{done['name']} revoked; {done['closed']} connections and {done['sessions']} sessions ended")


@cluster.command("rotate")
@click.option("--finish", is_flag=True, help="End the overlap: what the old key has signed counts no more.")
@click.option("--force", is_flag=True, help="With --finish: also when members still hold certificates of the old key.")
@connect_option
def rotate(finish: bool, force: bool, data: DataDir) -> None:
    """Give the cluster a new key. Old and new one count side by side until --finish."""
    done = run(_admin, data, "cluster_rotate", {"finish": finish, "force": force})
    click.echo(f"the cluster's key is of generation {done['generation']}, fingerprint {done['fingerprint']}")
    if not finish:
        click.echo("both keys count; back DIR/keys/cluster up, then: trivium cluster rotate --finish")


def _rights(row: dict[str, Any]) -> str:
    names = [name for name, bits in RIGHTS.items() if row["rights"] & bits == bits]
    return names[-1] if names else "-"


def _pools(row: dict[str, Any]) -> str:
    return "all pools" if list(row["pools"]) == [0] else "pool " + ",".join(map(str, row["pools"]))


def _when(ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(ns / 1e9))


async def _admin(data: DataDir, command: str, arguments: dict[str, Any]) -> Any:
    return await admin_call(data, command, **arguments)
