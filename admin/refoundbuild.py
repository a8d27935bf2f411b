"""The database of a pool that is made anew from shards, in a file of its own, and what there is to say about it.

    newest dump + log as far as they go (or planted rows) -> map -> counters -> chunks -> volumes -> lost+found -> check

Invariants: those of refoundrows, refoundplaces, refoundfiles and refoundvolumes. Drives are only read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import UTC, datetime

import apsw

from trivium.admin import credentials
from trivium.admin.datadir import ClusterFile, DataDir
from trivium.admin.errors import CommandError
from trivium.admin.refoundmap import Seen, draw_map, see_plans
from trivium.cluster.clock import Clock, Executor, Random
from trivium.cluster.model import ChunkId, ClusterMap, Profile
from trivium.cluster.salvage import FoundPut, Salvage
from trivium.cluster.salvagelog import SegmentFiles
from trivium.metadata import (
    database,
    forming,
    fsck,
    losses,
    maprows,
    migrations,
    refoundfiles,
    refoundrows,
)
from trivium.metadata.messages import Credential
from trivium.metadata.refoundfiles import Files
from trivium.metadata.refoundplaces import Groups, TooFewDrives
from trivium.metadata.refoundrows import Chunks
from trivium.metadata.salvage import restore
from trivium.metadata.tx import Tx
from trivium.metadata.volumes import decode_chain
from trivium.nbd import refoundvolumes
from trivium.nbd.refoundvolumes import Entered


@dataclass(slots=True)
class Built:
    """A database file that is not yet anybody's, and what it holds."""

    path: str
    map: ClusterMap
    restored_seq: int  # of the dump and log that it began with; 0: nothing
    whole_log: bool  # dump and log could be had up to their end
    chunks: Chunks
    files: Files
    volumes: list[Entered]
    keep: list[str]  # log segments of volumes that stay
    losses: list[losses.Loss]
    findings: list[str]
    members_lost: bool
    unconfirmed: bool  # the restored state is itself a rebuilt one: perhaps there are more drives now
    credential: Credential | None  # made anew
    notes: list[str] = field(default_factory=list)


class Builder:
    def __init__(
        self, data: DataDir, cluster: ClusterFile, seen: Seen, salvage: Salvage, *, clock: Clock, random: Random
    ) -> None:
        self._data, self._cluster, self._seen, self._salvage = data, cluster, seen, salvage
        self._clock, self._random = clock, random

    async def build(self, path: str, executor: Executor) -> Built:
        """Write the database to `path` (a new file). CommandError."""
        restored = await restore(self._seen.drives, self._salvage, path, executor)
        see_plans(self._seen, self._salvage, restored.seq)
        built = await executor.run(self._fill, path, restored.seq, restored.complete)
        built.restored_seq, built.whole_log = restored.seq, restored.complete
        built.notes[:0] = [*self._seen.notes, *restored.notes]
        return built

    def _fill(self, path: str, restored_seq: int, complete: bool) -> Built:
        if not restored_seq:
            for suffix in ("", "-wal", "-shm"):
                if os.path.exists(path + suffix):
                    os.unlink(path + suffix)
        db = database.open_writer(path)
        os.chmod(path, 0o600)
        try:
            for version in migrations.pending(db):
                with db:
                    migrations.migrate(db, version)
            with db:
                tx = Tx(db, now=self._clock.wall_ns(), seq=self._seen.last_seq)
                built = self._rows(tx, path, planted=not restored_seq, complete=complete)
            return built
        except migrations.MigrationRefused as error:
            raise CommandError(f"the metadata on the drives are of a newer release: {error}.", 6) from None
        except TooFewDrives as error:
            raise CommandError(f"{error}: give its drives with --drive.", 6) from None
        except apsw.Error as error:
            raise CommandError(f"the metadata cannot be made: {error}.", 6) from None
        finally:
            db.close()

    def _rows(self, tx: Tx, path: str, *, planted: bool, complete: bool) -> Built:
        salvage, seen = self._salvage, self._seen
        cluster_map = draw_map(seen, salvage, self._data, self._cluster, self._random)
        credential = self._plant(tx, cluster_map) if planted else None
        unconfirmed = bool(refoundrows.unconfirmed(tx))
        refoundrows.settle(tx)
        refoundrows.put_map(tx, cluster_map)
        refoundrows.see_owners(tx, salvage.all())
        refoundrows.jump(tx)
        groups = self._groups(tx, cluster_map)
        entry = refoundrows.Enter(tx, salvage, seen.ids, groups)
        salvaging = unconfirmed or not complete  # else what no row names is dead
        chunks = entry.run(salvaging)
        volumes, notes = self._volumes(tx, entry, cluster_map, complete, salvaging)
        files = refoundfiles.enter(tx, salvage, chunks.fresh)
        when = datetime.fromtimestamp(tx.now / 1e9, UTC).strftime("%Y-%m-%d")
        refoundrows.mark(tx, f"on {when}, from shards" + ("" if planted else " and older metadata"))
        members = tx.one("SELECT 1 FROM cluster_keys LIMIT 1")
        return Built(
            path, maprows.read_map(tx), 0, False, chunks, files, volumes, _segments(tx),
            losses.affected(tx, chunks.lost), [finding.text for finding in fsck.check(tx)],
            members is None, unconfirmed, credential, [*chunks.notes, *notes],
        )  # fmt: skip

    def _plant(self, tx: Tx, cluster_map: ClusterMap) -> Credential:
        credential = credentials.root_credential() or credentials.generated()
        cluster = bytes.fromhex(self._cluster.cluster)
        forming.plant(tx, forming.Seed(cluster, cluster_map, (credential,), uid=os.getuid(), gid=os.getgid()))
        return credential

    def _groups(self, tx: Tx, cluster_map: ClusterMap) -> Groups:
        here = set(self._seen.here)
        inside = [row.id for row in cluster_map.drives if row.id in here]
        away = [row.id for row in cluster_map.drives if row.id not in here and row.reason != "removed"]
        groups = Groups(cluster_map.pools, tx.next_id("group"), inside, away)
        groups.learn(refoundrows.read_groups(tx))
        return groups

    def _volumes(
        self, tx: Tx, entry: refoundrows.Enter, cluster_map: ClusterMap, complete: bool, salvaging: bool
    ) -> tuple[list[Entered], list[str]]:
        """`complete`: the rows are the newest; only where their logs lie may be another place."""

        def chosen(chunk: ChunkId) -> FoundPut | None:
            row = tx.one("SELECT nonce FROM chunks WHERE session = ? AND counter = ?", chunk.session, chunk.counter)
            return None if row is None else self._salvage.find(chunk, row[0])

        pool = cluster_map.pools[0]
        profile = Profile(pool.k, pool.m, pool.codec)
        found = refoundvolumes.find(self._salvage, chosen, self._seen.ids)
        copies = SegmentFiles(self._salvage.drives)
        kept = refoundvolumes.keep(tx, copies, self._seen.ids) if complete else {}
        entered = [
            kept[volume.id] if volume.id in kept else refoundvolumes.enter(tx, volume, entry, profile)
            for volume in found
            if volume.id in kept or salvaging
        ]
        for volume in found:
            refoundrows.raise_counter(tx, "volume", volume.id)
        bare = refoundvolumes.forget_logs(tx, kept.keys() | {volume.id for volume in found})
        return [one for one in entered if one is not None], [f"volume {name}: its log is lost" for name in bare]


def _segments(tx: Tx) -> list[str]:
    logs = tx.all("SELECT log FROM volumes")
    return [entry.segment.hex() for (log,) in logs for entry in decode_chain(log)]
