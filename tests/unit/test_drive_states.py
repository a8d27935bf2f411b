"""Pure parts of the drives' life: states and words, root votes, slow drives, puts from before a drain, periods."""

from __future__ import annotations

import click
import pytest

from trivium.admin.cli.drivelife import parse_period
from trivium.admin.draining import PutsBefore, _Wait
from trivium.admin.drivestates import describe, fill_text, state_of
from trivium.admin.naming import with_names
from trivium.cluster.drivepace import ENOUGH, REST_S, DrivePaces
from trivium.cluster.model import ClusterMap, DriveRow, DriveState, PoolRow
from trivium.cluster.rootvotes import next_voters
from trivium.cluster.wire import DriveReport
from trivium.metadata.mapsettings import FOREVER, OutNote, is_maintenance
from trivium.metadata.sessions import Session

GIB = 1 << 30


def drive(number: int, reason: str = "", weight: float = 1.0) -> DriveRow:
    name = f"d{number}"
    return DriveRow(bytes([number]) * 16, name, b"n" * 16, f"r/h{number % 3}", weight, reason, f"drives/{name}")


def report(row: DriveRow, state: str = "ok", total: int = 100 * GIB, free: int = 90 * GIB) -> DriveReport:
    return DriveReport(row.id, state, "" if state == "ok" else f"it is {state}", total, free, 1, row.path)


def cluster(*rows: DriveRow, m: int = 2) -> ClusterMap:
    return ClusterMap(1, rows, (), (PoolRow(1, "default", 4, m),))


def test_states_are_derived() -> None:
    row = drive(1)
    assert state_of(row, report(row), ()) is DriveState.NEW
    assert state_of(row, report(row), (row.id,)) is DriveState.UP
    assert state_of(row, report(row, "full"), (row.id,)) is DriveState.UP
    assert state_of(row, report(row, "wiped"), (row.id,)) is DriveState.DOWN
    assert state_of(row, None, ()) is DriveState.DOWN
    for reason in ("out", "draining", "removed"):
        assert state_of(drive(1, reason), report(row), ()).value == reason


@pytest.mark.parametrize(
    ("total", "free", "said"),
    [
        (100, 50, ""),
        (100, 26, ""),
        (100, 24, "75 %|76 %"),
        (100, 10, "takes no new data"),
        (1000, 100, "at 85 %"),  # 90 % used, but 100 GiB are free: nothing stops yet
        (100, 7, "volumes take no more writes"),
        (100, 2, "healing and cleaning stop"),
    ],
)
def test_a_drive_that_fills_says_so_before_anything_stops(total: int, free: int, said: str) -> None:
    row = drive(1)
    text = fill_text(report(row, total=total * GIB, free=free * GIB))
    assert any(part in text for part in said.split("|")) if said else not text, text


def test_a_description_holds_all_reasons_and_an_out_drive_its_note() -> None:
    row = drive(1, "out")
    found = describe(row, report(row, "missing"), (), {row.id: OutNote("silent for 612 s", True)}, {}, {})
    assert (found["state"], found["text"]) == ("out", "silent for 612 s")
    row = drive(2, weight=0)
    found = describe(row, report(row), (), {}, {}, {row.id: "slow: very"})
    assert found["slow"] and found["text"] == "slow: very; weight 0: takes no new data"


def test_root_votes_follow_the_map_one_at_a_time() -> None:
    rows = [drive(number) for number in range(7)]
    ids = [row.id for row in rows]
    voters = tuple(ids[:5])
    assert next_voters(voters, cluster(*rows), ids) is None
    leaving = cluster(drive(0, "draining"), drive(1, "out"), *rows[2:])
    steps = []
    while (following := next_voters(voters, leaving, ids)) is not None:
        assert len(set(voters) - set(following)) <= 1 and len(set(following) - set(voters)) <= 1
        voters = following
        steps.append(voters)
    assert len(steps) == 2 and ids[1] not in steps[0] and ids[0] in steps[0], "the lost one goes first"
    assert set(voters) == set(ids[2:])


