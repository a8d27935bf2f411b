"""Writers of the three faces that know what each read may answer, for tests that kill processes under them.

A name's value is certain once a change of it was answered. After an answer that never came it is in doubt: the old or
the new one, until somebody reads it; from then on only what was read (a value in doubt never changes its mind).
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.system.pool import SystemPool

ABSENT = "absent"
SYSTEM_PYTHON = "/usr/bin/python3"  # libnbd's bindings are the system's
HERE = Path(__file__).parent
SLOW_S = 6.0  # a step that takes longer is told


class Breach(Exception):
    """A promise was broken. Names the face, the thing, what was seen and what was allowed."""


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def body(source: random.Random) -> bytes:
    return source.randbytes(source.choice((0, 100, 4096, 20_000, 20_000, 150_000, 1_000_000, 5_000_000)))


class Model:
    """For each name the digests that a read may answer."""

    def __init__(self, face: str) -> None:
        self.face = face
        self.allowed: dict[str, set[str]] = {}
        self.answered = 0

    def certain(self, name: str) -> str:
        """The only digest that is allowed; "" when in doubt."""
        allowed = self.allowed.get(name, {ABSENT})
        return next(iter(allowed)) if len(allowed) == 1 else ""

    def begin(self, name: str, *digests: str) -> None:
        self.allowed.setdefault(name, {ABSENT}).update(digests)

    def answer(self, name: str, digest: str) -> None:
        self.allowed[name] = {digest}
        self.answered += 1

    def seen(self, name: str, digest: str) -> None:
        allowed = self.allowed.get(name, {ABSENT})
        if digest not in allowed:
            raise Breach(f"{self.face}: {name}: read {digest[:16]}, allowed {sorted(d[:16] for d in allowed)}")
        self.allowed[name] = {digest}


class Face:
    """One writer. `needs`: the processes whose death may make its steps fail; any other's must not."""

    needs: frozenset[str]

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.source, self.model = name, random.Random(seed), Model(name)
        self.generation = 0  # grows when what it needs is killed, and when that is back
        self.connected_to = 0
        self.down = False

    def fresh(self) -> None:
        """Drop connections to what has been killed since."""
        if self.generation != self.connected_to:
            self.connected_to = self.generation
            self.reconnect()

    def step(self) -> None:
        raise NotImplementedError

    def check_all(self) -> None:
        raise NotImplementedError

    def reconnect(self) -> None:
        """What it needs has been killed: connections to it are of no use."""


