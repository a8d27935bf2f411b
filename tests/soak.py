"""Kill processes at random under load on all three faces; nothing acknowledged may be lost, nothing deleted return.

    python -m tests.soak --rounds 200 [--seed N]

A round is one kill -9 (the pool, the mount, the block export, or all at once) while three writers work; what was killed
is started again and the writers go on. Every value that a writer reads must be one that its model allows: the last
acknowledged one, or (after an answer that never came) also the one in doubt. `trivium fsck` runs every ten rounds and
at the end. A ledger (.soak/ledger.jsonl) keeps seed and rounds done, so that runs add up.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.system.pool import TRIVIUM, SystemPool, alive, wait_for

LEDGER = Path(".soak/ledger.jsonl")
ABSENT = "absent"


class Breach(Exception):
    """A promise was broken. Names the face, the thing, what was seen and what was allowed."""


class Model:
    """For each name the digests that a read may answer: one when the last change was answered, more when in doubt."""

    def __init__(self, face: str) -> None:
        self.face = face
        self.allowed: dict[str, set[str]] = {}
        self.answered = 0

    def begin(self, name: str, digest: str) -> None:
        self.allowed.setdefault(name, {ABSENT}).add(digest)

    def answer(self, name: str, digest: str) -> None:
        self.allowed[name] = {digest}
        self.answered += 1

    def seen(self, name: str, digest: str) -> None:
        """What a read answered; from then on only that is allowed (a value in doubt never changes its mind)."""
        allowed = self.allowed.get(name, {ABSENT})
        if digest not in allowed:
            raise Breach(f"{self.face}: {name}: read {digest[:16]}, allowed {sorted(d[:16] for d in allowed)}")
        self.allowed[name] = {digest}


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def body(source: random.Random) -> bytes:
    return source.randbytes(source.choice((0, 100, 4096, 20_000, 20_000, 150_000, 1_000_000, 5_000_000)))


class Worker(threading.Thread):
    """One face's writer: steps until told to stop; errors of a killed pool are waited out, a Breach ends the soak."""

    def __init__(self, name: str, step: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self.step, self.stopping, self.breach, self.steps = step, threading.Event(), "", 0

    def run(self) -> None:
        while not self.stopping.is_set():
            try:
                self.step()
                self.steps += 1
            except Breach as error:
                self.breach = str(error)
                return
            except Exception as error:  # the pool is being killed: in doubt, as the model has noted
                self.last_error = repr(error)
                time.sleep(0.05)


class Objects:
    """S3: put, get, delete over a set of keys."""

    def __init__(self, pool: SystemPool, seed: int) -> None:
        self.pool, self.source, self.model = pool, random.Random(seed), Model("s3")

    def client(self) -> Any:
        return self.pool.boto(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=90)

    def step(self) -> None:
        s3, key = self.client(), f"dir{self.source.randrange(3)}/k{self.source.randrange(25)}"
        choice = self.source.random()
        if choice < 0.5:
            data = body(self.source)
            self.model.begin(key, digest(data))
            s3.put_object(Bucket="soak", Key=key, Body=data)
            self.model.answer(key, digest(data))
        elif choice < 0.65:
            self.model.begin(key, ABSENT)
            s3.delete_object(Bucket="soak", Key=key)
            self.model.answer(key, ABSENT)
        else:
            self.check(s3, key)

    def check(self, s3: Any, key: str) -> None:
        try:
            data = s3.get_object(Bucket="soak", Key=key)["Body"].read()
        except s3.exceptions.NoSuchKey:
            self.model.seen(key, ABSENT)
        else:
            self.model.seen(key, digest(data))

    def check_all(self) -> None:
        s3 = self.client()
        for key in sorted(self.model.allowed):
            self.check(s3, key)
        listed = {
            item["Key"]
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket="soak")
            for item in page.get("Contents", [])
        }
        expected = {key for key, allowed in self.model.allowed.items() if allowed != {ABSENT}}
        if listed != expected:
            raise Breach(f"s3: listing differs: {sorted(listed ^ expected)}")


