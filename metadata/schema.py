"""The tables. Every column is documented here and nowhere else (`trivium metadata tables` prints it).

Rules that replay by patchset needs (docs/design.md): every table has an explicit NOT NULL primary key and no other
UNIQUE index; no AUTOINCREMENT, no rowid as data, no triggers, no foreign-key actions; ids come from `counters`.
`applied` is the one table outside session and digest. Integers are signed 64 bits; times are nanoseconds.
"""

from __future__ import annotations

VERSION = 2

CHUNK_COLUMNS: tuple[tuple[str, str, str], ...] = (
    # (table, session column, counter column): every place that names a chunk; the collector's one query is built
    # from this list and a test walks the schema to prove it complete
    ("extents", "session", "counter"),
    ("volume_chunks", "session", "counter"),
    ("volumes", "checkpoint_session", "checkpoint_counter"),
    ("snapshots", "checkpoint_session", "checkpoint_counter"),
)

TABLES = """
CREATE TABLE counters (           -- ids are taken from here, never from rowids
  name TEXT NOT NULL PRIMARY KEY, -- inode content dirent blob part upload group volume snapshot pool segment map
  value INTEGER NOT NULL          -- the last one given
) WITHOUT ROWID;

CREATE TABLE settings (           -- facts about the cluster: schema version, cluster id, created
  name TEXT NOT NULL PRIMARY KEY,
  value BLOB NOT NULL
) WITHOUT ROWID;

-- ---- the map -----------------------------------------------------------------------------------------------
CREATE TABLE drives (
  id BLOB NOT NULL PRIMARY KEY,   -- 16 bytes
  name TEXT NOT NULL,             -- d0, d1 ...
  node BLOB NOT NULL,
  domain TEXT NOT NULL,           -- rack/host
  weight REAL NOT NULL,
  reason TEXT NOT NULL,           -- '' in use, else out, draining, removed
  path TEXT NOT NULL,
  bytes_total INTEGER NOT NULL,
  device INTEGER NOT NULL         -- st_dev when it was added
) WITHOUT ROWID;

CREATE TABLE nodes (
  id BLOB NOT NULL PRIMARY KEY,
  name TEXT NOT NULL,
  addresses BLOB NOT NULL,        -- msgpack list of strings
  public_key BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE pools (
  id INTEGER NOT NULL PRIMARY KEY,
  name TEXT NOT NULL,
  k INTEGER NOT NULL,
  m INTEGER NOT NULL,
  chunk_size INTEGER NOT NULL,
  codec TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE groups (             -- immutable but for `open`
  id INTEGER NOT NULL PRIMARY KEY,
  pool INTEGER NOT NULL,
  k INTEGER NOT NULL,
  m INTEGER NOT NULL,
  drives BLOB NOT NULL,           -- k+m drive ids of 16 bytes, in shard order
  codec TEXT NOT NULL,
  open INTEGER NOT NULL           -- 1 while it takes new chunks
) WITHOUT ROWID;
CREATE INDEX groups_open ON groups (open, pool);

CREATE TABLE chunks (
  session INTEGER NOT NULL,
  counter INTEGER NOT NULL,
  nonce BLOB NOT NULL,            -- 16 bytes; shards of other nonces are never combined
  group_id INTEGER NOT NULL,
  length INTEGER NOT NULL,        -- bytes of data
  missing INTEGER NOT NULL,       -- bit i: shard i is not durable: the repair queue
  plan_seq INTEGER NOT NULL,      -- seq of the record that planned the newest placement
  kind INTEGER NOT NULL,          -- model.ChunkKind
  PRIMARY KEY (session, counter)
) WITHOUT ROWID;
CREATE INDEX chunks_group ON chunks (group_id);
CREATE INDEX chunks_missing ON chunks (missing) WHERE missing != 0;

CREATE TABLE queue (              -- what the collector deletes: 1 chunks, 2 log segments, 3 places a chunk left
  kind INTEGER NOT NULL,
  session INTEGER NOT NULL,       -- of the chunk; 0 for a segment
  counter INTEGER NOT NULL,       -- of the chunk; a counter of its own for a segment
  seq INTEGER NOT NULL,           -- seq of the record that queued it; the deletes carry it
  drives BLOB NOT NULL,           -- drive ids of 16 bytes, in place order
  segment BLOB NOT NULL,          -- the segment id, else empty
  pending INTEGER NOT NULL,       -- bit i: drives[i] has not confirmed yet
  PRIMARY KEY (kind, session, counter)
) WITHOUT ROWID;
CREATE INDEX queue_seq ON queue (seq);

-- ---- sessions ----------------------------------------------------------------------------------------------
CREATE TABLE sessions (
  id INTEGER NOT NULL PRIMARY KEY,
  client TEXT NOT NULL,
  host TEXT NOT NULL,
  started INTEGER NOT NULL,
  floor INTEGER NOT NULL,         -- logged floor: chunk counters below it are settled
  leased INTEGER NOT NULL         -- 1 once it has taken a lease
) WITHOUT ROWID;                  -- an ended session has no row; its id is never given again

CREATE TABLE slots (
  session INTEGER NOT NULL,
  slot INTEGER NOT NULL,
  number INTEGER NOT NULL,
  result BLOB NOT NULL,           -- msgpack answer, at most 1 KiB (larger: ids and versions only)
  PRIMARY KEY (session, slot)
) WITHOUT ROWID;

CREATE TABLE held (               -- open handles on inodes without a name
  ino INTEGER NOT NULL,
  session INTEGER NOT NULL,
  PRIMARY KEY (ino, session)
) WITHOUT ROWID;
CREATE INDEX held_session ON held (session);

-- ---- names and inodes --------------------------------------------------------------------------------------
CREATE TABLE inodes (
  ino INTEGER NOT NULL PRIMARY KEY,
  mode INTEGER NOT NULL,          -- type and permissions
  nlink INTEGER NOT NULL,
  uid INTEGER NOT NULL,
  gid INTEGER NOT NULL,
  rdev INTEGER NOT NULL,
  size INTEGER NOT NULL,
  used INTEGER NOT NULL,          -- bytes that extents cover
  atime INTEGER NOT NULL,
  mtime INTEGER NOT NULL,
  ctime INTEGER NOT NULL,
  btime INTEGER NOT NULL,
  version INTEGER NOT NULL,       -- grows with each change of contents
  content INTEGER NOT NULL,       -- extents are keyed by it; 0 = none; one that several inodes name is immutable
  cut INTEGER NOT NULL,           -- a staged truncate: extents beyond it are invisible; -1 = none
  parent INTEGER NOT NULL,        -- of a directory; 0 otherwise
  explicit INTEGER NOT NULL,      -- a directory: 1 = listed as `dir/`, 0 = implied by a PUT
  target BLOB NOT NULL            -- of a symbolic link
) WITHOUT ROWID;
CREATE INDEX inodes_content ON inodes (content) WHERE content != 0;
CREATE INDEX inodes_cut ON inodes (ino) WHERE cut >= 0;
CREATE INDEX inodes_unlinked ON inodes (ino) WHERE nlink = 0;

CREATE TABLE dirents (
  parent INTEGER NOT NULL,
  sort_name BLOB NOT NULL,        -- name, and `name/` for a directory: walking it is S3's order
  ino INTEGER NOT NULL,
  id INTEGER NOT NULL,            -- cookie of readdir, never used again
  hidden INTEGER NOT NULL,        -- a hint for readdir, always derivable: 1 = no legal path component
  PRIMARY KEY (parent, sort_name)
) WITHOUT ROWID;
CREATE INDEX dirents_id ON dirents (parent, id);
CREATE INDEX dirents_ino ON dirents (ino);

CREATE TABLE xattrs (
  ino INTEGER NOT NULL,
  name BLOB NOT NULL,
  value BLOB NOT NULL,
  PRIMARY KEY (ino, name)
) WITHOUT ROWID;

-- ---- contents ----------------------------------------------------------------------------------------------
CREATE TABLE contents (           -- of contents with inline extents: hints for the compactor
  content INTEGER NOT NULL PRIMARY KEY,
  inline_count INTEGER NOT NULL,  -- extents that lie in blobs
  inline_bytes INTEGER NOT NULL   -- and the bytes that they cover
) WITHOUT ROWID;
CREATE INDEX contents_inline ON contents (inline_count, inline_bytes);

CREATE TABLE doomed (             -- contents (or parts) that nothing names any more; extents go in bounded steps
  content INTEGER NOT NULL,
  part INTEGER NOT NULL,          -- -1 = all of the content
  PRIMARY KEY (content, part)
) WITHOUT ROWID;

CREATE TABLE parts (              -- of a multipart object: where each part begins in the whole
  content INTEGER NOT NULL,
  part INTEGER NOT NULL,          -- key of its extents, from `counters`, never again; plain files: 0 and no row here
  number INTEGER NOT NULL,        -- 1 to 10,000, as the client numbered it
  start INTEGER NOT NULL,         -- -1 until the upload is completed
  length INTEGER NOT NULL,
  used INTEGER NOT NULL,          -- bytes that its extents cover
  etag TEXT NOT NULL,
  checksum TEXT NOT NULL,
  mtime INTEGER NOT NULL,
  PRIMARY KEY (content, part)
) WITHOUT ROWID;
CREATE INDEX parts_number ON parts (content, number);
CREATE INDEX parts_start ON parts (content, start);

CREATE TABLE extents (
  content INTEGER NOT NULL,
  part INTEGER NOT NULL,
  offset INTEGER NOT NULL,        -- within the part
  length INTEGER NOT NULL,
  session INTEGER NOT NULL,       -- chunk; 0 when inline
  counter INTEGER NOT NULL,
  ref_offset INTEGER NOT NULL,    -- in the chunk's data, or in the blob
  blob INTEGER NOT NULL,          -- 0 when in a chunk
  PRIMARY KEY (content, part, offset)
) WITHOUT ROWID;
CREATE INDEX extents_chunk ON extents (session, counter) WHERE session != 0;
CREATE INDEX extents_blob ON extents (blob) WHERE blob != 0;

CREATE TABLE blobs (
  id INTEGER NOT NULL PRIMARY KEY,
  data BLOB NOT NULL
) WITHOUT ROWID;

-- ---- objects -----------------------------------------------------------------------------------------------
CREATE TABLE objects (            -- of inodes that S3 wrote; a POSIX write that changes contents removes the row
  ino INTEGER NOT NULL PRIMARY KEY,
  etag TEXT NOT NULL,
  owner TEXT NOT NULL,
  meta BLOB NOT NULL              -- messages.ObjectMeta
) WITHOUT ROWID;

CREATE TABLE buckets (            -- of top-level directories that are buckets
  ino INTEGER NOT NULL PRIMARY KEY,
  owner TEXT NOT NULL,
  created INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE bucket_config (
  ino INTEGER NOT NULL,
  kind TEXT NOT NULL,             -- policy, cors, tagging, ...
  value BLOB NOT NULL,
  PRIMARY KEY (ino, kind)
) WITHOUT ROWID;

CREATE TABLE uploads (
  bucket INTEGER NOT NULL,        -- the bucket's inode
  key BLOB NOT NULL,
  id TEXT NOT NULL,
  content INTEGER NOT NULL,
  created INTEGER NOT NULL,
  owner TEXT NOT NULL,
  meta BLOB NOT NULL,             -- messages.ObjectMeta
  done BLOB NOT NULL,             -- the answer (ObjectInfo) once it is completed, kept a while for retries; content 0
  PRIMARY KEY (bucket, key, id)
) WITHOUT ROWID;
CREATE INDEX uploads_content ON uploads (content) WHERE content != 0;

CREATE TABLE credentials (
  access_key TEXT NOT NULL PRIMARY KEY,
  secret_key TEXT NOT NULL,
  user TEXT NOT NULL,
  bucket TEXT NOT NULL,           -- '' = all
  root INTEGER NOT NULL
) WITHOUT ROWID;

-- ---- volumes -----------------------------------------------------------------------------------------------
CREATE TABLE volumes (
  id INTEGER NOT NULL PRIMARY KEY,
  name TEXT NOT NULL,
  size INTEGER NOT NULL,
  created INTEGER NOT NULL,
  lease INTEGER NOT NULL,         -- lease number: grows with each change of holder
  lease_session INTEGER NOT NULL, -- 0 = nobody
  upto INTEGER NOT NULL,          -- write number that the checkpoint covers
  checkpoint_session INTEGER NOT NULL, -- chunk of the checkpoint; 0 = none
  checkpoint_counter INTEGER NOT NULL,
  checkpoint_length INTEGER NOT NULL,
  used INTEGER NOT NULL,          -- bytes mapped by it
  log BLOB NOT NULL               -- the log's chain: msgpack of model.SegmentEntry list
) WITHOUT ROWID;
CREATE INDEX volumes_name ON volumes (name);

CREATE TABLE volume_chunks (
  volume INTEGER NOT NULL,
  session INTEGER NOT NULL,
  counter INTEGER NOT NULL,
  first_write INTEGER NOT NULL,
  covers_upto INTEGER NOT NULL,
  born INTEGER NOT NULL,          -- write number of the checkpoint that first covers it; 0 = none yet
  died INTEGER NOT NULL,          -- write number of the checkpoint that maps it no more; 0 = lives
  PRIMARY KEY (volume, session, counter)
) WITHOUT ROWID;
CREATE INDEX volume_chunks_chunk ON volume_chunks (session, counter);

CREATE TABLE snapshots (
  volume INTEGER NOT NULL,
  id INTEGER NOT NULL,
  name TEXT NOT NULL,
  created INTEGER NOT NULL,
  size INTEGER NOT NULL,
  upto INTEGER NOT NULL,
  checkpoint_session INTEGER NOT NULL,
  checkpoint_counter INTEGER NOT NULL,
  checkpoint_length INTEGER NOT NULL,
  PRIMARY KEY (volume, id)
) WITHOUT ROWID;
CREATE INDEX snapshots_checkpoint ON snapshots (checkpoint_session, checkpoint_counter);

CREATE TABLE applied (            -- outside session and digest; written in the same transaction as its record
  one INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
  seq INTEGER NOT NULL,
  chain_hash BLOB NOT NULL
) WITHOUT ROWID;
"""

