"""The script that nbdkit's Python plugin loads: callbacks, and the object graph of the process.

    nbdkit python .../trivium/nbd/plugin.py connect=WHERE [identity=FILE] [volume=NAME] [takeover=fail|wait|break]
                                            [read_only=1] [cache=256M] [log=info]

nbdkit runs it as `__main__` of its embedded interpreter: absolute imports only, threads only from after_fork on.
"""

from __future__ import annotations

import builtins
import ctypes
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nbdkit

from trivium.metadata.reach import Reach
from trivium.nbd.bridge import Bridge
from trivium.nbd.device import Device, DeviceError
from trivium.nbd.exporter import Backend, Connect, Exporter
from trivium.nbd.leased import CACHE_BYTES

API_VERSION = 2

PR_SET_PDEATHSIG = 1

MAX_REQUEST = 32 << 20
SWITCH_INTERVAL_S = 0.001  # short: a thread that has an answer should not wait for one that computes

_options: dict[str, str] = {}
_reach: Reach | None = None
_bridge: Bridge | None = None
_exporter: Exporter | None = None


# ---- the process --------------------------------------------------------------------------------------------


def outlive_parent() -> None:
    """nbdkit's Python plugin asks to be killed with the process that started nbdkit; only --exit-with-parent should."""
    with builtins.open("/proc/self/cmdline", "rb") as arguments:
        if b"--exit-with-parent" not in arguments.read().split(b"\0"):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0)


outlive_parent()


def config(key: str, value: str) -> None:
    if key not in ("connect", "identity", "volume", "takeover", "read_only", "cache", "log"):
        raise RuntimeError(f"unknown parameter {key}: connect, identity, volume, takeover, read_only, cache, log exist")
    if key == "takeover" and value not in ("fail", "wait", "break"):
        raise RuntimeError("takeover is fail, wait or break")
    _options[key] = value


def config_complete() -> None:
    if "connect" not in _options:
        raise RuntimeError("connect=WHERE is needed: the data directory of the pool, or HOST:PORT with identity=FILE")
    parse_reach()  # relative paths are relative to where nbdkit was started


def thread_model() -> int:
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def after_fork() -> None:
    global _bridge, _exporter
    level = _options.get("log", "warning").upper()
    logging.basicConfig(stream=sys.stderr, level=level, format="trivium nbd: %(levelname)s: %(message)s")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _exporter = Exporter(
        pool_backend(parse_reach()),
        takeover=_options.get("takeover", "fail"),
        read_only=_options.get("read_only", "0") not in ("0", "", "false", "no"),
        only=_options.get("volume", ""),
        cache_bytes=nbdkit.parse_size(_options["cache"]) if "cache" in _options else CACHE_BYTES,
        soon=lambda fn: _running().soon(fn),
    )
    _bridge = Bridge(_exporter.run)
    _bridge.start()


def cleanup() -> None:
    if _bridge is not None:
        _bridge.stop()


def parse_reach() -> Reach:
    """The same at every call: nbdkit changes its directory meanwhile."""
    global _reach
    if _reach is None:
        identity = _options.get("identity", "")
        default = os.path.dirname(os.path.dirname(os.path.abspath(identity)))
        _reach = Reach.parse(_options["connect"], identity, Path(default))
    return _reach


def pool_backend(reach: Reach) -> Connect:
    """The object graph: a session of the pool, chunks, and volume logs over the same nodes."""
    import random

    from trivium.metadata.pool import connect_pool
    from trivium.nbd.solo import SoloChunks
    from trivium.nbd.volumelog import ClusterLogs

    @asynccontextmanager
    async def connect(on_ended: Callable[[str], None]) -> AsyncIterator[Backend]:
        async with connect_pool(reach, client=f"nbd {os.getpid()}", on_ended=on_ended) as pool:
            logs = ClusterLogs(pool.metadata, pool.nodes, random=random.SystemRandom())
            yield Backend(pool.metadata, SoloChunks(pool.chunks), logs, pool.metadata.leases_usable)

    return connect


def _running() -> Bridge:
    assert _bridge is not None, "nbdkit calls after_fork first"
    return _bridge


def _server() -> Exporter:
    assert _exporter is not None, "nbdkit calls after_fork first"
    return _exporter


# ---- exports ------------------------------------------------------------------------------------------------


def list_exports(readonly: bool, is_tls: bool) -> list[str]:
    names: list[str] = _told(lambda: _running().call(_server().names))
    return names


def default_export(readonly: bool, is_tls: bool) -> str:
    name: str = _told(lambda: _running().call(_server().default))
    return name


def open(readonly: bool) -> Device:
    volume = _told(lambda: _running().call(_server().open, nbdkit.export_name(), readonly))
    return Device(volume, _running())


def close(device: Device) -> None:
    _told(lambda: _running().call(_server().close, device.volume))


def export_description(device: Device) -> str:
    return f"trivium volume {device.volume.name}"


def get_size(device: Device) -> int:
    return device.size


def block_size(device: Device) -> tuple[int, int, int]:
    return 1, 4096, MAX_REQUEST


def is_rotational(device: Device) -> bool:
    return False


def can_write(device: Device) -> bool:
    return not device.read_only


def can_flush(device: Device) -> bool:
    return True


def can_trim(device: Device) -> bool:
    return True


def can_zero(device: Device) -> bool:
    return True


def can_fast_zero(device: Device) -> bool:
    return True


def can_fua(device: Device) -> int:
    return int(nbdkit.FUA_NATIVE)


def can_extents(device: Device) -> bool:
    return True


def can_multi_conn(device: Device) -> bool:
    """All connections of this process share one Volume, so a flush on one covers the writes of all."""
    return True


def can_cache(device: Device) -> int:
    return int(nbdkit.CACHE_EMULATE)


# ---- data ---------------------------------------------------------------------------------------------------


def pread(device: Device, buf: Any, offset: int, flags: int) -> None:
    try:
        device.pread(memoryview(buf), offset)
    except DeviceError as error:
        _tell(error)


def pwrite(device: Device, buf: Any, offset: int, flags: int) -> None:
    try:
        device.pwrite(memoryview(buf), offset, flags & nbdkit.FLAG_FUA != 0)
    except DeviceError as error:
        _tell(error)


def flush(device: Device, flags: int) -> None:
    try:
        device.flush()
    except DeviceError as error:
        _tell(error)


def trim(device: Device, count: int, offset: int, flags: int) -> None:
    try:
        device.zero(offset, count, trim=True, fua=flags & nbdkit.FLAG_FUA != 0)
    except DeviceError as error:
        _tell(error)


def zero(device: Device, count: int, offset: int, flags: int) -> None:
    try:
        device.zero(offset, count, trim=False, fua=flags & nbdkit.FLAG_FUA != 0)
    except DeviceError as error:
        _tell(error)


def extents(device: Device, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    try:
        hole = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
        return [(at, length, hole if empty else 0) for at, length, empty in device.extents(offset, count)]
    except DeviceError as error:
        _tell(error)
        raise


def _tell(error: DeviceError) -> None:
    """nbdkit needs both: the errno, and an exception."""
    nbdkit.set_error(error.errno)
    raise error


def _told(fn: Callable[[], Any]) -> Any:
    try:
        return fn()
    except Exception as error:
        told = DeviceError(error)
        nbdkit.set_error(told.errno)
        logging.getLogger("trivium.nbd").error("%s", error)
        raise told from None
