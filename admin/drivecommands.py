"""Adding and replacing drives, each at the node that has or shall have it.

The order of each: the directory becomes a drive (formatted, opened) -> the map's rows change by a record -> the root's
copy of the map -> the root drives' list -> the open log segment -> healing. A crash in between leaves a formatted
directory that the map does not name (an empty drive, made again) or work that healing finds by its query.
"""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING, Any

import msgspec

from trivium.admin.drivelife import LEGAL_NAME
from trivium.admin.naming import find_drive
from trivium.admin.processes.drives import absolute, relative
from trivium.cluster import rootfile
from trivium.cluster.errors import ClusterError, Refused, Unavailable
from trivium.cluster.model import DriveRow
from trivium.cluster.rootplan import swap_voter
from trivium.cluster.wire import CloseDrive, FormatDrive
from trivium.metadata import maprows, mapsettings, queue
from trivium.metadata.messages import MetadataError
from trivium.metadata.tx import Tx

if TYPE_CHECKING:
    from trivium.admin.processes.lead import Leader

log = logging.getLogger(__name__)


async def add_drive(leader: Leader, name: str, path: str, at: str = "") -> DriveRow:
    """Make the empty directory `path` of the node called `at` (default: this process's own) drive `name`. New groups
    use it at once; what is stored stays where it is."""
    if not LEGAL_NAME.fullmatch(name):
        raise MetadataError("EINVAL", f"{name!r} is no name for a drive: letters, digits, . _ -, at most 32")
    if any(row.name == name and row.reason != "removed" for row in leader.server.map.drives):
        raise MetadataError("EEXIST", f"there is a drive {name} already; name another one with --name")
    node = _node(leader, at)
    if node != leader.substrate.node_id and not os.path.isabs(path):
        raise MetadataError("EINVAL", f"say where on {at} the directory is: trivium drive add /PATH --node {at}")
    row = await _make(leader, node, name, path, domain=_domain(leader, node))
    await leader.change_map(lambda tx: maprows.put_drive(tx, row))
    await leader.substrate.watch.refresh()
    await leader.server.groups.renew()
    leader.upkeep.drives_changed()
    log.info("drive %s is added at %s", name, path)
    return row


def next_name(leader: Leader) -> str:
    """d<n>, one above the highest that any drive ever had."""
    numbers = [int(row.name[1:]) for row in leader.server.map.drives if re.fullmatch(r"d\d{1,6}", row.name)]
    return f"d{max(numbers, default=-1) + 1}"


def _node(leader: Leader, name: str) -> bytes:
    """The node of that name; this process's own when none is named, where it has drives."""
    nodes = leader.server.map.nodes
    if not name:
        if all(row.id != leader.substrate.node_id for row in nodes):
            known = ", ".join(row.name for row in nodes)
            raise MetadataError("EINVAL", f"the metadata server has no drives: add --node NAME (there are {known})")
        return leader.substrate.node_id
    found = [row.id for row in nodes if row.name == name]
    if len(found) != 1:
        what = f"{len(found)} nodes are called {name}" if found else f"there is no node {name}"
        raise MetadataError("ENOENT", f"{what}; there are {', '.join(row.name for row in nodes)}")
    return found[0]


def _domain(leader: Leader, node: bytes) -> str:
    """Where this node's drives are."""
    mine = [row.domain for row in leader.server.map.drives if row.node == node]
    names = [row.name for row in leader.server.map.nodes if row.id == node]
    return mine[0] if mine else f"default/{names[0]}"


def _what_is_there(leader: Leader, path: str) -> str:
    """A directory that is not empty may be a drive that the operator should know of."""
    try:
        with open(os.path.join(absolute(leader.data, path), "root"), "rb") as file:
            head = rootfile.parse_head(file.read(rootfile.FILE_SIZE))
    except (OSError, ClusterError):
        return ""
    row = next((row for row in leader.server.map.drives if row.id == head.drive), None)
    if head.cluster != leader.substrate.cluster:
        return ": it is a drive of another pool"
    if row is None:
        return ": it was a drive of this pool, which the map does not name any more; empty it first"
    if row.reason == "removed":
        return f": it is drive {row.name}, which was removed; empty the directory to use it again"
    if absolute(leader.data, row.path) == absolute(leader.data, path):
        return f": it is drive {row.name} of this pool"
    return (
        f": it says that it is drive {row.name}, which lies at {absolute(leader.data, row.path)}; a copy of a drive is "
        "never taken in beside it"
    )


async def replace_drive(leader: Leader, name: str, path: str) -> dict[str, Any]:
    """Put a new drive at `path` (default: the old path) in the place of one that is lost."""
    old = find_drive(leader, name)
    await leader.substrate.watch.refresh()
    report = leader.substrate.watch.reports.get(old.id)
    if report is not None and report.state in ("ok", "full") and old.reason != "out":
        raise MetadataError("EBUSY", f"drive {name} is up: replace is for drives that are lost; drain empties it")
    target = path or old.path
    if old.node == leader.substrate.node_id:
        target = relative(leader.data, target)
        _require_empty(absolute(leader.data, target))
    await _close(leader, old)
    row = await _make(leader, old.node, name, target, domain=old.domain)

    def execute(tx: Tx) -> None:
        maprows.put_drive(tx, msgspec.structs.replace(old, reason="removed"))
        maprows.put_drive(tx, row)
        queue.drive_removed(tx, old.id)
        mapsettings.note_out(tx, old.id, None)

    await leader.change_map(execute)
    await leader.substrate.watch.refresh()
    await leader.register.change(lambda root: swap_voter(root, old.id, row.id))
    leader.upkeep.drives_changed(dump=True)
    log.info("drive %s is replaced by a new one at %s", name, target)
    return {"path": absolute(leader.data, target), "id": row.id.hex()}


def _require_empty(path: str) -> None:
    try:
        found = sorted(os.listdir(path))
    except FileNotFoundError:
        return
    except OSError as error:
        raise MetadataError("EINVAL", f"{path}: {error.strerror}") from None
    if [name for name in found if name != "lost+found"]:
        raise MetadataError(
            "ENOTEMPTY", f"{path} is not empty ({found[0]}): move what is there away, or name another PATH"
        )


async def _make(leader: Leader, node: bytes, name: str, path: str, *, domain: str) -> DriveRow:
    """A new drive of that node. Nothing is changed when it cannot be made."""
    substrate = leader.substrate
    drive = substrate.random.randbytes(16)
    try:
        await substrate.router.call_node(node, FormatDrive(path, drive))
    except Refused as error:
        there = _what_is_there(leader, path) if node == substrate.node_id else ""
        raise MetadataError("ENOTEMPTY", f"{error}{there}") from None
    except Unavailable as error:
        raise MetadataError("EHOSTUNREACH", f"start the node first, it does not answer: {error}") from None
    await substrate.watch.refresh()
    report = substrate.watch.reports.get(drive)
    if report is None:
        raise MetadataError("EHOSTUNREACH", f"the node has made a drive at {path} and does not answer any more")
    return DriveRow(drive, name, node, domain, 1.0, "", path, report.bytes_total, report.device)


async def _close(leader: Leader, drive: DriveRow) -> None:
    try:
        await leader.substrate.router.call_node(drive.node, CloseDrive(drive.id))
    except ClusterError as error:
        log.warning("the old drive %s is left open: %s", drive.id.hex(), error)
