"""A cluster of processes on hosts of their own (tests/system/network.py), started by the product's command line.

    meta  h0 h1 h2 [h3 ...]  web0 web1  desk        metadata server; two node processes each; a gateway each; a mount

A host that is killed loses all of its processes at once (kill -9) and its cable is pulled, as with a loss of power:
nobody is told. `with Cluster(...) as cluster:` cleans up whatever happens; when the body failed the logs are kept and
their last lines printed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trio

from tests.system.network import Network
from tests.system.pool import TRIVIUM, SystemPool, alive, wait_for

START_S = 180
S3_PORT, METADATA_PORT, NODE_PORT = 9000, 7400, 7401
RIGHTS = {"read": 1, "write": 3, "admin": 7}
ROOT_USER, ROOT_PASSWORD = "hosts-root", "hosts-secret-of-root"
LOG_LINES = 25


@dataclass(slots=True)
class Running:
    host: str
    process: subprocess.Popen[bytes]
    told: socket.socket | None  # READY=1 has not come yet


class Cluster(SystemPool):
    """Hosts and the processes on them. `silence_s`: T of the pool."""

    def __init__(self, *, silence_s: float = 12.0) -> None:
        self.network = Network()
        self.root = Path(tempfile.mkdtemp(prefix=f"{self.network.namespace('')}"))
        super().__init__(self.root)
        self.silence_s = silence_s
        self.running: dict[str, Running] = {}
        self.kinds: dict[str, tuple[str, str, str]] = {}  # of every process: host, kind, TOML
        self.mountpoint = self.root / "mnt"
        self.mountpoint.mkdir()
        self.env |= {"TRIVIUM_ROOT_USER": ROOT_USER, "TRIVIUM_ROOT_PASSWORD": ROOT_PASSWORD}
        self.env |= {"AWS_ACCESS_KEY_ID": ROOT_USER, "AWS_SECRET_ACCESS_KEY": ROOT_PASSWORD}

    # ---- life -----------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if error is not None:
                self._keep_logs()
        finally:
            try:
                self.clean_up()
            finally:
                self.network.close()
                shutil.rmtree(self.root, ignore_errors=True)

    def _keep_logs(self) -> None:
        kept = Path(tempfile.mkdtemp(prefix="trivium-logs-"))
        for path in [*self.root.glob("*.log"), *self.root.glob("*/run/*.log")]:
            shutil.copy(path, kept / f"{path.parent.parent.name if path.parent.name == 'run' else ''}{path.name}")
            lines = path.read_text(errors="replace").splitlines()[-LOG_LINES:]
            print(f"---- {path.name}", *lines, sep="\n")
        with contextlib.suppress(Exception):
            (kept / "status.json").write_text(json.dumps(self.ask("status"), indent=1))
        print(f"logs are kept in {kept}")

    def clean_up(self) -> None:
        for running in self.running.values():  # before anything looks at the mount
            running.process.kill()
        for running in self.running.values():
            running.process.wait()
        super().clean_up()

    def pids(self) -> list[int]:
        """Every process whose command line names this cluster's directory."""
        mine, found = os.fsencode(self.root), []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mine in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                    found.append(int(entry.name))
        return found

    # ---- processes ------------------------------------------------------------------------------------------

    def begin(self, host: str, name: str, kind: str, toml: str) -> None:
        """Start a process on a host; `ready` waits for it."""
        (self.root / f"{name}.toml").write_text(toml)
        notify = self.root / f"{name}.notify"
        notify.unlink(missing_ok=True)
        told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        told.bind(str(notify))
        told.settimeout(START_S)
        self.kinds[name] = host, kind, toml
        command = self.network.command(host, [TRIVIUM, kind, "--config", str(self.root / f"{name}.toml")])
        with (self.root / f"{name}.log").open("ab") as log:
            env = self.process_env(name) | {"NOTIFY_SOCKET": str(notify)}
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.running[name] = Running(host, process, told)

    def process_env(self, name: str) -> dict[str, str]:
        return self.env

    def begin_again(self, *names: str) -> None:
        for name in names:
            host, kind, toml = self.kinds[name]
            self.begin(host, name, kind, toml)

    def ready(self, *names: str) -> None:
        for name in names:
            running = self.running[name]
            if running.told is not None:
                try:
                    assert running.told.recv(100) == b"READY=1"
                except TimeoutError:
                    raise AssertionError(f"{name} is not ready after {START_S} s:\n{self.said(name)}") from None
                finally:
                    running.told.close()
                    running.told = None

    def end(self, name: str, number: int = signal.SIGTERM) -> int:
        running = self.running.pop(name)
        running.process.send_signal(number)
        return running.process.wait(30)

    def said(self, name: str) -> str:
        return (self.root / f"{name}.log").read_text(errors="replace")[-3000:]

    def on_host(self, host: str) -> list[str]:
        return sorted(name for name, running in self.running.items() if running.host == host)

    def kill_host(self, host: str) -> None:
        """As with a loss of power: the cable first, so that no process says anything with its last breath."""
        self.network.cut(host)
        names = self.on_host(host)
        for name in names:
            self.running[name].process.kill()
        for name in names:
            self.running.pop(name).process.wait()

    def return_host(self, host: str) -> list[str]:
        """Its power is back; the processes that it had are starting."""
        self.network.mend(host)
        names = sorted(name for name, (at, _, _) in self.kinds.items() if at == host)
        self.begin_again(*names)
        return names

    def all_alive(self) -> bool:
        return all(alive(running.process.pid) for running in self.running.values())

    # ---- asking ---------------------------------------------------------------------------------------------

    def ask(self, command: str, **arguments: Any) -> Any:
        """An operator's command, without the time that a process takes to start."""
        from trivium.admin.cli.connect import admin_call
        from trivium.admin.datadir import DataDir

        async def work() -> Any:
            with trio.fail_after(30):
                return await admin_call(DataDir(self.data), command, **arguments)

        return trio.run(work)

    def status(self) -> dict[str, Any]:
        """As people and scripts get it."""
        found: dict[str, Any] = json.loads(self.trivium("status", "--json").stdout)
        return found

    def wait_for_status(self, condition: Any, what: str, timeout_s: float = 180) -> dict[str, Any]:
        last: dict[str, Any] = {}
        deadline = time.monotonic() + timeout_s
        while not condition(last := self.ask("status")):
            if time.monotonic() > deadline:
                shown = {name: last[name] for name in ("summary", "sentences", "heal", "narrow", "rebalance")}
                raise AssertionError(f"waited {timeout_s:.0f} s for {what}: {json.dumps(shown, indent=1)}")
            time.sleep(0.1)
        return last

    def run(
        self, *command: str | Path, check: bool = True, timeout_s: float = 120, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Operators sit on the metadata server's host."""
        there = self.network.command("meta", [str(part) for part in command])
        return super().run(*there, check=check, timeout_s=timeout_s, stdin=stdin)

    def gateway(self, name: str) -> Any:
        """A client of one gateway. Only for threads that are on a host of the network."""
        import boto3
        from botocore.client import Config

        address = self.network.addresses[self.kinds[name][0]]
        return boto3.session.Session().client(
            "s3",
            endpoint_url=f"http://{address}:{S3_PORT}",
            aws_access_key_id=ROOT_USER,
            aws_secret_access_key=ROOT_PASSWORD,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=30, read_timeout=300, proxies={}),
        )


