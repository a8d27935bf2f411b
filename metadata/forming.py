"""The first record of a cluster: tables, root directory, map, accounts. Nothing is served before it is durable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import apsw

from trivium.cluster.clock import Clock
from trivium.cluster.model import ClusterMap
from trivium.metadata import database, maprows, migrations, schema
from trivium.metadata.messages import ROOT_INO, Credential
from trivium.metadata.metalog import MetaLog
from trivium.metadata.records import Record, RecordKind, encode_migration, make
from trivium.metadata.tx import Tx
from trivium.metadata.writer import append


@dataclass(frozen=True, slots=True)
class Seed:
    """What a new cluster begins with."""

    cluster: bytes
    map: ClusterMap
    credentials: tuple[Credential, ...] = ()
    uid: int = 0
    gid: int = 0
    more: tuple[Callable[[Tx], None], ...] = field(default_factory=tuple)


async def form(db: apsw.Connection, metalog: MetaLog, seed: Seed, clock: Clock) -> None:
    """Write record 1 into an empty database and an empty log, then the steps since. A crash before record 1 is durable
    starts over; one behind it leaves the steps to `upgrade` at the next start."""
    assert database.schema_version(db) == 0 and metalog.last_seq == 0
    db.execute("BEGIN IMMEDIATE")
    try:
        migration = migrations.migrate(db, 1, lambda db: plant(Tx(db, now=clock.wall_ns(), seq=1), seed))
        record = _follows(metalog, encode_migration(migration), 1, seed.map.version)
        await append(metalog, record)
        database.set_applied(db, record.seq, record.hash)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    await upgrade(db, metalog)


async def upgrade(db: apsw.Connection, metalog: MetaLog) -> None:
    """Take the steps that this release knows and the database lacks, a record each."""
    for version in migrations.pending(db):
        db.execute("BEGIN IMMEDIATE")
        try:
            payload = encode_migration(migrations.migrate(db, version))
            record = _follows(metalog, payload, version, 0)
            await append(metalog, record)
            database.set_applied(db, record.seq, record.hash)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


def _follows(metalog: MetaLog, payload: bytes, version: int, map_version: int) -> Record:
    return make(
        RecordKind.MIGRATION,
        payload,
        schema=version,
        last_seq=metalog.last_seq,
        last_hash=metalog.last_hash,
        map_version=map_version,
    )


def plant(tx: Tx, seed: Seed) -> None:
    assert schema.VERSION >= 1
    tx.run("INSERT INTO settings (name, value) VALUES ('cluster', ?)", seed.cluster)
    tx.run("INSERT INTO settings (name, value) VALUES ('created', ?)", str(tx.now).encode())
    tx.run(
        "INSERT INTO inodes (ino, mode, nlink, uid, gid, rdev, size, used, atime, mtime, ctime, btime, version,"
        " content, cut, parent, explicit, target)"
        " VALUES (?1, ?2, 2, ?3, ?4, 0, 0, 0, ?5, ?5, ?5, ?5, 1, 0, -1, ?1, 1, x'')",
        *(ROOT_INO, 0o40755, seed.uid, seed.gid, tx.now),
    )
    tx.run("INSERT INTO counters (name, value) VALUES ('inode', ?)", ROOT_INO)
    tx.run("INSERT INTO counters (name, value) VALUES ('map', ?)", max(1, seed.map.version))
    for drive in seed.map.drives:
        maprows.put_drive(tx, drive)
    for node in seed.map.nodes:
        maprows.put_node(tx, node)
    for pool in seed.map.pools:
        maprows.put_pool(tx, pool)
    tx.run("INSERT INTO counters (name, value) VALUES ('pool', ?)", max((p.id for p in seed.map.pools), default=0))
    for credential in seed.credentials:
        tx.run(
            "INSERT INTO credentials (access_key, secret_key, user, bucket, root) VALUES (?, ?, ?, ?, ?)",
            *(credential.access_key, credential.secret_key, credential.user, credential.bucket, int(credential.root)),
        )
    for step in seed.more:
        step(tx)
