"""What faces and tools say to the metadata server. The whole protocol is in this file.

Mutations are operations: a Call carries a list of them, all or nothing, executed once per (session, slot, number).
Queries change nothing and carry no slot. Every name and key is bytes: POSIX names are any bytes, S3 keys are UTF-8.
Times are nanoseconds since the epoch, sizes bytes. An operation that fails answers Failed with a code: an errno name
(ENOENT ...) for POSIX operations, AWS's own code (NoSuchKey ...) for S3 ones, or one of the session codes below.
"""

from __future__ import annotations

from typing import Any

import msgspec

from trivium.cluster.model import ChunkId, ClusterMap, Group, NewChunk, Placed, Ref, SegmentEntry
from trivium.cluster.wire import Message
from trivium.metadata.membermessages import MEMBER_RESULTS, MemberOperation, MemberQuery

ROOT_INO = 1  # the namespace's root directory; buckets are its subdirectories
INLINE_MAX = 16 * 1024  # a piece of at most this may live in the database
NAME_MAX = 255
SYMLINK_MAX = 4095
XATTR_MAX = 64 * 1024

# codes that belong to no face
SESSION_ENDED = "SESSION_ENDED"  # say Hello again; unflushed data is lost and must be reported as EIO
LEASE_LOST = "LEASE_LOST"  # the lease number is not the current one
CHUNK_REFUSED = "CHUNK_REFUSED"  # put the data again (another group, another id) and repeat the call
RETRY = "RETRY"  # the server is not ready (starting, no leader); nothing was done, ask again


class MetadataError(Exception):
    """A refused operation: `code` as described above, `text` a sentence, `index` the operation's place in its list."""

    def __init__(self, code: str, text: str = "", index: int = 0) -> None:
        super().__init__(f"{code}: {text}" if text else code)
        self.code, self.text, self.index = code, text, index


class Value(msgspec.Struct, frozen=True, array_like=True):
    """Base of plain values: encoded as arrays, fields only appended, with defaults."""


# ---- values -------------------------------------------------------------------------------------------------


class Attr(Value, frozen=True):
    ino: int
    mode: int  # type and permission bits
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    used: int  # bytes that have extents (st_blocks = used / 512 rounded up)
    atime: int
    mtime: int
    ctime: int
    btime: int
    version: int  # grows with each change of contents
    target: bytes = b""  # of a symbolic link
    lease: int = 0  # granted with this answer: 0 none, 1 read (may cache), 2 exclusive (may write back)


class Entry(Value, frozen=True):
    """A name's answer. `ino` 0 with attr None: the name does not exist (a negative answer, cacheable if lease)."""

    attr: Attr | None
    created: bool = False
    lease: int = 0  # lease on the directory that the name is in
    empty: bool = False  # of Create: a directory that has no entries (keys of S3 may have waited for it)


class DirEntry(Value, frozen=True):
    id: int  # a cookie that means this entry for ever
    name: bytes
    attr: Attr


class DirPage(Value, frozen=True):
    entries: tuple[DirEntry, ...]
    more: bool
    lease: int = 0


class Extent(Value, frozen=True):
    """`length` bytes at `offset` of the file: `data` (inline), else `ref`, else a hole that was zeroed."""

    offset: int
    length: int
    ref: Ref | None = None
    data: bytes | None = None


class Layout(Value, frozen=True):
    """The extents of a range from one snapshot; gaps are zeros. `upto` is where the page ends."""

    version: int
    size: int
    extents: tuple[Extent, ...]
    placed: tuple[Placed, ...]  # rows of the chunks that the extents name
    upto: int
    content: int = 0


class Grant(Value, frozen=True):
    """One line of an access control list. `grantee`: a user's name, or a group's URI."""

    kind: str  # user group
    grantee: str
    permission: str  # READ WRITE READ_ACP WRITE_ACP FULL_CONTROL


