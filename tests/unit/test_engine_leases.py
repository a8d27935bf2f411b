"""The lease table's races, one by one."""

from __future__ import annotations

from trivium.metadata.leases import ENTRY_RECALLS, RECENT_CHANGES, LeaseTable, RecallNeeded

A, B, INO, DIR = 1, 2, 100, 7


def test_no_lease_while_a_change_is_between_its_check_and_its_commit() -> None:
    table = LeaseTable()
    assert table.begin(A, {(INO, b"")}) == []
    assert table.grant(B, INO, 10) is False
    table.end({(INO, b"")}, 11)
    assert table.grant(B, INO, 11) is True


def test_an_answer_from_before_a_visible_change_must_be_read_again() -> None:
    table = LeaseTable()
    table.begin(A, {(INO, b"")})
    table.end({(INO, b"")}, 11)
    assert table.grant(B, INO, 10) is None
    assert table.holds(B, INO)  # noted, so the next read's answer is safe
    assert table.grant(B, INO, 11) is True


def test_forgotten_changes_make_old_snapshots_unusable() -> None:
    table = LeaseTable()
    for seq in range(1, RECENT_CHANGES + 2):
        table.begin(A, {(seq, b"")})
        table.end({(seq, b"")}, seq)
    assert table.grant(B, 1, 1) is None
    assert table.grant(B, 1, RECENT_CHANGES + 1) is True


def test_the_holder_itself_is_not_in_its_own_way_but_others_are() -> None:
    table = LeaseTable()
    table.grant(A, INO, 1)
    assert table.begin(A, {(INO, b"")}) == []
    table.end({(INO, b"")}, 2)
    table.grant(B, INO, 2)
    conflicts = table.begin(A, {(INO, b"")})
    assert conflicts == [(INO, b"")]
    table.hold_back(conflicts)
    assert table.to_recall(A, conflicts) == [RecallNeeded(B, INO, b"")]
    assert table.grant(B, INO, 2) is False  # not while the recall is pending
    table.recalled(RecallNeeded(B, INO, b""))
    assert table.begin(A, {(INO, b"")}) == []
    table.end({(INO, b"")}, 3)
    table.let_go(conflicts)
    assert table.grant(B, INO, 3) is True


def test_an_entry_is_recalled_again_when_its_holder_has_changed_the_directory_since() -> None:
    table = LeaseTable()
    table.grant(B, DIR, 1)
    entry = {(DIR, b"f")}
    conflicts = table.begin(A, entry)
    table.hold_back(conflicts)
    table.recalled(RecallNeeded(B, DIR, b"f"))
    other = {(DIR, b"g")}
    assert table.begin(B, other) == []  # B knows the directory's attributes, by its own doing
    table.end(other, 2)
    assert table.begin(A, entry) == [(DIR, b"f")]
    table.let_go(conflicts)


def test_an_entry_is_recalled_alone_and_the_lease_on_the_directory_stays() -> None:
    table = LeaseTable()
    table.grant(B, DIR, 1)
    for number in range(ENTRY_RECALLS + 1):
        touched = {(DIR, b"%d" % number)}
        conflicts = table.begin(A, touched)
        table.hold_back(conflicts)
        (needed,) = table.to_recall(A, conflicts)
        table.recalled(needed)
        assert table.begin(A, touched) == []
        table.end(touched, number + 2)
        table.let_go(conflicts)
        assert table.holds(B, DIR) is (number < ENTRY_RECALLS)
    assert needed.name == b""


def test_after_a_restart_nothing_changes_until_all_have_reclaimed() -> None:
    table = LeaseTable()
    table.await_reclaim([A, B])
    assert table.begin(A, {(INO, b"")}) == [(INO, b"")]
    table.reclaimed(B)
    assert table.begin(A, {(INO, b"")}) == []
    table.end({(INO, b"")}, 2)
    assert table.begin(3, {(INO, b"")}) == [(INO, b"")]
    table.drop_session(A)
    assert table.begin(3, {(INO, b"")}) == []
