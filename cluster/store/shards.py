"""The shard files of one drive: write once, read, delete, list, verify, put aside.

Invariants:
1. A shard's name appears only after its bytes are durable, and a call answers only after its name is.
2. An existing name is never overwritten by a client's put (Exists); healing renames over it, only under a higher plan
   seq. What does not verify is put aside before it is replaced or deleted.
3. One call at a time works on a shard's name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trivium.cluster import shardfile
from trivium.cluster.errors import ClusterError, Corrupt, Exists, NoSpace, NotFound, Refused
from trivium.cluster.files import UNSUPPORTED, FileOps
from trivium.cluster.model import BLOCK, SHARD_ALIGN, ChunkId
from trivium.cluster.shardfile import ShardHeader, shard_name
from trivium.cluster.store import space
from trivium.cluster.store.folders import Folder, FolderCache
from trivium.cluster.store.health import Health
from trivium.cluster.wire import DeleteShard, InventoryEntry, PutShard

GROUP_BITS = 12
VERIFY_STEP = 64 * BLOCK


class Shards:
    def __init__(
        self, files: FileOps, health: Health, *, chunks: int, tmp: int, quarantine: int, cluster: bytes,
        reserve: Callable[[], bool],
    ) -> None:  # fmt: skip
        """`reserve` frees space kept back for the metadata (False: there is none left)."""
        self._files, self._health, self._cluster = files, health, cluster
        self._chunks, self._tmp, self._quarantine, self._reserve = chunks, tmp, quarantine, reserve
        self._folders = FolderCache(files, health, chunks)
        self._turn = threading.Condition()
        self._busy: set[tuple[ChunkId, int]] = set()
        self._serial = 0
        self._unnamed = True  # the file system has O_TMPFILE
        self.shards_put = self.bytes_put = 0

    def close(self) -> None:
        self._folders.close()

    # ---- writing --------------------------------------------------------------------------------------------

    def write(self, put: PutShard, data: memoryview) -> None:
        """Verify a complete shard file and store it durably. Exists, NoSpace, Corrupt, Refused, DriveFailed."""
        header = self._checked(put, data)
        try:
            self._store(put, header, data)
        except NoSpace:
            if put.reserve_class != space.METADATA or not self._reserve():
                raise
            self._store(put, header, data)
        self.shards_put += 1
        self.bytes_put += len(data)

    def _store(self, put: PutShard, header: ShardHeader, data: memoryview) -> None:
        name = f"shard {put.index} of chunk {put.chunk}"
        with self._health.writing(name), self._alone(put.chunk, put.index):
            space.require(self._files.space(self._chunks), len(data), put.reserve_class, self._health.name)
            folder = self._folder(put.chunk)
            try:
                if put.replace:
                    self._replace(folder, put, header, data)
                else:
                    self._write_new(folder, put, data)
                folder.sync()
            except FileNotFoundError:
                self._folders.drop(put.chunk.session, put.chunk.counter >> GROUP_BITS)
                raise
            finally:
                self._folders.release(folder)

    def _checked(self, put: PutShard, data: memoryview) -> ShardHeader:
        header = shardfile.verify_file(data)
        spec = header.spec
        if spec.cluster != self._cluster:
            raise Refused(f"drive {self._health.name} belongs to another cluster than the shard")
        if spec.chunk != put.chunk or header.index != put.index:
            raise Refused(f"the shard file is of {spec.chunk} index {header.index}, not {put.chunk} index {put.index}")
        return header

    def _folder(self, chunk: ChunkId) -> Folder:
        return self._folders.acquire(chunk.session, chunk.counter >> GROUP_BITS, create=True)

    def _write_new(self, folder: Folder, put: PutShard, data: memoryview) -> None:
        leaf = f"{put.chunk.counter:x}.{put.index:x}"
        fd, temporary = self._create(folder)
        try:
            self._fill(fd, data, leaf)
            if temporary is None:
                self._files.link_unnamed(fd, folder.fd, leaf)
            else:
                self._files.link(self._tmp, temporary, folder.fd, leaf)
        except FileExistsError:
            raise Exists(f"drive {self._health.name} already has shard {put.index} of chunk {put.chunk}") from None
        finally:
            self._files.close(fd)
            if temporary is not None:
                self._files.unlink(self._tmp, temporary)

    def _create(self, folder: Folder) -> tuple[int, str | None]:
        if self._unnamed:
            try:
                return self._files.create_unnamed(folder.fd), None
            except IsADirectoryError:
                self._unnamed = False
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                self._unnamed = False
        return self._create_named()

    def _create_named(self) -> tuple[int, str]:
        with self._turn:
            self._serial += 1
            temporary = f"{self._serial:x}"
        return self._files.create(self._tmp, temporary), temporary

    def _fill(self, fd: int, data: memoryview, what: str) -> None:
        self._files.allocate(fd, len(data))
        self._files.write(fd, (data,), 0)
        self._health.sync_data(fd, what)

    def _replace(self, folder: Folder, put: PutShard, header: ShardHeader, data: memoryview) -> None:
        leaf = f"{put.chunk.counter:x}.{put.index:x}"
        try:
            there = self.header(put.chunk, put.index)
        except NotFound:
            return self._write_new(folder, put, data)
        except Corrupt:
            self._put_aside(folder, leaf)
            return self._write_new(folder, put, data)
        if header.spec.plan_seq <= there.spec.plan_seq:
            raise Exists(
                f"drive {self._health.name} has shard {put.index} of chunk {put.chunk} "
                f"under plan {there.spec.plan_seq}, which {header.spec.plan_seq} does not replace"
            )
        fd, temporary = self._create_named()
        try:
            self._fill(fd, data, leaf)
            self._files.rename(self._tmp, temporary, folder.fd, leaf)
            temporary = ""
        finally:
            self._files.close(fd)
            if temporary:
                self._files.unlink(self._tmp, temporary)

    # ---- reading --------------------------------------------------------------------------------------------

    def open(self, chunk: ChunkId, index: int) -> int:
        """A descriptor of the shard file; the caller closes it."""
        _require_id(chunk, index)
        with self._health.reading(f"shard {index} of chunk {chunk}"):
            return self._files.open(self._chunks, shard_name(chunk, index))

    def read(
        self, chunk: ChunkId, index: int, first: int, blocks: int, with_header: bool, *, dumps: bool = True
    ) -> tuple[bytes, bytes]:
        """(padded header or b"", the bytes of `blocks` blocks from `first`, fewer at the end). Not verified here:
        the reader does that, with the header."""
        _require_id(chunk, index)
        with self._health.reading(f"shard {index} of chunk {chunk}"):
            fd = self._files.open(self._chunks, shard_name(chunk, index))
            try:
                guess = SHARD_ALIGN + (blocks * BLOCK if first == 0 else 0)
                start = self._files.read(fd, guess if with_header or first == 0 else shardfile.PREFIX, 0)
                size = shardfile.header_extent(start)
                if not dumps and shardfile.is_dump(start):
                    raise Refused(f"chunk {chunk} is of a metadata dump: those are for metadata servers")
                if size > len(start) and with_header:
                    start = self._files.read(fd, size + (blocks * BLOCK if first == 0 else 0), 0)
                header = start[:size] if with_header else b""
                if first == 0 and len(start) > size and size == SHARD_ALIGN:
                    return header, start[size:]
                return header, self._files.read(fd, blocks * BLOCK, size + first * BLOCK)
            finally:
                self._files.close(fd)

    def header(self, chunk: ChunkId, index: int) -> ShardHeader:
        header, _ = self.read(chunk, index, 0, 0, True)
        parsed = shardfile.parse_header(header)
        if parsed.spec.chunk != chunk or parsed.index != index:
            raise Corrupt(f"drive {self._health.name}: the file of shard {index} of chunk {chunk} holds another shard")
        return parsed

    def verify(self, chunk: ChunkId, index: int, nonce: bytes = b"") -> None:
        """Read the shard whole and check every CRC. NotFound, Corrupt."""
        header = self.header(chunk, index)
        if header.spec.cluster != self._cluster or (nonce and header.spec.nonce != nonce):
            raise Corrupt(f"shard {index} of chunk {chunk} is of another put")
        with self._health.reading(f"shard {index} of chunk {chunk}"):
            fd = self._files.open(self._chunks, shard_name(chunk, index))
            try:
                if self._files.fstat(fd).size != header.file_size:
                    raise Corrupt(f"shard {index} of chunk {chunk} has the wrong length")
                for at in range(0, header.spec.shard_size, VERIFY_STEP):
                    length = min(VERIFY_STEP, header.spec.shard_size - at)
                    data = self._files.read(fd, length, header.data_offset + at)
                    if len(data) != length:
                        raise Corrupt(f"shard {index} of chunk {chunk} is cut short")
                    shardfile.verify_blocks(header, at // BLOCK, data)
            finally:
                self._files.close(fd)

    def inventory(self, after: tuple[int, int, int], limit: int) -> tuple[list[InventoryEntry], bool]:
        """The next `limit` shards in (session, counter, index) order after `after`, and whether there are more."""
        entries: list[InventoryEntry] = []
        with self._health.reading("its inventory"):
            for chunk, index in self._walk(after):
                if len(entries) == limit:
                    return entries, True
                try:
                    size = self._files.stat(self._chunks, shard_name(chunk, index)).size
                    plan_seq = self.header(chunk, index).spec.plan_seq
                except (FileNotFoundError, NotFound):
                    continue  # deleted meanwhile
                except Corrupt:
                    plan_seq = 0
                entries.append(InventoryEntry(chunk, index, size, plan_seq))
        return entries, False

    def walk(self) -> Iterator[tuple[ChunkId, int]]:
        """The (chunk, index) of every shard file, in order. OSError."""
        return self._walk((0, 0, -1))

    def _walk(self, after: tuple[int, int, int]) -> Iterator[tuple[ChunkId, int]]:
        for session in self._numbers(""):
            if session < after[0]:
                continue
            for group in self._numbers(f"{session:016x}"):
                if (session, group) < (after[0], after[1] >> GROUP_BITS):
                    continue
                leaves = self._leaves(f"{session:016x}/{group:x}")
                if not leaves:
                    self._folders.remove_empty(session, group)
                for counter, index in leaves:
                    if (session, counter, index) > after:
                        yield ChunkId(session, counter), index

    def _list(self, path: str) -> list[str]:
        if not path:
            return self._files.list(self._chunks)
        try:
            fd = self._files.open_folder(self._chunks, path)
        except FileNotFoundError:
            return []
        try:
            return self._files.list(fd)
        finally:
            self._files.close(fd)

    def _numbers(self, path: str) -> list[int]:
        return sorted(number for name in self._list(path) if (number := _hex(name)) is not None)

    def _leaves(self, path: str) -> list[tuple[int, int]]:
        found = []
        for name in self._list(path):
            counter, _, index = name.partition(".")
            if (c := _hex(counter)) is not None and (i := _hex(index)) is not None:
                found.append((c, i))
        return sorted(found)

    # ---- removing -------------------------------------------------------------------------------------------

    def delete(self, deletes: list[DeleteShard]) -> list[ClusterError | None]:
        """Remove shards that were planned no later than the queue row's seq; one folder fsync for all of a folder."""
        results: list[ClusterError | None] = []
        touched: dict[int, Folder] = {}
        try:
            for delete in deletes:
                try:
                    self._delete(delete, touched)
                    results.append(None)
                except ClusterError as error:
                    results.append(error)
            for folder in touched.values():
                folder.sync()
        finally:
            for folder in touched.values():
                self._folders.release(folder)
        return results

    def _delete(self, delete: DeleteShard, touched: dict[int, Folder]) -> None:
        chunk, index = delete.chunk, delete.index
        with self._health.writing(f"shard {index} of chunk {chunk}"), self._alone(chunk, index):
            try:
                plan_seq: int | None = self.header(chunk, index).spec.plan_seq
            except NotFound:
                return
            except Corrupt:
                plan_seq = None
            if plan_seq is not None and plan_seq > delete.seq:
                raise Refused(f"shard {index} of chunk {chunk} was planned by {plan_seq}, after {delete.seq}")
            folder = self._folders.acquire(chunk.session, chunk.counter >> GROUP_BITS, create=False)
            if folder.fd in touched:
                self._folders.release(folder)
            touched[folder.fd] = folder
            leaf = f"{chunk.counter:x}.{index:x}"
            if plan_seq is None:
                self._put_aside(folder, leaf)
            else:
                self._files.unlink(folder.fd, leaf)

    def quarantine(self, chunk: ChunkId, index: int) -> None:
        """Move a shard aside, where nothing reads it and nothing deletes it."""
        _require_id(chunk, index)
        with self._health.writing(f"shard {index} of chunk {chunk}"), self._alone(chunk, index):
            folder = self._folders.acquire(chunk.session, chunk.counter >> GROUP_BITS, create=False)
            try:
                self._put_aside(folder, f"{chunk.counter:x}.{index:x}")
                folder.sync()
            finally:
                self._folders.release(folder)

    def _put_aside(self, folder: Folder, leaf: str) -> None:
        """Into quarantine/ under a name that says what it was; an older one of the same name is kept."""
        base = f"{folder.name.replace('/', '.')}.{leaf}"
        taken = set(self._files.list(self._quarantine))
        name, n = base, 0
        while name in taken:
            n += 1
            name = f"{base}.{n}"
        self._files.rename(folder.fd, leaf, self._quarantine, name)
        self._health.sync_folder(self._quarantine, "folder quarantine")

    # ---- one name at a time ---------------------------------------------------------------------------------

    @contextmanager
    def _alone(self, chunk: ChunkId, index: int) -> Iterator[None]:
        key = (chunk, index)
        with self._turn:
            while key in self._busy:
                self._turn.wait()
            self._busy.add(key)
        try:
            yield
        finally:
            with self._turn:
                self._busy.discard(key)
                self._turn.notify_all()


def _require_id(chunk: ChunkId, index: int) -> None:
    if not (0 <= chunk.session < 1 << 64 and 0 <= chunk.counter < 1 << 64 and 0 <= index < 256):
        raise Refused("a chunk's numbers have 64 bits, a shard's index 8")


def _hex(text: str) -> int | None:
    try:
        return int(text, 16)
    except ValueError:
        return None
