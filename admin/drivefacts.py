"""What there is to say about an unmounted drive directory, as data and as sentences."""

from __future__ import annotations

from typing import Any

from trivium.admin.errors import CommandError
from trivium.cluster.drivedir import DriveDir
from trivium.cluster.errors import ClusterError
from trivium.cluster.model import ChunkId, ChunkKind, ClusterMap, Piece, PieceFlag, Root
from trivium.cluster.rootfile import Slot
from trivium.cluster.shardfile import CODECS


def facts(drive: DriveDir) -> dict[str, Any]:
    """Everything that `trivium drive inspect` prints."""
    newest = drive.newest()
    root = newest.value.root if newest is not None else None
    count, size = _shards(drive)
    return {
        "path": drive.path,
        "cluster": drive.cluster.hex(),
        "drive": drive.drive.hex(),
        "name": _name(root, drive.drive),
        "in_use_by": drive.holder,
        "problems": drive.problems,
        "slots": [_slot(found.slot, found.text) for found in drive.slots()],
        "root": None if root is None else _root(root),
        "map": None if root is None else _map(root.map),
        "shards": count,
        "shard_bytes": size,
        "segments": [_segment(drive, name) for name in drive.segments()],
        "quarantined": drive.quarantined(),
        "foreign": drive.foreign(),
    }


def in_words(found: dict[str, Any]) -> list[str]:
    name = f", {found['name']} of its map" if found["name"] else ""
    lines = [f"drive {found['drive']}{name}", f"cluster {found['cluster']}"]
    lines += [f"in use by {found['in_use_by']}"] if found["in_use_by"] else []
    lines += [f"problem: {text}" for text in found["problems"]]
    for number, slot in enumerate(found["slots"]):
        said = slot["text"] or f"generation {slot['generation']}, ballot {slot['ballot']}, version {slot['version']}"
        lines.append(f"root slot {number}: {said}")
    if found["root"] is not None:
        lines += _root_in_words(found["root"], found["map"])
    for segment in found["segments"]:
        said = segment["text"] or f"records {segment['first_seq']} to {segment['last_seq']}"
        lines.append(f"log segment {segment['name']} ({segment['kind']}): {said}")
    lines.append(f"{found['shards']} shards, {found['shard_bytes']} bytes; {len(found['quarantined'])} put aside")
    lines += [f"foreign: {path}" for path in found["foreign"]]
    return lines


def _root_in_words(root: dict[str, Any], cluster_map: dict[str, Any]) -> list[str]:
    lines = [
        f"root: {len(root['root_drives'])} root drives, {len(root['log'])} log segments in the chain, dumps of records "
        + (", ".join(str(dump["seq"]) for dump in root["dumps"]) or "none"),
        f"map version {cluster_map['version']}: pools "
        + ", ".join(f"{pool['name']} ({pool['profile']})" for pool in cluster_map["pools"]),
    ]
    for drive in cluster_map["drives"]:
        lines.append(f"  {drive['name']:<6} {drive['reason'] or 'in use':<9} {drive['id']}  {drive['path']}")
    return lines


def shard_facts(drive: DriveDir, name: str) -> dict[str, Any]:
    """A shard's header and table of contents; whether its blocks verify."""
    chunk, index = parse_shard_name(name)
    assert drive.shards is not None
    try:
        header = drive.shards.header(chunk, index)
    except ClusterError as error:
        raise CommandError(str(error), 6) from None
    try:
        drive.shards.verify(chunk, index)
        state = "every block verifies"
    except ClusterError as error:
        state = str(error)
    spec = header.spec
    return {
        "chunk": str(spec.chunk),
        "index": header.index,
        "cluster": spec.cluster.hex(),
        "nonce": spec.nonce.hex(),
        "profile": f"{spec.k}+{spec.m}",
        "codec": spec.codec if spec.codec in CODECS else "unknown",
        "kind": ChunkKind(spec.kind).name.lower(),
        "data_length": spec.data_length,
        "shard_size": spec.shard_size,
        "plan_seq": spec.plan_seq,
        "lease": spec.lease,
        "blocks": header.blocks,
        "state": state,
        "pieces": [piece_facts(piece, spec.kind) for piece in spec.pieces],
    }