class ObjectMeta(Value, frozen=True):
    """What S3 keeps beside an object's bytes."""

    content_type: str = ""
    headers: dict[str, str] = {}  # cache-control, content-disposition, content-encoding, content-language, expires
    user: dict[str, str] = {}  # x-amz-meta-*
    tags: dict[str, str] = {}
    checksum_algorithm: str = ""  # CRC32 CRC32C CRC64NVME SHA1 SHA256
    checksum: str = ""  # base64; of a composite: base64-N
    checksum_type: str = ""  # FULL_OBJECT COMPOSITE
    storage_class: str = "STANDARD"
    website_redirect: str = ""
    grants: tuple[Grant, ...] | None = None  # None: private, full control for the owner alone


class PartInfo(Value, frozen=True):
    number: int
    size: int
    etag: str  # without quotes
    mtime: int
    checksum: str = ""


class ObjectInfo(Value, frozen=True):
    """A key's answer. Open it for reading with (ino, version); POSIX files are objects too."""

    key: bytes
    ino: int
    version: int
    size: int
    etag: str  # without quotes
    mtime: int
    meta: ObjectMeta = ObjectMeta()
    parts: tuple[PartInfo, ...] = ()  # of an object made by multipart upload (only from HeadObject)
    owner: str = ""
    layout: Layout | None = None  # the first page, when it was asked for


class Conditions(Value, frozen=True):
    """Tested in the same transaction as the change. Etags without quotes; "*" = any."""

    if_match: str = ""
    if_none_match: str = ""
    if_modified_since: int = 0
    if_unmodified_since: int = 0
    if_size: int = -1
    if_mtime: int = 0


class BucketInfo(Value, frozen=True):
    name: bytes
    ino: int
    created: int
    owner: str
    config: dict[str, bytes] = {}  # policy, cors, tagging, … : as stored by SetBucketConfig


class Credential(Value, frozen=True):
    access_key: str
    secret_key: str
    user: str
    bucket: str = ""  # when set: scoped to this bucket
    root: bool = False


class UploadInfo(Value, frozen=True):
    id: str
    key: bytes
    created: int
    meta: ObjectMeta = ObjectMeta()
    owner: str = ""


class VolumeInfo(Value, frozen=True):
    id: int
    name: str
    size: int
    created: int
    used: int  # bytes mapped as of the last checkpoint
    lease_session: int = 0
    lease: int = 0
    read_only: bool = False


class VolumeChunk(Value, frozen=True):
    chunk: NewChunk
    covers_upto: int  # write number
    first_write: int
    born: int = 0  # checkpoint number that first maps it
    placed: Placed | None = None


class VolumeState(Value, frozen=True):
    """All that a writer (or reader) needs to recover: checkpoint, chunks since, the log's chain."""

    info: VolumeInfo
    lease: int
    checkpoint_upto: int  # N: everything up to this write number is in the checkpoint
    checkpoint: Ref | None
    chunks: tuple[VolumeChunk, ...]  # live chunks, those sealed after the checkpoint last
    log: tuple[SegmentEntry, ...]
    placed: tuple[Placed, ...] = ()


# ---- operations: files --------------------------------------------------------------------------------------


class Create(Message, tag="create", frozen=True):
    """Make a file, directory, link or special file (by mode's type). Answers Entry.

    EEXIST when the name is there; unless `exclusive` is false and both are regular files: then Entry of the old one.
    """

    parent: int
    name: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    target: bytes = b""
    exclusive: bool = True
    hold: bool = False  # keep an open handle for this session
    at: int = 0  # time; 0 = the server's
    lease: int = 0  # 1: a read lease on the inode, when no operation that changes it follows in the list


class Write(Message, tag="write", frozen=True):
    """Replace ranges of a file's contents. Answers Attr. `size` is a new lower bound of the file's size.

    `ino` 0 means: the inode that the Create before it in the same list made or found.
    """

    ino: int
    extents: tuple[Extent, ...]
    size: int = 0
    at: int = 0
    clear_suid: bool = False


class Append(Message, tag="append", frozen=True):
    """O_APPEND: the extents' offsets count from the end of the file as the server has it. Answers Attr."""

    ino: int
    extents: tuple[Extent, ...]
    at: int = 0


class Truncate(Message, tag="truncate", frozen=True):
    """Answers Attr. Growing makes a hole."""

    ino: int
    size: int
    at: int = 0
    clear_suid: bool = False


