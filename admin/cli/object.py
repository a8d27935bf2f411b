"""trivium object: partial reads and writes of one object or file, without a gateway or a mount."""

from __future__ import annotations

import sys
from typing import BinaryIO

import click

from trivium.admin.cli.connect import connect_option, open_pool, run
from trivium.admin.datadir import DataDir
from trivium.admin.errors import CommandError

STEP = 1 << 20


def _split(name: str) -> tuple[bytes, bytes]:
    bucket, slash, key = name.partition("/")
    if not slash or not bucket or not key:
        raise CommandError(f"{name!r} is no object: write BUCKET/KEY.", 2)
    return bucket.encode(), key.encode()


@click.group("object")
def object_group() -> None:
    """Read and write parts of objects."""


@object_group.command("read")
@click.argument("name", metavar="BUCKET/KEY")
@click.option("--offset", type=click.IntRange(0), default=0, show_default=True)
@click.option("--length", type=click.IntRange(0), default=None, help="[default: to the end]")
@connect_option
def read(name: str, offset: int, length: int | None, data: DataDir) -> None:
    """Write bytes of BUCKET/KEY to standard output."""
    bucket, key = _split(name)

    async def work() -> None:
        from trivium.fs.filesystem import Filesystem
        from trivium.metadata.messages import HeadObject

        async with open_pool(data) as pool:
            info = await pool.metadata.ask(HeadObject(bucket, key))
            end = info.size if length is None else min(info.size, offset + length)
            files = Filesystem.over(pool)
            handle = await files.open(info.ino)
            try:
                for start in range(offset, end, STEP):
                    sys.stdout.buffer.write(await files.read(handle, start, min(STEP, end - start)))
            finally:
                await files.release(handle)

    run(work)
    sys.stdout.buffer.flush()


@object_group.command("write")
@click.argument("name", metavar="BUCKET/KEY")
@click.option("--offset", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--data-file", type=click.File("rb"), default="-", help="Where the bytes come from [default: standard input]."
)
@click.option("--data-literal", default=None, help="The bytes themselves.")
@connect_option
def write(name: str, offset: int, data_file: BinaryIO, data_literal: str | None, data: DataDir) -> None:
    """Write bytes into BUCKET/KEY at an offset, in place; a new object is made when there is none."""
    bucket, key = _split(name)

    async def work() -> int:
        from trivium.fs.filesystem import Filesystem
        from trivium.metadata.messages import Body, HeadObject, MetadataError, ObjectMeta, PutObject

        async with open_pool(data) as pool:
            try:
                info = await pool.metadata.ask(HeadObject(bucket, key))
            except MetadataError as error:
                if error.code != "NoSuchKey":
                    raise
                empty = "d41d8cd98f00b204e9800998ecf8427e"
                (info,) = await pool.metadata.call(PutObject(bucket, key, Body(0, b""), empty, ObjectMeta()))
            files = Filesystem.over(pool)
            handle = await files.open(info.ino)
            position = offset
            try:
                while part := (data_literal.encode() if data_literal is not None else data_file.read(STEP)):
                    position += await files.write(handle, position, part)
                    if data_literal is not None:
                        break
                await files.fsync(handle)
            finally:
                await files.release(handle)
            return position - offset

    click.echo(f"{run(work)} bytes written", err=True)
