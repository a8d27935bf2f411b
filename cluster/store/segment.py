"""One open log segment file and what is known about it. Blocking; every call takes the segment's lock."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right

from trivium.cluster import logfile
from trivium.cluster.errors import Corrupt, Fenced, NoSpace, NotFound, Refused
from trivium.cluster.files import FileOps
from trivium.cluster.logfile import HEAD_SIZE, Scan, Tail
from trivium.cluster.store.health import Health
from trivium.cluster.wire import LogHead, LogState

ZEROS = bytes(1 << 20)  # written ahead of the appends


class Segment:
    def __init__(
        self, files: FileOps, health: Health, folder: int, fd: int, name: str, head: LogHead, data: bytes,
        capacity: int = 0,
    ) -> None:  # fmt: skip
        """`data` is the file's contents as they are on the disk (zeros at the end may be left out)."""
        self._files, self._health, self._folder, self._fd, self._name = files, health, folder, fd, name
        self._what = f"log segment {head.segment.hex()}"
        self._lock = threading.Lock()
        self._inode = files.fstat(fd).inode
        self._capacity = capacity or len(data)
        self._zeroed = 0  # up to here the file's blocks are known to be written, not only allocated
        self.head = head
        self.sealed = name.endswith(".sealed")
        found = logfile.scan(memoryview(data)[HEAD_SIZE:], head.segment, head.first_seq, head.previous_hash)
        # a sealed file ends with its last record: anything else there was one, too
        self._hole = found.tail is Tail.HOLE or (self.sealed and HEAD_SIZE + found.end != len(data))
        self._offsets = array("Q", (HEAD_SIZE + at for at in found.offsets))
        self._end = HEAD_SIZE + found.end
        self._dirty_end = HEAD_SIZE + found.tail_end  # bytes of [end, dirty end) belong to no answered append
        self._last_seq, self._last_hash = found.last_seq, found.last_hash

    # ---- calls ----------------------------------------------------------------------------------------------

    def state(self) -> LogState:
        with self._lock:
            self._usable()
            self._check_head()
            return self._state()

    def append(self, first_seq: int, data: memoryview) -> None:
        """Make the records durable. Equal records again are a success; a gap or other records are Refused."""
        with self._lock:
            self._usable()
            if self.sealed:
                raise Fenced(f"{self._what} is sealed after {self._last_seq}")
            if first_seq > self._last_seq + 1 or first_seq < self.head.first_seq:
                raise Refused(f"{self._what} ends with {self._last_seq}: an append cannot begin with {first_seq}")
            scan = logfile.decode_append(data, self.head.segment, first_seq)
            known = self._compare(first_seq, scan)
            if known < len(scan.records):
                self._write(data[scan.offsets[known] :], scan, known)
            else:
                self._still_named()

    def seal(self) -> LogState:
        """Refuse appends durably. A torn tail is cut, the space behind the end given back."""
        with self._lock:
            self._usable()
            if not self.sealed:
                name = self._name.removesuffix(".open") + ".sealed"
                with self._health.writing(self._what):
                    self._still_named()
                    self._files.truncate(self._fd, self._end)
                    self._health.sync_data(self._fd, self._what)
                    self._files.rename(self._folder, self._name, self._folder, name)
                    self._health.sync_folder(self._folder, "folder log")
                self._name, self.sealed = name, True
                self._dirty_end = self._end
            self._still_named()
            return self._state()

    def read(self, from_seq: int, max_bytes: int) -> tuple[LogState, bytes]:
        """Whole records from `from_seq` on, at most `max_bytes` but at least one if there is one."""
        with self._lock:
            self._usable()
            first = from_seq - self.head.first_seq
            if first < 0:
                raise NotFound(f"{self._what} begins with {self.head.first_seq}, after {from_seq}")
            if first >= len(self._offsets):
                return self._state(), b""
            begin = self._offsets[first]
            end = self._end
            if end - begin > max_bytes:
                last = max(bisect_right(self._offsets, begin + max_bytes) - 1, first + 1)
                end = self._offsets[last] if last < len(self._offsets) else end
            return self._state(), self._pread(begin, end)

    def close(self) -> None:
        if self._fd >= 0:
            self._files.close(self._fd)
            self._fd = -1

    def retire(self) -> None:
        """Its file was removed: later calls are NotFound."""
        with self._lock:
            self.close()

    # ---- under the lock -------------------------------------------------------------------------------------

    def _usable(self) -> None:
        self._health.check()
        if self._fd < 0:
            raise NotFound(f"drive {self._health.name} does not have {self._what}")
        if self._hole:
            raise Corrupt(f"drive {self._health.name}: {self._what} has a hole after {self._last_seq}")

    def _check_head(self) -> None:
        """The head was read when the segment was opened; by now it may have rotted."""
        _, head = logfile.parse_head(self._pread(0, HEAD_SIZE))
        if head != self.head:
            raise Corrupt(f"drive {self._health.name}: the head of {self._what} is another one's")

    def _state(self) -> LogState:
        return LogState(self.head, self._last_seq, self._last_hash, self.sealed, self._end)

    def _pread(self, begin: int, end: int) -> bytes:
        with self._health.reading(self._what):
            return self._files.read(self._fd, end - begin, begin)

    def _compare(self, first_seq: int, scan: Scan) -> int:
        """How many of the records are here already. Refused when they differ or do not continue the chain."""
        known = min(self._last_seq + 1 - first_seq, len(scan.records))
        if known:
            begin = first_seq - self.head.first_seq
            end = begin + known
            until = self._offsets[end] if end < len(self._offsets) else self._end
            here = logfile.decode_append(self._pread(self._offsets[begin], until), self.head.segment, first_seq)
            if any(a.hash != b.hash for a, b in zip(here.records, scan.records, strict=False)):
                raise Refused(f"{self._what} has other records from {first_seq} on")
        if known < len(scan.records) and scan.records[known].previous_hash != self._last_hash:
            raise Refused(f"{self._what}: record {self._last_seq + 1} does not follow the one that is here")
        return known

    def _write(self, data: memoryview, scan: Scan, known: int) -> None:
        end = self._end + len(data)
        if end > self._capacity:
            raise NoSpace(f"{self._what} is full: the next records need a new segment")
        with self._health.writing(self._what):
            if self._dirty_end > self._end:
                self._clear()
            self._dirty_end = end  # until it is known to be durable
            self._files.write(self._fd, (data,), self._end)
            self._zero_behind(end)
            self._health.sync_data(self._fd, self._what)
            self._still_named()
        shift = self._end - scan.offsets[known]
        self._offsets.extend(at + shift for at in scan.offsets[known:])
        self._end = self._dirty_end = end
        self._last_seq, self._last_hash = scan.last_seq, scan.last_hash

    def _zero_behind(self, end: int) -> None:
        """Allocated but unwritten extents are converted by the first sync after each append, which costs a commit of
        the file system's journal every time: three appends side by side took 1.0 ms so, and 0.5 ms over zeros. A
        mebibyte at a time, so that a restart, which begins a segment, does not wait for sixteen."""
        if end > self._zeroed:
            self._zeroed = min(self._capacity, end + len(ZEROS))
            self._files.write(self._fd, (memoryview(ZEROS)[: self._zeroed - end],), end)

    def _clear(self) -> None:
        """Zero what an append left that was never answered, so that it cannot be mistaken for a later record."""
        self._files.write(self._fd, (bytes(self._dirty_end - self._end),), self._end)
        self._health.sync_data(self._fd, self._what)
        self._dirty_end = self._end

    def _still_named(self) -> None:
        """A wiped drive's open descriptor accepts appends that nobody will ever read."""
        try:
            named = self._files.stat(self._folder, self._name).inode == self._inode
        except OSError:
            named = False
        if not named:
            self._health.probe()
            self.close()
            raise NotFound(f"drive {self._health.name} lost the file of {self._what}")
