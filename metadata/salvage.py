"""The metadata out of drive directories: the newest dump that reads, and the log behind it as far as it goes.

    newest root copy -> dumps, newest first --one restores--> + log records --gap or end--> a database file
                              `-- none --> the log from record 1, or nothing

Invariants:
1. The file is a state that the pool was in: a dump's digest is checked, records apply in order and by hash, and the
   first that cannot be had ends it. Nothing is skipped.
2. Only the file is written; drives are read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import apsw
import msgspec

from trivium.cluster.clock import Executor
from trivium.cluster.drivedir import DriveDir
from trivium.cluster.errors import ClusterError, NotFound
from trivium.cluster.model import Placed, Ref, Root
from trivium.cluster.pieces import PieceData
from trivium.cluster.salvage import Salvage
from trivium.cluster.salvagelog import SegmentFiles, newest_root
from trivium.metadata import database, dump, replay
from trivium.metadata.chunkrows import placed_of
from trivium.metadata.tx import Reader


@dataclass(slots=True)
class Restored:
    """How far the file goes. `notes`: what could not be had, in words."""

    seq: int = 0
    chain_hash: bytes = bytes(16)
    dump_seq: int = 0  # of the dump that it began with
    root: Root | None = None
    complete: bool = False  # up to the end of the log, as the newest root copy knows it
    notes: list[str] = field(default_factory=list)


class SalvageChunks:
    """A ChunkStore that reads from shards at hand. `reader`: where rows are looked up; without, callers give them."""

    def __init__(self, salvage: Salvage, reader: Reader | None = None) -> None:
        self._salvage, self._reader = salvage, reader

    async def get(self, ref: Ref, *, placed: Placed | None = None) -> memoryview:
        if placed is None and self._reader is not None:
            placed = placed_of(self._reader, ref.chunk)
        if placed is None:
            raise NotFound(f"there is no row of chunk {ref.chunk}")
        return memoryview(self._salvage.get(ref.chunk, placed.nonce, ref.offset, ref.length))

    async def put(self, pool: int, pieces: Sequence[PieceData], *, kind: int, reserve_class: int) -> Any:
        raise NotImplementedError("nothing is put while chunks are salvaged")

    def settle(self, stored: Any) -> None:
        pass

    def give_up(self, stored: Any) -> None:
        pass


async def restore(drives: Sequence[DriveDir], salvage: Salvage, path: str, executor: Executor) -> Restored:
    """Write the newest state that can be had to `path` (a new file). `seq` 0: nothing could."""
    done = Restored()
    found = newest_root(drives)
    if found is None:
        done.notes.append("no copy of the root can be read: neither dumps nor the log's chain are known")
        return done
    done.root = root = found[1]
    await _restore_dump(root, salvage, path, executor, done)
    last = await executor.run(_apply_log, path, SegmentFiles(drives), root, done)
    done.complete = done.seq > 0 and last
    return done


async def _restore_dump(root: Root, salvage: Salvage, path: str, executor: Executor, done: Restored) -> None:
    chunks = SalvageChunks(salvage)
    for entry in reversed(root.dumps):
        try:
            await dump.restore(chunks, entry, path, executor)
        except (ClusterError, apsw.Error, msgspec.MsgspecError, replay.ReplayFailed) as error:
            done.notes.append(f"the dump of record {entry.seq} cannot be read: {error}")
            await executor.run(_remove, path)
            continue
        done.seq, done.chain_hash, done.dump_seq = entry.seq, entry.chain_hash, entry.seq
        return


def _remove(path: str) -> None:
    for suffix in ("", "-wal", "-shm"):
        if os.path.exists(path + suffix):
            os.unlink(path + suffix)


def _apply_log(path: str, files: SegmentFiles, root: Root, done: Restored) -> bool:
    """Apply what the log has behind the file's state; answers whether that was all of it."""
    db = database.open_writer(path)
    try:
        from_seq, previous = (done.seq + 1, done.chain_hash) if done.seq else (0, None)  # a log need not begin with 1
        for record in files.records(root.log, from_seq, previous):
            try:
                replay.apply_record(db, record)
            except (replay.ReplayFailed, apsw.Error, msgspec.MsgspecError) as error:
                done.notes.append(str(error))
                return False
            done.seq, done.chain_hash = record.seq, record.hash
    finally:
        db.close()
    return _reached_end(root, done, files)


def _reached_end(root: Root, done: Restored, files: SegmentFiles) -> bool:
    if not root.log:
        return True
    last = root.log[-1]
    if not files.has(last):
        done.notes.append(f"the log's last segment {last.segment.hex()} is on none of the drives")
        return False
    wanted = last.first_seq - 1 if last.last_seq is None else last.last_seq
    if done.seq < wanted:
        done.notes.append(f"the log is lost behind record {done.seq}; it went on to record {wanted} or further")
        return False
    return True


def replace_database(source: str, path: str) -> None:
    """Put a restored file in the place of the database, durably; what was there is kept as PATH.old."""
    db = database.open_writer(source)
    db.pragma("wal_checkpoint(TRUNCATE)")
    db.close()
    for suffix in ("", "-wal", "-shm"):
        if os.path.exists(path + suffix):
            os.replace(path + suffix, f"{path}.old{suffix}")
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    os.chmod(source, 0o600)
    os.rename(source, path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
