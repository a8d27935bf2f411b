"""Up, down, out; and how long a leader leads."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trivium.cluster.liveness import LeaderLease, Liveness

DRIVES = [bytes((n,)) * 16 for n in range(8)]


def watched(count: int = 8, start_s: float = 1000.0) -> Liveness:
    live = Liveness(start_s)
    live.follow(DRIVES[:count], start_s)
    return live


def test_nobody_is_down_in_the_first_t() -> None:
    live = watched()
    assert not live.down(1019.9)
    assert live.down(1020.0) == frozenset(DRIVES)


def test_silence_makes_down_and_a_heartbeat_makes_up() -> None:
    live = watched()
    for drive in DRIVES[1:]:
        live.heartbeat(drive, 1015.0)
    assert live.down(1025.0) == {DRIVES[0]}
    live.heartbeat(DRIVES[0], 1024.0, "full")
    assert not live.down(1025.0)


def test_a_late_answer_counts_from_its_question() -> None:
    live = watched()
    live.heartbeat(DRIVES[0], 1001.0)
    assert DRIVES[0] in live.down(1021.0)


def test_out_after_ten_minutes_and_never_past_the_cap() -> None:
    live = watched()
    for drive in DRIVES[5:]:
        live.heartbeat(drive, 1600.0)
    assert not live.outs(1599.0, m=2)
    outs = live.outs(1601.0, m=2)
    assert len(outs) == 2 and all("silent for" in why for why in outs.values())
    assert live.held_back(1601.0, m=2) == 3
    assert not live.outs(1601.0, m=2, already=set(outs))
    assert len(live.outs(1601.0, m=3)) == 3


def test_with_seven_drives_the_second_dead_one_is_healed_too() -> None:
    live = watched(7)
    for drive in DRIVES[2:7]:
        live.heartbeat(drive, 2000.0)
    assert set(live.outs(2000.0, m=2)) == set(DRIVES[:2])


def test_io_errors_are_out_at_once_and_do_not_count() -> None:
    live = watched()
    for drive in DRIVES[:4]:
        live.heartbeat(drive, 1001.0, "failed", "EIO on fsync")
    assert set(live.outs(1001.0, m=2)) == set(DRIVES[:4])
    assert live.down(1001.0) == frozenset(DRIVES[:4])
    outs = live.outs(1700.0, m=2, already=set(DRIVES[:4]))
    assert len(outs) == 2 and not set(outs) & set(DRIVES[:4])


def test_full_is_neither_down_nor_out() -> None:
    live = watched()
    for now in range(1000, 3000, 2):
        for drive in DRIVES:
            live.heartbeat(drive, now, "full", "ENOSPC")
    assert not live.down(3000.0) and not live.outs(3000.0, m=2)


def test_a_lease_counts_from_the_question_and_survives_no_sleep() -> None:
    lease = LeaderLease()
    assert not lease.valid(0.0)
    lease.confirmed(100.0)
    assert lease.valid(109.9) and not lease.valid(110.0)
    lease.confirmed(90.0)  # an older answer changes nothing
    assert lease.valid(109.9)
    assert not lease.valid(100.0 + 3600)  # boot time went on while the machine slept
    lease.lost()
    assert not lease.valid(100.0)


@given(asked=st.floats(0, 1e6), delay=st.floats(0, 1e3), later=st.floats(0, 100))
def test_two_leaders_never_overlap(asked: float, delay: float, later: float) -> None:
    """The old one's last majority was asked before the successor's ballot was promised."""
    lease = LeaderLease()
    lease.confirmed(asked)
    promised = asked + delay  # promises later than the question that was still confirmed
    assert lease.until_s() <= lease.successor_from_s(promised)
    assert lease.successor_from_s(promised, released=True) == promised
