"""The pool's status as data and sentences: what is wrong, what is at risk, how long until it is whole."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from trivium.admin import drivestates, survival, workreport
from trivium.admin.survival import Place, Survival
from trivium.cluster.model import ClusterMap, Group
from trivium.cluster.wire import DriveReport
from trivium.metadata import losses, mapsettings
from trivium.metadata.chunkrows import split_drives
from trivium.metadata.tx import Reader
from trivium.metadata.volumes import decode_chain

if TYPE_CHECKING:
    from trivium.admin.processes.lead import Leader

NO_CHUNKS = "no data chunks yet: what is stored so far lies in the metadata"


async def status(leader: Leader) -> dict[str, Any]:
    """Everything that `trivium status` prints; the same words in JSON."""
    cluster_map, reports = leader.server.map, leader.substrate.watch.reports
    spread = await leader.read(_spread)
    heal = await leader.upkeep.healer.report()
    away = leader.substrate.watch.away()
    places = _places(cluster_map, reports, away)
    logs = await leader.read(_volume_logs)
    kept = [survival.of_chunks(spread, places), *(survival.of_members(drives, 1, places) for drives in logs)]
    data = survival.weakest(found for found in kept if found)
    log = survival.weakest(survival.of_members(entry.drives, 1, places) for entry in leader.log.chain)
    voters = leader.root.root_drives
    root = survival.of_members(voters, len(voters) // 2 + 1, places)
    drains = await leader.upkeep.draining.report()
    notes, used = await leader.read(lambda reader: (mapsettings.out_notes(reader), _used(spread)))
    slow = leader.upkeep.slow_drives.in_words()
    drives = [
        drivestates.describe(row, reports.get(row.id), used, notes, drains, slow)
        for row in cluster_map.drives
        if row.reason != "removed"
    ]
    wrong = [drive for drive in drives if drive["state"] not in ("up", "new", "draining")]
    lacking = heal["total"] - heal["done"]
    nodes = _nodes(leader)
    silent = [node for node in nodes if node["state"] != "up"]
    work = await workreport.work(leader.upkeep)
    narrow = work["narrow"]["left"] if work["narrow"] else 0
    parity = {pool.id: pool.m for pool in cluster_map.pools}
    weak = any(group.m < parity[group.pool] for group, _ in spread if group.pool in parity)
    short = await leader.upkeep.volume_logs.short(all=True)
    whole = not (wrong or silent or lacking or weak or short) and _unharmed(spread, places)
    sentences = _sentences(data, survival.weakest(found for found in (log, root) if found), drives, heal, lacking)
    sentences += [f"the write log of volume {name} has fewer copies than it should: others are made" for name in short]
    sentences += [f"node {node['name']} {node['text']}" for node in silent]
    sentences += _operator(leader, drives)
    lost = await leader.read(partial(losses.lost_chunks, usable=leader.substrate.watch.usable()))
    if lost.lost:
        sentences.insert(0, f"{len(lost.lost)} chunks are lost (fewer than k shards): trivium fsck --lost names them")
    if lost.away:
        sentences.insert(0, f"{len(lost.away)} chunks cannot be read until drives come back: trivium fsck --lost")
    return {
        "cluster": leader.substrate.cluster.hex(),
        "whole": whole,
        "summary": _summary(cluster_map, wrong, lacking, narrow, whole, silent, short),
        "sentences": sentences,
        "survives": {name: _fields(found) for name, found in (("data", data), ("log", log), ("root", root)) if found},
        "nodes": nodes,
        "drives": drives,
        "heal": heal if lacking else None,
        "maintenance": maintenance_text(cluster_map.maintenance_until, leader.substrate.clock.wall_ns()),
        **work,
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


def _volume_logs(reader: Reader) -> list[tuple[bytes, ...]]:
    """Drives of each segment of the volumes' write logs: what was flushed and is in no chunk yet."""
    return [entry.drives for (chain,) in reader.all("SELECT log FROM volumes") for entry in decode_chain(chain)]


def _used(spread: list[tuple[Group, int]]) -> frozenset[bytes]:
    """Drives that chunks are on."""
    return frozenset(drive for group, _ in spread for drive in group.drives)


def maintenance_text(until_ns: int, now_ns: int) -> str:
    if not mapsettings.is_maintenance(until_ns, now_ns):
        return ""
    rest = "until it is turned off"
    if until_ns != mapsettings.FOREVER:
        rest = f"for {-(-(until_ns - now_ns) // 60_000_000_000)} more minutes"
    return f"maintenance {rest}: no drive is marked out (trivium maintenance off ends it)"