class Zero(Message, tag="zero", frozen=True):
    """Punch a hole. Answers Attr."""

    ino: int
    offset: int
    length: int


class CloneRange(Message, tag="clone_range", frozen=True):
    """Share extents of another file without moving data. Answers Attr of the target."""

    source: int
    source_offset: int
    ino: int
    offset: int
    length: int


class SetAttr(Message, tag="setattr", frozen=True):
    """Only what is not None changes. Answers Attr."""

    ino: int
    mode: int | None = None  # permission bits
    uid: int | None = None
    gid: int | None = None
    atime: int | None = None
    mtime: int | None = None
    at: int = 0  # ctime


class Link(Message, tag="link", frozen=True):
    """Answers Entry. EMLINK, EPERM for directories."""

    ino: int
    parent: int
    name: bytes


class Unlink(Message, tag="unlink", frozen=True):
    """Answers Attr (nlink counted down). With `hold` the session goes on holding the contents (open handles)."""

    parent: int
    name: bytes
    hold: bool = False


class Rmdir(Message, tag="rmdir", frozen=True):
    """Answers None. ENOTEMPTY when there is a row of any kind."""

    parent: int
    name: bytes


class Rename(Message, tag="rename", frozen=True):
    """Answers None. flags: 0, 1 = RENAME_NOREPLACE, 2 = RENAME_EXCHANGE. `hold`: the replaced inode is open here."""

    parent: int
    name: bytes
    new_parent: int
    new_name: bytes
    flags: int = 0
    hold: bool = False


class SetXattr(Message, tag="setxattr", frozen=True):
    """flags: 0, 1 = XATTR_CREATE (EEXIST), 2 = XATTR_REPLACE (ENODATA). Answers None."""

    ino: int
    name: bytes
    value: bytes
    flags: int = 0


class RemoveXattr(Message, tag="removexattr", frozen=True):
    ino: int
    name: bytes


class Hold(Message, tag="hold", frozen=True):
    """Keep these inodes' contents for this session though their last name may go. Answers None."""

    inos: tuple[int, ...]


class Release(Message, tag="release", frozen=True):
    """No open handle is left here; unlinked inodes are dropped. Answers None."""

    inos: tuple[int, ...]


# ---- operations: objects ------------------------------------------------------------------------------------


class Body(Value, frozen=True):
    """An object's or part's bytes: inline (at most INLINE_MAX), or extents from offset 0 on."""

    size: int
    data: bytes | None = None
    extents: tuple[Extent, ...] = ()


class CreateBucket(Message, tag="create_bucket", frozen=True):
    """Answers BucketInfo. BucketAlreadyOwnedByYou, BucketAlreadyExists."""

    name: bytes
    owner: str
    config: dict[str, bytes] = {}


class DeleteBucket(Message, tag="delete_bucket", frozen=True):
    """BucketNotEmpty names links, special files and names that no key can be, when they are what is left."""

    name: bytes


class SetBucketConfig(Message, tag="bucket_config", frozen=True):
    """Store or (None) remove one configuration document of a bucket."""

    name: bytes
    kind: str
    value: bytes | None


class PutObject(Message, tag="put_object", frozen=True):
    """Always a new inode. Answers ObjectInfo. PreconditionFailed, NoSuchBucket."""

    bucket: bytes
    key: bytes
    body: Body
    etag: str
    meta: ObjectMeta
    conditions: Conditions = Conditions()
    owner: str = ""


class DeleteObject(Message, tag="delete_object", frozen=True):
    """Answers bool: whether there was one. A missing key is a success unless conditions say otherwise."""

    bucket: bytes
    key: bytes
    conditions: Conditions = Conditions()


class CopyObject(Message, tag="copy_object", frozen=True):
    """Moves no data. `meta` None copies the source's. Answers ObjectInfo."""

    source_bucket: bytes
    source_key: bytes
    bucket: bytes
    key: bytes
    meta: ObjectMeta | None = None
    source_conditions: Conditions = Conditions()
    conditions: Conditions = Conditions()
    owner: str = ""


class SetObjectMeta(Message, tag="object_meta", frozen=True):
    """Replace an object's tags. Answers ObjectInfo."""

    bucket: bytes
    key: bytes
    tags: dict[str, str]


