"""The options of processes that speak QUIC: where they listen, what they are called, which engine they use."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from trivium.cluster.transport.quic.engine import CHOICE, ENGINES

F = TypeVar("F", bound=Callable[..., Any])


def quic_listen(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, int] | None:
    """HOST:PORT; an empty HOST is every address of this host."""
    if not value:
        return None
    host, colon, port = value.removeprefix("quic:").rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise click.BadParameter("write HOST:PORT, for example 10.0.0.1:7400 (no HOST: every address of this host)")
    return host.strip("[]") or "0.0.0.0", int(port)


def listen_options(env: str, default: str) -> Callable[[F], F]:
    listen = click.option(
        "--listen", callback=quic_listen, default=None, envvar=f"{env}_LISTEN", metavar="HOST:PORT",
        help=f"Listen for other hosts over QUIC (UDP) [env: {env}_LISTEN; default: {default}].",
    )  # fmt: skip
    advertise = click.option(
        "--advertise", default="", envvar=f"{env}_ADVERTISE", metavar="HOST[:PORT]",
        help="The address that others are told, where it is not the one of --listen.",
    )  # fmt: skip
    return lambda function: listen(advertise(function))


def engine_option(function: F) -> F:
    """Sets the environment, so that processes started by this one have the same."""

    def choose(_ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
        if value:
            os.environ[CHOICE] = value

    return click.option(
        "--quic-engine", type=click.Choice(ENGINES), default=None, envvar=CHOICE, callback=choose, expose_value=False,
        help=f"Who speaks QUIC; both understand each other [env: {CHOICE}; default: the faster one installed].",
    )(function)  # fmt: skip
