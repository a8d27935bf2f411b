"""Drives by the names that operators gave them: what is asked for by name, what is said about ids."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from trivium.cluster.model import DriveRow
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
