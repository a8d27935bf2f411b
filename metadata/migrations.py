"""Steps from one schema version to the next. A step is a record of its own kind and never runs beside operations.

The code of a step is fixed for ever once released: a replay of an old log runs it again and must make the same tables.
"""

from __future__ import annotations

from collections.abc import Callable

import apsw

from trivium.metadata import database, schema
from trivium.metadata.records import Migration

Step = Callable[[apsw.Connection], None]


def _create(db: apsw.Connection) -> None:
    db.execute(schema.TABLES)


def _add_members(db: apsw.Connection) -> None:
    db.execute(schema.MEMBER_TABLES)


STEPS: dict[int, Step] = {1: _create, 2: _add_members}
"""Version that a step leads to -> the step. Changes of rows in a step must not depend on anything but rows."""


class MigrationRefused(Exception):
    """The database is newer than this program, or a step is missing: install the release that knows it."""


def step(db: apsw.Connection, to_version: int) -> None:
    """Take one step inside the open transaction."""
    have = database.schema_version(db)
    if to_version != have + 1 or to_version not in STEPS:
        raise MigrationRefused(f"no step from schema version {have} to {to_version} in this release")
    STEPS[to_version](db)
    db.pragma("user_version", to_version)


def pending(db: apsw.Connection) -> range:
    """Versions still to be taken by this release."""
    have = database.schema_version(db)
    if have > schema.VERSION:
        raise MigrationRefused(f"the metadata has schema version {have}, this release knows {schema.VERSION}")
    return range(have + 1, schema.VERSION + 1)


def migrate(db: apsw.Connection, to_version: int, fill: Callable[[apsw.Connection], None] | None = None) -> Migration:
    """Take a step in the open transaction, then `fill` rows; answers the record's payload."""
    step(db, to_version)
    if fill is None:
        return Migration(to_version, b"")
    session = database.record_changes(db)
    try:
        fill(db)
        return Migration(to_version, session.patchset())
    finally:
        session.close()
