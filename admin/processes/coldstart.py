"""What a starter finds out before it may lead: the newest map that any drive has, and whether somebody leads already.

    own drives, known addresses --ask--> a map --ask its drives' roots--> a newer map --> ... --> the newest

Invariants
1. Nothing is written here: looking deposes nobody.
2. A starter that cannot prove the last leader dead goes on only when a majority of the root drives has heard no
   confirmation for T (what a node forgot in a restart counts as not heard: the claim's own wait of T covers it).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import trio

from trivium.cluster import rootplan
from trivium.cluster.errors import ClusterError
from trivium.cluster.model import ClusterMap, DriveRow, Leader, NodeRow, Root, RootSlot
from trivium.cluster.transport.dial import Dialer, who
from trivium.cluster.wire import ReadRoot, RootCopy

if TYPE_CHECKING:
    from trivium.admin.processes.substrate import Substrate

log = logging.getLogger(__name__)

ATTEMPT_S = 3.0


async def find_nodes(dialer: Dialer, addresses: Iterable[str]) -> ClusterMap:
    """A map made of who answers at these addresses and what drives they have: enough to read the roots."""
    nodes: dict[bytes, NodeRow] = {}
    drives: dict[bytes, DriveRow] = {}

    async def ask(address: str) -> None:
        try:
            connection = await dialer.dial(address)
            try:
                report = await who(connection, drives=True)
            finally:
                await connection.aclose()
        except ClusterError as error:
            log.info("no node answers at %s yet: %s", address, error)
            return
        nodes[report.node] = NodeRow(report.node, "", (address,))
        for drive in report.drives:
            drives[drive.drive] = DriveRow(drive.drive, "", report.node, "", 1.0, "", drive.path)

    async with trio.open_nursery() as nursery:
        for address in dict.fromkeys(addresses):
            nursery.start_soon(ask, address)
    return ClusterMap(0, tuple(drives.values()), tuple(nodes.values()))


async def learn(substrate: Substrate) -> dict[bytes, RootCopy]:
    """Follow the newest map that the drives of the known ones have; answers the roots' copies."""
    copies: dict[bytes, RootCopy] = {}
    seen: Root | None = None
    while True:
        drives = {row.id for row in substrate.map.drives if row.reason != "removed"} | set(substrate.node.stores)
        copies |= await _read(substrate, drives)
        newest = rootplan.newest({drive: copy.slot for drive, copy in copies.items()})
        if newest is None or newest.root is None or newest.root == seen:
            return copies
        seen = newest.root
        if seen.map != substrate.map:
            substrate.follow(seen.map)
            await substrate.watch.refresh()


async def _read(substrate: Substrate, drives: Iterable[bytes]) -> dict[bytes, RootCopy]:
    copies: dict[bytes, RootCopy] = {}

    async def read(drive: bytes) -> None:
        try:
            reply = await substrate.router.call(drive, ReadRoot(drive))
        except ClusterError:
            return
        if isinstance(reply.answer, RootCopy):
            copies[drive] = reply.answer

    with trio.move_on_after(ATTEMPT_S):
        async with trio.open_nursery() as nursery:
            for drive in drives:
                nursery.start_soon(read, drive)
    return copies


def has_majority(copies: Mapping[bytes, RootCopy]) -> bool:
    newest = rootplan.newest(_slots(copies))
    if newest is None or newest.root is None:
        return False
    return rootplan.has_majority([d for d, copy in copies.items() if copy.slot.root is not None], newest.root)


def heard_lately_s(copies: Mapping[bytes, RootCopy], t_s: float) -> float | None:
    """Seconds since a holder was last confirmed, when no majority has been without one for T; else None."""
    newest = rootplan.newest(_slots(copies))
    if newest is None or newest.root is None:
        return None
    quiet = [d for d, copy in copies.items() if copy.slot.root and not 0 <= copy.confirmed_s < t_s]
    if rootplan.has_majority(quiet, newest.root):
        return None
    return min((copy.confirmed_s for copy in copies.values() if 0 <= copy.confirmed_s < t_s), default=None)


def proved_dead(root: Root, me: Leader, own: Iterable[bytes], lately_s: float | None) -> bool:
    """Whether the leader that the root names is certainly dead (RULES: proof of death on one host). `me` holds the lock
    of its metadata directory, and `own` are root drives that this process has locked."""
    last = root.leader
    if last is None or last.released or rootplan.has_majority(set(own), root):
        return True
    if not last.holder or last.holder != me.holder:
        return False
    same_lock = last.lock == me.lock if last.lock else last.address == me.address
    if last.boot_id == me.boot_id and same_lock:  # a copy of the directory, on this host or elsewhere, is no proof
        return True
    return lately_s is None  # after a reboot


def newest_root(copies: Mapping[bytes, RootCopy]) -> Root | None:
    newest = rootplan.newest(_slots(copies))
    return None if newest is None else newest.root


def _slots(copies: Mapping[bytes, RootCopy]) -> dict[bytes, RootSlot]:
    return {drive: copy.slot for drive, copy in copies.items()}


# ---- what a data directory remembers --------------------------------------------------------------------------


def remembered(path: Path) -> list[str]:
    """Addresses of the pool's nodes, as of the last map: hints, nothing depends on them being right."""
    try:
        return [str(address) for address in json.loads(path.read_text())]
    except (OSError, ValueError):
        return []


def remember(path: Path, cluster_map: ClusterMap, own: bytes) -> None:
    addresses = [address for row in cluster_map.nodes if row.id != own for address in row.addresses]
    text = json.dumps(addresses, indent=1)
    try:
        if path.exists() and path.read_text() == text:
            return
        temporary = path.with_suffix(".new")
        with open(temporary, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except OSError as error:
        log.warning("the nodes' addresses are not remembered in %s: %s", path, error)


def merged(found: ClusterMap, base: ClusterMap) -> ClusterMap:
    """`base`, or what was found when there is no base yet."""
    if base.pools:
        return base
    drives = {row.id: row for row in (*found.drives, *base.drives)}
    nodes = {row.id: row for row in (*found.nodes, *base.nodes)}
    return msgspec.structs.replace(base, drives=tuple(drives.values()), nodes=tuple(nodes.values()))
