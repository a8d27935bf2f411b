"""Messages between clients, nodes and metadata servers: what travels, whatever carries it.

One request = one stream. A frame is a 16-byte head, a msgpack body and a raw payload:

    body length u32 | payload length u32 | service u8 | status u8 | flags u16 | reserve u32   (little-endian)

`service` picks the handler, `status` is 0 for success or an error class of ERRORS (the body is then the text),
`reserve` is the largest answer that the requester has room for (its byte budget; 0 = the server's limit).
Lists travel in one message per node: puts, appends and deletes for all of its drives together.
"""

from __future__ import annotations

import struct
from enum import IntEnum

import msgspec

from trivium.cluster import errors
from trivium.cluster.model import Ballot, ChunkId, RootSlot

HEAD = struct.Struct("<IIBBHI")
MAX_BODY = 4 << 20
MAX_PAYLOAD = 64 << 20


class Service(IntEnum):
    NODE = 1
    METADATA = 2
    IDENTITY = 3


# status byte on the wire -> error class; the list is append-only
ERRORS: tuple[type[errors.ClusterError], ...] = (
    errors.ClusterError,
    errors.Unavailable,
    errors.NotFound,
    errors.Exists,
    errors.Corrupt,
    errors.ChunkLost,
    errors.NoSpace,
    errors.DriveFailed,
    errors.Fenced,
    errors.Refused,
    errors.InUse,
)


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of every request and answer: a tagged msgpack array, fields only appended, with defaults."""


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """One entry's result in a list answer: status 0, or an index into ERRORS plus one, with the sentence."""

    status: int = 0
    text: str = ""

    def error(self) -> errors.ClusterError | None:
        return None if self.status == 0 else ERRORS[self.status - 1](self.text)

    @classmethod
    def of(cls, error: errors.ClusterError) -> Outcome:
        return cls(status_of(error), str(error))


OK = Outcome()


def status_of(error: errors.ClusterError) -> int:
    """The status byte of an error: the most derived class of ERRORS that it is."""
    for cls in type(error).__mro__:
        if cls in ERRORS:
            return ERRORS.index(cls) + 1
    return 1


# ---- shards -------------------------------------------------------------------------------------------------


class PutShard(msgspec.Struct, frozen=True, array_like=True):
    drive: bytes
    chunk: ChunkId
    index: int
    length: int  # of the whole shard file (header and data) in the payload, in list order
    replace: bool = False  # healing: rename over what is there, only under a higher plan seq
    reserve_class: int = 0  # 0 client put (85 %), 1 volume log / cleaning (92 %), 2 healing (95 %), 3 metadata


class PutShards(Message, tag="put", frozen=True):
    """Payload: the complete shard files, one after another. Answers Outcomes in the same order."""

    puts: tuple[PutShard, ...]


class Outcomes(Message, tag="outcomes", frozen=True):
    outcomes: tuple[Outcome, ...]


class ReadShard(Message, tag="read", frozen=True):
    """Read whole blocks of a shard. Answer ShardData; payload: header bytes (if asked), then the blocks' bytes.

    `blocks` = -1 reads to the end. The node checks nothing that the reader will check anyway.
    """

    drive: bytes
    chunk: ChunkId
    index: int
    first_block: int
    blocks: int
    with_header: bool = True


class ShardData(Message, tag="shard", frozen=True):
    header_length: int  # 0 when it was not asked for


class OpenShard(Message, tag="open", frozen=True):
    """Same host only: the answer carries an open descriptor of the shard file (SCM_RIGHTS), no payload."""

    drive: bytes
    chunk: ChunkId
    index: int


class DeleteShard(msgspec.Struct, frozen=True, array_like=True):
    drive: bytes
    chunk: ChunkId
    index: int
    seq: int  # of the queue row; refused for a shard planned later


class DeleteShards(Message, tag="delete", frozen=True):
    """Idempotent: a shard that is not there is a success. Answers Outcomes."""

    deletes: tuple[DeleteShard, ...]


class Inventory(Message, tag="inventory", frozen=True):
    """The next `limit` shards of a drive in (session, counter, index) order after `after`."""

    drive: bytes
    after: tuple[int, int, int] = (0, 0, -1)
    limit: int = 10_000


class InventoryEntry(msgspec.Struct, frozen=True, array_like=True):
    chunk: ChunkId
    index: int
    size: int
    plan_seq: int = 0


class InventoryPage(Message, tag="inventory_page", frozen=True):
    entries: tuple[InventoryEntry, ...]
    more: bool


class VerifyShard(Message, tag="verify", frozen=True):
    """Scrub: read one shard whole and check every CRC. Answers Outcomes of one (NotFound, Corrupt or OK)."""

    drive: bytes
    chunk: ChunkId
    index: int
    nonce: bytes = b""  # when given, a shard of another nonce is Corrupt


class Quarantine(Message, tag="quarantine", frozen=True):
    """Move a corrupt shard aside (never deleted). Answers Outcomes of one."""

    drive: bytes
    chunk: ChunkId
    index: int


# ---- logs ---------------------------------------------------------------------------------------------------


METADATA_LOG = 1  # LogHead.kind


