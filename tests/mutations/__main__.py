"""Break the product on purpose, one fault at a time, and see that the simulation says so.

    python -m tests.mutations [--only NAME ...] [--seeds N] [--jobs N] [--write]

Each mutation runs against seeds 0 to N-1 of the whole-cluster simulation and then, if those notice nothing, against
the narrower tests that it names. Exit status 1 when one survives or does not fit the source any more. `--write` makes
docs/mutations.md from what was seen.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.mutations.apply import CAUGHT, STALE, SURVIVED
from tests.mutations.listed import MUTATIONS, Mutation

LIMIT_S = 900.0
TABLE = Path("docs/mutations.md")


@dataclass(frozen=True, slots=True)
class Verdict:
    mutation: Mutation
    by: str  # "simulation", a test, "" (survived) or "?" (does not fit)
    what: str


def run(mutation: Mutation, how: str, arguments: Iterable[str]) -> tuple[int, str]:
    command = [sys.executable, "-m", "tests.mutations.apply", mutation.name, how, *arguments]
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return CAUGHT, f"does not end within {LIMIT_S:.0f} s"
    if done.returncode not in (SURVIVED, CAUGHT):
        return STALE, (done.stdout + done.stderr)[-600:]
    return done.returncode, done.stdout


def judge(mutation: Mutation, seeds: int) -> Verdict:
    status, output = run(mutation, "sim", map(str, range(seeds)))
    if status == STALE:
        return Verdict(mutation, "?", output)
    if status == CAUGHT:
        return Verdict(mutation, "simulation", output.strip().splitlines()[-1])
    for test in mutation.tests:
        status, output = run(mutation, "tests", [test])
        if status == STALE:
            return Verdict(mutation, "?", output)
        if status == CAUGHT:
            failed = [line for line in output.splitlines() if line.startswith("FAILED")]
            return Verdict(mutation, "tests", failed[0].split()[1].removeprefix("tests/") if failed else test)
    return Verdict(mutation, "", f"passed {seeds} seeds and {len(mutation.tests)} narrower tests")


def table(verdicts: Iterable[Verdict], seeds: int) -> str:
    lines = [
        "# Deliberate faults and what says so",
        "",
        "`make mutations` breaks the product on purpose, one fault at a time (tests/mutations/listed.py: a change of",
        "one place, made while the module is imported, never in the work tree) and writes this table. First come seeds",
        f"0 to {seeds - 1} of the whole-cluster simulation; a fault that these do not notice runs against the narrower",
        "tests that it names. A fault that nothing notices fails the run, and so does one whose place has changed.",
        "",
        "| fault | what is broken | caught by | how |",
        "|---|---|---|---|",
    ]
    for verdict in verdicts:
        what = verdict.what.replace("|", "\\|")
        how = f"`{what}`" if verdict.by == "tests" else what
        by = verdict.by or "**nothing**"
        lines.append(f"| {verdict.mutation.name} | {verdict.mutation.what} | {by} | {how} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--write", action="store_true", help=f"write {TABLE}")
    options = parser.parse_args()
    chosen = [one for one in MUTATIONS if not options.only or one.name in options.only]
    verdicts = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for verdict in pool.map(lambda one: judge(one, options.seeds), chosen):
            verdicts.append(verdict)
            print(f"{verdict.mutation.name}: {verdict.by or 'SURVIVED'}: {verdict.what}", flush=True)
    caught = [verdict for verdict in verdicts if verdict.by in ("simulation", "tests")]
    by_simulation = sum(verdict.by == "simulation" for verdict in caught)
    print(f"{len(caught)} of {len(verdicts)} caught, {by_simulation} by the whole-cluster simulation")
    if options.write:
        TABLE.write_text(table(verdicts, options.seeds))
    return 0 if len(caught) == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
