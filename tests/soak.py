"""Kill processes at random under load on all three faces; nothing acknowledged may be lost, nothing deleted return.

    python -m tests.soak --rounds 200 [--seed N] [--resume]

A round is one kill -9 while five writers work on all three faces: of the pool, of the pool and once more while it
starts, of the mount, of the block export, or of all at once. What was killed is started again and the writers go on.
Every value that a writer reads must be one that its model allows (tests/system/faces.py), and no writer may meet an
error unless what it needs itself was killed: mounts and exports wait while the pool is away. Every ten rounds the
writers rest, everything is read through its own face, files as objects, objects as files, and `trivium fsck` must find
nothing. At the end all are killed once more, the metadata directory is removed, and what the drives alone give back
must be the same.

A ledger (.soak/ledger.jsonl) keeps what was done after every such check, so that runs add up; --resume does only what
is missing to --rounds in all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.system.faces import ABSENT, Blocks, Breach, Face, Files, Objects, Worker
from tests.system.pool import TRIVIUM, SystemPool, alive, wait_for

LEDGER = Path(".soak/ledger.jsonl")
CHECK_EVERY = 10
STUCK_S = 120
VICTIMS = ("pool", "pool", "start", "mount", "nbd", "all")


class Soak:
    """A pool, a mount and an export of it, and their writers."""

    def __init__(self, work: Path, seed: int) -> None:
        self.source = random.Random(seed)
        self.pool = SystemPool(work)
        self.mountpoint, self.socket, self.pid_file = work / "mnt", work / "nbd.sock", work / "nbd.pid"
        self.mountpoint.mkdir()
        others = [f"{bucket}/dir{i}" for bucket in ("soak", "second") for i in range(3)]
        self.files = [Files(self.mountpoint, name, seed + 10 + i, others) for i, name in enumerate(("files", "more"))]
        self.objects = [Objects(self.pool, name, seed + 20 + i) for i, name in enumerate(("soak", "second"))]
        self.faces: list[Face] = [*self.objects, *self.files, Blocks("soak", self.socket, seed + 30)]
        self.workers: list[Worker] = []
        self.restart_s: dict[str, list[float]] = {}
        self.longest_s: dict[str, float] = {}

    def begin(self) -> None:
        self.pool.up()
        self.mount()
        self.pool.trivium("volume", "create", "soak", f"{Blocks.BLOCK * Blocks.COUNT // (1 << 20)}M")
        self.nbd()
        for face in (*self.objects, *self.files):
            self.pool.boto().create_bucket(Bucket=face.name.split()[1])

    def end(self) -> None:
        for worker in self.workers:
            worker.stopping.set()
        self.pool.clean_up()  # first: who waits for a mount whose pool is away cannot even be killed
        for face in self.faces:
            face.reconnect()

    # ---- processes ------------------------------------------------------------------------------------------

    def mount(self) -> None:
        self.pool.trivium("mount", self.mountpoint)  # over what is left of the one that was killed

    def nbd(self) -> None:
        self.pool.trivium(
            "nbd", "serve", "--socket", self.socket, "--pid-file", self.pid_file, "--detach", "--takeover", "wait"
        )

    def running(self, name: str) -> list[int]:
        """The processes that are this part."""
        words = {"pool": b"\0up\0", "mount": b"\0mount\0", "nbd": b"\0--pidfile\0"}[name]
        found = []
        for pid in self.pool.pids():
            with contextlib.suppress(OSError):
                if words in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def kill(self, victim: str, meanwhile: Callable[[], object] = lambda: None) -> None:
        """-9, wait until it is gone, start it again."""
        names = {"all": ("pool", "mount", "nbd"), "start": ("pool",)}.get(victim, (victim,))
        pids = [pid for name in names for pid in self.running(name)]
        if len(pids) < len(names):
            raise Breach(f"not all of {names} run: {pids}")
        hit = [face for face in self.faces if not face.needs.isdisjoint(names)]
        for face in hit:
            face.down = True
            face.generation += 1
        self._shoot(pids)
        meanwhile()
        if victim == "start":
            self._kill_while_it_starts()
        for name in names:
            began = time.monotonic()
            {"pool": self.pool.up_again, "mount": self.mount, "nbd": self.nbd}[name]()
            self.restart_s.setdefault(name, []).append(time.monotonic() - began)
        for face in hit:
            face.generation += 1
            face.down = False

    def lose_metadata(self) -> None:
        """All die, and the metadata directory goes: the drives have everything."""
        self.kill("all", lambda: shutil.rmtree(self.pool.data / "metadata"))

    def _shoot(self, pids: list[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(alive(pid) for pid in pids), "the killed to be gone")

    def _kill_while_it_starts(self) -> None:
        """Recovery can be interrupted anywhere, too."""
        command = [TRIVIUM, "up", "--data", str(self.pool.data), "--s3-listen", self.pool.listen, "--detach"]
        starting = subprocess.Popen(
            command, env=self.pool.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
        time.sleep(self.source.uniform(0.2, 1.5))  # when the kill falls is what is random here
        self._shoot([starting.pid])
        starting.wait()
        self._shoot(self.running("pool"))

    # ---- rounds ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.workers = [Worker(face) for face in self.faces]
        for worker in self.workers:
            worker.start()

    def stop(self) -> None:
        for worker in self.workers:
            worker.stopping.set()
        for worker in self.workers:
            worker.join(STUCK_S)
            if worker.is_alive():
                raise Breach(f"{worker.name}: stuck for {STUCK_S} s after a restart")
        self.raise_breach()
        workers, self.workers = self.workers, []
        for worker in workers:
            self.longest_s[worker.name] = max(self.longest_s.get(worker.name, 0), worker.longest_s)
            if not worker.steps:
                raise Breach(f"{worker.name}: not one step was answered since the last check")

    def raise_breach(self) -> None:
        for worker in self.workers:
            if worker.breach:
                raise Breach(worker.breach)

    def round(self, victim: str = "") -> str:
        victim = victim or self.source.choice(VICTIMS)
        if self.source.random() < 0.75:  # else while some are still recovering
            self._let_all_work(self.source.randint(5, 30))
        time.sleep(self.source.uniform(0.0, 1.0))  # the load runs; when the kill falls is what is random here
        self.raise_breach()
        self.kill(victim)
        return victim

    def _let_all_work(self, steps: int) -> None:
        """So that each face has something to lose."""
        goals = [worker.steps + steps for worker in self.workers]

        def reached() -> bool:
            return all(w.breach or w.steps >= goal for w, goal in zip(self.workers, goals, strict=True))

        try:
            wait_for(reached, "every writer to go on", STUCK_S)
        except AssertionError:
            slow = [w.name for w, goal in zip(self.workers, goals, strict=True) if w.steps < goal]
            raise Breach(f"{slow}: not {steps} steps in {STUCK_S} s") from None

    def check(self) -> None:
        """Everything, with the writers at rest."""
        self.stop()
        for face in self.faces:
            face.fresh()
            face.check_all()
        self._check_files_as_objects()
        self._check_objects_as_files()
        done = self.pool.trivium("fsck", check=False)
        if done.returncode:
            raise Breach(f"fsck: {done.stdout}{done.stderr}")

    def _check_files_as_objects(self) -> None:
        """The same bytes by the other road."""
        s3 = self.objects[0]
        for files in self.files:
            for name in files.model.allowed:
                if s3.read(files.folder, name) != files.model.certain(name):
                    raise Breach(f"{files.folder}/{name} is not the same file by S3")
            listed = {key for key in s3.listed(files.folder) if not key.endswith(".tmp")}
            if listed != {name for name in files.model.allowed if files.model.certain(name) != ABSENT}:
                raise Breach(f"{files.folder}: S3 lists {sorted(listed)}")

    def _check_objects_as_files(self) -> None:
        for objects in self.objects:
            for key in objects.model.allowed:
                if self.files[0].read(f"{objects.bucket}/{key}") != objects.model.certain(key):
                    raise Breach(f"{objects.bucket}/{key} is not the same object through the mount")

    def answered(self) -> dict[str, int]:
        return {face.name: face.model.answered for face in self.faces}


def soak(rounds: int, seed: int) -> None:
    print(f"soak: {rounds} kills, seed {seed}", flush=True)
    work = Path(tempfile.mkdtemp(prefix="trivium-soak-"))
    run, noted = Soak(work, seed), 0
    try:
        run.begin()
        run.start()
        for number in range(1, rounds + 1):
            victim = run.round()
            print(
                f"{time.strftime('%H:%M:%S')} soak: {number}/{rounds} killed {victim}; answered {run.answered()}",
                flush=True,
            )
            if number % CHECK_EVERY == 0 or number == rounds:
                run.check()
                if number == rounds:
                    run.lose_metadata()
                    run.check()
                note(seed=seed, round=number, kills=number - noted, answered=run.answered())
                noted = number
                if number < rounds:
                    run.start()
    except Exception as error:
        note(seed=seed, kills=0, failed=f"{type(error).__name__}: {error}"[:2000])
        print(f"soak: FAILED, seed {seed}, logs in {work}\n{run.pool.log()}", file=sys.stderr, flush=True)
        raise
    finally:
        run.end()
    shutil.rmtree(work, ignore_errors=True)
    for name, times in run.restart_s.items():
        times.sort()
        print(f"soak: {name} up again in {times[len(times) // 2]:.2f} s (median), {times[-1]:.2f} s (longest)")
    print("soak: longest step " + ", ".join(f"{name} {s:.1f} s" for name, s in run.longest_s.items()))
    print(f"soak: {rounds} kills, seed {seed}: nothing lost, nothing came back, fsck finds nothing", flush=True)


def note(**facts: Any) -> None:
    LEDGER.parent.mkdir(exist_ok=True)
    with LEDGER.open("a") as ledger:
        ledger.write(json.dumps({"kind": "kill", "at": int(time.time()), **facts}) + "\n")


def total() -> int:
    """Kills that were checked, over all runs so far."""
    if not LEDGER.exists():
        return 0
    return sum(json.loads(line).get("kills", 0) for line in LEDGER.read_text().splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--resume", action="store_true", help="only what is missing to --rounds in the ledger")
    arguments = parser.parse_args()
    rounds = arguments.rounds - (total() if arguments.resume else 0)
    if rounds > 0:
        soak(rounds, arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 31))
    print(f"soak: {total()} kills in all so far")


if __name__ == "__main__":
    assert Path(TRIVIUM).exists(), "make setup first"
    main()
