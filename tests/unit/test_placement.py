from collections import Counter
from dataclasses import dataclass

import pytest

from trivium.cluster.model import ClusterMap, DriveRow, Group, PoolRow, Profile
from trivium.cluster.placement import narrow, open_groups, propose, propose_group, substitutes, usable

P42 = Profile(4, 2)


@dataclass(frozen=True)
class D:
    host: str
    weight: float = 1.0
    device: int = 0
    reason: str = ""


def cluster(*drives: D) -> ClusterMap:
    return ClusterMap(
        1,
        tuple(
            DriveRow(bytes([n]) * 16, f"d{n}", d.host.encode(), d.host, d.weight, d.reason, device=d.device)
            for n, d in enumerate(drives)
        ),
    )


def ids(cluster_map: ClusterMap) -> set[bytes]:
    return {row.id for row in cluster_map.drives}


def hosts(cluster_map: ClusterMap, drives: tuple[bytes, ...]) -> Counter[str]:
    home = {row.id: row.domain for row in cluster_map.drives}
    return Counter(home[drive] for drive in drives)


def test_a_proposal_names_distinct_usable_drives() -> None:
    m = cluster(*(D(f"r/h{n % 3}") for n in range(9)), D("r/h0", reason="draining"), D("r/h1", weight=0))
    for seed in range(50):
        drives = propose(m, P42, ids(m), seed)
        assert len(set(drives)) == 6
        assert set(drives) <= {row.id for row in m.drives[:9]}


def test_shards_are_spread_evenly_over_hosts() -> None:
    m = cluster(*(D(f"r/h{n % 3}") for n in range(12)))
    for seed in range(50):
        assert set(hosts(m, propose(m, P42, ids(m), seed)).values()) == {2}


def test_racks_are_evened_out_before_hosts_where_one_may_be_lost() -> None:
    m = cluster(*(D("a/h1") for _ in range(4)), *(D("b/h2") for _ in range(2)), *(D("b/h3") for _ in range(4)),
                *(D(f"c/h{n}") for n in range(4, 8)))  # fmt: skip
    for seed in range(30):
        count = hosts(m, propose(m, P42, ids(m), seed))
        assert count["a/h1"] == 2 and count["b/h2"] + count["b/h3"] == 2


def test_hosts_are_evened_out_where_no_rack_may_be_lost_anyway() -> None:
    """Two racks: 3 + 3 would put three shards of 4+2 on the one host of rack a, and its loss would be too much."""
    m = cluster(*(D("a/h1") for _ in range(4)), *(D("b/h2") for _ in range(2)), *(D("b/h3") for _ in range(4)))
    for seed in range(30):
        drives = propose(m, P42, ids(m), seed)
        assert set(hosts(m, drives).values()) == {2}
        gone = drives[seed % 6]
        kept = [drive for drive in drives if drive != gone]
        found = substitutes(m, kept, 1, 2, ids(m) - {gone}, seed)
        if m.drives[gone[0]].domain != "b/h2":  # it has no other drive
            assert set(hosts(m, (*kept, *found)).values()) == {2}


def test_as_even_as_the_drives_allow() -> None:
    m = cluster(*(D("r/big") for _ in range(5)), D("r/a"), D("r/b"))
    for seed in range(30):
        count = hosts(m, propose(m, P42, ids(m), seed))
        assert count == {"r/big": 4, "r/a": 1, "r/b": 1}


def test_drives_of_one_disk_are_taken_last() -> None:
    m = cluster(*(D("r/h", device=5) for _ in range(5)), *(D("r/h", device=n) for n in range(10, 15)))
    for seed in range(30):
        drives = propose(m, P42, ids(m), seed)
        assert sum(m.drives[drive[0]].device == 5 for drive in drives) == 1


def test_the_same_arguments_give_the_same_proposal_and_seeds_differ() -> None:
    m = cluster(*(D(f"r/h{n}") for n in range(20)))
    assert propose(m, P42, ids(m), 3) == propose(m, P42, ids(m), 3)
    assert len({frozenset(propose(m, P42, ids(m), seed)) for seed in range(20)}) > 15


def test_use_follows_weight() -> None:
    m = cluster(*(D(f"r/h{n}", weight=3.0 if n == 0 else 1.0) for n in range(30)))
    used = Counter(drive for seed in range(3000) for drive in propose(m, Profile(1, 0), ids(m), seed))
    assert 0.7 < used[bytes([0]) * 16] / (3000 * 3 / 32) < 1.3


def test_a_new_drive_changes_about_its_share_of_proposals() -> None:
    before = cluster(*(D(f"r/h{n}") for n in range(19)))
    after = cluster(*(D(f"r/h{n}") for n in range(20)))
    changed = sum(propose(before, Profile(1, 0), ids(before), s) != propose(after, Profile(1, 0), ids(after), s)
                  for s in range(1000))  # fmt: skip
    assert 20 < changed < 90  # 1/20 of them


def test_open_groups_over_the_same_drives_take_turns_at_the_order() -> None:
    m = cluster(*(D("r/h") for _ in range(6)))
    groups: list[Group] = []
    for number in range(6):
        group = propose_group(m, PoolRow(1, "p", 4, 2), ids(m), number, groups)
        assert group is not None
        groups.append(group)
    for position in range(6):  # each drive is at each position once
        assert len({group.drives[position] for group in groups}) == 6


