"""A drive's copy of the root register: promise, accept, read. The file's layout is rootfile's.

Invariants:
1. A promise or an accepted value is answered only after its slot is durable.
2. What is in memory is what the newest valid slot holds; when neither verified at start, the drive does not vote
   (every call is Corrupt) until it is formatted again.
3. `promised` never goes down.
"""

from __future__ import annotations

import threading

from trivium.cluster import rootfile
from trivium.cluster.errors import Corrupt, Fenced, Refused
from trivium.cluster.files import FileOps
from trivium.cluster.model import Ballot, RootSlot
from trivium.cluster.rootfile import Slot
from trivium.cluster.store.health import Health


class RootCell:
    def __init__(self, files: FileOps, health: Health, fd: int, drive: bytes, data: bytes) -> None:
        self._files, self._health, self._fd, self._drive = files, health, fd, drive
        self._lock = threading.Lock()
        self._slot: Slot | None = None
        self._broken = ""
        try:
            self._slot = rootfile.newest(drive, data)
        except Corrupt as error:
            self._broken = f"drive {health.name}: {error}"

    def read(self) -> RootSlot:
        self._health.check()
        return self._current().value

    def promise(self, ballot: Ballot) -> RootSlot:
        """Promise not to accept lower ballots. Fenced when a higher one was promised."""
        with self._lock:
            value = self.read()
            if ballot < value.promised:
                raise Fenced(f"drive {self._health.name} has promised ballot {value.promised.number}")
            if ballot > value.promised:
                value = RootSlot(ballot, value.accepted, value.version, value.root)
                self._write(value)
            return value

    def accept(self, slot: RootSlot, hint: bool = False) -> RootSlot:
        """Store a value under slot.accepted; Fenced when a higher ballot was promised or a newer value is here."""
        if slot.root is None:
            raise Refused("an accepted root needs a value")
        with self._lock:
            value = self.read()
            older = slot.version < value.version or (slot.version == value.version and slot.root != value.root)
            if hint:
                if older:
                    raise Fenced(f"drive {self._health.name} has version {value.version} of the root")
            elif slot.accepted < value.promised:
                raise Fenced(f"drive {self._health.name} has promised ballot {value.promised.number}")
            elif slot.accepted == value.accepted and older:
                raise Fenced(f"drive {self._health.name} has version {value.version} of this ballot's root")
            new = RootSlot(max(value.promised, slot.accepted), slot.accepted, slot.version, slot.root)
            if hint:
                new = RootSlot(value.promised, slot.accepted, slot.version, slot.root)
            if new != value:
                self._write(new)
            return new

    def scrub(self) -> bool:
        """Read both slots back and write the value anew until neither has rotted. Answers whether one had."""
        with self._lock:
            for attempt in range(3):
                if self._slot is None or not self._rotten(self._slot.generation):
                    return attempt > 0
                self._write(self._slot.value)
        return True

    def _rotten(self, generation: int) -> bool:
        with self._health.reading("the root file"):
            for one in (generation, generation + 1):
                data = self._files.read(self._fd, rootfile.SLOT_SIZE, rootfile.slot_offset(one))
                try:
                    slot = rootfile.parse_slot(self._drive, data)
                except Corrupt:
                    if one == generation or any(data):
                        return True
                    continue
                if one == generation and slot != self._slot:
                    return True
        return False

    def _current(self) -> Slot:
        if self._slot is None:
            raise Corrupt(self._broken)
        return self._slot

    def _write(self, value: RootSlot) -> None:
        slot = Slot(self._current().generation + 1, value)
        data = rootfile.build_slot(self._drive, slot)
        with self._health.writing("the root file"):
            self._files.write(self._fd, (data,), rootfile.slot_offset(slot.generation))
            self._health.sync_data(self._fd, "the root file")
        self._health.probe()  # a wiped drive's open descriptor would still have taken it
        self._slot = slot