class LogHead(msgspec.Struct, frozen=True, array_like=True):
    """What a log file's head says (RULES.md, Layouts)."""

    segment: bytes
    kind: int  # 1 metadata, 2 volume
    owner: bytes  # 16
    session: int
    lease: int  # lease number
    first_seq: int
    previous_hash: bytes  # 16: hash of record first_seq - 1


class CreateLog(Message, tag="log_create", frozen=True):
    """Create the empty, preallocated file, durable, before any chain names it. Idempotent for an equal head."""

    drive: bytes
    head: LogHead
    capacity: int = 16 << 20
    reserve_class: int = 3


class AppendLog(msgspec.Struct, frozen=True, array_like=True):
    drive: bytes
    segment: bytes
    first_seq: int  # of the records in the payload; equal bytes again are a success, a gap is Refused
    length: int


class AppendLogs(Message, tag="log_append", frozen=True):
    """Payload: the encoded records of each append, one after another. Answers Outcomes when all are durable."""

    appends: tuple[AppendLog, ...]


class SealLog(Message, tag="log_seal", frozen=True):
    """Durably refuse appends from now on; cut a torn tail. Sealing twice gives the same answer."""

    drive: bytes
    segment: bytes


class LogState(Message, tag="log_state", frozen=True):
    head: LogHead
    last_seq: int  # first_seq - 1 when it is empty
    last_hash: bytes
    sealed: bool
    size: int


class StatLog(Message, tag="log_stat", frozen=True):
    """What is there, after file and folder are synced. Answers LogState."""

    drive: bytes
    segment: bytes


class ReadLog(Message, tag="log_read", frozen=True):
    """Records from `from_seq` on, at most `max_bytes`. Answer LogState; payload: encoded records."""

    drive: bytes
    segment: bytes
    from_seq: int
    max_bytes: int = 8 << 20


class RemoveLog(Message, tag="log_remove", frozen=True):
    """Remove a segment file that no chain names any more. Idempotent. Answers Outcomes of one."""

    drive: bytes
    segment: bytes


class ListLogs(Message, tag="log_list", frozen=True):
    drive: bytes


class LogList(Message, tag="log_listing", frozen=True):
    heads: tuple[LogHead, ...]


# ---- root ---------------------------------------------------------------------------------------------------


class ReadRoot(Message, tag="root_read", frozen=True):
    """`holder`: the reader holds the register under this ballot and asks whether it still does (a confirmation)."""

    drive: bytes
    holder: Ballot | None = None


class RootCopy(Message, tag="root_copy", frozen=True):
    """`confirmed_s`: seconds since the holder of the copy's promise last confirmed it here; -1 when not known."""

    slot: RootSlot
    confirmed_s: float = -1.0


class PromiseRoot(Message, tag="root_promise", frozen=True):
    """Promise not to accept lower ballots. Answers RootCopy; Fenced when a higher one was promised."""

    drive: bytes
    ballot: Ballot


class AcceptRoot(Message, tag="root_accept", frozen=True):
    """Store slot.root under slot.accepted, unless a higher ballot was promised (Fenced). Answers RootCopy.

    With `hint` the copy is stored on a drive that does not vote: version must grow, ballots are not compared.
    """

    drive: bytes
    slot: RootSlot
    hint: bool = False


# ---- drives -------------------------------------------------------------------------------------------------


class DriveReport(msgspec.Struct, frozen=True, array_like=True):
    drive: bytes
    state: str  # "ok" | "full" | "failed" | "wiped" | "missing"
    text: str  # why, as a sentence, when it is not ok
    bytes_total: int
    bytes_free: int
    device: int
    path: str = ""
    shards_put: int = 0
    bytes_put: int = 0
    read_errors: int = 0


class Ping(Message, tag="ping", frozen=True):
    """Heartbeat. The node checks that each drive is still the one that it opened. Answers NodeReport.

    Without `drives` it only says who it is, and touches no disk.
    """

    drives: bool = True


class NodeReport(Message, tag="node_report", frozen=True):
    node: bytes
    drives: tuple[DriveReport, ...]
    process: bytes = b""  # of this run: a copy of the node, running elsewhere, has another


class FormatDrive(Message, tag="format", frozen=True):
    """Make a new drive in an empty directory (never elsewhere) and open it. Answers RootCopy (empty slot)."""

    path: str
    drive: bytes


class CloseDrive(Message, tag="close", frozen=True):
    """Forget a drive that was removed or replaced; its lock is released. Idempotent. Answers Outcomes of one."""

    drive: bytes


NodeRequest = (
    PutShards
    | ReadShard
    | OpenShard
    | DeleteShards
    | Inventory
    | VerifyShard
    | Quarantine
    | CreateLog
    | AppendLogs
    | SealLog
    | StatLog
    | ReadLog
    | RemoveLog
    | ListLogs
    | ReadRoot
    | PromiseRoot
    | AcceptRoot
    | Ping
    | FormatDrive
    | CloseDrive
)
NodeAnswer = Outcomes | ShardData | InventoryPage | LogState | LogList | RootCopy | NodeReport

encode_node_request = msgspec.msgpack.Encoder().encode
decode_node_request = msgspec.msgpack.Decoder(NodeRequest).decode
encode_node_answer = msgspec.msgpack.Encoder().encode
decode_node_answer = msgspec.msgpack.Decoder(NodeAnswer).decode
