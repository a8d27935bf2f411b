"""nbdkit's plugin over a pool in memory: the real callbacks, bridge and engine, without a server behind them."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))

from tests.fakes.volumebackend import PoolState
from trivium.nbd import plugin
from trivium.nbd.exporter import Backend, Connect
from trivium.nbd.plugin import *  # noqa: F403

STATE = PoolState(random.Random(1), size=1 << 30)


def memory_backend(data_dir: str) -> Connect:
    @asynccontextmanager
    async def connect(on_ended: Callable[[str], None]) -> AsyncIterator[Backend]:
        client = STATE.connect()
        yield Backend(client, client, client)

    return connect


plugin.pool_backend = memory_backend
