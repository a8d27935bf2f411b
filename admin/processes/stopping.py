"""SIGINT and SIGTERM end a process in order."""

from __future__ import annotations

import logging
import signal

import trio

log = logging.getLogger(__name__)


async def stop_on_signal(*scopes: trio.CancelScope, into: list[trio.CancelScope] | None = None) -> None:
    """Cancel these scopes, or (a process that ends in layers) the last one of `into` at that moment."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for number in signals:
            log.info("stopping on %s", signal.Signals(number).name)
            for scope in scopes or (into or [])[-1:]:
                scope.cancel()
            return
