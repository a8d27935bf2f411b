"""A cluster as hosts would form it: processes with nothing in common but UDP ports of the loopback interface.

Each has a directory of its own, joins with a token, and is told by TRIVIUM_TRANSPORT=quic to use no Unix socket.
"""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

from tests.system.pool import wait_for
from tests.system.test_nodes import Processes

SILENCE_S = 8.0  # a node's answer may take a quarter of it: handshakes on a busy machine
ROOT = {"TRIVIUM_ROOT_USER": "test-root", "TRIVIUM_ROOT_PASSWORD": "test-secret-of-root"}


def free_port(kind: socket.SocketKind = socket.SOCK_DGRAM) -> int:
    with socket.socket(type=kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Hosts(Processes):
    """`engines`: of the processes in the order of their start, by turns; none: each process's own choice."""

    def __init__(self, work: Path, engines: tuple[str, ...] = ()) -> None:
        super().__init__(work)
        self.env |= {"TRIVIUM_TRANSPORT": "quic"} | ROOT
        del self.env["TRIVIUM_CONNECT"]  # nobody but the operator reaches into the metadata server's directory
        self.engines = engines
        self.started = 0
        self.ports: dict[str, int] = {}
        self.client = work / "client"

    def port(self, name: str) -> int:
        if name not in self.ports:
            self.ports[name] = free_port()
        return self.ports[name]

    def engine(self, name: str) -> str:
        """A line of the TOML file."""
        self.started += 1
        return f'quic_engine = "{self.engines[self.started % len(self.engines)]}"\n' if self.engines else ""

    def metadata(self) -> None:
        """Begin the metadata server (it is ready when nodes have brought drives)."""
        self.begin(
            "metadata",
            "metadata",
            self.engine("metadata")
            + f'[metadata]\ndata = "{self.data}"\nprofile = "4+2"\nsilence_s = {SILENCE_S}\n'
            + f'listen = "127.0.0.1:{self.port("metadata")}"\n',
        )
        wait_for(lambda: (self.data / "run" / "trivium.sock").exists(), f"the socket\n{self.said('metadata')}")

    def operator(self, *arguments: str) -> str:
        """A command on the metadata server's host."""
        return self.trivium(*arguments, "--connect", self.data).stdout.strip()

    def token(self, *options: str) -> str:
        return self.operator("cluster", "token", "create", *options)

    def host(self, number: int, *, token: str | None = None) -> None:
        """Start (again) the node of host `number`."""
        name = f"n{number}"
        if token is None and not (self.work / name / "keys" / "node").exists():
            token = self.token("--role", "node")
        self.begin(
            name,
            "node",
            self.engine(name)
            + f'[node]\ndata = "{self.work}/{name}"\ndrives = 2\ndomain = "rack/h{number}"\nname = "{name}"\n'
            + f'listen = "127.0.0.1:{self.port(name)}"\n'
            + (f'join = "{token}"\n' if token else ""),
        )

    def join_client(self, folder: Path, *options: str) -> None:
        self.trivium("cluster", "join", self.token(*options), "--keys", folder / "keys")

    def gateway(self) -> None:
        """A host with a gateway, which needs a key of its own; the commands of this pool's user use its key."""
        self.join_client(self.client, "--right", "admin", "--name", "gateway")
        self.env["TRIVIUM_CONNECT"] = str(self.client)
        port = free_port(socket.SOCK_STREAM)
        self.start("s3", "s3", self.engine("s3") + f'connect = "{self.client}"\n[s3]\nlisten = "127.0.0.1:{port}"\n')
        self.env |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": ROOT["TRIVIUM_ROOT_USER"],
            "AWS_SECRET_ACCESS_KEY": ROOT["TRIVIUM_ROOT_PASSWORD"],
        }

    def form(self, hosts: int = 3) -> None:
        self.metadata()
        for number in range(hosts):
            self.host(number)
        self.wait_whole()
        self.gateway()

    def wait_whole(self) -> None:
        def whole() -> bool:
            done = self.trivium("status", "--json", "--connect", self.data, check=False)
            return done.returncode == 0 and bool(json.loads(done.stdout)["whole"])

        wait_for(whole, "the pool to be whole")

    def kill(self, name: str = "metadata") -> None:  # type: ignore[override]
        self.end(name, signal.SIGKILL)

    def said_by_all(self) -> str:
        return "\n".join(f"== {name}\n{self.said(name)}" for name in self.running)