MEMBER_TABLES = """
CREATE TABLE members (            -- keys that belong to the cluster; a revoked one stays, so that it never comes back
  id BLOB NOT NULL PRIMARY KEY,   -- 16 bytes, from the public key
  name TEXT NOT NULL,
  public_key BLOB NOT NULL,       -- 33 bytes, a compressed point of P-256
  roles TEXT NOT NULL,            -- of client, node, metadata, separated by blanks
  rights INTEGER NOT NULL,        -- 1 read, 2 write, 4 admin
  pools BLOB NOT NULL,            -- msgpack list of pool ids; [0] = all
  issued INTEGER NOT NULL,        -- when it joined
  generation INTEGER NOT NULL,    -- of the cluster's key that signed its newest certificate
  revoked INTEGER NOT NULL        -- when; 0 = it is not. The list's version is counter `revocations`
) WITHOUT ROWID;

CREATE TABLE join_tokens (
  id BLOB NOT NULL PRIMARY KEY,   -- 8 bytes, from the secret
  hash BLOB NOT NULL,             -- 32 bytes; the secret itself is nowhere
  roles TEXT NOT NULL,            -- of the member that it makes, as are the next three
  name TEXT NOT NULL,             -- '' = the joiner chooses
  rights INTEGER NOT NULL,
  pools BLOB NOT NULL,
  created INTEGER NOT NULL,
  expires INTEGER NOT NULL,
  used_by BLOB NOT NULL           -- the member that it made; empty = it is open
) WITHOUT ROWID;

CREATE TABLE cluster_keys (       -- public halves; the private ones are in DIR/keys/cluster
  generation INTEGER NOT NULL PRIMARY KEY,
  public_key BLOB NOT NULL,
  handover BLOB NOT NULL,         -- statement of the generation before; empty for the first
  created INTEGER NOT NULL,
  retired INTEGER NOT NULL        -- when; 0 = what it signed counts
) WITHOUT ROWID;

CREATE TABLE session_owners (     -- of sessions over connections with a key; others are local
  session_id INTEGER NOT NULL PRIMARY KEY,
  member BLOB NOT NULL
) WITHOUT ROWID;
"""
"""What schema version 2 added."""

ALL_TABLES = TABLES + MEMBER_TABLES

OUTSIDE = frozenset({"applied"})
"""Tables that no patchset and no digest holds."""