class UnixHosts(Cluster):
    """Processes that reach each other by Unix sockets: those know no network namespaces, so cables mean nothing."""

    cables = False

    def form(self, hosts: Sequence[str] = ("h0", "h1", "h2")) -> None:
        """Everything is up and formed, a gateway on each of web0 and web1, the mount on desk."""
        for host in ("meta", *hosts, "web0", "web1", "desk"):
            self.network.add(host)
        toml = f'[metadata]\ndata = "{self.data}"\nprofile = "4+2"\nsilence_s = {self.silence_s}\n'
        self.begin("meta", "metadata", "metadata", toml)
        wait_for(lambda: (self.data / "run" / "trivium.sock").exists(), "the metadata server's socket")
        names = [name for host in hosts for name in self.begin_nodes(host)]
        self.ready("metadata", *names)
        for web in ("web0", "web1"):
            listen = f"{self.network.addresses[web]}:{S3_PORT}"
            self.begin(web, web, "s3", f'connect = "{self.data}"\n[s3]\nlisten = "{listen}"\n')
        self.mount()
        self.ready("web0", "web1")

    def begin_nodes(self, host: str) -> list[str]:
        names = [f"{host}a", f"{host}b"]
        for name in names:
            toml = f'connect = "{self.data}"\n[node]\ndata = "{self.root}/{name}"\ndrives = 1\n'
            self.begin(host, name, "node", f'{toml}domain = "rack/{host}"\nname = "{name}"\n')
        return names

    def add_host(self, host: str) -> None:
        self.network.add(host)
        self.ready(*self.begin_nodes(host))

    def mount(self) -> None:
        command = [TRIVIUM, "mount", str(self.mountpoint), "--connect", str(self.data)]
        SystemPool.run(self, *self.network.command("desk", command))