def test_root_votes_shrink_where_there_is_no_drive_and_grow_by_twos() -> None:
    rows = [drive(number) for number in range(5)]
    ids = [row.id for row in rows]
    alone = cluster(drive(0, "out"), *rows[1:])
    assert next_voters(tuple(ids), alone, ids) == tuple(ids[1:])
    assert next_voters(tuple(ids[:1]), cluster(drive(0, "draining")), ids) is None, "the last one keeps its vote"
    assert next_voters(tuple(ids[:3]), cluster(*rows[:4]), ids) is None
    assert len(next_voters(tuple(ids[:3]), cluster(*rows), ids) or ()) == 4
    assert next_voters(tuple(ids[:3]), cluster(*rows), ids[:4]) is None, "a drive that is down gets no vote"


def fed(paces: DrivePaces, drives: int, slow: int = 0, now_s: float = 0.0) -> None:
    for _ in range(2 * ENOUGH):
        for number in range(drives):
            paces.add(bytes([number]), 0.5 if number < slow else 0.01, now_s)


def test_a_slow_drive_is_noticed_beside_its_peers_and_tried_again() -> None:
    paces = DrivePaces()
    fed(paces, 6, slow=1)
    assert set(paces.slow(0)) == {b"\0"} and "500 ms" in paces.slow(0)[b"\0"]
    assert not paces.is_slow(b"\0", REST_S)
    fed(paces, 6, slow=1, now_s=REST_S)
    assert paces.is_slow(b"\0", REST_S + 1.9 * REST_S), "the second rest is longer"
    fed(paces, 6, slow=0, now_s=4 * REST_S)
    assert not paces.slow(4 * REST_S)


def test_a_slow_machine_demotes_nobody_and_few_at_a_time() -> None:
    paces = DrivePaces()
    fed(paces, 6, slow=6)
    assert not paces.slow(0)
    paces = DrivePaces()
    fed(paces, 8, slow=3)
    assert len(paces.slow(0)) <= 2


def test_read_errors_demote_a_drive() -> None:
    paces = DrivePaces()
    for now_s in (0.0, 100.0, 200.0, 201.0):
        paces.error(b"a", now_s)
        assert not paces.slow(now_s)
    paces.error(b"a", 202.0)
    assert "read errors" in paces.slow(202.0)[b"a"]


def test_a_put_from_before_is_waited_for_until_the_floor_has_passed_it() -> None:
    session = Session(7, "c", "h", 0, map_version=4, beats=10, floor=5, top=9)
    before = PutsBefore(5, {7: _Wait()})
    assert before.look([session]) == {7}
    session.beats, session.floor, session.top = 20, 10, 9
    assert before.look([session]) == {7}, "it has not been sent the map"
    session.map_version = 5
    assert before.look([session]) == {7}
    session.beats, session.top = 21, 12
    assert before.look([session]) == {7}, "this heartbeat may have been on its way before"
    session.beats, session.floor = 22, 12
    assert before.look([session]) == {7}, "counter 12 is not settled"
    session.floor = 13
    assert before.look([session]) == frozenset()
    assert PutsBefore(5, {7: _Wait()}).look([]) == frozenset(), "a session that has ended commits nothing"


def test_words() -> None:
    row = drive(3)
    assert with_names(f"drive {row.id.hex()} is away, {'f' * 32} too", [row]) == (
        f"drive d3 (drives/d3) is away, {'f' * 32} too"
    )
    assert is_maintenance(FOREVER, 1) and is_maintenance(2, 1) and not is_maintenance(1, 2) and not is_maintenance(0, 0)
    assert (parse_period("90m"), parse_period("2h"), parse_period("1D")) == (5400, 7200, 86400)
    for wrong in ("", "2", "0h", "-1h", "two hours"):
        with pytest.raises(click.BadParameter):
            parse_period(wrong)
