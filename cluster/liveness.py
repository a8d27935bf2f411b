"""Who is alive, decided from heartbeats alone. Pure: every call takes `now_s` (seconds of CLOCK_BOOTTIME).

    unheard --heartbeat--> up --T without one--> down --10 min--> out (the caller records it; undone by hand)
                            ^--------heartbeat---------|

Invariants
1. Nobody is down before a whole T has passed since the watch began: a cold start marks nobody.
2. At most max(m, 25 % of the drives) are out for silence at a time; drives with real I/O errors are out at once and do
   not count. ENOSPC is no I/O error.
3. Periods count from the sending of a question, never from the arrival of its answer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

T_S = 20.0
HEARTBEAT_S = 2.0
OUT_AFTER_S = 600.0
OUT_SHARE = 0.25

FAILED_STATES = frozenset({"failed", "wiped"})
"""Drive states of wire.DriveReport that put a drive out at once."""


@dataclass(slots=True)
class _Seen:
    heard_s: float  # sending time of the newest question that was answered "ok" (or "full")
    failed: str = ""  # why the drive itself is out of use


@dataclass(slots=True)
class Liveness:
    """Up and down of drives, and which ones to put out. One per metadata server (or client, for hints)."""

    start_s: float
    t_s: float = T_S
    out_after_s: float = OUT_AFTER_S
    _seen: dict[bytes, _Seen] = field(default_factory=dict)

    def follow(self, drives: Iterable[bytes], now_s: float) -> None:
        """The drives of the newest map; new ones get a whole T, others are forgotten."""
        self._seen = {drive: self._seen.get(drive) or _Seen(max(now_s, self.start_s)) for drive in drives}

    def heartbeat(self, drive: bytes, asked_s: float, state: str = "ok", text: str = "") -> None:
        """A node answered a question sent at `asked_s` with this state of the drive."""
        seen = self._seen.get(drive)
        if seen is None:
            return
        if state in FAILED_STATES:
            seen.failed = text or state
        elif state in ("ok", "full"):
            seen.heard_s = max(seen.heard_s, asked_s)
            seen.failed = ""

    def down(self, now_s: float) -> frozenset[bytes]:
        """Drives that take no new data: silent for T, or failed."""
        return frozenset(d for d, seen in self._seen.items() if seen.failed or now_s - seen.heard_s >= self.t_s)

    def silent_s(self, drive: bytes, now_s: float) -> float:
        seen = self._seen.get(drive)
        return 0.0 if seen is None else max(0.0, now_s - seen.heard_s)

    def outs(self, now_s: float, *, m: int, already: Collection[bytes] = ()) -> dict[bytes, str]:
        """Drives to put out now, with the reason as a sentence. `already`: those that are out for silence."""
        due = {d: f"failed: {seen.failed}" for d, seen in self._seen.items() if seen.failed and d not in already}
        room = max(m, int(OUT_SHARE * len(self._seen))) - sum(
            1 for d in already if d in self._seen and not self.failed(d)
        )
        waiting = [
            (seen.heard_s, drive)
            for drive, seen in self._seen.items()
            if not seen.failed and drive not in already and now_s - seen.heard_s >= self.out_after_s
        ]
        for heard_s, drive in sorted(waiting)[: max(room, 0)]:
            due[drive] = f"silent for {int(now_s - heard_s)} s"
        return due

    def held_back(self, now_s: float, *, m: int, already: Collection[bytes] = ()) -> int:
        """How many silent drives the cap keeps in: status says so."""
        outs = self.outs(now_s, m=m, already=already)
        silent = [d for d, s in self._seen.items() if not s.failed and now_s - s.heard_s >= self.out_after_s]
        return len([d for d in silent if d not in outs and d not in already])

    def failed(self, drive: bytes) -> bool:
        seen = self._seen.get(drive)
        return seen is not None and bool(seen.failed)


@dataclass(slots=True)
class LeaderLease:
    """How long a leader may answer reads and grant leases: until T/2 after it last *asked* a majority that confirmed.

    Times are CLOCK_BOOTTIME, which goes on while the machine sleeps: a suspended leader wakes up without its lease.
    """

    t_s: float = T_S
    _confirmed_s: float = float("-inf")

    @property
    def ask_every_s(self) -> float:
        return self.t_s / 8

    def confirmed(self, asked_s: float) -> None:
        """A question sent at `asked_s` was answered by a majority."""
        self._confirmed_s = max(self._confirmed_s, asked_s)

    def lost(self) -> None:
        """Deposed or released: never again without a new claim."""
        self._confirmed_s = float("-inf")

    def until_s(self) -> float:
        return self._confirmed_s + self.t_s / 2

    def valid(self, now_s: float) -> bool:
        return now_s < self.until_s()

    def successor_from_s(self, promised_s: float, *, released: bool = False, proved_dead: bool = False) -> float:
        """When a successor may serve whose ballot was promised at `promised_s` (the time the last promise arrived)."""
        return promised_s if released or proved_dead else promised_s + self.t_s
