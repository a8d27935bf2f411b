"""The pool's status as data and sentences: what is wrong, what is at risk, how long until it is whole."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from trivium.admin import survival
from trivium.admin.survival import Place, Survival
from trivium.cluster.model import ClusterMap, DriveState, Group
from trivium.cluster.wire import DriveReport
from trivium.metadata import losses
from trivium.metadata.chunkrows import split_drives
from trivium.metadata.tx import Reader

if TYPE_CHECKING:
    from trivium.admin.processes.lead import Leader

NEAR_FULL = 0.80
NO_CHUNKS = "no data chunks yet: what is stored so far lies in the metadata"


async def status(leader: Leader) -> dict[str, Any]:
    """Everything that `trivium status` prints; the same words in JSON."""
    cluster_map, reports = leader.server.map, leader.substrate.watch.reports
    spread = await leader.read(_spread)
    heal = await leader.upkeep.healer.report()
    places = _places(cluster_map, reports)
    data = survival.of_chunks(spread, places)
    log = survival.of_members(leader.log.chain[-1].drives, 1, places)
    voters = leader.root.root_drives
    root = survival.of_members(voters, len(voters) // 2 + 1, places)
    drives = [_drive(row, reports.get(row.id)) for row in cluster_map.drives if row.reason != "removed"]
    wrong = [drive for drive in drives if drive["state"] not in ("up", "new")]
    lacking = heal["total"] - heal["done"]
    whole = not wrong and not lacking and _unharmed(spread, places)
    sentences = _sentences(data, survival.weakest((log, root)), drives, heal, lacking)
    lost = await leader.read(partial(losses.lost_chunks, usable=leader.substrate.watch.usable()))
    if lost.lost:
        sentences.insert(0, f"{len(lost.lost)} chunks are lost (fewer than k shards): trivium fsck --lost names them")
    if lost.away:
        sentences.insert(0, f"{len(lost.away)} chunks cannot be read until drives come back: trivium fsck --lost")
    return {
        "cluster": leader.substrate.cluster.hex(),
        "whole": whole,
        "summary": _summary(cluster_map, wrong, lacking, whole),
        "sentences": sentences,
        "survives": {name: _fields(found) for name, found in (("data", data), ("log", log), ("root", root)) if found},
        "drives": drives,
        "heal": heal if lacking else None,
        "sessions": [
            {"client": session.client, "host": session.host, "id": f"{session.id:016x}"}
            for session in leader.server.sessions.all()
        ],
        "seq": leader.log.last_seq,
    }


def _spread(reader: Reader) -> list[tuple[Group, int]]:
    """Distinct (group, missing mask) over all chunks."""
    rows = reader.all(
        "SELECT DISTINCT g.id, g.pool, g.k, g.m, g.drives, g.codec, c.missing"
        " FROM chunks c JOIN groups g ON g.id = c.group_id"
    )
    return [(Group(row[0], row[1], row[2], row[3], split_drives(row[4]), row[5]), row[6]) for row in rows]


def _places(cluster_map: ClusterMap, reports: dict[bytes, DriveReport]) -> dict[bytes, Place]:
    places = {}
    for row in cluster_map.drives:
        report = reports.get(row.id)
        up = report is not None and report.state in ("ok", "full") and row.reason not in ("out", "removed")
        rack, _, host = row.domain.partition("/")
        places[row.id] = Place(up, report.device if report and up else row.device, host or rack, rack)
    return places


def _unharmed(spread: list[tuple[Group, int]], places: dict[bytes, Place]) -> bool:
    """Every shard of every chunk is listed as there, on a drive that answers."""
    return all(
        not missing and all(drive in places and places[drive].up for drive in group.drives) for group, missing in spread
    )


def _drive(row: Any, report: DriveReport | None) -> dict[str, Any]:
    if row.reason:
        state = DriveState(row.reason)
    elif report is None or report.state not in ("ok", "full"):
        state = DriveState.DOWN
    else:
        state = DriveState.UP
    text = (report.text if report else "no node reports it") if state is DriveState.DOWN else ""
    if report is not None and report.state == "full":
        text = "full: takes no new data"
    return {
        "name": row.name,
        "id": row.id.hex(),
        "state": state.value,
        "text": text,
        "path": row.path,
        "domain": row.domain,
        "bytes_total": report.bytes_total if report else row.bytes_total,
        "bytes_free": report.bytes_free if report else 0,
    }


def _summary(cluster_map: ClusterMap, wrong: list[dict[str, Any]], lacking: int, whole: bool) -> str:
    pool = cluster_map.pools[0]
    if whole:
        return f"whole: {pool.k}+{pool.m} over {sum(1 for d in cluster_map.drives if d.reason != 'removed')} drives"
    parts = [f"{drive['name']} is {drive['state']}" for drive in wrong]
    if lacking:
        parts.append(f"{lacking} chunk{'s' if lacking > 1 else ''} to heal")
    return "degraded: " + (", ".join(parts) or "some shards are on drives that do not answer")


def _sentences(
    data: Survival | None,
    metadata: Survival | None,
    drives: list[dict[str, Any]],
    heal: dict[str, Any],
    lacking: int,
) -> list[str]:
    sentences = [survival.in_words("data", data) if data else NO_CHUNKS]
    if metadata:
        sentences.append(survival.in_words("metadata", metadata))
    if data and data.drives > 0 and data.disks == 0:
        sentences.append("several drives share one disk: put each drive on a disk of its own")
    for drive in drives:
        if drive["state"] == "down":
            sentences.append(f"{_named(drive)}; bring it back, or: trivium drive replace {drive['name']}")
        elif drive["bytes_total"] and drive["bytes_free"] < (1 - NEAR_FULL) * drive["bytes_total"]:
            used = 100 - 100 * drive["bytes_free"] // drive["bytes_total"]
            sentences.append(
                f"drive {drive['name']} is {used} % full: at 85 % (and under 20 GiB free) it takes no new data"
            )
    if lacking and heal["waiting"]:
        sentences.append(heal["waiting"])
    return sentences


def _named(drive: dict[str, Any]) -> str:
    """What is wrong, with the drive's name once (a drive's own verdict begins with it)."""
    text, name = str(drive["text"]), f"drive {drive['name']}: "
    return text if text.startswith(name) else name + text


def _fields(found: Survival) -> dict[str, int]:
    return {"drives": found.drives, "disks": found.disks, "hosts": found.hosts, "racks": found.racks}
