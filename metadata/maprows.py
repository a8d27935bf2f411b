"""The map's rows (drives, nodes, pools): the truth that the root's copy follows."""

from __future__ import annotations

import msgspec

from trivium.cluster.model import ClusterMap, DriveRow, NodeRow, PoolRow
from trivium.metadata import mapsettings
from trivium.metadata.tx import Reader, Tx


def read_map(reader: Reader) -> ClusterMap:
    version = reader.one("SELECT value FROM counters WHERE name = 'map'")
    drives = reader.all(
        "SELECT id, name, node, domain, weight, reason, path, bytes_total, device FROM drives ORDER BY name, id"
    )
    nodes = reader.all("SELECT id, name, addresses, public_key FROM nodes ORDER BY name, id")
    pools = reader.all("SELECT id, name, k, m, chunk_size, codec FROM pools ORDER BY id")
    return ClusterMap(
        version=0 if version is None else version[0],
        drives=tuple(DriveRow(*row) for row in drives),
        nodes=tuple(
            NodeRow(id, name, tuple(msgspec.msgpack.decode(addresses)), key) for id, name, addresses, key in nodes
        ),
        pools=tuple(PoolRow(*row) for row in pools),
        maintenance_until=mapsettings.maintenance_until(reader),
    )


def put_drive(tx: Tx, row: DriveRow) -> None:
    """Add or change a drive. The caller bumps the version once per transaction."""
    values = (row.name, row.node, row.domain, row.weight, row.reason, row.path, row.bytes_total, row.device)
    changed = tx.run(
        "UPDATE drives SET name = ?, node = ?, domain = ?, weight = ?, reason = ?, path = ?, bytes_total = ?,"
        " device = ? WHERE id = ?",
        *values,
        row.id,
    )
    if not changed:
        tx.run(
            "INSERT INTO drives (id, name, node, domain, weight, reason, path, bytes_total, device)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(row.id, *values),
        )


def put_node(tx: Tx, row: NodeRow) -> None:
    addresses = msgspec.msgpack.encode(list(row.addresses))
    changed = tx.run(
        "UPDATE nodes SET name = ?, addresses = ?, public_key = ? WHERE id = ?",
        *(row.name, addresses, row.public_key, row.id),
    )
    if not changed:
        tx.run(
            "INSERT INTO nodes (id, name, addresses, public_key) VALUES (?, ?, ?, ?)",
            *(row.id, row.name, addresses, row.public_key),
        )


def put_pool(tx: Tx, row: PoolRow) -> None:
    values = (row.name, row.k, row.m, row.chunk_size, row.codec)
    if not tx.run("UPDATE pools SET name = ?, k = ?, m = ?, chunk_size = ?, codec = ? WHERE id = ?", *values, row.id):
        tx.run("INSERT INTO pools (id, name, k, m, chunk_size, codec) VALUES (?, ?, ?, ?, ?, ?)", row.id, *values)


def bump(tx: Tx) -> int:
    """The map has changed: its new version."""
    return tx.next_id("map")
