"""python -m bench.scale [--quick]: placement at 10 to 10,000 drives, as tables. Seeded: the same numbers each time.

See docs/scale.md for what each column means and what follows.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from bench import durability, placementsim
from trivium.cluster.model import Profile

PROFILES = (Profile(1, 2), Profile(2, 1), Profile(4, 2), Profile(8, 3), Profile(8, 4))
PROPOSALS = {10: 1_500, 100: 2_000, 1_000: 2_000, 10_000: 600}
AFR = 0.02  # of drives in a year
DRIVE_MB_S = 50.0  # of each drive, for repair: the floor beside clients
WAIT_HOURS = 10 / 60  # down until out
SEED = 20


@dataclass(frozen=True, slots=True)
class Row:
    drives: int
    profile: Profile
    filled: placementsim.Filled
    spread: tuple[float, float]
    moved: tuple[float, float]
    repair: placementsim.Repair
    lost_sets_year: float  # expected, at AFR


def measure(drives: int, profile: Profile, proposals: int) -> Row | None:
    if profile.width > drives:
        return None
    cluster_map = placementsim.make_pool(drives, random.Random(SEED + drives))
    filled = placementsim.fill_pool(cluster_map, profile, proposals)
    held = sorted(cluster_map.drives, key=lambda row: filled.used[row.id])
    repaired = placementsim.repair(filled, held[-1], DRIVE_MB_S, WAIT_HOURS)  # the drive that holds the most
    hours = durability.time_to_loss(profile.width, profile.m, AFR / durability.HOURS, repaired.hours)
    return Row(
        drives,
        profile,
        filled,
        placementsim.spread(filled),
        placementsim.hash_movement(cluster_map, profile, 20 if drives >= 10_000 else 200),
        repaired,
        len(filled.sets()) * durability.HOURS / hours,
    )


def table(rows: list[Row]) -> Iterator[str]:
    yield (
        "| drives | profile | least / most / sd of fill | open | sets | outlive host / rack | moved / needed |"
        " repair TB | peers | hours | sets lost a year | ms |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        least, most, sd = row.filled.balance()
        yield (
            f"| {row.drives:,} | {row.profile} | {least:.2f} / {most:.2f} / {sd:.3f} | {row.filled.open}"
            f" | {len(row.filled.sets()):,} | {row.spread[0]:.0%} / {row.spread[1]:.0%}"
            f" | {row.moved[0]:.3f} / {row.moved[1]:.3f} | {row.repair.moved_tb:.1f} | {row.repair.peers:,}"
            f" | {row.repair.hours:.1f} | {row.lost_sets_year:.1e} | {row.filled.proposal_ms:.2f} |"
        )


@dataclass(frozen=True, slots=True)
class Compared:
    drives: int
    profile: Profile
    sets: int
    years: int
    expected: float
    played: durability.Played


def compare(drives: int, profile: Profile, years: int, afr: float, hours: float) -> Compared:
    """Chain and play on the same real drive sets, with drives so bad that losses are seen."""
    rng = random.Random(SEED)
    filled = placementsim.fill_pool(placementsim.make_pool(drives, rng), profile, 200)
    sets = sorted(filled.sets(), key=sorted)
    rate = afr / durability.HOURS
    played = durability.play(rng, drives, placementsim.index_sets(filled, sets), profile.m, rate, hours, years)
    mean = durability.time_to_loss(profile.width, profile.m, rate, hours)
    return Compared(drives, profile, len(sets), years, len(sets) * years * durability.HOURS / mean, played)


def comparison(rows: list[Compared]) -> Iterator[str]:
    yield "| drives | profile | sets | years | sets lost: chain | played | years with a loss | at most (chain) |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        bound = min(1.0, row.expected / row.years)
        yield (
            f"| {row.drives:,} | {row.profile} | {row.sets} | {row.years} | {row.expected:.0f}"
            f" | {row.played.sets_lost} | {row.played.years_with_loss / row.years:.3f} | {bound:.3f} |"
        )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="10 and 100 drives, fewer groups")
    quick = parser.parse_args(arguments).quick
    rows = []
    for drives, proposals in PROPOSALS.items():
        for profile in PROFILES:
            if quick and drives > 100:
                continue
            say(f"{drives} drives, {profile}")
            row = measure(drives, profile, proposals // 10 if quick else proposals)
            if row is not None:
                rows.append(row)
                print("\n".join(list(table([row]))[0 if len(rows) == 1 else 2 :]), flush=True)
    years = 20 if quick else 100
    say("chain and play")
    played = [compare(100, profile, years, 4.0, 24.0) for profile in PROFILES] + (
        [] if quick else [compare(1_000, profile, 10, 4.0, 24.0) for profile in PROFILES]
    )
    print()
    print("\n".join(comparison(played)))
    doubled = sum(row.repair.doubled for row in rows)
    worst = statistics.median(row.filled.proposal_ms for row in rows)
    print(f"\nsubstitutes on a host that had a shard while another had none: {doubled}; median proposal {worst:.2f} ms")


if __name__ == "__main__":
    main()
