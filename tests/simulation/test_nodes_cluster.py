"""Pools over several machines under everything at once, nodes that die and are cut off among it. See nodesworld.py."""

from __future__ import annotations

from tests.simulation.nodesworld import schedule
from tests.simulation.runner import assert_replays, run_schedules


def test_what_was_answered_is_there_whatever_node_dies() -> None:
    run_schedules(schedule, count=3)


def test_a_seed_of_several_nodes_replays() -> None:
    assert_replays(schedule, 1)
