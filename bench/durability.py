"""How probably a drive set loses data: exact for one set (a Markov chain), and by playing drives' lives.

A set of n = k + m drives has lost data when more than m of them are down at once. Each drive fails at `rate` and is
whole again after a repair that takes an exponential time of mean `repair`; repairs run side by side. All times are in
hours. `chain` gives the expected number of losses per set and hour from the empty state; sets that share drives fail
together, so the number of *sets* lost adds up exactly, while the probability that *any* is lost is at most that
number. `play` lets every drive of a pool fail and heal and counts the same two things.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

HOURS = 24 * 365.25


def time_to_loss(n: int, m: int, rate: float, repair: float) -> float:
    """Hours until a whole set of n drives has m + 1 down at once: birth and death, absorbed at m + 1.

    From state i the time to i + 1 is t_i = 1/up_i + down_i/up_i * t_(i-1).
    """
    total = step = 0.0
    for down in range(m + 1):
        fail, heal = (n - down) * rate, down / repair
        step = (1 + heal * step) / fail
        total += step
    return total


@dataclass(frozen=True, slots=True)
class Played:
    years: float
    drive_failures: int
    sets_lost: int
    years_with_loss: int


def play(
    rng: random.Random, drives: int, sets: Sequence[Sequence[int]], m: int, rate: float, repair: float, years: int
) -> Played:
    """Each year begins whole. A set counts as lost once in a row: again only after it has been whole again."""
    of: dict[int, list[int]] = defaultdict(list)
    for number, members in enumerate(sets):
        for drive in members:
            of[drive].append(number)
    failures = lost = bad_years = 0
    for _ in range(years):
        down = [0] * len(sets)
        dead: set[int] = set()  # sets that are lost until none of their drives is down
        before = lost
        events = [(rng.expovariate(rate), drive, True) for drive in range(drives)]
        heapq.heapify(events)
        while events and events[0][0] < HOURS:
            at, drive, fails = heapq.heappop(events)
            heapq.heappush(events, (at + rng.expovariate(1 / repair if fails else rate), drive, not fails))
            failures += fails
            for number in of[drive]:
                down[number] += 1 if fails else -1
                if down[number] > m and number not in dead:
                    dead.add(number)
                    lost += 1
                elif not down[number]:
                    dead.discard(number)
        bad_years += lost > before
    return Played(years, failures, lost, bad_years)