class SetObjectAcl(Message, tag="object_acl", frozen=True):
    """Replace an object's grants. `ino`: the one that the caller looked at, else ESTALE. Answers ObjectInfo."""

    bucket: bytes
    key: bytes
    ino: int
    grants: tuple[Grant, ...] | None


class CreateUpload(Message, tag="create_upload", frozen=True):
    """Answers UploadInfo."""

    bucket: bytes
    key: bytes
    meta: ObjectMeta
    owner: str = ""


class PutPart(Message, tag="put_part", frozen=True):
    """Replaces an earlier part of the number. Answers PartInfo. NoSuchUpload."""

    bucket: bytes
    key: bytes
    upload: str
    number: int
    body: Body
    etag: str
    checksum: str = ""


class CopyPart(Message, tag="copy_part", frozen=True):
    """A part from a range of an object (length -1: all of it). Answers PartInfo."""

    bucket: bytes
    key: bytes
    upload: str
    number: int
    source_bucket: bytes
    source_key: bytes
    offset: int = 0
    length: int = -1
    etag: str = ""  # computed by the caller, who read the range
    source_conditions: Conditions = Conditions()
    checksum: str = ""


class CompleteUpload(Message, tag="complete_upload", frozen=True):
    """Answers ObjectInfo. InvalidPart, InvalidPartOrder, EntityTooSmall, NoSuchUpload. Idempotent for a while."""

    bucket: bytes
    key: bytes
    upload: str
    parts: tuple[tuple[int, str, str], ...]  # (number, etag without quotes, checksum or "")
    conditions: Conditions = Conditions()
    checksum: str = ""  # of the whole, when the client sent or the gateway computed one
    checksum_type: str = ""
    object_size: int = -1


class AbortUpload(Message, tag="abort_upload", frozen=True):
    bucket: bytes
    key: bytes
    upload: str


class SetCredential(Message, tag="set_credential", frozen=True):
    """Add or replace a credential (secret_key "" removes it)."""

    credential: Credential


# ---- operations: volumes ------------------------------------------------------------------------------------


class CreateVolume(Message, tag="create_volume", frozen=True):
    """Answers VolumeInfo. EEXIST; EINVAL unless size is a positive multiple of 4,096."""

    name: str
    size: int


class ResizeVolume(Message, tag="resize_volume", frozen=True):
    """Answers VolumeInfo. Shrinking needs `shrink`."""

    name: str
    size: int
    shrink: bool = False


class RemoveVolume(Message, tag="remove_volume", frozen=True):
    """EBUSY while leased."""

    name: str


class OpenVolume(Message, tag="open_volume", frozen=True):
    """Take the lease (a new lease number) and answer VolumeState. EBUSY when another live session has it.

    `read_only` takes no lease. `takeover`: "fail" | "break" (ends the holder's lease).
    """

    name: str
    read_only: bool = False
    takeover: str = "fail"


class CloseVolume(Message, tag="close_volume", frozen=True):
    volume: int
    lease: int


class SetVolumeLog(Message, tag="volume_log", frozen=True):
    """Compare-and-swap of the volume's log chain. LEASE_LOST, or ESTALE when `expect` is not the chain.

    Segments that leave the chain enter the collector's queue.
    """

    volume: int
    lease: int
    expect: tuple[SegmentEntry, ...]
    chain: tuple[SegmentEntry, ...]


class CommitSegment(Message, tag="commit_segment", frozen=True):
    """A volume chunk exists from here on. The Call's `chunks` carries its NewChunk. Answers None."""

    volume: int
    lease: int
    chunk: ChunkId
    first_write: int
    covers_upto: int


class Checkpoint(Message, tag="checkpoint", frozen=True):
    """Everything up to write number `upto` is in `ref`; chunks `died` and log entries before `trim_to` go.

    `used` is what the map holds, in bytes. Answers None.
    """

    volume: int
    lease: int
    upto: int
    ref: Ref | None
    died: tuple[ChunkId, ...] = ()
    chain: tuple[SegmentEntry, ...] | None = None
    used: int = 0


