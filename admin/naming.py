"""Drives and nodes by the names that operators gave them: what is asked for by name, what is said about ids."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from trivium.cluster.model import DriveRow, NodeRow
from trivium.metadata.messages import MetadataError

if TYPE_CHECKING:
    from trivium.admin.processes.lead import Leader

_HEX = re.compile(r"\b[0-9a-f]{32}\b")


def with_names(text: str, rows: Iterable[DriveRow]) -> str:
    """A sentence from below, which knows drives by their ids only, with their names and places instead."""
    named = {row.id.hex(): f"{row.name} ({row.path})" for row in rows}
    return _HEX.sub(lambda found: named.get(found[0], found[0]), text)


def find_drive(leader: Leader, name: str) -> DriveRow:
    """The drive of that name. ENOENT lists the names that there are."""
    rows = [row for row in leader.server.map.drives if row.reason != "removed"]
    found = next((row for row in rows if row.name == name), None)
    if found is None:
        raise MetadataError("ENOENT", f"there is no drive {name}; there are {', '.join(row.name for row in rows)}")
    return found


def node_of(leader: Leader, drive: DriveRow) -> NodeRow:
    """The node that has the drive, by the map."""
    rows = leader.server.map.nodes
    return next((row for row in rows if row.id == drive.node), NodeRow(drive.node, drive.node.hex()[:8]))


def find_node(leader: Leader, name: str) -> NodeRow:
    """The node of that name; without a name this process's own. ENOENT lists the names that there are."""
    rows, own = leader.server.map.nodes, leader.substrate.node_id
    found = [row for row in rows if (row.name == name if name else row.id == own)]
    if len(found) == 1:
        return found[0]
    there = ", ".join(row.name for row in rows)
    if found:
        raise MetadataError("EINVAL", f"several nodes are called {name}: give each a name of its own ({there})")
    if name:
        raise MetadataError("ENOENT", f"there is no node {name}; there are {there}")
    raise MetadataError("EINVAL", f"the metadata server has no drives: say which node, with --node ({there})")