class QuicHosts(Cluster):
    """Processes that have nothing but UDP between them: each has a key of its own, got with a token, and is told to
    use no Unix socket. `engines` go round over the processes in the order of their start."""

    cables = True

    def __init__(self, engines: Sequence[str], *, silence_s: float = 12.0) -> None:
        super().__init__(silence_s=silence_s)
        self.engines = tuple(engines)
        self.engine_of: dict[str, str] = {}

    @property
    def metadata_address(self) -> str:
        return f"{self.network.addresses['meta']}:{METADATA_PORT}"

    def engine(self, name: str) -> str:
        return self.engine_of.setdefault(name, self.engines[len(self.engine_of) % len(self.engines)])

    def process_env(self, name: str) -> dict[str, str]:
        env = self.env | {"TRIVIUM_TRANSPORT": "quic", "TRIVIUM_QUIC_ENGINE": self.engine(name)}
        del env["TRIVIUM_CONNECT"]  # only the operator reaches into the metadata server's directory
        return env

    def form(self, hosts: Sequence[str] = ("h0", "h1", "h2")) -> None:
        for host in ("meta", *hosts, "web0", "web1", "desk"):
            self.network.add(host)
        toml = f'[metadata]\ndata = "{self.data}"\nprofile = "4+2"\nsilence_s = {self.silence_s}\n'
        self.begin("meta", "metadata", "metadata", f'{toml}listen = "{self.metadata_address}"\n')
        wait_for(lambda: (self.data / "run" / "trivium.sock").exists(), "the metadata server's socket")
        names = [name for host in hosts for name in self.begin_nodes(host)]
        self.ready("metadata", *names)
        for client in ("web0", "web1", "desk"):
            self.join_client(client, "write" if client == "desk" else "admin")
        for web in ("web0", "web1"):
            listen = f"{self.network.addresses[web]}:{S3_PORT}"
            self.begin(web, web, "s3", f'connect = "{self.root}/{web}"\n[s3]\nlisten = "{listen}"\n')
        self.mount()
        self.ready("web0", "web1")

    def token(self, role: str, right: int, name: str, pools: Sequence[int] = ()) -> str:
        arguments = {"role": role, "rights": right, "pools": list(pools), "name": name, "lasts_s": 3600}
        return str(self.ask("cluster_token_create", **arguments)["token"])

    def begin_nodes(self, host: str) -> list[str]:
        names = [f"{host}a", f"{host}b"]
        for number, name in enumerate(names):
            listen = f"{self.network.addresses[host]}:{NODE_PORT + number}"
            toml = f'[node]\ndata = "{self.root}/{name}"\ndrives = 1\ndomain = "rack/{host}"\nname = "{name}"\n'
            token = self.token("node", 0, name)
            self.begin(host, name, "node", f'{toml}listen = "{listen}"\njoin = "{token}"\n')
        return names

    def add_host(self, host: str) -> None:
        self.network.add(host)
        self.ready(*self.begin_nodes(host))

    def join_client(self, name: str, right: str, *, host: str = "", pools: Sequence[int] = ()) -> Path:
        """Keys of a client in the directory NAME. It joins from its own host, by the command that people use."""
        token, keys = self.token("client", RIGHTS[right], name, pools), self.root / name / "keys"
        self.on(host or name, name, "cluster", "join", token, "--keys", str(keys))
        return keys / "client"

    def on(
        self, host: str, name: str, *arguments: str, check: bool = True, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The product's command line on another host than the operator's."""
        environment = [f"{key}={value}" for key, value in self.process_env(name).items() if key.startswith("TRIVIUM_")]
        command = ["env", "-u", "TRIVIUM_CONNECT", *environment, TRIVIUM, *arguments]
        return SystemPool.run(self, *self.network.command(host, command), check=check, stdin=stdin)

    def mount(self) -> None:
        self.on("desk", "desk", "mount", str(self.mountpoint), "--connect", str(self.root / "desk"))
