"""Watching long work from the command line, on standard error: a bar on a terminal, plain lines elsewhere, until it is
done. Standard output is for the result."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import click
import trio

from trivium.admin.cli.connect import show_size
from trivium.admin.errors import CommandError
from trivium.admin.workreport import duration, moving
from trivium.cluster.errors import Unavailable

POLL_S = 0.25
LINE_S = 2.0  # between plain lines
PATIENCE_S = 60.0  # for a pool that is being started again

Ask = Callable[[], Awaitable[dict[str, Any]]]


async def watch(title: str, ask: Ask, *, over: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Show `done` of `total` until `over`; answers the last report. A pool that restarts meanwhile is waited for."""
    patient = _Patient(ask)
    return await (_bar if sys.stderr.isatty() else _lines)(title, patient, over)


async def _lines(title: str, ask: Ask, over: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    report = await ask()
    shown, said_at = "", -LINE_S
    while not over(report):
        text = f"{title}: {moving(report)}"
        if text != shown and trio.current_time() - said_at >= LINE_S:
            click.echo(text, err=True)
            shown, said_at = text, trio.current_time()
        await trio.sleep(POLL_S)
        report = await ask()
    return report


async def _bar(title: str, ask: Ask, over: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn(title),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} chunks"),
        TextColumn("{task.fields[rate]}/s"),
        TextColumn("{task.fields[left]}"),
    )
    report = await ask()
    with Progress(*columns, transient=True, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=None, rate="", left="")
        while not over(report):
            left = report.get("seconds_left")
            progress.update(
                task,
                completed=report["done"],
                total=max(report["total"], 1),
                rate=show_size(report["rate"]),
                left="" if left is None else f"about {duration(left)} left",
            )
            await trio.sleep(POLL_S)
            report = await ask()
    return report


class _Patient:
    """Asks again while the pool does not answer, for a while; the first question must be answered."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._known: dict[str, Any] | None = None

    async def __call__(self) -> dict[str, Any]:
        until = trio.current_time() + PATIENCE_S
        while True:
            try:
                self._known = await self._ask()
                return self._known
            except (CommandError, Unavailable) as error:
                lost = not isinstance(error, CommandError) or error.exit_code == 3
                if self._known is None or not lost or trio.current_time() > until:
                    raise
            await trio.sleep(1)