def piece_facts(piece: Piece, kind: int) -> dict[str, Any]:
    return {
        "whose": whose(piece.owner, kind),
        "owner": piece.owner.hex(),
        "owner_offset": piece.owner_offset,
        "length": piece.length,
        "version": piece.version,
        "chunk_offset": piece.chunk_offset,
        "flags": "+".join(flag.name.lower() for flag in PieceFlag if piece.flags & flag) or "none",
        "source": piece.source,
    }


def whose(owner: bytes, kind: int) -> str:
    """A piece's owner in words."""
    first, second = int.from_bytes(owner[:8], "little"), int.from_bytes(owner[8:], "little")
    if kind in (ChunkKind.VOLUME, ChunkKind.MAP):
        return f"volume {int.from_bytes(owner, 'little')}"
    if not first:
        return "an object" if second else "nobody"
    return f"inode {first}" + (f" part {second}" if second else "")


def parse_shard_name(name: str) -> tuple[ChunkId, int]:
    """SESSION/COUNTER.INDEX, or a path that ends like a shard's: .../SESSION/GROUP/COUNTER.INDEX."""
    parts = [part for part in name.split("/") if part]
    counter, _, index = (parts[-1] if parts else "").partition(".")
    try:
        return ChunkId(int(parts[-3] if len(parts) > 2 else parts[0], 16), int(counter, 16)), int(index, 16)
    except (ValueError, IndexError):
        raise CommandError(f"{name!r} names no shard: write SESSION/COUNTER.INDEX in hexadecimal", 2) from None


def _shards(drive: DriveDir) -> tuple[int, int]:
    count = size = 0
    for chunk, index in drive.shard_places():
        try:
            size += drive.shard_size(chunk, index)
            count += 1
        except OSError:
            continue
    return count, size


def _name(root: Root | None, drive: bytes) -> str:
    return next((row.name for row in root.map.drives if row.id == drive), "") if root is not None else ""


def _slot(slot: Slot | None, text: str) -> dict[str, Any]:
    if slot is None:
        return {"text": text}
    value = slot.value
    return {
        "text": "",
        "generation": slot.generation,
        "promised": value.promised.number,
        "ballot": value.accepted.number,
        "version": value.version,
    }


def _root(root: Root) -> dict[str, Any]:
    return {
        "root_drives": [drive.hex() for drive in root.root_drives],
        "leader": root.leader.address if root.leader is not None else "",
        "log": [
            {"segment": e.segment.hex(), "first_seq": e.first_seq, "last_seq": e.last_seq,
             "drives": [drive.hex() for drive in e.drives]}
            for e in root.log
        ],
        "dumps": [{"seq": d.seq, "size": d.size, "chunk": str(d.index.chunk), "digest": d.digest.hex()}
                  for d in root.dumps],
    }  # fmt: skip


def _map(cluster_map: ClusterMap) -> dict[str, Any]:
    return {
        "version": cluster_map.version,
        "pools": [{"name": p.name, "profile": f"{p.k}+{p.m}", "chunk_size": p.chunk_size} for p in cluster_map.pools],
        "drives": [
            {"name": d.name, "id": d.id.hex(), "path": d.path, "domain": d.domain, "weight": d.weight,
             "reason": d.reason}
            for d in cluster_map.drives
        ],
    }  # fmt: skip


def _segment(drive: DriveDir, name: str) -> dict[str, Any]:
    found = drive.read_segment(name)
    kind = {None: "unreadable", 1: "metadata", 2: "volume"}.get(found.head.kind if found.head else None, "other")
    return {
        "name": name,
        "kind": kind,
        "first_seq": found.head.first_seq if found.head else None,
        "last_seq": found.scan.last_seq if found.scan else None,
        "records": len(found.scan.records) if found.scan else 0,
        "bytes": found.size,
        "text": found.text,
    }