class Files:
    """The mount: write a temporary file, fsync, rename over; unlink; read."""

    def __init__(self, pool: SystemPool, mountpoint: Path, seed: int) -> None:
        self.pool, self.root, self.source, self.model = pool, mountpoint / "files", random.Random(seed), Model("files")

    def step(self) -> None:
        name = f"f{self.source.randrange(25)}"
        path, choice = self.root / name, self.source.random()
        if choice < 0.5:
            data, temporary = body(self.source), self.root / f"tmp{self.source.randrange(1 << 30)}"
            fd = os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600)
            try:
                os.write(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)
            self.model.begin(name, digest(data))
            os.rename(temporary, path)
            self.model.answer(name, digest(data))
        elif choice < 0.65:
            self.model.begin(name, ABSENT)
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            self.model.answer(name, ABSENT)
        else:
            self.check(name)

    def check(self, name: str) -> None:
        try:
            data = (self.root / name).read_bytes()
        except FileNotFoundError:
            if not self.root.parent.is_mount():  # a dead mount shows an empty directory
                raise OSError("not mounted") from None
            self.model.seen(name, ABSENT)
        else:
            self.model.seen(name, digest(data))

    def check_all(self) -> None:
        for name in sorted(self.model.allowed):
            self.check(name)


class Blocks:
    """A volume: stamped writes, flush, read back through libnbd in a process of the system's Python."""

    BLOCK, COUNT = 65536, 256

    def __init__(self, socket: Path, seed: int) -> None:
        self.uri = f"nbd+unix:///soak?socket={socket}"
        self.source, self.model = random.Random(seed), Model("blocks")
        self.unflushed: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self.zero = digest(bytes(self.BLOCK))

    def connected(self) -> subprocess.Popen[bytes]:
        if self.process is None or self.process.poll() is not None:
            script = Path(__file__).parent / "system" / "nbdworker.py"
            self.process = subprocess.Popen(
                ["/usr/bin/python3", str(script), self.uri],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self.process

    def ask(self, command: str, data: bytes = b"", answer: int = 0) -> bytes:
        process = self.connected()
        assert process.stdin and process.stdout
        try:
            process.stdin.write(command.encode() + b"\n" + data)
            process.stdin.flush()
            if process.stdout.read(3) != b"ok\n":
                raise OSError("the export went away")
            return process.stdout.read(answer)
        except OSError:
            process.kill()
            process.wait()
            self.process = None
            raise

    def allow(self, name: str, value: str) -> None:
        self.model.allowed.setdefault(name, {self.zero}).add(value)

    def step(self) -> None:
        number, choice = self.source.randrange(self.COUNT), self.source.random()
        name = f"b{number}"
        if choice < 0.6:
            kind = self.source.random()
            data = self.source.randbytes(self.BLOCK) if kind < 0.85 else bytes(self.BLOCK)
            value = digest(data)
            self.allow(name, value)
            if kind < 0.85:
                self.ask(f"write {number * self.BLOCK} {self.BLOCK}", data)
            else:
                self.ask(f"{'trim' if kind < 0.92 else 'zero'} {number * self.BLOCK} {self.BLOCK}")
            self.unflushed[name] = value
        elif choice < 0.75:
            done, self.unflushed = self.unflushed, {}
            try:
                self.ask("flush")
            except OSError:
                return  # each of them stays in doubt: old and new are both allowed
            for flushed, value in done.items():
                self.model.answer(flushed, value)
        else:
            found = digest(self.ask(f"read {number * self.BLOCK} {self.BLOCK}", answer=self.BLOCK))
            allowed = {self.unflushed[name]} if name in self.unflushed else self.model.allowed.get(name, {self.zero})
            if found not in allowed:
                raise Breach(f"blocks: {name}: read {found[:16]}, allowed {sorted(d[:16] for d in allowed)}")

    def restarted(self) -> None:
        """The export was killed: what was not flushed is in doubt, block by block."""
        self.unflushed = {}
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def check_all(self) -> None:
        for number in range(self.COUNT):
            name = f"b{number}"
            found = digest(self.ask(f"read {number * self.BLOCK} {self.BLOCK}", answer=self.BLOCK))
            allowed = self.model.allowed.get(name, {self.zero})
            if found not in allowed:
                raise Breach(f"blocks: {name}: read {found[:16]}, allowed {sorted(d[:16] for d in allowed)}")


class Soak:
    def __init__(self, work: Path, seed: int) -> None:
        self.source = random.Random(seed)
        self.pool = SystemPool(work)
        self.mountpoint, self.socket, self.pid_file = work / "mnt", work / "nbd.sock", work / "nbd.pid"
        self.mountpoint.mkdir()
        self.pool.up()
        self.mount()
        self.pool.trivium("volume", "create", "soak", f"{Blocks.BLOCK * Blocks.COUNT // (1 << 20)}M")
        self.nbd()
        self.pool.boto().create_bucket(Bucket="soak")
        (self.mountpoint / "files").mkdir()
        self.faces = (
            Objects(self.pool, seed + 1),
            Files(self.pool, self.mountpoint, seed + 2),
            Blocks(self.socket, seed + 3),
        )
        self.workers: list[Worker] = []

    def mount(self) -> None:
        subprocess.run(["fusermount3", "-u", "-z", str(self.mountpoint)], capture_output=True, check=False)
        self.pool.trivium("mount", self.mountpoint)

    def nbd(self) -> None:
        self.pool.trivium(
            "nbd", "serve", "--socket", self.socket, "--pid-file", self.pid_file, "--detach", "--takeover", "wait"
        )

    def mount_pid(self) -> int:
        for pid in self.pool.pids():
            with contextlib.suppress(OSError):
                if b"\0mount\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        return 0

    def start(self) -> None:
        self.workers = [Worker(type(face).__name__, face.step) for face in self.faces]
        for worker in self.workers:
            worker.start()

    def stop(self) -> None:
        for worker in self.workers:
            worker.stopping.set()
        for worker in self.workers:
            worker.join(120)
            if worker.is_alive():
                raise Breach(f"{worker.name}: stuck for 120 s after a restart")
        self.raise_breach()

    def raise_breach(self) -> None:
        for worker in self.workers:
            if worker.breach:
                raise Breach(worker.breach)

    def kill(self, victim: str) -> None:
        """-9, wait until it is gone, start it again."""
        pids = {"pool": self.pool.pid, "mount": self.mount_pid(), "nbd": int(self.pid_file.read_text())}
        chosen = list(pids) if victim == "all" else [victim]
        for name in chosen:
            with contextlib.suppress(ProcessLookupError):
                if pids[name]:
                    os.kill(pids[name], signal.SIGKILL)
        wait_for(lambda: not any(alive(pids[name]) for name in chosen), "the killed to be gone")
        if "pool" in chosen:
            self.pool.up()
        if "mount" in chosen:
            self.mount()
        if "nbd" in chosen:
            self.faces[2].restarted()  # type: ignore[union-attr]
            self.nbd()

    def round(self) -> str:
        victim = self.source.choice(("pool", "pool", "mount", "nbd", "all"))
        time.sleep(self.source.uniform(0.2, 1.5))  # the load runs; when the kill falls is what is random here
        self.raise_breach()
        self.kill(victim)
        return victim

    def check(self) -> None:
        """Everything, with the writers at rest."""
        self.stop()
        for face in self.faces:
            face.check_all()
        done = self.pool.trivium("fsck", check=False)
        if done.returncode:
            raise Breach(f"fsck: {done.stdout}{done.stderr}")


def soak(rounds: int, seed: int) -> None:
    print(f"soak: {rounds} kills, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="trivium-soak-") as directory:
        run = Soak(Path(directory), seed)
        try:
            run.start()
            for number in range(1, rounds + 1):
                victim = run.round()
                answered = {face.model.face: face.model.answered for face in run.faces}
                print(f"soak: {number}/{rounds} killed {victim}; answered {answered}", flush=True)
                if number % 10 == 0 or number == rounds:
                    run.check()
                    LEDGER.parent.mkdir(exist_ok=True)
                    with LEDGER.open("a") as ledger:
                        entry = {
                            "kind": "kill",
                            "seed": seed,
                            "rounds": number,
                            "answered": answered,
                            "at": int(time.time()),
                        }
                        ledger.write(json.dumps(entry) + "\n")
                    if number < rounds:
                        run.start()
        except Exception:
            print(f"soak: FAILED, seed {seed}\n{run.pool.log()}", file=sys.stderr, flush=True)
            raise
        finally:
            run.faces[2].restarted()
            run.pool.clean_up()
    print(f"soak: {rounds} kills, seed {seed}: nothing lost, nothing came back, fsck finds nothing", flush=True)


def totals() -> dict[int, int]:
    """Rounds done by seed, over all runs so far."""
    done: dict[int, int] = {}
    if LEDGER.exists():
        for line in LEDGER.read_text().splitlines():
            entry = json.loads(line)
            done[entry["seed"]] = max(done.get(entry["seed"], 0), entry["rounds"])
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 31)
    soak(arguments.rounds, seed)
    print(f"soak: {sum(totals().values())} kills in all so far")


if __name__ == "__main__":
    assert Path(TRIVIUM).exists(), "make setup first"
    main()