def test_open_groups_level_the_use_of_drives() -> None:
    m = cluster(*(D("r/h") for _ in range(24)))
    groups: list[Group] = []
    for number in range(8):
        group = propose_group(m, PoolRow(1, "p", 4, 2), ids(m), number, groups)
        assert group is not None
        groups.append(group)
    used = Counter(drive for group in groups for drive in group.drives)
    assert len(used) >= 20 and max(used.values()) <= 4


@pytest.mark.parametrize(
    ("profile", "drives", "shape"),
    [
        ((4, 2), 6, (4, 2)),
        ((4, 2), 9, (4, 2)),
        ((4, 2), 5, (3, 2)),
        ((4, 2), 4, (2, 2)),
        ((4, 2), 3, (1, 2)),
        ((4, 2), 2, (1, 1)),
        ((4, 2), 1, None),
        ((4, 2), 0, None),
        ((8, 4), 11, (7, 4)),
        ((8, 4), 3, (1, 2)),
        ((1, 0), 1, (1, 0)),
        ((4, 0), 1, (1, 0)),
        ((4, 0), 3, (3, 0)),
    ],
)
def test_with_fewer_drives_groups_are_narrower(
    profile: tuple[int, int], drives: int, shape: tuple[int, int] | None
) -> None:
    m = cluster(*(D("r/h") for _ in range(drives)))
    group = propose_group(m, PoolRow(1, "p", *profile), ids(m), 1)
    assert (None if group is None else (group.k, group.m)) == shape
    narrowed = narrow(Profile(*profile), drives)
    assert (None if narrowed is None else (narrowed.k, narrowed.m)) == shape


def test_three_single_drive_hosts_survive_one() -> None:
    """4+2 on three drives: one data shard and two copies; with one host gone still two."""
    m = cluster(D("r/a"), D("r/b"), D("r/c"))
    assert propose_group(m, PoolRow(1, "p", 4, 2), ids(m), 1).m == 2  # type: ignore[union-attr]
    assert propose_group(m, PoolRow(1, "p", 4, 2), ids(m) - {bytes([1]) * 16}, 1).m == 1  # type: ignore[union-attr]


def test_usable_leaves_out_what_is_not_up_or_in_use() -> None:
    m = cluster(D("h"), D("h", reason="out"), D("h", weight=0), D("h"))
    assert [row.id[0] for row in usable(m, ids(m) - {bytes([3]) * 16})] == [0]


def test_what_takes_a_lost_drives_place_keeps_the_group_spread() -> None:
    """Six hosts of three drives, one shard on each: the substitute is on the host that has lost its shard."""
    m = cluster(*(D(f"r/h{n % 6}") for n in range(18)))
    for seed in range(40):
        drives = propose(m, P42, ids(m), seed)
        gone, kept = drives[seed % 6], [drive for drive in drives if drive != drives[seed % 6]]
        found = substitutes(m, kept, 1, 2, ids(m) - {gone}, seed)
        assert set(hosts(m, (*kept, *found)).values()) == {1}


def test_substitutes_go_elsewhere_when_the_host_is_gone_and_are_as_even_as_can_be() -> None:
    m = cluster(*(D(f"r/h{n % 4}") for n in range(16)))
    for seed in range(40):
        drives = propose(m, P42, ids(m), seed)
        home = {row.id: row.domain for row in m.drives}
        kept = [drive for drive in drives if home[drive] != "r/h0"]
        spare = {drive for drive in ids(m) if home[drive] != "r/h0"}
        found = substitutes(m, kept, 6 - len(kept), 2, spare, seed)
        assert len({*kept, *found}) == 6 and set(hosts(m, (*kept, *found)).values()) == {2}


def test_substitutes_are_as_many_as_there_are() -> None:
    m = cluster(*(D("r/h") for _ in range(4)))
    kept = [row.id for row in m.drives[:2]]
    assert set(substitutes(m, kept, 3, 2, ids(m), 1)) == {row.id for row in m.drives[2:]}
    assert substitutes(m, kept, 2, 2, kept, 1) == ()


def test_fuller_drives_are_proposed_less_and_empty_ones_not_without_measure() -> None:
    m = cluster(*(D(f"r/h{n}") for n in range(30)))
    fill = {row.id: 0.5 for row in m.drives} | {bytes([0]) * 16: 0.53, bytes([1]) * 16: 0.0}
    used = Counter(drive for s in range(3000) for drive in propose(m, Profile(1, 0), ids(m), s, fill=fill))
    usual = (3000 - used[bytes([0]) * 16] - used[bytes([1]) * 16]) / 28
    assert used[bytes([0]) * 16] < usual / 2.5
    assert 1.4 * usual < used[bytes([1]) * 16] < 2.8 * usual


def test_large_pools_keep_more_groups_open_but_a_bounded_number() -> None:
    assert [open_groups(drives, 6) for drives in (0, 6, 48, 100, 600, 100_000)] == [8, 8, 8, 17, 100, 256]


def test_most_drives_of_a_large_pool_are_in_an_open_group() -> None:
    """Levelled by what is open already: most, with as many groups as would do exactly (by chance alone it is 65)."""
    m = cluster(*(D(f"r{n % 4}/h{n % 20}") for n in range(100)))
    groups: list[Group] = []
    for number in range(open_groups(100, 6)):
        group = propose_group(m, PoolRow(1, "p", 4, 2), ids(m), number, groups)
        assert group is not None
        groups.append(group)
    used = Counter(drive for group in groups for drive in group.drives)
    assert len(used) >= 70 and max(used.values()) <= 4
