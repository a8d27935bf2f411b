"""python -m tests.system.fsserver MOUNTPOINT DIRECTORY: a mount over a pool in this process; prints "ready"."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import trio

from tests.fakes.fspool import memory_pool
from trivium.fs.mount import run_mount


async def main(mountpoint: str, directory: str) -> None:
    async with memory_pool(Path(directory)) as pool, pool.session() as (client, chunks):
        await run_mount(client, chunks, mountpoint, on_ready=lambda: print("ready", flush=True))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    trio.run(main, sys.argv[1], sys.argv[2])
