"""trivium metadata: the leader alone, without faces; its drives are its own directory's and those of nodes.

    lock -> listen (nodes may join) -> (first time: gather drives, form | find the root's drives) -> lead -> stop

It listens on its Unix socket and, with --listen, over QUIC; what is answered on both is door.py's.
"""

from __future__ import annotations

import logging
import os
import random
import sys
from dataclasses import dataclass
from functools import partial

import trio

from trivium.admin import logs, systemd
from trivium.admin.commands import register_commands
from trivium.admin.credentials import root_credential
from trivium.admin.datadir import ClusterFile, DataDir
from trivium.admin.errors import CommandError
from trivium.admin.identity import ClusterIdentity
from trivium.admin.joining import Gathering
from trivium.admin.lock import LifeLock
from trivium.admin.processes import coldstart, drives
from trivium.admin.processes.door import Door, listen_over_quic
from trivium.admin.processes.lead import Leader
from trivium.admin.processes.stopping import stop_on_signal
from trivium.admin.processes.substrate import Substrate
from trivium.admin.processes.up import SWITCH_INTERVAL_S, Ready
from trivium.cluster.clock import SystemClock, ThreadExecutor
from trivium.cluster.errors import ClusterError, InUse
from trivium.cluster.files import FileOps, RealFiles
from trivium.cluster.liveness import T_S
from trivium.cluster.model import ClusterMap, DriveRow, NodeRow
from trivium.cluster.transport.dial import Dialer
from trivium.cluster.transport.unix import UnixServer
from trivium.metadata.reach import quic_only

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class MetadataOptions:
    data: DataDir
    profile: tuple[int, int] | None = None
    drives: int = 0  # of its own, made at the first start
    wait_for_drives: int | None = None  # before the pool is formed; default k+m
    nodes: tuple[str, ...] = ()
    listen: tuple[str, int] | None = None
    advertise: str = ""
    silence_s: float = T_S
    start_timeout_s: float = 60.0
    socket_mode: str = "0600"
    socket_group: str | None = None
    log_format: str = "text"
    log_level: str = "info"


async def serve_metadata(options: MetadataOptions, ready: Ready) -> int:
    """Lead until told to stop. Returns the exit status."""
    logs.configure(options.log_format, options.log_level)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    cluster, lock = _take_directory(options)
    try:
        await _serve(options, cluster, ready)
    finally:
        systemd.notify("STOPPING=1")
        lock.close()
    return 0


def _take_directory(options: MetadataOptions) -> tuple[ClusterFile, LifeLock]:
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
        if cluster is None:
            k, m = options.profile or (4, 2)
            return data.begin(f"{k}+{m}"), lock
        for directory in (data.keys, data.run, data.run / "sessions", data.drives):
            directory.mkdir(mode=0o700, exist_ok=True)
        wanted = None if options.profile is None else f"{options.profile[0]}+{options.profile[1]}"
        if wanted not in (None, cluster.profile):
            raise CommandError(f"the pool at {data.path} is {cluster.profile}; leave --profile out.")
        return cluster, lock
    except BaseException:
        lock.close()
        raise


async def _serve(options: MetadataOptions, cluster: ClusterFile, ready: Ready) -> None:
    files, clock = RealFiles(), SystemClock()
    identity = ClusterIdentity(bytes.fromhex(cluster.cluster), clock, options.data.keys)
    identity.load()
    if cluster.forming:
        await identity.wait()
    door = Door(identity)
    dialer = Dialer(options.data.path, local=not quic_only())
    dialer.register("quic", identity.dial)
    server = UnixServer(str(options.data.socket), mode=int(options.socket_mode, 8), group=options.socket_group)
    stopped = trio.CancelScope()
    layers = [stopped]  # a signal ends the innermost layer that runs: during the start that is everything
    async with trio.open_nursery() as outer:
        outer.start_soon(partial(stop_on_signal, into=layers))
        await outer.start(server.serve, door.handle, door.events)
        if options.listen is not None:
            await listen_over_quic(identity, options.listen, options.advertise, door, outer)
        with stopped:
            opened = _open_own(options, cluster, files)
            first = await _gather(options, cluster, opened, dialer, door) if cluster.forming else None
            substrate = _substrate(options, cluster, opened, first, dialer, files)
            await _lead(options, cluster, Leader(substrate, options.data, identity=identity), door, layers, ready)
        outer.cancel_scope.cancel()


