"""The log segments of one drive.

    (none) --create--> open --seal--> sealed --remove--> (none)          open --remove--> (none)

Invariants:
1. Append never creates; a segment whose file is gone is lost here (NotFound).
2. Appends, seals and reads of one segment are serialised; after a restart file and folder are synced before anything
   is said about a segment, so that nothing is reported that lives in the page cache only.
3. A sealed segment refuses appends for ever (Fenced). Sealing works on a full disk and gives the same answer again.
4. An append answers after its bytes are durable and the file was seen to still have its name.
5. Bytes of an append that was never answered are zeroed, durably, before the next one is written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from trivium.cluster import logfile
from trivium.cluster.errors import Corrupt, Exists, NoSpace, NotFound, Refused
from trivium.cluster.files import FileOps
from trivium.cluster.store import space
from trivium.cluster.store.health import Health
from trivium.cluster.store.segment import Segment
from trivium.cluster.wire import LogHead, LogState

OPEN, SEALED = ".open", ".sealed"
MIN_CAPACITY = logfile.HEAD_SIZE * 2
MAX_CAPACITY = 1 << 30


class Logs:
    def __init__(
        self, files: FileOps, health: Health, *, folder: int, tmp: int, cluster: bytes, reserve: Callable[[], bool]
    ) -> None:
        """`reserve` frees space kept back for the metadata (False: there is none left)."""
        self._files, self._health, self._cluster = files, health, cluster
        self._folder, self._tmp, self._reserve = folder, tmp, reserve
        self._lock = threading.Lock()  # guards the table and creating and removing files
        self._segments: dict[bytes, Segment] = {}
        self._folder_synced = False

    def close(self) -> None:
        for segment in self._segments.values():
            segment.close()
        self._segments.clear()

    def create(self, head: LogHead, capacity: int, reserve_class: int) -> LogState:
        """An empty preallocated segment, durable. An equal head again is a success, another one Exists."""
        if len(head.segment) != 16 or len(head.owner) != 16 or len(head.previous_hash) != 16:
            raise Refused("a log head's segment, owner and hash have 16 bytes")
        if not MIN_CAPACITY <= capacity <= MAX_CAPACITY:
            raise Refused(f"a log segment has {MIN_CAPACITY} to {MAX_CAPACITY} bytes, not {capacity}")
        with self._lock:
            try:
                segment = self._get(head.segment)
            except NotFound:
                segment = self._make_or_free(head, capacity, reserve_class)
                self._segments[head.segment] = segment
        if segment.head != head:
            raise Exists(f"drive {self._health.name} has another log segment {head.segment.hex()}")
        return segment.state()

    def append(self, segment: bytes, first_seq: int, data: memoryview) -> None:
        self.get(segment).append(first_seq, data)

    def seal(self, segment: bytes) -> LogState:
        return self.get(segment).seal()

    def stat(self, segment: bytes) -> LogState:
        return self.get(segment).state()

    def read(self, segment: bytes, from_seq: int, max_bytes: int) -> tuple[LogState, bytes]:
        return self.get(segment).read(from_seq, max_bytes)

    def get(self, segment: bytes) -> Segment:
        found = self._segments.get(segment)
        if found is not None:
            self._health.check()
            return found
        _require_id(segment)
        with self._lock:
            return self._get(segment)

    def heads(self) -> list[LogHead]:
        """Of every segment file whose head verifies."""
        with self._health.reading("its log folder"):
            names = sorted(self._files.list(self._folder))
        heads = []
        for name in names:
            segment = _parse(name)
            if segment is None:
                continue
            try:
                heads.append(self._read_head(segment, name))
            except (Corrupt, NotFound, Refused):
                continue
        return heads

    def remove(self, segment: bytes) -> None:
        """Remove its file, whatever its state. Idempotent."""
        self._health.check()
        _require_id(segment)
        with self._lock:
            known = self._segments.pop(segment, None)
            with self._health.writing("its log folder"):
                for suffix in (OPEN, SEALED):
                    try:
                        self._files.unlink(self._folder, segment.hex() + suffix)
                    except FileNotFoundError:
                        continue
                self._health.sync_folder(self._folder, "folder log")
            if known is not None:
                known.retire()

    # ---- files ----------------------------------------------------------------------------------------------

    def _get(self, segment: bytes) -> Segment:
        found = self._segments.get(segment)
        if found is None:
            found = self._load(segment)
            self._segments[segment] = found
        return found

    def _load(self, segment: bytes) -> Segment:
        what = f"log segment {segment.hex()}"
        with self._health.reading(what):
            if not self._folder_synced:
                self._health.sync_folder(self._folder, "folder log")
                self._folder_synced = True
            name = self._find(segment)
            fd = self._files.open(self._folder, name, write=True)
            try:
                self._health.sync_data(fd, what)
                data = self._files.read(fd, self._files.fstat(fd).size, 0)
                head = self._checked_head(segment, data)
                return Segment(self._files, self._health, self._folder, fd, name, head, data)
            except BaseException:
                self._files.close(fd)
                raise

    def _find(self, segment: bytes) -> str:
        for suffix in (SEALED, OPEN):  # both: a seal's rename was under way; the sealed one counts
            try:
                self._files.stat(self._folder, segment.hex() + suffix)
            except FileNotFoundError:
                continue
            return segment.hex() + suffix
        self._health.probe()
        raise NotFound(f"drive {self._health.name} does not have log segment {segment.hex()}")

    def _checked_head(self, segment: bytes, data: bytes) -> LogHead:
        cluster, head = logfile.parse_head(data)
        if cluster != self._cluster or head.segment != segment:
            raise Corrupt(f"drive {self._health.name}: the file of log segment {segment.hex()} holds another one")
        return head

    def _read_head(self, segment: bytes, name: str) -> LogHead:
        with self._health.reading(f"log segment {segment.hex()}"):
            fd = self._files.open(self._folder, name)
            try:
                return self._checked_head(segment, self._files.read(fd, logfile.HEAD_SIZE, 0))
            finally:
                self._files.close(fd)

    def _make_or_free(self, head: LogHead, capacity: int, reserve_class: int) -> Segment:
        try:
            return self._make(head, capacity, reserve_class)
        except NoSpace:
            if reserve_class != space.METADATA or not self._reserve():
                raise
            return self._make(head, capacity, reserve_class)

    def _make(self, head: LogHead, capacity: int, reserve_class: int) -> Segment:
        name = head.segment.hex()
        data = logfile.build_head(self._cluster, head)
        with self._health.writing(f"log segment {name}"):
            space.require(self._files.space(self._folder), capacity, reserve_class, self._health.name)
            with suppress(FileNotFoundError):
                self._files.unlink(self._tmp, name)  # of an attempt that failed half way
            fd = self._files.create(self._tmp, name)
            try:
                self._files.allocate(fd, capacity)
                self._files.write(fd, (data,), 0)
                self._health.sync_data(fd, f"log segment {name}")
                self._files.rename(self._tmp, name, self._folder, name + OPEN)
                self._health.sync_folder(self._folder, "folder log")
            except BaseException:
                self._files.close(fd)
                self._discard(name)
                raise
            return Segment(self._files, self._health, self._folder, fd, name + OPEN, head, data, capacity)

    def _discard(self, name: str) -> None:
        with suppress(OSError):
            self._files.unlink(self._tmp, name)


def _require_id(segment: bytes) -> None:
    if len(segment) != 16:
        raise Refused("a log segment's id has 16 bytes")


def _parse(name: str) -> bytes | None:
    stem, dot, suffix = name.partition(".")
    if dot + suffix not in (OPEN, SEALED) or len(stem) != 32:
        return None
    try:
        return bytes.fromhex(stem)
    except ValueError:
        return None
