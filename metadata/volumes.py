"""Volumes: leases by number, chunks sealed by their writer, checkpoints, the chain of the write log.

    free --OpenVolume (lease number + 1)--> leased --CloseVolume | session ended | break--> free

Invariants:
1. Every change names the current lease number, and comes from the session that has it; else LEASE_LOST.
2. A volume chunk exists from CommitSegment on. `born` is the first checkpoint that covers it, `died` the first that
   maps it no more; its row goes when no snapshot with born <= upto < died needs it, and the collector may have it.
3. The chain changes by compare-and-swap; a segment (or a drive of one) that leaves it is queued in the same
   transaction.
4. A volume without a name is being removed: its rows go in bounded steps.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from trivium.cluster.model import ChunkId, NewChunk, Ref, SegmentEntry
from trivium.metadata import queue
from trivium.metadata.chunkrows import placed_of
from trivium.metadata.messages import (
    LEASE_LOST,
    Checkpoint,
    CloseVolume,
    CommitSegment,
    CreateVolume,
    GetVolume,
    ListVolumes,
    MetadataError,
    OpenVolume,
    RemoveVolume,
    ResizeVolume,
    SetVolumeLog,
    VolumeChunk,
    VolumeInfo,
    VolumeState,
)

if TYPE_CHECKING:
    from trivium.metadata.tx import Reader, Tx

SIZE_UNIT = 4096
NAME_MAX = 255
PLACED_MAX = 2000  # chunks of one answer that carry their places; of more, only those not in the checkpoint do
DROP_AT_ONCE = 256  # volume chunks that one transaction lets go

Chain = tuple[SegmentEntry, ...]
_encode = msgspec.msgpack.Encoder().encode
decode_chain = msgspec.msgpack.Decoder(Chain).decode
_COLUMNS = (
    "id, name, size, created, lease, lease_session, upto, checkpoint_session, checkpoint_counter,"
    " checkpoint_length, used, log"
)


class Volume(NamedTuple):
    id: int
    name: str
    size: int
    created: int
    lease: int
    lease_session: int
    upto: int
    checkpoint_session: int
    checkpoint_counter: int
    checkpoint_length: int
    used: int
    log: bytes

    @property
    def checkpoint(self) -> Ref | None:
        if not self.checkpoint_session:
            return None
        return Ref(ChunkId(self.checkpoint_session, self.checkpoint_counter), 0, self.checkpoint_length)

    def info(self, read_only: bool = False) -> VolumeInfo:
        return VolumeInfo(
            *(self.id, self.name, self.size, self.created, self.used, self.lease_session, self.lease, read_only)
        )


def find(reader: Reader, name: str) -> Volume | None:
    row = reader.one(f"SELECT {_COLUMNS} FROM volumes WHERE name = ? AND name != ''", name)
    return None if row is None else Volume(*row)


def need(reader: Reader, name: str) -> Volume:
    volume = find(reader, name)
    if volume is None:
        raise MetadataError("ENOENT", f"there is no volume {name}")
    return volume


def leased(tx: Tx, id: int, lease: int) -> Volume:
    """The volume, if the caller's lease number is the current one."""
    row = tx.one(f"SELECT {_COLUMNS} FROM volumes WHERE id = ?", id)
    if row is None:
        raise MetadataError(LEASE_LOST, "the volume was removed")
    volume = Volume(*row)
    if volume.lease != lease or volume.lease_session != tx.session:
        raise MetadataError(LEASE_LOST, f"lease {lease} of volume {volume.name} has ended; it is {volume.lease} now")
    return volume


def holder(reader: Reader, volume: Volume) -> int:
    """The live session that has the lease, 0 when nobody has."""
    row = reader.one("SELECT 1 FROM sessions WHERE id = ?", volume.lease_session)
    return 0 if row is None else volume.lease_session


# ---- making, finding, removing ----------------------------------------------------------------------------------


def create_volume(tx: Tx, op: CreateVolume) -> VolumeInfo:
    _check_size(op.size)
    if not op.name or len(op.name.encode()) > NAME_MAX or any(c in "/@\0\n" for c in op.name):
        raise MetadataError("EINVAL", "a volume's name has 1 to 255 bytes, and no `/`, `@` or line end")
    if find(tx, op.name) is not None:
        raise MetadataError("EEXIST", f"volume {op.name} is there")
    volume = Volume(tx.next_id("volume"), op.name, op.size, tx.now, 0, 0, 0, 0, 0, 0, 0, _encode(()))
    tx.run(f"INSERT INTO volumes ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", *volume)
    return volume.info()


def _check_size(size: int) -> None:
    if size <= 0 or size % SIZE_UNIT or size >= 1 << 62:
        raise MetadataError("EINVAL", f"a volume's size is a positive multiple of {SIZE_UNIT}")


