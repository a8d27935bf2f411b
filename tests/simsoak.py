"""Whole-cluster simulations in numbers: new seeds each time, a ledger that adds up.

    python -m tests.simsoak --seeds 500 [--first N] [--jobs 2]

One line per run in .soak/sim.jsonl: first seed, seeds done, seconds, failing seeds. A failing seed replays with
PYTHONHASHSEED=0 TRIVIUM_SEED=<n> python -m pytest tests/simulation/test_cluster.py -k answered
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
import traceback
from multiprocessing import get_context
from pathlib import Path

LEDGER = Path(".soak/sim.jsonl")
REPLAY = "PYTHONHASHSEED=0 TRIVIUM_SEED={} python -m pytest tests/simulation/test_cluster.py -k answered"


def run_seed(seed: int) -> tuple[int, str]:
    """The seed, and "" or what was wrong."""
    from tests.simulation.clusterrun import schedule
    from tests.simulation.runner import run_one

    try:
        run_one(schedule, seed)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return seed, "".join(traceback.format_exception(error))
    return seed, ""


def record(first: int, done: int, seconds: float, failed: list[int]) -> dict[str, int]:
    """Append this run to the ledger; answers the totals."""
    LEDGER.parent.mkdir(exist_ok=True)
    with LEDGER.open("a") as ledger:
        line = {"first": first, "seeds": done, "seconds": round(seconds, 1), "failed": failed, "ended": time.time()}
        ledger.write(json.dumps(line) + "\n")
    runs = [json.loads(text) for text in LEDGER.read_text().splitlines()]
    return {"seeds": sum(run["seeds"] for run in runs), "failed": sum(len(run["failed"]) for run in runs)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=-1, help="default: a random one")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    first = options.first if options.first >= 0 else random.SystemRandom().randrange(1 << 30)
    began, done, failed = time.monotonic(), 0, []
    print(f"seeds {first} to {first + options.seeds - 1}", flush=True)
    try:
        # (not concurrent.futures: on Python 3.11 it stops for ever when its only worker has had its share of tasks)
        with get_context("spawn").Pool(options.jobs, maxtasksperchild=50) as pool:
            for seed, wrong in pool.imap_unordered(run_seed, range(first, first + options.seeds)):
                done += 1
                if done % 20 == 0:
                    print(f"{done} seeds, {len(failed)} failed, {done / (time.monotonic() - began):.2f}/s", flush=True)
                if wrong:
                    failed.append(seed)
                    print(f"{wrong}\nfailing seed: {seed}  (replay: {REPLAY.format(seed)})", flush=True)
    except KeyboardInterrupt:
        pass
    totals = record(first, done, time.monotonic() - began, failed)
    print(f"{done} seeds in {time.monotonic() - began:.0f} s, {len(failed)} failed; all runs: {totals}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"  # the order of sets belongs to the seed
        os.execv(sys.executable, [sys.executable, "-m", "tests.simsoak", *sys.argv[1:]])
    sys.exit(main())
