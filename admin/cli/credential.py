"""trivium credential: access keys of the S3 gateway."""

from __future__ import annotations

import secrets

import click

from trivium.admin.cli.connect import admin_call, connect_option, run
from trivium.admin.datadir import DataDir


@click.group()
def credential() -> None:
    """Show, add and remove S3 credentials. Only the pool's own user may."""


@credential.command("show")
@click.option("--env", "as_env", is_flag=True, help='As shell assignments: eval "$(trivium credential show --env)".')
@connect_option
def show(as_env: bool, data: DataDir) -> None:
    """Print the root credential and the S3 endpoint."""

    async def work() -> tuple[dict[str, str], dict[str, str]]:
        return await admin_call(data, "credential_root"), await admin_call(data, "endpoints")

    root, endpoints = run(work)
    if as_env:
        click.echo(f"export AWS_ACCESS_KEY_ID={root['access_key']}")
        click.echo(f"export AWS_SECRET_ACCESS_KEY={root['secret_key']}")
        click.echo("export AWS_DEFAULT_REGION=us-east-1")
        if endpoints.get("s3"):
            click.echo(f"export AWS_ENDPOINT_URL={endpoints['s3']}")
    else:
        click.echo(f"endpoint    {endpoints.get('s3', 'none')}")
        click.echo(f"access key  {root['access_key']}")
        click.echo(f"secret key  {root['secret_key']}")


@credential.command("ls")
@connect_option
def list_(data: DataDir) -> None:
    """List access keys, their users and the bucket that each is scoped to (never the secrets)."""
    for row in run(_admin, data, "credential_list", {}):
        scope = row["bucket"] or "all buckets"
        click.echo(f"{row['access_key']:<24} {row['user']:<16} {scope}{'  (root)' if row['root'] else ''}")


@credential.command("add")
@click.argument("user")
@click.option("--bucket", default="", help="Allow this bucket only.")
@click.option("--access-key", default="", help="Instead of a generated one.")
@connect_option
def add(user: str, bucket: str, access_key: str, data: DataDir) -> None:
    """Add a credential for USER and print it. The secret is shown this once."""
    key = access_key or "TV" + secrets.token_hex(9).upper()
    secret = secrets.token_urlsafe(30)
    fields = {"access_key": key, "secret_key": secret, "user": user, "bucket": bucket}
    run(_admin, data, "credential_set", fields)
    click.echo(f"access key  {key}\nsecret key  {secret}")


@credential.command("rm")
@click.argument("access_key")
@connect_option
def remove(access_key: str, data: DataDir) -> None:
    """Remove a credential; requests signed with it are refused from now on."""
    run(_admin, data, "credential_set", {"access_key": access_key, "secret_key": "", "user": "", "bucket": ""})
    click.echo(f"credential {access_key} removed")


async def _admin(data: DataDir, command: str, arguments: dict[str, object]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = await admin_call(data, command, **arguments)
    return found