class Stat(Message, tag="stat", frozen=True):
    """Changes nothing: answers Attr as the operations before it in the list left it. ESTALE when it is gone."""

    ino: int


Operation = (
    Create
    | Stat
    | Write
    | Append
    | Truncate
    | Zero
    | CloneRange
    | SetAttr
    | Link
    | Unlink
    | Rmdir
    | Rename
    | SetXattr
    | RemoveXattr
    | Hold
    | Release
    | CreateBucket
    | DeleteBucket
    | SetBucketConfig
    | PutObject
    | DeleteObject
    | CopyObject
    | SetObjectMeta
    | SetObjectAcl
    | CreateUpload
    | PutPart
    | CopyPart
    | CompleteUpload
    | AbortUpload
    | SetCredential
    | CreateVolume
    | ResizeVolume
    | RemoveVolume
    | OpenVolume
    | CloseVolume
    | SetVolumeLog
    | CommitSegment
    | Checkpoint
    | MemberOperation
)


# ---- queries ------------------------------------------------------------------------------------------------


class Lookup(Message, tag="lookup", frozen=True):
    """Answers Entry."""

    parent: int
    name: bytes
    lease: int = 0  # wanted on the inode (and, for read, on the directory)


class GetAttr(Message, tag="getattr", frozen=True):
    """Answers Attr. ESTALE when there is no such inode."""

    ino: int
    lease: int = 0


class ReadDir(Message, tag="readdir", frozen=True):
    """Answers DirPage: entries after the cookie `after` (0 = from the start), without `.` and `..`."""

    ino: int
    after: int = 0
    limit: int = 1000
    lease: int = 0


class GetLayout(Message, tag="layout", frozen=True):
    """Answers Layout. `version` other than 0 must still be the inode's, else ESTALE."""

    ino: int
    offset: int
    length: int
    version: int = 0


class ListXattrs(Message, tag="xattrs", frozen=True):
    """Answers {name: value}."""

    ino: int


class StatFs(Message, tag="statfs", frozen=True):
    """Answers FsInfo."""


class FsInfo(Value, frozen=True):
    bytes_total: int  # usable, after parity
    bytes_free: int
    inodes_used: int


class GetBucket(Message, tag="bucket", frozen=True):
    """Answers BucketInfo; NoSuchBucket."""

    name: bytes


class ListBuckets(Message, tag="buckets", frozen=True):
    """Answers a tuple of BucketInfo in byte order of names."""

    owner: str = ""


class HeadObject(Message, tag="head_object", frozen=True):
    """Answers ObjectInfo; NoSuchBucket, NoSuchKey. With `layout` its first page (at most 64 extents) comes along."""

    bucket: bytes
    key: bytes
    layout: bool = False
    hold: bool = False  # an open handle for a streamed GET; give it back with Release


class ListObjects(Message, tag="list_objects", frozen=True):
    """Answers Listing in UTF-8 byte order. `after` is exclusive (a key or a common prefix)."""

    bucket: bytes
    prefix: bytes = b""
    delimiter: bytes = b""
    after: bytes = b""
    limit: int = 1000


class Listing(Value, frozen=True):
    entries: tuple[ObjectInfo, ...]
    prefixes: tuple[bytes, ...]
    truncated: bool
    next_after: bytes = b""


class ListUploads(Message, tag="uploads", frozen=True):
    """Answers (tuple of UploadInfo, tuple of common prefixes, truncated)."""

    bucket: bytes
    prefix: bytes = b""
    delimiter: bytes = b""
    key_marker: bytes = b""
    id_marker: str = ""
    limit: int = 1000


class UploadListing(Value, frozen=True):
    uploads: tuple[UploadInfo, ...]
    prefixes: tuple[bytes, ...]
    truncated: bool


class GetUpload(Message, tag="upload", frozen=True):
    """Answers UploadInfo; NoSuchUpload."""

    bucket: bytes
    key: bytes
    upload: str


class ListParts(Message, tag="parts", frozen=True):
    """Answers PartListing."""

    bucket: bytes
    key: bytes
    upload: str
    after: int = 0
    limit: int = 1000


class PartListing(Value, frozen=True):
    parts: tuple[PartInfo, ...]
    truncated: bool
    upload: UploadInfo