def _operator(leader: Leader, drives: list[dict[str, Any]]) -> list[str]:
    """What the operator began or must decide: maintenance, drains, drives that are out, slow or copied."""
    cluster_map = leader.server.map
    said = [maintenance_text(cluster_map.maintenance_until, leader.substrate.clock.wall_ns())]
    if leader.unconfirmed:
        said.append(
            f"the metadata were rebuilt {leader.unconfirmed}: nothing is deleted from drives until `trivium metadata "
            "confirm`"
        )
    for drive in drives:
        if drive["state"] == "draining" or drive["slow"]:
            said.append(f"drive {drive['name']}: {drive['text']}")
        elif drive["state"] == "out":
            name = drive["name"]
            said.append(f"drive {name} is out ({drive['text']}): trivium drive replace {name}, or remove, or in")
    for name in sorted(leader.upkeep.auto_out.held_back):
        said.append(f"drive {name} stays in though it is silent: too many are out already for one more to be healed")
    return [*filter(None, said), *leader.substrate.opened.copies]


def _nodes(leader: Leader) -> list[dict[str, Any]]:
    """Every node of the map: up, silent (counted as away, though perhaps only for a moment), or down.

    One that has no drives any more and does not answer has left: nothing depends on it."""
    watch = leader.substrate.watch
    names = {row.id: row.name for row in leader.server.map.drives}
    found = []
    for member in watch.members():
        silent_s = watch.silent_for_s(member)
        state = "down" if member.down else "silent" if member in watch.silent() else "up"
        if not member.drives and (member.node == leader.substrate.node_id or state != "up"):
            continue
        found.append(
            {
                "name": member.name,
                "id": member.node.hex(),
                "state": state,
                "text": "" if state == "up" else f"has not answered for {silent_s:.0f} s: {member.text or 'no answer'}",
                "addresses": list(member.addresses),
                "drives": sorted(names[drive] for drive in member.drives if drive in names),
                "silent_s": silent_s,
            }
        )
    return found


def _places(
    cluster_map: ClusterMap, reports: dict[bytes, DriveReport], away: frozenset[bytes] = frozenset()
) -> dict[bytes, Place]:
    places = {}
    for row in cluster_map.drives:
        report = reports.get(row.id)
        up = report is not None and report.state in ("ok", "full") and row.reason not in ("out", "removed")
        up = up and row.id not in away
        disk = (row.node, report.device if report and up else row.device)  # st_dev means something on one host only
        places[row.id] = Place(up, disk, row.domain, row.domain.partition("/")[0])
    return places


def _unharmed(spread: list[tuple[Group, int]], places: dict[bytes, Place]) -> bool:
    """Every shard of every chunk is listed as there, on a drive that answers."""
    return all(
        not missing and all(drive in places and places[drive].up for drive in group.drives) for group, missing in spread
    )


def _summary(
    cluster_map: ClusterMap,
    wrong: list[dict[str, Any]],
    lacking: int,
    narrow: int,
    whole: bool,
    silent: list[dict[str, Any]],
    short: list[str],
) -> str:
    """Narrow chunks survive as many losses as others and only take more room: whole, unless they have less parity."""
    pool = cluster_map.pools[0]
    text = f"{narrow} narrow chunk{'s' if narrow > 1 else ''}"
    if whole:
        drives = sum(1 for drive in cluster_map.drives if drive.reason != "removed")
        return f"whole: {pool.k}+{pool.m} over {drives} drives" + (f", {text} to be written anew" if narrow else "")
    parts = [f"{drive['name']} is {drive['state']}" for drive in wrong]
    parts += [f"node {node['name']} is {node['state']}" for node in silent]
    if lacking:
        parts.append(f"{lacking} chunk{'s' if lacking > 1 else ''} to heal")
    if narrow:
        parts.append(text)
    parts += [f"the write log of volume {name} lacks copies" for name in short]
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
        elif drive["fill"] and drive["state"] in ("up", "new"):
            sentences.append(f"drive {drive['name']} is {drive['fill']}")
    if lacking and heal["waiting"]:
        sentences.append(heal["waiting"])
    return sentences


def _named(drive: dict[str, Any]) -> str:
    """What is wrong, with the drive's name once (a drive's own verdict begins with it)."""
    text, name = str(drive["text"]), f"drive {drive['name']}: "
    return text if text.startswith(name) else name + text


def _fields(found: Survival) -> dict[str, int]:
    return {"drives": found.drives, "disks": found.disks, "hosts": found.hosts, "racks": found.racks}
