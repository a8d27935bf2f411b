"""Adding and replacing drives, of this process's own node or of another one that answers.

The order of each: the directory becomes a drive (formatted, opened) -> the map's rows change by a record -> the root's
copy of the map -> the root drives' list -> the open log segment -> healing. A crash in between leaves a formatted
directory that the map does not name (an empty drive, made again) or work that healing finds by its query. A drive is
replaced on the node that has it: its place in the failure domains stays what it is.
"""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING, Any

import msgspec

from trivium.admin.drivelife import LEGAL_NAME
from trivium.admin.naming import find_drive, find_node, node_of
from trivium.admin.processes.drives import absolute, relative
from trivium.cluster import rootfile
from trivium.cluster.errors import ClusterError, Refused
from trivium.cluster.model import DriveRow, NodeRow
from trivium.cluster.rootplan import swap_voter
from trivium.cluster.wire import CloseDrive, FormatDrive
from trivium.metadata import maprows, mapsettings, queue
from trivium.metadata.messages import MetadataError
from trivium.metadata.tx import Tx

if TYPE_CHECKING:
    from trivium.admin.processes.lead import Leader

log = logging.getLogger(__name__)


async def add_drive(leader: Leader, name: str, path: str, node: str = "") -> DriveRow:
    """Make the empty directory `path` drive `name`. New groups use it at once; what is stored stays where it is.
    `node`: the name of the node that has the directory; else it is this process's own."""
    if not LEGAL_NAME.fullmatch(name):
        raise MetadataError("EINVAL", f"{name!r} is no name for a drive: letters, digits, . _ -, at most 32")
    if any(row.name == name and row.reason != "removed" for row in leader.server.map.drives):
        raise MetadataError("EEXIST", f"there is a drive {name} already; name another one with --name")
    where = find_node(leader, node)
    if where.id != leader.substrate.node_id:
        _require_absolute(path, where)
    row = await _make(leader, name, path, where, domain=_domain(leader, where))
    await leader.change_map(lambda tx: maprows.put_drive(tx, row))
    await leader.substrate.watch.refresh()
    await leader.server.groups.renew()
    leader.upkeep.drives_changed()
    log.info("drive %s is added at %s of node %s", name, path, where.name)
    return row


def next_name(leader: Leader) -> str:
    """d<n>, one above the highest that any drive ever had."""
    numbers = [int(row.name[1:]) for row in leader.server.map.drives if re.fullmatch(r"d\d{1,6}", row.name)]
    return f"d{max(numbers, default=-1) + 1}"


def _domain(leader: Leader, node: NodeRow) -> str:
    """Where this node's drives are."""
    mine = [row for row in leader.server.map.drives if row.node == node.id]
    return mine[0].domain if mine else f"default/{node.name}"


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
    """Put a new drive at `path` (default: the old path) of the same node in the place of one that is lost."""
    old = find_drive(leader, name)
    await leader.substrate.watch.refresh()
    report = leader.substrate.watch.reports.get(old.id)
    if report is not None and report.state in ("ok", "full") and old.reason != "out" and not _is_away(leader, old):
        raise MetadataError("EBUSY", f"drive {name} is up: replace is for drives that are lost; drain empties it")
    node = node_of(leader, old)
    own = node.id == leader.substrate.node_id
    target = (relative(leader.data, path) if own else path) if path else old.path
    if own:
        _require_empty(absolute(leader.data, target))
    else:
        _require_absolute(target, node)
        _require_node(leader, old, node)
    row = await _make(leader, name, target, node, domain=old.domain)
    await _close(leader, old)

    def execute(tx: Tx) -> None:
        maprows.put_drive(tx, msgspec.structs.replace(old, reason="removed"))
        maprows.put_drive(tx, row)
        queue.drive_removed(tx, old.id)
        mapsettings.note_out(tx, old.id, None)

    await leader.change_map(execute)
    await leader.substrate.watch.refresh()
    await leader.register.change(lambda root: swap_voter(root, old.id, row.id))
    leader.upkeep.drives_changed(dump=True)
    log.info("drive %s is replaced by a new one at %s of node %s", name, target, node.name)
    at = absolute(leader.data, target) if own else target
    return {"path": at, "id": row.id.hex(), "node": "" if own else node.name}


def _is_away(leader: Leader, drive: DriveRow) -> bool:
    """Its node does not answer just now: what it said last does not count."""
    return drive.id in leader.substrate.watch.away()


def _require_node(leader: Leader, drive: DriveRow, node: NodeRow) -> None:
    if any(member.node == node.id for member in leader.substrate.watch.silent()):
        raise MetadataError(
            "EHOSTUNREACH",
            f"node {node.name}, which has drive {drive.name}, does not answer, so it cannot make another one in its "
            f"place: start it first. If it never comes back: trivium drive remove {drive.name}, and trivium drive add "
            "on another node",
        )


def _require_absolute(path: str, node: NodeRow) -> None:
    if not os.path.isabs(path):
        raise MetadataError("EINVAL", f"name the directory by its whole path on the host of node {node.name}")


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


async def _make(leader: Leader, name: str, path: str, node: NodeRow, *, domain: str) -> DriveRow:
    """Have the node make a drive there and open it. Nothing counts before the map names it."""
    substrate = leader.substrate
    own = node.id == substrate.node_id
    drive = substrate.random.randbytes(16)
    try:
        await substrate.router.call_node(node.id, FormatDrive(path, drive))
    except Refused as error:
        text = str(error) + (_what_is_there(leader, path) if own else "")
        raise MetadataError("ENOTEMPTY", text if own else f"node {node.name}: {text}") from None
    except ClusterError as error:
        if own:
            raise
        raise MetadataError("EIO", f"node {node.name} has not made a drive at {path}: {error}") from None
    await substrate.watch.refresh()
    report = substrate.watch.reports.get(drive)
    if report is None:
        raise MetadataError("EHOSTUNREACH", f"node {node.name} has made a drive at {path} and then fell silent")
    return DriveRow(drive, name, node.id, domain, 1.0, "", path, report.bytes_total, report.device)


async def _close(leader: Leader, old: DriveRow) -> None:
    try:
        await leader.substrate.router.call_node(old.node, CloseDrive(old.id))
    except ClusterError as error:
        log.warning("the old drive %s is left open: %s", old.name, error)
