"""trivium object: partial reads and writes of one object or file, without a gateway or a mount."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, BinaryIO

import click
import trio

from trivium.admin.cli.connect import connect_option, open_pool, run
from trivium.admin.datadir import DataDir
from trivium.admin.errors import CommandError

if TYPE_CHECKING:
    from trivium.fs.contents import Contents
    from trivium.metadata.client import MetadataClient
    from trivium.metadata.messages import ObjectInfo
    from trivium.metadata.pool import Pool

STEP = 1 << 20
EMPTY_MD5 = "d41d8cd98f00b204e9800998ecf8427e"


def _split(name: str) -> tuple[bytes, bytes]:
    bucket, slash, key = name.partition("/")
    if not slash or not bucket or not key:
        raise CommandError(f"{name!r} is no object: write BUCKET/KEY.", 2)
    return os.fsencode(bucket), os.fsencode(key)


@click.group("object")
def object_group() -> None:
    """Read and write parts of objects."""


@object_group.command("read")
@click.argument("name", metavar="BUCKET/KEY")
@click.option("--offset", type=click.IntRange(0), default=0, show_default=True, help="First byte, counted from 0.")
@click.option("--length", type=click.IntRange(0), default=None, help="How many bytes [default: to the end].")
@connect_option
def read(name: str, offset: int, length: int | None, data: DataDir) -> None:
    """Write bytes of BUCKET/KEY to standard output."""
    bucket, key = _split(name)

    async def work() -> None:
        from trivium.metadata.messages import HeadObject

        async with open_pool(data) as pool:
            # held: an object that is replaced or deleted meanwhile is read to its end
            info: ObjectInfo = await pool.metadata.ask(HeadObject(bucket, key, hold=True))
            end = info.size if length is None else min(info.size, offset + length)
            async with _opened(pool, info.ino, os.O_RDONLY, held=True) as (contents, fh):
                for start in range(offset, end, STEP):
                    part = await contents.read(fh, start, min(STEP, end - start))
                    # in a thread: a pipe that nobody reads must not cost us the session
                    await trio.to_thread.run_sync(sys.stdout.buffer.write, part, abandon_on_cancel=True)

    run(work)
    sys.stdout.buffer.flush()


@object_group.command("write")
@click.argument("name", metavar="BUCKET/KEY")
@click.option("--offset", type=click.IntRange(0), default=0, show_default=True, help="First byte, counted from 0.")
@click.option("--length", type=click.IntRange(0), default=None, help="At most so many bytes [default: all].")
@click.option(
    "--data-file", type=click.File("rb"), default="-", help="Where the bytes come from [default: standard input]."
)
@click.option("--data-literal", default=None, help="The bytes themselves.")
@connect_option
def write(
    name: str, offset: int, length: int | None, data_file: BinaryIO, data_literal: str | None, data: DataDir
) -> None:
    """Write bytes into BUCKET/KEY at an offset, in place; a new object is made when there is none."""
    bucket, key = _split(name)
    parts = _parts(data_file, data_literal, length)

    async def work() -> int:
        async with open_pool(data) as pool:
            info = await _found_or_made(pool.metadata, bucket, key)
            position = offset
            async with _opened(pool, info.ino, os.O_WRONLY) as (contents, fh):
                while part := await trio.to_thread.run_sync(next, parts, b"", abandon_on_cancel=True):
                    position += await contents.write(fh, position, part)
                await contents.sync(fh)
            return position - offset

    click.echo(f"{run(work)} bytes written", err=True)


def _parts(file: BinaryIO, literal: str | None, length: int | None) -> Iterator[bytes]:
    if literal is not None:
        yield os.fsencode(literal)[:length]
        return
    left = length
    raw: BinaryIO = getattr(file, "raw", file)  # a thread that waits in a buffered reader would abort the process's end
    while part := raw.read(STEP if left is None else min(STEP, left)):
        yield part
        left = None if left is None else left - len(part)


async def _found_or_made(metadata: MetadataClient, bucket: bytes, key: bytes) -> ObjectInfo:
    from trivium.metadata.messages import Body, Conditions, HeadObject, MetadataError, ObjectMeta, PutObject

    try:
        found: ObjectInfo = await metadata.ask(HeadObject(bucket, key))
    except MetadataError as error:
        if error.code != "NoSuchKey":
            raise
        new = PutObject(bucket, key, Body(0, b""), EMPTY_MD5, ObjectMeta(), Conditions(if_none_match="*"))
        try:
            (found,) = await metadata.call(new)
        except MetadataError as late:
            if late.code != "PreconditionFailed":  # somebody else made it meanwhile
                raise
            found = await metadata.ask(HeadObject(bucket, key))
    return found


@asynccontextmanager
async def _opened(pool: Pool, ino: int, flags: int, *, held: bool = False) -> AsyncIterator[tuple[Contents, int]]:
    """An open file without a mount. `held`: the server keeps its contents for us already."""
    from trivium.cluster.clock import SystemClock
    from trivium.fs.filesystem import Caller, Filesystem

    files = Filesystem(pool.metadata, pool.chunks, clock=SystemClock())
    async with trio.open_nursery() as nursery:
        await nursery.start(files.run)
        handle, _ = await files.open(ino, flags, Caller(os.getuid(), os.getgid()))
        handle.inode.held |= held
        try:
            yield files.contents, handle.fh
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await files.release(handle.fh)
            nursery.cancel_scope.cancel()
