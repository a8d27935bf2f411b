"""What a check of the rows found."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    area: str  # names | inodes | contents | chunks | volumes | members
    text: str
    repair: str  # what it would do