def resize_volume(tx: Tx, op: ResizeVolume) -> VolumeInfo:
    _check_size(op.size)
    volume = need(tx, op.name)
    if op.size < volume.size:
        if not op.shrink:
            raise MetadataError("EINVAL", "shrinking destroys what lies beyond; say that you want it")
        if holder(tx, volume) not in (0, tx.session):
            raise MetadataError("EBUSY", f"volume {op.name} is in use")
    tx.run("UPDATE volumes SET size = ? WHERE id = ?", op.size, volume.id)
    return volume._replace(size=op.size).info()


def remove_volume(tx: Tx, op: RemoveVolume) -> None:
    volume = need(tx, op.name)
    if holder(tx, volume):
        raise MetadataError("EBUSY", f"volume {op.name} is in use")
    if tx.one("SELECT 1 FROM snapshots WHERE volume = ? LIMIT 1", volume.id) is not None:
        raise MetadataError("EBUSY", f"volume {op.name} has snapshots")
    for entry in decode_chain(volume.log):
        queue.add_segment(tx, entry.segment, entry.drives)
    tx.run(
        "UPDATE volumes SET name = '', lease = lease + 1, lease_session = 0, log = ?, checkpoint_session = 0,"
        " checkpoint_counter = 0, checkpoint_length = 0 WHERE id = ?",
        *(_encode(()), volume.id),
    )
    if volume.checkpoint is not None:
        queue.add_chunk(tx, volume.checkpoint.chunk)
    remove_step(tx, volume.id, DROP_AT_ONCE)


def remove_step(tx: Tx, id: int, limit: int) -> bool:
    """Let go of some of a removed volume's chunks; the volume's row goes with the last. True when it is done."""
    rows = tx.all("SELECT session, counter FROM volume_chunks WHERE volume = ? LIMIT ?", id, limit)
    for session, counter in rows:
        _drop(tx, id, ChunkId(session, counter))
    if len(rows) == limit:
        return False
    tx.run("DELETE FROM volumes WHERE id = ?", id)
    return True


def _drop(tx: Tx, volume: int, chunk: ChunkId) -> None:
    key = (volume, chunk.session, chunk.counter)
    tx.run("DELETE FROM volume_chunks WHERE volume = ? AND session = ? AND counter = ?", *key)
    queue.add_chunk(tx, chunk)


def list_volumes(reader: Reader, query: ListVolumes) -> tuple[VolumeInfo, ...]:
    rows = reader.all(f"SELECT {_COLUMNS} FROM volumes WHERE name != '' ORDER BY name")
    return tuple(_shown(reader, Volume(*row)) for row in rows)


def get_volume(reader: Reader, query: GetVolume) -> VolumeInfo:
    return _shown(reader, need(reader, query.name))


def _shown(reader: Reader, volume: Volume) -> VolumeInfo:
    return volume._replace(lease_session=holder(reader, volume)).info()


# ---- leases -----------------------------------------------------------------------------------------------------


def open_volume(tx: Tx, op: OpenVolume) -> VolumeState:
    volume = need(tx, op.name)
    if op.read_only:
        return _state(tx, volume, read_only=True)
    if op.takeover not in ("fail", "break"):
        raise MetadataError("EINVAL", "takeover is fail or break")
    if op.takeover == "fail" and holder(tx, volume) not in (0, tx.session):
        raise MetadataError("EBUSY", f"volume {op.name} is in use by session {volume.lease_session:016x}")
    volume = volume._replace(lease=volume.lease + 1, lease_session=tx.session)
    tx.run("UPDATE volumes SET lease = ?, lease_session = ? WHERE id = ?", volume.lease, tx.session, volume.id)
    return _state(tx, volume)


def close_volume(tx: Tx, op: CloseVolume) -> None:
    """Giving back a lease that has ended already is a success."""
    tx.run(
        "UPDATE volumes SET lease_session = 0 WHERE id = ? AND lease = ? AND lease_session = ?",
        *(op.volume, op.lease, tx.session),
    )


def release_session(tx: Tx, session: int) -> None:
    """Part of ending a session. The lease number stays: the next holder's is higher."""
    tx.run("UPDATE volumes SET lease_session = 0 WHERE lease_session = ?", session)


def read_state(reader: Reader, name: str) -> VolumeState:
    """What a reader without a lease needs."""
    return _state(reader, need(reader, name), read_only=True)


def _state(reader: Reader, volume: Volume, read_only: bool = False) -> VolumeState:
    checkpoint = volume.checkpoint
    placed = None if checkpoint is None else placed_of(reader, checkpoint.chunk)
    return VolumeState(
        volume.info(read_only),
        0 if read_only else volume.lease,
        volume.upto,
        checkpoint,
        _live_chunks(reader, volume.id),
        decode_chain(volume.log),
        () if placed is None else (placed,),
    )


