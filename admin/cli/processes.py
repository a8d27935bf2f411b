"""trivium node, s3 (and the options of metadata): each part of a pool as a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from trivium.admin.cli.connect import connect_option, run
from trivium.admin.cli.quicoptions import engine_option, listen_options
from trivium.admin.cli.up import _group, _listen, _mode, _profile
from trivium.admin.config import config_option
from trivium.admin.datadir import DataDir
from trivium.cluster.liveness import T_S

F = TypeVar("F", bound=Callable[..., Any])


def _directory(_ctx: click.Context, _param: click.Parameter, value: Path | None) -> DataDir | None:
    return None if value is None else DataDir(value.absolute())


def log_options(function: F) -> F:
    form = click.option(
        "--log-format", type=click.Choice(["text", "json"]), default="text", envvar="LOG_FORMAT", show_default=True,
        help="Messages as lines for people or JSON objects [env: LOG_FORMAT].",
    )  # fmt: skip
    level = click.option(
        "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True,
        help="Leave out what is less important.",
    )  # fmt: skip
    return form(level(function))


def socket_options(name: str, env: str) -> Callable[[F], F]:
    mode = click.option(
        "--socket-mode", callback=_mode, default="0600", show_default=True, envvar=f"{env}_SOCKET_MODE",
        help=f"Mode of DIR/run/{name}.",
    )  # fmt: skip
    group = click.option("--socket-group", callback=_group, default=None, help=f"Group of DIR/run/{name}.")
    return lambda function: mode(group(function))


def announced(text: Callable[[dict[str, Any]], str]) -> Callable[[dict[str, Any]], None]:
    def ready(facts: dict[str, Any]) -> None:
        from trivium.admin.processes.detach import announce

        if not announce(facts):
            click.echo(text(facts))

    return ready


@click.command()
@config_option("node")
@click.option(
    "--data", "directory", type=click.Path(path_type=Path, file_okay=False), callback=_directory, required=True,
    envvar="TRIVIUM_NODE_DATA", metavar="DIR",
    help="The node's own directory; its drives are DIR/drives/* [env: TRIVIUM_NODE_DATA].",
)  # fmt: skip
@click.option(
    "--drives", type=click.IntRange(1, 64), default=None, envvar="TRIVIUM_NODE_DRIVES",
    help="Drive directories to make at the first start [default: those under DIR/drives, else 1].",
)  # fmt: skip
@click.option(
    "--domain", default="", envvar="TRIVIUM_NODE_DOMAIN", metavar="RACK/HOST",
    help="Where this host is: shards are spread over domains [default: default/NAME].",
)  # fmt: skip
@click.option("--name", default="", envvar="TRIVIUM_NODE_NAME", help="What status calls it [default: the host's name].")
@click.option(
    "--join", default="", envvar="TRIVIUM_NODE_JOIN", metavar="TOKEN",
    help="First start on another host: a token of `trivium cluster token create --role node`. Left out of account once "
    "DIR/keys/node is there [env: TRIVIUM_NODE_JOIN].",
)  # fmt: skip
@listen_options("TRIVIUM_NODE", "0.0.0.0:7401 once it has a key, else the Unix socket alone")
@engine_option
@socket_options("node.sock", "TRIVIUM_NODE")
@log_options
@connect_option
def node(data: DataDir, directory: DataDir, **options: Any) -> None:
    """Serve the drives of one directory to a pool, as a process of its own.

    \b
    on the metadata server's host:  trivium cluster token create --role node
    on this one:                    trivium node --data /srv/trivium --drives 2 --join TOKEN

    At the first start it joins with new drives (on the metadata server's own host --connect DIR does without a token);
    later starts need neither token nor metadata server, and keep name and domain. Its address may change: it says its
    present one at each start. Stops cleanly at SIGINT or SIGTERM; kill -9 costs nothing that was answered.
    """
    from trivium.admin.processes.node import NodeOptions, serve_node

    given = click.get_current_context().get_parameter_source("data") != ParameterSource.DEFAULT
    run(
        serve_node,
        NodeOptions(directory, data if given else None, **options),
        announced(lambda said: f"node {said['node'][:8]}: {said['drives']} drives on {', '.join(said['addresses'])}"),
    )


@click.command()
@config_option("s3")
@click.option(
    "--listen", callback=_listen, default="127.0.0.1:9000", show_default=True, envvar="TRIVIUM_S3_LISTEN",
    metavar="HOST:PORT", help="S3 endpoint; port 0 = any free one [env: TRIVIUM_S3_LISTEN].",
)  # fmt: skip
@click.option(
    "--region", default="us-east-1", show_default=True, envvar="TRIVIUM_S3_REGION", help="What clients must sign for."
)
@engine_option
@log_options
@connect_option
def s3(data: DataDir, listen: tuple[str, int] | None, **options: Any) -> None:
    """Serve S3 for the pool at --connect, as a process of its own; several may run at once."""
    from trivium.admin.processes.s3 import S3Options, serve_s3

    if listen is None:
        raise click.BadParameter("a gateway needs HOST:PORT", param_hint="--listen")
    run(serve_s3, S3Options(data, listen, **options), announced(lambda facts: f"S3 on {facts['s3']}"))


def metadata_options(function: F) -> F:
    """The options with which `trivium metadata` leads."""
    for option in reversed(
        (
            config_option("metadata"),
            click.option(
                "--data", type=click.Path(path_type=Path, file_okay=False), callback=_directory,
                envvar="TRIVIUM_METADATA_DATA", metavar="DIR",
                help="Lead the pool from this directory: its database, socket and own drives.",
            ),
            click.option(
                "--profile", callback=_profile, default=None, metavar="K+M", envvar="TRIVIUM_METADATA_PROFILE",
                help="Data and parity shards, fixed at the first start [default: 4+2].",
            ),
            click.option(
                "--drives", type=click.IntRange(0, 64), default=0, show_default=True,
                help="Drives of its own to make at the first start, beside those of nodes.",
            ),
            click.option(
                "--wait-for-drives", type=click.IntRange(1, 1000), default=None,
                help="Form the pool when nodes have brought so many [default: K+M].",
            ),
            click.option(
                "--node", "nodes", multiple=True, envvar="TRIVIUM_METADATA_NODES", metavar="ADDRESS",
                help="A node's address (quic:HOST:PORT, unix:PATH) to find the root on, if this directory knows none.",
            ),
            listen_options("TRIVIUM_METADATA", "only the Unix socket"),
            engine_option,
            click.option(
                "--silence-s", type=click.FloatRange(1, 600), default=T_S, show_default=True,
                envvar="TRIVIUM_SILENCE_S", help="T: a node that is silent for so long is down.",
            ),
            click.option(
                "--start-timeout-s", type=click.FloatRange(0, 86400), default=60.0, show_default=True,
                help="How long to wait for a majority of the root drives.",
            ),
            socket_options("trivium.sock", "TRIVIUM_METADATA"),
            log_options,
        )
    ):  # fmt: skip
        function = option(function)
    return function


def lead(data: DataDir, options: dict[str, Any]) -> None:
    from trivium.admin.processes.metadata import MetadataOptions, serve_metadata

    run(serve_metadata, MetadataOptions(data, **options), announced(lambda facts: f"leading: {facts['summary']}"))
