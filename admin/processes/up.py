"""trivium up: metadata, drives and S3 in one process, without configuration.

    bind ports -> lock -> (form | open drives) -> claim the root -> take the log over -> recover -> serve -> stop

Start order is the promise order: nothing listens before the database is the state at the end of the log. At a stop the
faces end first, then the metadata server, then the log and the root are released in one write, so that the next start
waits for nobody.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio

from trivium.admin import logs
from trivium.admin.commands import register_commands
from trivium.admin.credentials import root_credential
from trivium.admin.datadir import ClusterFile, DataDir
from trivium.admin.errors import CommandError
from trivium.admin.lock import LifeLock
from trivium.admin.processes import drives
from trivium.admin.processes.door import Door, listen_over_quic
from trivium.admin.processes.lead import Leader
from trivium.admin.processes.substrate import Substrate
from trivium.cluster.clock import SystemClock, ThreadExecutor
from trivium.cluster.errors import ClusterError, InUse, NoSpace
from trivium.cluster.files import RealFiles
from trivium.cluster.pacing import FLOOR_BYTES_S
from trivium.cluster.transport.unix import UnixServer

log = logging.getLogger(__name__)

DRIVE_MIB = 33  # ballast, root file, a log segment

SWITCH_INTERVAL_S = 0.0005  # a drive's thread that has its answer waits no longer for the interpreter (default: 5 ms)
Ready = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class UpOptions:
    data: DataDir
    drives: int | None = None
    profile: tuple[int, int] | None = None
    s3_listen: tuple[str, int] | None = ("127.0.0.1", 9000)
    listen: tuple[str, int] | None = None
    advertise: str = ""
    region: str = "us-east-1"
    socket_mode: str = "0600"
    socket_group: str | None = None
    heal_floor: int = int(FLOOR_BYTES_S)
    log_format: str = "text"
    log_level: str = "info"


async def serve_up(options: UpOptions, ready: Ready) -> int:
    """Serve until told to stop. Returns the exit status."""
    logs.configure(options.log_format, options.log_level)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    listeners = await _bind_s3(options)
    cluster, lock = _take_directory(options)
    try:
        await _serve(options, cluster, listeners, ready)
    finally:
        lock.close()
    return 0


async def _serve(options: UpOptions, cluster: ClusterFile, listeners: list[trio.SocketListener], ready: Ready) -> None:
    """Three nurseries end one after another: faces and workers, the metadata server, node and log."""
    substrate = _open_substrate(options, cluster)
    leader = Leader(substrate, options.data)
    leader.identity.load()
    substrate.dialer.register("quic", leader.identity.dial)
    leader.heal_floor_bytes_s = float(options.heal_floor)
    env = root_credential()
    try:
        async with trio.open_nursery() as low:
            await substrate.start(low)
            await leader.begin(low, env)
            if cluster.forming:
                options.data.formed(cluster)
            async with trio.open_nursery() as middle:
                await leader.serve(middle)
                async with trio.open_nursery() as top:
                    top.start_soon(_stop_on_signal, top.cancel_scope)
                    await leader.work(top, env)
                    note = await leader.grow(options.drives)
                    await _serve_faces(options, leader, listeners, ready, top, note)
                middle.cancel_scope.cancel()
            await leader.stop()
            low.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await substrate.stop()


async def _stop_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for number in signals:
            log.info("stopping on %s", signal.Signals(number).name)
            scope.cancel()
            return


async def _bind_s3(options: UpOptions) -> list[trio.SocketListener]:
    if options.s3_listen is None:
        return []
    host, port = options.s3_listen
    try:
        return list(await trio.open_tcp_listeners(port, host=host))
    except OSError as error:
        raise CommandError(
            f"cannot listen on {host}:{port}: {error.strerror or error}. "
            "Stop what uses it, or choose another --s3-listen HOST:PORT."
        ) from None


def _take_directory(options: UpOptions) -> tuple[ClusterFile, LifeLock]:
    """Lock the data directory, begin a new pool in it when there is none. CommandError says why it is refused."""
    data = options.data
    data.refuse_foreign()
    data.refuse_node()
    data.metadata.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        lock = LifeLock(data.metadata / "lock", str(data.path))
    except InUse as error:
        raise CommandError(str(error), 5) from None
    try:
        cluster = data.read()
        if cluster is not None and not cluster.forming:
            _check_profile(cluster, options)
            for directory in (data.keys, data.run, data.run / "sessions"):
                directory.mkdir(mode=0o700, exist_ok=True)
            return cluster, lock
        k, m = options.profile or (4, 2)
        if (options.drives or len(drives.mounted(data)) or drives.DEFAULT_DRIVES) < (2 if m else 1):
            raise CommandError(f"{k}+{m} needs more than one drive: give --drives {k + m} or more.")
        return data.begin(f"{k}+{m}"), lock
    except BaseException:
        lock.close()
        raise


def _check_profile(cluster: ClusterFile, options: UpOptions) -> None:
    wanted = None if options.profile is None else f"{options.profile[0]}+{options.profile[1]}"
    if wanted not in (None, cluster.profile):
        raise CommandError(
            f"the pool at {options.data.path} is {cluster.profile}; a profile is fixed at the first start. "
            "Leave --profile out."
        )


def _open_substrate(options: UpOptions, cluster: ClusterFile) -> Substrate:
    files = RealFiles()
    identity, node = bytes.fromhex(cluster.cluster), bytes.fromhex(cluster.node)
    try:
        if cluster.forming:
            k, m = (int(part) for part in cluster.profile.split("+"))
            default = drives.DEFAULT_DRIVES
            stores = drives.format_drives(options.data, files, identity, options.drives, default=default)
            opened = drives.Opened(stores)
            first = drives.first_map(options.data, stores, node, (k, m))
        else:
            opened = drives.open_drives(options.data, files, identity, node)
            first = None
            if opened.newest is None:
                why = "; ".join(opened.reasons.values()) or f"there is none under {options.data.drives}"
                raise CommandError(f"the pool cannot start: no drive of it can be read: {why}. Bring them back.")
    except InUse as error:
        raise CommandError(str(error), 5) from None
    except NoSpace as error:
        raise CommandError(
            f"the drives cannot be made: {error}. A drive begins with {DRIVE_MIB} MiB: make room."
        ) from None
    except (ClusterError, OSError) as error:
        raise CommandError(f"the drives cannot be opened: {error}") from None
    return Substrate(
        options.data,
        identity,
        node,
        opened,
        first,
        files=files,
        executor=ThreadExecutor(24),
        clock=SystemClock(),
        random=random.SystemRandom(),
    )


async def _serve_faces(
    options: UpOptions,
    leader: Leader,
    listeners: list[trio.SocketListener],
    ready: Ready,
    nursery: trio.Nursery,
    note: str = "",
) -> None:
    from trivium.s3.gateway import Gateway

    endpoints: dict[str, str] = {}
    server = UnixServer(str(options.data.socket), mode=int(options.socket_mode, 8), group=options.socket_group)
    door = Door(leader.identity)
    door.open(leader)
    await nursery.start(server.serve, door.handle, door.events)
    if options.listen is not None:
        await listen_over_quic(leader.identity, options.listen, options.advertise, door, nursery)
    await leader.announce(leader.identity.addresses)
    if listeners:
        gateway = Gateway(
            leader.client,
            leader.chunks,
            random=random.SystemRandom(),
            clock=SystemClock(),
            executor=ThreadExecutor(8),
            region=options.region,
        )
        await nursery.start(gateway.serve, listeners)
        host, port = listeners[0].socket.getsockname()[:2]
        endpoints["s3"] = f"http://{'[' + host + ']' if ':' in host else host}:{port}"
        leader.on_credential = gateway.forget_credential
    register_commands(leader, endpoints)
    credential = await leader.root_credential()
    report = await leader.status()
    facts = {
        "cluster": leader.substrate.cluster.hex(),
        "summary": report["summary"],
        "s3": endpoints.get("s3", ""),
        "access_key": credential.access_key,
        "pid": os.getpid(),
    }
    if leader.formed_now and os.isatty(1):
        facts["secret_key"] = credential.secret_key
    if note:
        facts["note"] = note
        log.warning("%s", note)
    log.info("up: %s", report["summary"])
    ready(facts)