def _live_chunks(reader: Reader, id: int) -> tuple[VolumeChunk, ...]:
    """Those in the checkpoint first, then those sealed after it, each in order of writing."""
    rows = reader.all(
        "SELECT v.session, v.counter, v.first_write, v.covers_upto, v.born FROM volume_chunks v"
        " WHERE v.volume = ? AND v.died = 0 ORDER BY v.born = 0, v.covers_upto, v.session, v.counter",
        id,
    )
    found = []
    for session, counter, first, upto, born in rows:
        placed = placed_of(reader, ChunkId(session, counter))
        assert placed is not None, "a volume chunk has a row"
        new = NewChunk(
            *(placed.chunk, placed.nonce, placed.group.id, placed.group.digest, placed.length),
            *(placed.missing, placed.kind),
        )
        shown = placed if not born or len(rows) <= PLACED_MAX else None
        found.append(VolumeChunk(new, upto, first, born, shown))
    return tuple(found)


# ---- the writer's commits -----------------------------------------------------------------------------------------


def set_volume_log(tx: Tx, op: SetVolumeLog) -> None:
    volume = leased(tx, op.volume, op.lease)
    change_chain(tx, volume, op.expect, op.chain)


def change_chain(tx: Tx, volume: Volume, expect: Chain, chain: Chain) -> None:
    have = decode_chain(volume.log)
    if have != expect:
        raise MetadataError("ESTALE", f"the log's chain of volume {volume.name} is another one by now")
    _check_chain(chain)
    left = {entry.segment: set(entry.drives) for entry in chain}
    for entry in have:
        queue.add_segment(tx, entry.segment, [d for d in entry.drives if d not in left.get(entry.segment, ())])
    tx.run("UPDATE volumes SET log = ? WHERE id = ?", _encode(chain), volume.id)


def _check_chain(chain: Chain) -> None:
    """Contiguous, and only the last segment open."""
    for before, after in pairwise(chain):
        if before.last_seq is None or after.first_seq != before.last_seq + 1:
            raise MetadataError("EINVAL", "a log's chain is without gaps, and only its last segment is open")


def commit_segment(tx: Tx, op: CommitSegment) -> None:
    volume = leased(tx, op.volume, op.lease)
    if op.covers_upto < op.first_write:
        raise MetadataError("EINVAL", "a chunk's write numbers are a range")
    new = tx.chunks.get(op.chunk)
    length = new.length if new is not None else 1
    tx.use_chunk(Ref(op.chunk, 0, length))
    tx.run(
        "INSERT INTO volume_chunks (volume, session, counter, first_write, covers_upto, born, died)"
        " VALUES (?, ?, ?, ?, ?, 0, 0) ON CONFLICT DO NOTHING",
        *(volume.id, op.chunk.session, op.chunk.counter, op.first_write, op.covers_upto),
    )


def checkpoint(tx: Tx, op: Checkpoint) -> None:
    volume = leased(tx, op.volume, op.lease)
    if op.upto < volume.upto:
        raise MetadataError("EINVAL", f"the checkpoint covers write {op.upto}, the one before it {volume.upto}")
    before = volume.checkpoint
    if op.ref is not None:
        tx.use_chunk(op.ref)
    ref = op.ref or Ref(ChunkId(0, 0), 0, 0)
    tx.run(
        "UPDATE volumes SET upto = ?2, checkpoint_session = ?3, checkpoint_counter = ?4, checkpoint_length = ?5,"
        " used = ?6 WHERE id = ?1",
        *(volume.id, op.upto, ref.chunk.session, ref.chunk.counter, ref.length, op.used),
    )
    if before is not None and before != op.ref:
        queue.add_chunk(tx, before.chunk)
    tx.run(
        "UPDATE volume_chunks SET born = ?2 WHERE volume = ?1 AND born = 0 AND covers_upto <= ?2", volume.id, op.upto
    )
    for chunk in op.died:
        _die(tx, volume.id, chunk, op.upto)
    if op.chain is not None:
        change_chain(tx, volume, _grown_from(volume, op.chain), op.chain)


def _grown_from(volume: Volume, chain: Chain) -> Chain:
    """A checkpoint only trims: its chain is the tail of the present one."""
    have = decode_chain(volume.log)
    if chain != (have[-len(chain) :] if chain else ()):
        raise MetadataError("ESTALE", f"the log's chain of volume {volume.name} is another one by now")
    return have


def _die(tx: Tx, volume: int, chunk: ChunkId, upto: int) -> None:
    row = tx.one(
        "SELECT born FROM volume_chunks WHERE volume = ? AND session = ? AND counter = ? AND died = 0",
        *(volume, chunk.session, chunk.counter),
    )
    if row is None:
        return
    tx.run(
        "UPDATE volume_chunks SET died = ? WHERE volume = ? AND session = ? AND counter = ?",
        *(upto, volume, chunk.session, chunk.counter),
    )
    needed = tx.one("SELECT 1 FROM snapshots WHERE volume = ? AND upto >= ? AND upto < ? LIMIT 1", volume, row[0], upto)
    if needed is None:
        _drop(tx, volume, chunk)
