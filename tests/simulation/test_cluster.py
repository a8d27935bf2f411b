"""Whole pools under everything at once; what each name may hold is in the model. See world.py, clusterrun.py."""

from __future__ import annotations

from tests.simulation.clusterrun import schedule
from tests.simulation.runner import assert_replays, run_schedules


def test_what_was_answered_is_there_whatever_dies() -> None:
    run_schedules(schedule, count=16)


def test_a_seed_replays() -> None:
    assert_replays(schedule, 5)
