"""trivium s3: a gateway of its own; as many of them as wanted, each a client of the pool like a mount."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio

from trivium.admin import logs, systemd
from trivium.admin.datadir import DataDir
from trivium.admin.errors import CommandError
from trivium.admin.processes.stopping import stop_on_signal
from trivium.cluster.clock import SystemClock, ThreadExecutor

log = logging.getLogger(__name__)

CONNECT_S = 60.0


@dataclass(frozen=True, slots=True)
class S3Options:
    data: DataDir
    listen: tuple[str, int]
    region: str = "us-east-1"
    log_format: str = "text"
    log_level: str = "info"


async def serve_s3(options: S3Options, ready: Callable[[dict[str, Any]], None]) -> int:
    """Serve until told to stop."""
    from trivium.metadata.pool import connect_pool
    from trivium.s3.gateway import Gateway

    logs.configure(options.log_format, options.log_level)
    host, port = options.listen
    try:
        listeners = list(await trio.open_tcp_listeners(port, host=host))
    except OSError as error:
        raise CommandError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another.") from None
    port = listeners[0].socket.getsockname()[1]
    endpoint = f"http://{'[' + host + ']' if ':' in host else host}:{port}"
    async with connect_pool(options.data.reach, client=f"s3 {host}:{port}", connect_timeout=CONNECT_S) as pool:
        gateway = Gateway(
            pool.metadata,
            pool.chunks,
            random=random.SystemRandom(),
            clock=SystemClock(),
            executor=ThreadExecutor(8),
            region=options.region,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_on_signal, nursery.cancel_scope)
            await nursery.start(gateway.serve, listeners)
            log.info("S3 on %s", endpoint)
            systemd.notify("READY=1")
            ready({"s3": endpoint, "pid": os.getpid()})
        systemd.notify("STOPPING=1")
    return 0
