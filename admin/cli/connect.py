"""How client commands find a pool and talk to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click
import trio

from trivium.admin.datadir import DataDir, default_data_dir
from trivium.admin.errors import CommandError, of_os_error, unreachable
from trivium.cluster.errors import ClusterError, Corrupt, Unavailable
from trivium.metadata.messages import MetadataError
from trivium.metadata.reach import Reach, Way

if TYPE_CHECKING:
    from trivium.metadata.pool import Pool

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def connect_option(function: F) -> F:
    """Adds --connect and --identity; the command receives `data: DataDir`."""

    def chosen(context: click.Context, _param: click.Parameter, value: str) -> DataDir:
        try:
            reach = Reach.parse(value, context.params.pop("identity", None) or "", default_data_dir().absolute())
        except ClusterError as error:
            raise click.BadParameter(str(error)) from None
        return DataDir(reach.directory, reach)

    connect = click.option(
        "--connect",
        "data",
        envvar="TRIVIUM_CONNECT",
        default="",
        callback=chosen,
        metavar="WHERE",
        help="Data directory of the pool on this host or of a client that has joined, or HOST:PORT of the metadata "
        "server [env: TRIVIUM_CONNECT; default: ~/.local/share/trivium].",
    )
    identity = click.option(
        "--identity",
        envvar="TRIVIUM_IDENTITY",
        is_eager=True,
        metavar="FILE",
        help="Key file made by `trivium cluster join` [env: TRIVIUM_IDENTITY; default: keys/client or keys/node in the "
        "directory of --connect, or in the default one].",
    )
    return connect(identity(function))


def run(function: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Run an async command; the pool's errors become sentences and exit statuses."""
    try:
        return trio.run(function, *args)
    except BaseException as error:
        found = _first_leaf(error)
        if isinstance(found, MetadataError):
            raise CommandError(found.text or found.code) from None
        if isinstance(found, Unavailable):
            raise CommandError(str(found), 3) from None
        if isinstance(found, Corrupt):
            raise CommandError(str(found), 6) from None
        if isinstance(found, ClusterError | CommandError):
            raise (found if isinstance(found, CommandError) else CommandError(str(found))) from None
        if isinstance(found, KeyboardInterrupt):
            raise click.Abort from None
        if isinstance(found, BrokenPipeError):  # whoever read the output has gone
            raise found from None
        if isinstance(found, OSError):
            raise of_os_error(found) from None
        raise


def _first_leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


CONNECT_S = 10.0


@asynccontextmanager
async def open_pool(data: DataDir) -> AsyncIterator[Pool]:
    """A session of this command's own. CommandError (status 3) when no pool answers."""
    from trivium.metadata.pool import connect_pool

    check_there(data)
    try:
        async with connect_pool(data.reach, client="cli", connect_timeout=CONNECT_S, io_timeout=60) as pool:
            yield pool
    except Unavailable as error:
        if "no pool answers" in str(error) and data.reach.local:
            raise unreachable(data.path) from None
        raise


def check_there(data: DataDir) -> None:
    """CommandError when there is nothing to try."""
    if not data.reach.there:
        raise unreachable(data.path) if data.reach.local else nobody_knows(data)


def nobody_knows(data: DataDir) -> CommandError:
    return CommandError(
        f"there is no key to reach {data.reach} with: `trivium cluster join TOKEN` makes one (the operator's "
        "`trivium cluster token create` prints TOKEN), --identity FILE names another.",
        3,
    )


async def admin_call(data: DataDir, command: str, **arguments: Any) -> Any:
    """One operator's command to the pool at `data`; needs no session."""
    from trivium.cluster.clock import SystemClock
    from trivium.cluster.wire import Service
    from trivium.metadata import messages

    check_there(data)
    connection = await Way(data.reach, SystemClock()).metadata()
    try:
        try:
            reply = await connection.request(Service.METADATA, messages.encode(messages.Admin(command, arguments)))
        except Unavailable as error:
            if not data.reach.local:
                raise Unavailable(f"no pool answers at {data.reach}: {error}") from None
            raise unreachable(data.path) from None
    finally:
        with trio.CancelScope(shield=True):
            await connection.aclose()
    answer = messages.decode_answer(reply.body)
    if isinstance(answer, messages.Failed):
        raise MetadataError(answer.code, answer.text)
    assert isinstance(answer, messages.AdminAnswer)
    return answer.value


def parse_size(text: str) -> int:
    """Bytes of "10G", "512M", "4096". Units are powers of 1,024."""
    units = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
    cleaned = text.strip().lower().removesuffix("ib").removesuffix("b")
    number, unit = (cleaned[:-1], cleaned[-1]) if cleaned and cleaned[-1].isalpha() else (cleaned, "")
    try:
        return int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        raise click.BadParameter(f"{text!r} is no size: write for example 512M, 10G or 1T") from None


def show_size(size: float) -> str:
    """A size for people: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError
