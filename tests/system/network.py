"""A network of its own on this machine: hosts are network namespaces, their cables end at a bridge in one more.

    switch (namespace, bridge br0)  ---- veth ----  eth0 of h0 (namespace), 10.77.0.10
                                    ---- veth ----  eth0 of h1 (namespace), 10.77.0.11 ...

Invariants
1. Nothing is added to the network that the tests themselves run in: no interface, address, route or rule.
2. Names hold the process that made them and when it began; what a killed run left behind (namespaces, processes in
   them, mounts and directories with its tag) is removed by the next network that is made.
3. The mount namespace stays the caller's (nsenter, not `ip netns exec`): a mount made on a host is seen by the tests.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

PREFIX = "trivium-t"
NAMES = Path("/run/netns")
CLONE_NEWNET = 0x40000000
SUBNET = "10.77.0"
PACKET_OUTGOING = 4
BUFFER_BYTES = 256 << 20

_libc = ctypes.CDLL(None, use_errno=True)


def tag_of(pid: int) -> str:
    """Names a process for as long as the machine runs: pids come again, with another starting time."""
    began = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    return f"{PREFIX}-{pid}-{began}"


@functools.cache
def why_not() -> str:
    """Why this machine cannot run such tests; "" when it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "nsenter"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (Debian: iproute2, util-linux)"
    probe = f"{tag_of(os.getpid())}-probe"
    made = _ip("netns", "add", probe, check=False)
    if made.returncode != 0:
        return f"network namespaces are not allowed here: {made.stderr.strip()}"
    try:
        bridge = _ip("-n", probe, "link", "add", "name", "br0", "type", "bridge", check=False)
        veth = _ip("-n", probe, "link", "add", "name", "x0", "type", "veth", "peer", "name", "x1", check=False)
    finally:
        _ip("netns", "del", probe)
    failed = next((done for done in (bridge, veth) if done.returncode != 0), None)
    return f"no bridge or veth here: {failed.stderr.strip()}" if failed else ""


def _ip(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False, timeout=30)
    assert not check or done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done


def remove_leftovers() -> None:
    """What killed runs of these tests have left."""
    for path in [*NAMES.glob(f"{PREFIX}-*"), *Path(tempfile.gettempdir()).glob(f"{PREFIX}-*")]:
        parts = path.name.split("-")
        tag = "-".join(parts[:4])
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            if tag_of(int(parts[2])) == tag:
                continue
        _remove_namespace(path.name) if path.parent == NAMES else _remove_directory(path)


def _remove_namespace(name: str) -> None:
    for pid in _ip("netns", "pids", name, check=False).stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _ip("netns", "del", name, check=False)


def _remove_directory(path: Path) -> None:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        if (mount := line.split()[1]).startswith(f"{path}/"):
            subprocess.run(["umount", "-l", mount], capture_output=True, check=False)
    shutil.rmtree(path, ignore_errors=True)


class Network:
    """Hosts on one switch. `close()` removes everything, processes on the hosts included."""

    def __init__(self) -> None:
        remove_leftovers()
        self._tag = tag_of(os.getpid())
        self.addresses: dict[str, str] = {}
        self._own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._switch = self._name("switch")
        _remove_namespace(self._switch) if (NAMES / self._switch).exists() else None
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "name", "br0", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "br0", "up")

    def _name(self, host: str) -> str:
        return f"{self._tag}-{host}"

    def namespace(self, host: str) -> str:
        return self._name(host)

    def add(self, host: str) -> str:
        """A host with a cable to the switch; its address."""
        name, address = self._name(host), f"{SUBNET}.{10 + len(self.addresses)}"
        _ip("netns", "add", name)
        self.addresses[host] = address
        _ip("-n", self._switch, "link", "add", "name", host, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("-n", self._switch, "link", "set", host, "master", "br0")
        _ip("-n", self._switch, "link", "set", host, "up")
        _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            _ip("-n", name, "link", "set", link, "up")
        return address

    def command(self, host: str, command: list[str]) -> list[str]:
        """The same command on that host; it keeps its process id."""
        return ["nsenter", f"--net={NAMES / self._name(host)}", *command]

    def enter(self, host: str) -> None:
        """From now on this thread is on that host: its sockets, and the processes that it starts."""
        with open(NAMES / self._name(host), "rb") as namespace:
            _set_namespace(namespace.fileno())

    @contextlib.contextmanager
    def on(self, host: str) -> Iterator[None]:
        """This thread is on that host for a while. Sockets made meanwhile stay there."""
        self.enter(host)
        try:
            yield
        finally:
            _set_namespace(self._own)

    # ---- cables ---------------------------------------------------------------------------------------------

    def cut(self, host: str) -> None:
        """Pull its cable at the switch: it sends into nothing and nobody is told."""
        _ip("-n", self._switch, "link", "set", host, "nomaster")

    def mend(self, host: str) -> None:
        _ip("-n", self._switch, "link", "set", host, "master", "br0")

    def cut_one_way(self, host: str, *, into: bool) -> bool:
        """Lose all that goes to the host (`into`) or all that it sends. False where the kernel cannot."""
        where, link = (self._switch, host) if into else (self._name(host), "eth0")
        return self._tc(where, "add", link, "pfifo", "limit", "0")

    def mend_one_way(self, host: str, *, into: bool) -> None:
        where, link = (self._switch, host) if into else (self._name(host), "eth0")
        assert self._tc(where, "del", link)

    @staticmethod
    def _tc(namespace: str, what: str, link: str, *rest: str) -> bool:
        if shutil.which("tc") is None:
            return False
        command = ["tc", "-n", namespace, "qdisc", what, "dev", link, "root", *rest]
        return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0

    def send_raw(self) -> socket.socket:
        """A socket that puts whole frames onto the switch's cables: `sendto(frame, (host, 0))`."""
        with self.on("switch"):
            return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)

    def capture(self) -> Capture:
        with self.on("switch"):
            return Capture()

    def close(self) -> None:
        for host in (*self.addresses, "switch"):
            if (NAMES / self._name(host)).exists():
                _remove_namespace(self._name(host))
        os.close(self._own)


def _set_namespace(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class Capture(threading.Thread):
    """Every frame that comes from a host to the switch, in memory, from now until `stop`."""

    def __init__(self) -> None:
        super().__init__(name="capture", daemon=True)
        self.frames: list[bytes] = []
        self.lost = 0
        self._stopping = False
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
        self._socket.setsockopt(socket.SOL_SOCKET, 33, BUFFER_BYTES)  # SO_RCVBUFFORCE
        self._socket.settimeout(0.2)
        self.start()

    def run(self) -> None:
        while True:
            try:
                frame, (_, _, kind, *_) = self._socket.recvfrom(1 << 17)
            except TimeoutError:
                if self._stopping:
                    return
                continue
            if kind != PACKET_OUTGOING:
                self.frames.append(frame)

    def stop(self) -> list[bytes]:
        """What was seen; nothing of it was lost for want of room."""
        self._stopping = True
        self.join()
        packets_and_drops = self._socket.getsockopt(263, 6, 8)  # SOL_PACKET, PACKET_STATISTICS
        self.lost = int.from_bytes(packets_and_drops[4:], "little")
        self._socket.close()
        return self.frames