class GetCredential(Message, tag="credential", frozen=True):
    """Answers Credential; InvalidAccessKeyId."""

    access_key: str


class UnknownUsers(Message, tag="unknown_users", frozen=True):
    """Answers those of the names that no credential belongs to."""

    users: tuple[str, ...]


class ListVolumes(Message, tag="volumes", frozen=True):
    """Answers a tuple of VolumeInfo."""


class GetVolume(Message, tag="volume", frozen=True):
    """Answers VolumeInfo; ENOENT."""

    name: str


class Locate(Message, tag="locate", frozen=True):
    """Answers a tuple of Placed | None."""

    chunks: tuple[ChunkId, ...]


class NarrowChunks(Message, tag="narrow_chunks", frozen=True):
    """Chunks of a volume that its writer is to write anew now: written on fewer drives than the pool's profile says.
    Empty while the pool is not whole, or not long enough. Answers a tuple of ChunkId."""

    volume: int


Query = (
    Lookup
    | GetAttr
    | ReadDir
    | GetLayout
    | ListXattrs
    | StatFs
    | GetBucket
    | ListBuckets
    | HeadObject
    | ListObjects
    | ListUploads
    | GetUpload
    | ListParts
    | GetCredential
    | UnknownUsers
    | ListVolumes
    | GetVolume
    | NarrowChunks
    | Locate
    | MemberQuery
)


# ---- requests -----------------------------------------------------------------------------------------------


class Hello(Message, tag="hello", frozen=True):
    """Begin a session. Answers Welcome."""

    client: str  # what it is, for status: "s3", "mount /mnt/x", "nbd …"
    host: str = ""
    pid: int = 0
    guest: bytes = b""  # of a process on the server's host: the member that grants are for (identity's Introduce)


class Welcome(Message, tag="welcome", frozen=True):
    session: int
    cluster: bytes
    cluster_map: ClusterMap
    groups: tuple[Group, ...]
    timeout_s: float  # T
    seq: int
    run_lock: str = ""  # path (relative to the data directory) of the lock that proves this session's life
    incarnation: bytes = b""  # of this server's life; leases of another one are void
    grant: bytes = b""  # statements.Grant for nodes, when the client has a key


class Heartbeat(Message, tag="heartbeat", frozen=True):
    """Every T/8. Answers Pulse. `floor`: every chunk counter below it is settled."""

    session: int
    floor: int
    given_up: tuple[int, ...] = ()
    oldest_read_seq: int = 0  # 0 = none is running
    incarnation: bytes = b""  # of the server whose leases it holds: another one's have all been dropped here
    holds: tuple[int, ...] = ()  # inodes that are open here, told to a new server before it goes on (as by Hold)
    latencies: tuple[tuple[str, int, float], ...] = ()  # kind, calls, p99 in s of its own chunk calls since the last
    top: int = 0  # the highest chunk counter given so far: a drain waits for the floor to pass it
    guest: bytes = b""  # as in Hello


class Pulse(Message, tag="pulse", frozen=True):
    seq: int
    map_version: int
    groups: tuple[Group, ...]
    cluster_map: ClusterMap | None = None  # when it changed since the last heartbeat
    down: tuple[bytes, ...] = ()  # drives
    incarnation: bytes = b""
    grant: bytes = b""  # renewed
    key_generation: int = 0  # of the cluster's newest key: an older certificate wants to be renewed
    retired: int = 0  # generations of the cluster's key up to this one count no more


class Goodbye(Message, tag="goodbye", frozen=True):
    """End a session cleanly (durable). Answers Done."""

    session: int


class Call(Message, tag="call", frozen=True):
    session: int
    slot: int  # one call in flight per slot
    number: int  # grows by one with each new call of the slot
    operations: tuple[Operation, ...]
    chunks: tuple[NewChunk, ...] = ()  # every chunk that the operations name and that this session put


class Ask(Message, tag="ask", frozen=True):
    session: int
    query: Query


class Offer(Message, tag="offer", frozen=True):
    """Ask for an open group. Answers Offered."""

    session: int
    pool: int
    without: tuple[bytes, ...] = ()


class Offered(Message, tag="offered", frozen=True):
    group: Group


