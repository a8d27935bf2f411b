"""The placement simulation in small: what docs/scale.md claims holds, and chain and play agree."""

from __future__ import annotations

import random

import pytest
from bench import durability, placementsim
from bench.scale import compare, measure

from trivium.cluster.model import Profile

POOLS = [(10, (2, 1)), (10, (4, 2)), (100, (1, 2)), (100, (4, 2)), (100, (8, 4))]


@pytest.mark.parametrize(("drives", "profile"), POOLS)
def test_pools_are_even_and_outlive_a_host(drives: int, profile: tuple[int, int]) -> None:
    row = measure(drives, Profile(*profile), 300)
    assert row is not None
    least, most, sd = row.filled.balance()
    if drives > 10:  # few hosts of unequal size cannot be both even and spread
        assert 0.4 < least <= 1 <= most < 2.2 and sd < 0.35
    assert row.spread[0] == 1
    assert row.repair.doubled == 0
    assert abs(row.repair.moved_tb - max(row.filled.used.values())) < 1e-6


def test_levelling_by_fill_evens_out_what_chance_does_not() -> None:
    cluster_map = placementsim.make_pool(100, random.Random(3))
    few, many = (placementsim.fill_pool(cluster_map, Profile(4, 2), count).balance()[2] for count in (60, 900))
    assert many < few / 2


def test_the_chain_agrees_with_the_play() -> None:
    row = compare(100, Profile(4, 2), 40, 4.0, 24.0)
    assert row.expected > 100
    assert abs(row.played.sets_lost - row.expected) < 0.35 * row.expected  # sets share drives: they fail in bunches


def test_one_drive_without_parity_is_lost_when_it_fails() -> None:
    assert durability.time_to_loss(1, 0, 1 / 50, 24) == pytest.approx(50)
    # a mirrored pair: 3/2r + 1/(2 r^2 t), the textbook's formula
    assert durability.time_to_loss(2, 1, 0.001, 10) == pytest.approx(1500 + 1 / (2 * 1e-6 * 10))
