"""The operator's commands over the life of a drive: drain, cancel, remove, weight, in, maintenance.

Each changes rows by one record; what follows (moving, votes, logs) is done by loops that look at the rows, so a crash
after the record loses nothing. Refusals say in words what would be lost and what to do instead.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import msgspec

from trivium.admin.autoout import take_in
from trivium.admin.naming import find_drive
from trivium.cluster.errors import ClusterError
from trivium.cluster.model import DriveRow
from trivium.cluster.wire import CloseDrive
from trivium.metadata import drain, maprows, mapsettings, queue
from trivium.metadata.drain import Named
from trivium.metadata.messages import MetadataError
from trivium.metadata.tx import Tx

if TYPE_CHECKING:
    from trivium.admin.processes.lead import Leader

log = logging.getLogger(__name__)

LEGAL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
UP = ("ok", "full")


def in_use(leader: Leader) -> tuple[DriveRow, ...]:
    return tuple(row for row in leader.server.map.drives if row.reason != "removed")


def is_up(leader: Leader, drive: bytes) -> bool:
    report = leader.substrate.watch.reports.get(drive)
    return report is not None and report.state in UP


# ---- drain ----------------------------------------------------------------------------------------------------


async def drain_drive(leader: Leader, name: str) -> dict[str, Any]:
    """Begin (or say how far it is): no new data on the drive, what is there moves elsewhere."""
    row = find_drive(leader, name)
    if row.reason == "out":
        raise MetadataError("EINVAL", f"drive {name} is out: its data is healed elsewhere; trivium drive remove {name}")
    if row.reason != drain.DRAINING:
        await leader.substrate.watch.refresh()
        if not is_up(leader, row.id):
            raise MetadataError("EINVAL", f"drive {name} is down: bring it back, or: trivium drive replace {name}")
        await _require_places(leader, row)
        await leader.change_map(lambda tx: maprows.put_drive(tx, msgspec.structs.replace(row, reason=drain.DRAINING)))
        log.info("drive %s is draining", name)
        leader.upkeep.drives_changed()
    return await drain_report(leader, name)


async def drain_report(leader: Leader, name: str) -> dict[str, Any]:
    row = find_drive(leader, name)
    found = (await leader.upkeep.draining.report()).get(row.id)
    if found is None:
        raise MetadataError("EINVAL", f"drive {name} is not draining: trivium drive drain {name}")
    return {**found, "waiting": leader.upkeep.draining.drainer.waiting}


async def cancel_drain(leader: Leader, name: str) -> None:
    """The drive is in use again; what has moved stays where it is."""
    row = find_drive(leader, name)
    if row.reason != drain.DRAINING:
        raise MetadataError("EINVAL", f"drive {name} is not draining")
    await leader.change_map(lambda tx: maprows.put_drive(tx, msgspec.structs.replace(row, reason="")))
    leader.upkeep.draining.forget(row.id)
    await leader.server.groups.renew()
    log.info("the drain of drive %s is cancelled", name)
    leader.upkeep.drives_changed()


async def _require_places(leader: Leader, row: DriveRow) -> None:
    """Each chunk on the drive needs another one outside its group."""
    found: Named = await leader.read(lambda reader: drain.named(reader, row.id))
    others = [one for one in leader.server.map.drives if not one.reason and one.weight > 0 and one.id != row.id]
    if not others:
        raise MetadataError("EBUSY", f"drive {row.name} is the last one in use: it cannot be drained")
    if found.chunks and len(others) < found.width:
        raise MetadataError(
            "EBUSY",
            f"drive {row.name} cannot be drained: its chunks need {found.width} drives and {len(others)} would be "
            "left; add one first (trivium drive add PATH)",
        )


# ---- remove, weight, in ---------------------------------------------------------------------------------------


async def remove_drive(leader: Leader, name: str) -> dict[str, Any]:
    """Take a drive off the map for good: a drained one, or one that is out or lost and that nothing needs."""
    row = find_drive(leader, name)
    await leader.substrate.watch.refresh()
    if row.reason == drain.DRAINING and is_up(leader, row.id):
        left = await leader.upkeep.draining.left(row)
        if not left.nothing:
            raise MetadataError("EBUSY", f"drive {name} is still needed; the drain goes on, left: {left.in_words()}")
    elif row.reason != "out" and is_up(leader, row.id):
        raise MetadataError("EBUSY", f"drive {name} is up and in use: trivium drive drain {name} first")
    else:
        await _require_no_loss(leader, row)

    def execute(tx: Tx) -> None:
        maprows.put_drive(tx, msgspec.structs.replace(row, reason="removed"))
        mapsettings.note_out(tx, row.id, None)
        queue.drive_removed(tx, row.id)

    await leader.change_map(execute)
    await leader.upkeep.draining.settle_votes()
    await close_drive(leader, row)
    leader.upkeep.drives_changed(dump=row.id in leader.upkeep.dumper.drives())
    log.info("drive %s is removed", name)
    return {"path": row.path}


async def _require_no_loss(leader: Leader, row: DriveRow) -> None:
    """A drive that cannot give its data back any more may go only if all of it is elsewhere."""
    others = [one for one in leader.server.map.drives if not one.reason and one.id != row.id]
    if not others:
        raise MetadataError("EBUSY", f"drive {row.name} is the last one: it cannot be removed")
    away = leader.substrate.watch.down()
    lost = await leader.read(lambda reader: drain.would_be_lost(reader, row.id, away))
    if lost:
        raise MetadataError(
            "EBUSY",
            f"without drive {row.name} {lost} chunk{'s' if lost > 1 else ''} would be lost for good: too few of their "
            "other shards are on drives in use. Bring the drive back, or bring others back first",
        )
    gone = leader.lost_drives() | {row.id}
    if any(gone.issuperset(entry.drives) for entry in leader.log.chain):
        raise MetadataError("EBUSY", f"drive {row.name} has the only copy of a part of the metadata log: bring it back")
    volumes = await leader.read(lambda reader: drain.logs_lost_without(reader, gone))
    if volumes:
        raise MetadataError(
            "EBUSY",
            f"drive {row.name} has the only copy of a part of the write log of volume {volumes[0]}: what was flushed "
            "to it last would be lost for good. Bring the drive back, or others that have the log",
        )


async def close_drive(leader: Leader, row: DriveRow) -> None:
    """Its node lets go of it (the lock too); a node that is away does so when it hears of the map."""
    try:
        await leader.substrate.router.call_node(row.node, CloseDrive(row.id))
    except ClusterError as error:
        log.warning("drive %s is left open by its node: %s", row.name, error)
    await leader.substrate.watch.refresh()


async def set_weight(leader: Leader, name: str, weight: float) -> None:
    """New groups use the drive in proportion; 0: it takes nothing new and keeps what it has."""
    row = find_drive(leader, name)
    if not 0 <= weight <= 1000:
        raise MetadataError("EINVAL", "a weight is a number from 0 to 1000; 1 is what drives begin with")
    if not weight and all(one.reason or not one.weight or one.id == row.id for one in leader.server.map.drives):
        raise MetadataError("EBUSY", f"drive {name} is the last one with a weight: nothing could be written any more")
    await leader.change_map(lambda tx: maprows.put_drive(tx, msgspec.structs.replace(row, weight=weight)))
    await leader.server.groups.renew()


async def in_again(leader: Leader, name: str) -> None:
    """The operator trusts a drive that was marked out."""
    row = find_drive(leader, name)
    if row.reason != "out":
        raise MetadataError("EINVAL", f"drive {name} is not out")
    await leader.substrate.watch.refresh()
    if not is_up(leader, row.id):
        raise MetadataError("EBUSY", f"drive {name} does not answer: bring it back first, or replace it")
    notes = await leader.read(mapsettings.out_notes)
    await take_in(leader, row, notes.get(row.id))


# ---- maintenance ----------------------------------------------------------------------------------------------


async def set_maintenance(leader: Leader, until_ns: int) -> None:
    """0 ends it, FOREVER lasts until it is ended."""
    await leader.change_map(lambda tx: mapsettings.set_maintenance(tx, until_ns))
    log.info("maintenance is %s", "on: no drive is marked out" if until_ns else "off")