class Report(Message, tag="report", frozen=True):
    """A place is missing or corrupt. Answers Done."""

    session: int
    chunk: ChunkId
    index: int
    drive: bytes
    what: str


class Recalled(Message, tag="recalled", frozen=True):
    """The session has flushed and dropped its lease of that recall. `held`: it has open handles on the inode."""

    session: int
    recall: int
    held: bool = False


class Return(Message, tag="return", frozen=True):
    """Leases given back unasked (forgotten inodes). Answers Done."""

    session: int
    inos: tuple[int, ...]


class Admin(Message, tag="admin", frozen=True):
    """Operator's commands and status; allowed to the pool's own user. Answers AdminAnswer."""

    command: str
    arguments: dict[str, Any] = {}


Request = Hello | Heartbeat | Goodbye | Call | Ask | Offer | Report | Recalled | Return | Admin


class Done(Message, tag="done", frozen=True):
    pass


class Failed(Message, tag="failed", frozen=True):
    code: str
    text: str = ""
    index: int = 0


class Results(Message, tag="results", frozen=True):
    """Of a Call: one value per operation. Of an Ask: one. Typed by the operation (see its docstring)."""

    values: tuple[Any, ...]
    seq: int = 0


class AdminAnswer(Message, tag="admin_answer", frozen=True):
    value: Any = None


Answer = Welcome | Pulse | Offered | Done | Failed | Results | AdminAnswer


# ---- events (server to client, on the subscription of a session) ----------------------------------------------


class Events(Message, tag="events", frozen=True):
    """The body of a subscription."""

    session: int


class Recall(Message, tag="recall", frozen=True):
    """Give the lease on `ino` back: flush (level 2), invalidate, then answer Recalled. `name`: only that entry of the
    directory `ino` changed (b"" = anything about it)."""

    recall: int
    ino: int
    name: bytes = b""


class Ended(Message, tag="ended", frozen=True):
    """The session has ended; nothing it still does is accepted."""

    why: str


Event = Recall | Ended

encode = msgspec.msgpack.Encoder().encode
_decode_request = msgspec.msgpack.Decoder(Request).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode
decode_event = msgspec.msgpack.Decoder(Event).decode
decode_events = msgspec.msgpack.Decoder(Events).decode


def decode_request(body: bytes | memoryview) -> Request:
    """msgspec.MsgspecError, whatever the bytes are."""
    try:
        request: Request = _decode_request(body)
        return request
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from None


RESULT_TYPES: dict[type, Any] = {
    Create: Entry,
    Stat: Attr,
    Write: Attr,
    Append: Attr,
    Truncate: Attr,
    Zero: Attr,
    CloneRange: Attr,
    SetAttr: Attr,
    Link: Entry,
    Unlink: Attr,
    CreateBucket: BucketInfo,
    PutObject: ObjectInfo,
    DeleteObject: bool,
    CopyObject: ObjectInfo,
    SetObjectMeta: ObjectInfo,
    SetObjectAcl: ObjectInfo,
    CreateUpload: UploadInfo,
    PutPart: PartInfo,
    CopyPart: PartInfo,
    CompleteUpload: ObjectInfo,
    CreateVolume: VolumeInfo,
    ResizeVolume: VolumeInfo,
    OpenVolume: VolumeState,
    Lookup: Entry,
    GetAttr: Attr,
    ReadDir: DirPage,
    GetLayout: Layout,
    ListXattrs: dict[bytes, bytes],
    StatFs: FsInfo,
    GetBucket: BucketInfo,
    ListBuckets: tuple[BucketInfo, ...],
    HeadObject: ObjectInfo,
    ListObjects: Listing,
    ListUploads: UploadListing,
    GetUpload: UploadInfo,
    ListParts: PartListing,
    GetCredential: Credential,
    UnknownUsers: tuple[str, ...],
    ListVolumes: tuple[VolumeInfo, ...],
    NarrowChunks: tuple[ChunkId, ...],
    GetVolume: VolumeInfo,
    Locate: tuple[Placed | None, ...],
    **MEMBER_RESULTS,
}
"""What each operation and query answers; those not listed answer None."""