def _open_own(options: MetadataOptions, cluster: ClusterFile, files: FileOps) -> drives.Opened:
    identity = bytes.fromhex(cluster.cluster)
    try:
        if cluster.forming:
            return drives.Opened(drives.format_drives(options.data, files, identity, options.drives, keep=True))
        return drives.open_drives(options.data, files, identity, bytes.fromhex(cluster.node))
    except InUse as error:
        raise CommandError(str(error), 5) from None
    except (ClusterError, OSError) as error:
        raise CommandError(f"the drives cannot be opened: {error}") from None


async def _gather(
    options: MetadataOptions, cluster: ClusterFile, opened: drives.Opened, dialer: Dialer, door: Door
) -> ClusterMap:
    """Wait until nodes have brought enough drives."""
    k, m = (int(part) for part in cluster.profile.split("+"))
    own_nodes: tuple[NodeRow, ...] = ()
    own: tuple[DriveRow, ...] = ()
    if opened.stores:
        alone = drives.first_map(options.data, opened.stores, bytes.fromhex(cluster.node), (k, m))
        own, own_nodes = alone.drives, alone.nodes
    gathering = Gathering(bytes.fromhex(cluster.cluster), dialer, (k, m), own)
    door.gather(gathering.commands())
    wanted = options.wait_for_drives or k + m
    while len(gathering.map(own_nodes).drives) < wanted:
        have = len(gathering.map(own_nodes).drives)
        log.info("a new pool: %d of %d drives; start nodes with --connect %s", have, wanted, options.data.path)
        await gathering.changed.wait()
        gathering.changed = trio.Event()
    return gathering.map(own_nodes)


def _substrate(
    options: MetadataOptions,
    cluster: ClusterFile,
    opened: drives.Opened,
    first: ClusterMap | None,
    dialer: Dialer,
    files: FileOps,
) -> Substrate:
    hints_file, node = options.data.path / "nodes", bytes.fromhex(cluster.node)
    substrate = Substrate(
        options.data,
        bytes.fromhex(cluster.cluster),
        node,
        opened,
        first,
        files=files,
        executor=ThreadExecutor(24),
        clock=SystemClock(),
        random=random.SystemRandom(),
        dialer=dialer,
        on_map=lambda cluster_map: coldstart.remember(hints_file, cluster_map, node),
        t_s=options.silence_s,
    )
    if first is not None:
        coldstart.remember(hints_file, first, node)
    return substrate


async def _find_root(options: MetadataOptions, substrate: Substrate) -> None:
    """Wait until a majority of the root drives answers: nodes may be starting, too."""
    give_up = trio.current_time() + options.start_timeout_s
    while True:
        addresses = (*options.nodes, *coldstart.remembered(options.data.path / "nodes"))
        found = await coldstart.find_nodes(substrate.dialer, addresses)
        substrate.hints.update({row.id: row.addresses for row in found.nodes})
        substrate.follow(coldstart.merged(found, substrate.map))
        copies = await coldstart.learn(substrate)
        if coldstart.has_majority(copies):
            return
        if trio.current_time() > give_up:
            raise CommandError(
                f"the pool cannot start: no majority of its root drives answers after {options.start_timeout_s:.0f} s. "
                f"Asked: {', '.join(dict.fromkeys(addresses)) or 'nobody'}. Start the nodes, or name one with --node."
            )
        await trio.sleep(LOOK_AGAIN_S)


async def _lead(
    options: MetadataOptions,
    cluster: ClusterFile,
    leader: Leader,
    door: Door,
    layers: list[trio.CancelScope],
    ready: Ready,
) -> None:
    """Three nurseries end one after another, as in `up`: workers, the metadata server, node and log."""
    substrate = leader.substrate
    env = root_credential()
    try:
        async with trio.open_nursery() as low:
            await substrate.start(low)
            if not cluster.forming:
                await _find_root(options, substrate)
            await leader.begin(low, env)
            if cluster.forming:
                options.data.formed(cluster)
            async with trio.open_nursery() as middle:
                await leader.serve(middle)
                async with trio.open_nursery() as top:
                    layers.append(top.cancel_scope)
                    await leader.work(top, env)
                    register_commands(leader, {})
                    await leader.announce(leader.identity.addresses)
                    door.open(leader)
                    await _announce(leader, ready)
                middle.cancel_scope.cancel()
            await leader.stop()
            low.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await substrate.stop()


async def _announce(leader: Leader, ready: Ready) -> None:
    credential, report = await leader.root_credential(), await leader.status()
    facts = {
        "cluster": leader.substrate.cluster.hex(),
        "summary": report["summary"],
        "access_key": credential.access_key,
        "pid": os.getpid(),
    }
    log.info("metadata serves: %s", report["summary"])
    systemd.notify("READY=1")
    ready(facts)