class Objects(Face):
    """S3: put, copy, get, delete over a set of keys."""

    needs = frozenset({"pool"})

    def __init__(self, pool: SystemPool, bucket: str, seed: int) -> None:
        super().__init__(f"s3 {bucket}", seed)
        self.pool, self.bucket = pool, bucket
        self._client: Any = None

    def reconnect(self) -> None:
        self._client = None

    def client(self) -> Any:
        if self._client is None:
            self._client = self.pool.boto(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=90)
        return self._client

    def step(self) -> None:
        s3, key = self.client(), self.key()
        choice = self.source.random()
        if choice < 0.45:
            data = body(self.source)
            self.model.begin(key, digest(data))
            s3.put_object(Bucket=self.bucket, Key=key, Body=data)
            self.model.answer(key, digest(data))
        elif choice < 0.6:
            self.model.begin(key, ABSENT)
            s3.delete_object(Bucket=self.bucket, Key=key)
            self.model.answer(key, ABSENT)
        elif choice < 0.65 and self.model.certain(other := self.key()) not in ("", ABSENT) and other != key:
            value = self.model.certain(other)
            self.model.begin(key, value)
            s3.copy_object(Bucket=self.bucket, Key=key, CopySource={"Bucket": self.bucket, "Key": other})
            self.model.answer(key, value)
        else:
            self.check(key)

    def key(self) -> str:
        return f"dir{self.source.randrange(3)}/k{self.source.randrange(10)}"

    def check(self, key: str) -> None:
        self.model.seen(key, self.read(self.bucket, key))

    def read(self, bucket: str, key: str) -> str:
        s3 = self.client()
        try:
            return digest(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
        except s3.exceptions.NoSuchKey:
            return ABSENT

    def check_all(self) -> None:
        for key in sorted(self.model.allowed):
            self.check(key)
        listed = set(self.listed(self.bucket))
        expected = {key for key, allowed in self.model.allowed.items() if allowed != {ABSENT}}
        if listed != expected:
            raise Breach(f"{self.name}: listing differs: {sorted(listed ^ expected)}")

    def listed(self, bucket: str) -> Iterable[str]:
        for page in self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for item in page.get("Contents", []):
                yield item["Key"]


class Child:
    """A helper process that takes commands; ends, and says OSError, when one fails."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def ask(self, command: str, data: bytes = b"") -> bytes:
        """FileNotFoundError: it is absent. OSError: anything else, in words."""
        if self._process is None:
            self.start()
        process = self._process
        assert process is not None and process.stdin and process.stdout
        try:
            process.stdin.write(command.encode() + b"\n" + data)
            process.stdin.flush()
            line = process.stdout.readline().decode()
            if line == "absent\n":
                raise FileNotFoundError(command)
            if not line.startswith("ok "):
                raise OSError(f"{command}: {line.strip() or 'the helper has ended'}")
            length = int(line[3:])
            if len(answer := process.stdout.read(length)) != length:
                raise OSError(f"{command}: the helper has ended")
            return answer
        except FileNotFoundError:
            raise
        except OSError:
            self.end()
            raise


class Files(Face):
    """The mount: whole new files renamed over, writes in place, renames, unlinks, reads."""

    needs = frozenset({"mount"})

    def __init__(self, mountpoint: Path, folder: str, seed: int, others: Sequence[str] = ()) -> None:
        super().__init__(f"files {folder}", seed)
        self.folder = folder
        self.child = Child([sys.executable, str(HERE / "fileworker.py"), str(mountpoint)])
        self.contents: dict[str, bytes] = {}
        self.others = others

    def reconnect(self) -> None:
        self.child.end()

    def step(self) -> None:
        name, choice = self.pick(), self.source.random()
        if choice < 0.35:
            self.replace(name)
        elif choice < 0.45:
            self.write(name)
        elif choice < 0.6:
            self.patch(name)
        elif choice < 0.65:
            self.rename(name, self.pick())
        elif choice < 0.75:
            self.unlink(name)
        elif choice < 0.85 and self.others:
            self.look_at_others()
        else:
            self.check(name)

    def look_at_others(self) -> None:
        """Names of another face are cached here, under leases that its changes have to recall, also from the dead."""
        folder = self.source.choice(self.others)
        try:
            self.child.ask(f"list {folder}")
            self.child.ask(f"read {folder}/k{self.source.randrange(10)}")
        except FileNotFoundError:
            pass

    def read(self, path: str) -> str:
        try:
            return digest(self.child.ask(f"read {path}"))
        except FileNotFoundError:
            return ABSENT

    def pick(self) -> str:
        return f"f{self.source.randrange(12)}"

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def how(self) -> str:
        return self.source.choice(("sync", "close"))

    def known(self, name: str) -> bytes | None:
        """Its bytes, where they are certain."""
        data = self.contents.get(name)
        return data if data is not None and self.model.certain(name) == digest(data) else None

    def done(self, name: str, data: bytes | None) -> None:
        self.model.answer(name, ABSENT if data is None else digest(data))
        if data is None:
            self.contents.pop(name, None)
        else:
            self.contents[name] = data

    def replace(self, name: str) -> None:
        data = body(self.source)
        self.model.begin(name, digest(data))
        self.child.ask(f"replace {self.path(name)} {len(data)} {self.how()}", data)
        self.done(name, data)

    def write(self, name: str) -> None:
        """Not atomic by POSIX: truncated and not yet written is a state that a crash may leave."""
        data = self.source.randbytes(self.source.choice((50, 3000, 20_000, 100_000)))
        self.model.begin(name, digest(b""), digest(data))
        self.child.ask(f"write {self.path(name)} {len(data)} {self.how()}", data)
        self.done(name, data)

    def patch(self, name: str) -> None:
        """One write of at most 64 KiB, inside or at the end: old or new, never a mix."""
        old = self.known(name)
        if old is None:
            return self.check(name)
        data = self.source.randbytes(self.source.choice((1, 500, 5000, 60_000)))
        at = self.source.choice((len(old), self.source.randint(0, len(old))))
        new = old[:at] + data + old[at + len(data) :]
        self.model.begin(name, digest(new))
        self.child.ask(f"patch {self.path(name)} {at} {len(data)}", data)
        self.done(name, new)

    def rename(self, name: str, to: str) -> None:
        data = self.known(name)
        if data is None or to == name:
            return self.check(name)
        self.model.begin(name, ABSENT)
        self.model.begin(to, digest(data))
        self.child.ask(f"rename {self.path(name)} {self.path(to)}")
        self.done(name, None)
        self.done(to, data)

    def unlink(self, name: str) -> None:
        self.model.begin(name, ABSENT)
        certain = self.model.certain(name)
        try:
            self.child.ask(f"unlink {self.path(name)}")
        except FileNotFoundError:
            self.model.seen(name, ABSENT)
        else:
            if certain == ABSENT:
                raise Breach(f"{self.name}: {name} was there to be unlinked, and should not have been") from None
        self.done(name, None)

    def check(self, name: str) -> None:
        try:
            data = self.child.ask(f"read {self.path(name)}")
        except FileNotFoundError:
            self.model.seen(name, ABSENT)
        else:
            self.model.seen(name, digest(data))
            self.contents[name] = data

    def check_all(self) -> None:
        for name in sorted(self.model.allowed):
            self.check(name)
        listed = {n for n in self.child.ask(f"list {self.folder}").decode().split("\0") if n and not n.endswith(".tmp")}
        expected = {name for name, allowed in self.model.allowed.items() if allowed != {ABSENT}}
        if listed != expected:
            raise Breach(f"{self.name}: listing differs: {sorted(listed ^ expected)}")


class Blocks(Face):
    """A volume: writes, trims, zeroes, flushes, reads, in order over one connection.

    What is found after the export was killed is what the last answered flush covers and some first part of the writes
    behind it, each of them whole.
    """

    needs = frozenset({"nbd"})
    BLOCK, COUNT = 65536, 256

    def __init__(self, volume: str, socket: Path, seed: int) -> None:
        super().__init__(f"blocks {volume}", seed)
        self.child = Child([SYSTEM_PYTHON, str(HERE / "nbdworker.py"), f"nbd+unix:///{volume}?socket={socket}"])
        self.flushed = [digest(bytes(self.BLOCK))] * self.COUNT
        self.now = list(self.flushed)
        self.unflushed: list[tuple[int, str]] = []

    def reconnect(self) -> None:
        self.child.end()

    def step(self) -> None:
        if not self.child.running:
            self.recover()
        number, choice = self.source.randrange(self.COUNT), self.source.random()
        if choice < 0.6:
            self.write(number)
        elif choice < 0.75:
            self.flush()
        else:
            self.check(number)

    def write(self, number: int) -> None:
        kind = self.source.random()
        data = self.source.randbytes(self.BLOCK) if kind < 0.85 else bytes(self.BLOCK)
        self.unflushed.append((number, digest(data)))
        where = f"{number * self.BLOCK} {self.BLOCK}"
        if kind < 0.85:
            self.child.ask(f"write {where}", data)
        else:
            self.child.ask(f"{'trim' if kind < 0.92 else 'zero'} {where}")
        self.now[number] = digest(data)

    def flush(self) -> None:
        self.child.ask("flush")
        self.model.answered += len(self.unflushed)
        self.flushed, self.unflushed = list(self.now), []

    def check(self, number: int) -> None:
        found = digest(self.child.ask(f"read {number * self.BLOCK} {self.BLOCK}"))
        if found != self.now[number]:
            raise Breach(f"{self.name}: block {number}: read {found[:16]}, allowed {self.now[number][:16]}")

    def recover(self) -> None:
        """After a new connection: a flush makes what is there durable, then it must be a state that there was."""
        self.child.start()
        try:
            self.child.ask("flush")
            found = self.read_all()
        except OSError:
            self.child.end()
            raise
        state = list(self.flushed)
        differing = {i for i in range(self.COUNT) if state[i] != found[i]}
        best = sorted(differing)
        for number, value in self.unflushed:
            if not differing:
                break
            state[number] = value
            (differing.discard if value == found[number] else differing.add)(number)
            best = min(best, sorted(differing), key=len)
        if differing:
            known = {value for _, value in self.unflushed} | set(self.flushed)
            torn = [number for number in best if found[number] not in known]
            raise Breach(
                f"{self.name}: no state that its last {len(self.unflushed)} writes had; "
                f"nearest: but for blocks {best}, torn: {torn}"
            )
        self.flushed, self.now, self.unflushed = found, list(found), []

    def read_all(self) -> list[str]:
        piece = 16 * self.BLOCK
        found = []
        for offset in range(0, self.COUNT * self.BLOCK, piece):
            data = self.child.ask(f"read {offset} {piece}")
            found += [digest(data[i : i + self.BLOCK]) for i in range(0, piece, self.BLOCK)]
        return found

    def check_all(self) -> None:
        if not self.child.running:
            self.recover()
        for number, value in enumerate(self.read_all()):
            if value != self.now[number]:
                raise Breach(f"{self.name}: block {number}: read {value[:16]}, allowed {self.now[number][:16]}")


class Worker(threading.Thread):
    """Steps of one face until told to stop. Errors are waited out while what it needs was killed; else a breach."""

    def __init__(self, face: Face) -> None:
        super().__init__(name=face.name, daemon=True)
        self.face = face
        self.stopping, self.breach = threading.Event(), ""
        self.steps, self.longest_s = 0, 0.0

    def run(self) -> None:
        face = self.face
        while not self.stopping.is_set():
            generation, down = face.generation, face.down
            began = time.monotonic()
            try:
                face.fresh()
                face.step()
                self.steps += 1
            except Breach as error:
                self.breach = str(error)
                return
            except Exception as error:
                if not (down or face.down or face.generation != generation):
                    self.breach = f"{face.name}: {error!r} although nothing that it needs was killed"
                    return
                time.sleep(0.05)
            took_s = time.monotonic() - began
            self.longest_s = max(self.longest_s, took_s)
            if took_s > SLOW_S:
                print(f"{time.strftime('%H:%M:%S')} {face.name}: a step took {took_s:.1f} s", flush=True)
