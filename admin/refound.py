"""A pool made anew from shards: from the database that refoundbuild makes to drives and a directory that start.

    (none) --build, stage: everything new in folders of its own--> staged --journal, durable--> decided --finish--> done
      ^------------- crash: the next run removes it -----------------'         crash: every command but the rebuild
                                                                               refuses, the next run finishes it

Invariants:
1. Before the journal is durable nothing that the old state reads is changed. After it only the new state counts.
2. `finish` may be repeated from any point. A drive's root is its last step; the journal goes when all are done.
3. What is replaced stays: DRIVE/replaced-<id>/{root,log}, DIR/replaced-<id>/{metadata,keys}.
4. The staged log makes exactly the database that goes with it (digests are compared).
"""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import msgspec

from trivium.admin.datadir import ClusterFile, DataDir
from trivium.admin.errors import CommandError
from trivium.admin.refoundbuild import Built
from trivium.admin.refoundmap import METADATA_LOG, Seen, first_seq, next_root
from trivium.cluster.clock import Random
from trivium.cluster.errors import ClusterError
from trivium.cluster.files import FileOps
from trivium.cluster.hashing import blake128
from trivium.cluster.logfile import HEAD_SIZE, LogRecord
from trivium.cluster.logplan import choose_drives
from trivium.cluster.model import RootSlot, SegmentEntry
from trivium.cluster.refounddrives import ASIDE, DriveWriter, sealed_name, segment_parts
from trivium.cluster.rootfile import RootHead
from trivium.cluster.rootplan import has_majority
from trivium.cluster.wire import LogHead
from trivium.metadata import database
from trivium.metadata.refoundlog import records_of

SEGMENT_BYTES = 15 << 20
DATABASE = "trivium.db"
STAY = frozenset(("lock", "ballast"))


class Journal(msgspec.Struct, frozen=True):
    """The decision, in JSON. `drives`: path and id in hexadecimal."""

    id: str
    slot: str  # the RootSlot as msgpack in base64
    drives: list[tuple[str, str]]
    keep: list[str]  # log segments that stay, new ones among them
    cluster: dict[str, object]  # fields of the `cluster` file
    keys_aside: bool  # no row knows the cluster's key and its members any more


