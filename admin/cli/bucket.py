"""trivium bucket: buckets are top-level directories; `trivium mount` shows them."""

from __future__ import annotations

import click

from trivium.admin.cli.connect import connect_option, open_pool, run
from trivium.admin.datadir import DataDir


@click.group()
def bucket() -> None:
    """Create, list and remove buckets."""


@bucket.command("create")
@click.argument("name")
@connect_option
def create(name: str, data: DataDir) -> None:
    """Create bucket NAME (3 to 63 of a-z, 0-9, dot and hyphen)."""
    from trivium.metadata.messages import CreateBucket

    async def work() -> None:
        async with open_pool(data) as pool:
            await pool.metadata.call(CreateBucket(name.encode(), "root"))

    run(work)
    click.echo(f"bucket {name} created")


@bucket.command("ls")
@connect_option
def list_(data: DataDir) -> None:
    """List buckets, a line each: name, when it was created."""
    import time

    from trivium.metadata.messages import BucketInfo, ListBuckets

    async def work() -> tuple[BucketInfo, ...]:
        async with open_pool(data) as pool:
            found: tuple[BucketInfo, ...] = await pool.metadata.ask(ListBuckets())
            return found

    for info in run(work):
        created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(info.created / 1e9))
        click.echo(f"{created}  {info.name.decode()}")


@bucket.command("rm")
@click.argument("name")
@connect_option
def remove(name: str, data: DataDir) -> None:
    """Remove the empty bucket NAME."""
    from trivium.metadata.messages import DeleteBucket

    async def work() -> None:
        async with open_pool(data) as pool:
            await pool.metadata.call(DeleteBucket(name.encode()))

    run(work)
    click.echo(f"bucket {name} removed")