class Refound:
    """Under the directory's lock, and the drives'."""

    def __init__(self, data: DataDir, files: FileOps, cluster: ClusterFile, *, random: Random) -> None:
        self._data, self._files, self._cluster, self._random = data, files, cluster, random

    # ---- before the decision ----------------------------------------------------------------------------------

    def clear(self, paths: Sequence[str]) -> None:
        """Remove what a run left behind that never decided."""
        shutil.rmtree(self._data.rebuild, ignore_errors=True)
        for path in paths:
            DriveWriter(self._files, path, "").unstage()

    def stage(self, built: Built, seen: Seen) -> Journal:
        """Write log and database where nobody looks for them."""
        id = self._random.randbytes(8).hex()
        slot = next_root(seen, built.map, blake128(bytes.fromhex(id)))
        assert slot.root is not None
        self._data.rebuild.mkdir(mode=0o700, exist_ok=True)
        chain = self._write_log(id, built, seen)
        slot = msgspec.structs.replace(slot, root=msgspec.structs.replace(slot.root, log=chain))
        return Journal(
            id=id,
            slot=base64.b64encode(msgspec.msgpack.encode(slot)).decode(),
            drives=[(drive.path, seen.ids[drive.path].hex()) for drive in seen.drives],
            keep=[*built.keep, *(entry.segment.hex() for entry in chain)],
            cluster=asdict(self._with_profile(built)),
            keys_aside=built.members_lost,
        )

    def _with_profile(self, built: Built) -> ClusterFile:
        pool = built.map.pools[0]
        return replace(self._cluster, profile=self._cluster.profile or f"{pool.k}+{pool.m}", forming=False)

    def _write_log(self, id: str, built: Built, seen: Seen) -> tuple[SegmentEntry, ...]:
        path = self._data.rebuild / DATABASE
        source, copy = database.open_reader(built.path), database.open_writer(str(path))
        chain: list[SegmentEntry] = []
        previous = blake128(b"rebuild" + bytes.fromhex(id))
        waiting: list[LogRecord] = []
        size = HEAD_SIZE
        try:
            for record in records_of(source, copy, first_seq(seen) - 1, previous):
                if waiting and size + record.size > SEGMENT_BYTES:
                    chain.append(self._segment(id, waiting, built, seen))
                    waiting, size = [], HEAD_SIZE
                waiting.append(record)
                size += record.size
            chain.append(self._segment(id, waiting, built, seen))
            copy.pragma("wal_checkpoint(TRUNCATE)")
        finally:
            source.close()
            copy.close()
        os.chmod(path, 0o600)
        _sync(path)
        return tuple(chain)

    def _segment(self, id: str, records: list[LogRecord], built: Built, seen: Seen) -> SegmentEntry:
        segment = self._random.randbytes(16)
        cluster_map = built.map
        most = max(pool.m for pool in cluster_map.pools)
        drives = choose_drives(cluster_map, seen.here, most + 1, segment)
        entry = SegmentEntry(segment, drives, records[0].seq, records[-1].seq)
        cluster = bytes.fromhex(self._cluster.cluster)
        head = LogHead(segment, METADATA_LOG, cluster, 0, 0, entry.first_seq, records[0].previous_hash)
        for drive in seen.drives:
            if seen.ids[drive.path] in drives:
                parts = segment_parts(cluster, head, records)
                DriveWriter(self._files, drive.path, id).stage(sealed_name(entry), parts)
        return entry

    # ---- the decision and what follows --------------------------------------------------------------------------

    def decide(self, journal: Journal) -> None:
        """From here on the new state counts."""
        folder = self._data.rebuild
        new = folder / "journal.new"
        new.write_bytes(msgspec.json.encode(journal))
        new.chmod(0o600)
        _sync(new)
        os.rename(new, folder / "journal")
        _sync(folder)
        _sync(folder.parent)

    def pending(self) -> Journal | None:
        """A decision that is not carried out yet."""
        try:
            return msgspec.json.decode((self._data.rebuild / "journal").read_bytes(), type=Journal)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise CommandError(f"{self._data.rebuild / 'journal'} cannot be read: {error}. Restore it.") from None

    def finish(self, journal: Journal) -> list[str]:
        """Carry the decision out; answers what is to be said. CommandError: drives that it needs are away."""
        slot = msgspec.msgpack.decode(base64.b64decode(journal.slot), type=RootSlot)
        cluster = bytes.fromhex(str(journal.cluster["cluster"]))
        done: set[bytes] = set()
        away: list[str] = []
        for path, drive in journal.drives:
            try:
                writer = DriveWriter(self._files, path, journal.id)
                writer.settle(RootHead(cluster, bytes.fromhex(drive)), slot, frozenset(journal.keep))
                done.add(bytes.fromhex(drive))
            except (OSError, ClusterError) as error:
                away.append(f"{path}: {error}")
        self._require(slot, done, away)
        aside = self._data.path / f"{ASIDE}{journal.id}"
        self._replace_database(aside / "metadata")
        if journal.keys_aside:
            _move(self._data.keys / "cluster", aside / "keys")
        self._data.write(ClusterFile(**journal.cluster))  # type: ignore[arg-type]
        _move(self._data.rebuild / "journal", aside)
        shutil.rmtree(self._data.rebuild, ignore_errors=True)
        return [f"not reached, it counts as down: {text}" for text in away]

    def _require(self, slot: RootSlot, done: set[bytes], away: list[str]) -> None:
        assert slot.root is not None
        held = all(done.intersection(entry.drives) for entry in slot.root.log)
        if not held or not has_majority(done, slot.root):
            raise CommandError(
                f"the rebuild was decided and cannot be finished without these drives: {'; '.join(away)}. "
                "Bring them back and run the command again.", 6
            )  # fmt: skip

    def _replace_database(self, aside: Path) -> None:
        new = self._data.rebuild / DATABASE
        if not new.exists():
            return
        self._data.metadata.mkdir(mode=0o700, exist_ok=True)
        for old in sorted(self._data.metadata.iterdir()):
            if old.name not in STAY:
                _move(old, aside)
        _move(new, self._data.metadata)


def _move(path: Path, folder: Path) -> None:
    """Durably, into a folder that is made when it is needed. What is not there has been moved."""
    if not path.exists():
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.rename(path, folder / path.name)
    _sync(folder)
    _sync(folder.parent)
    _sync(path.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
