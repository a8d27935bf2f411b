"""The network that tests of hosts are built upon: cables, cuts, captures, and what is left behind."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system import network
from tests.system.attack import Datagram, datagrams
from tests.system.network import NAMES, Network
from tests.system.pool import alive, wait_for

pytestmark = pytest.mark.skipif(bool(network.why_not()), reason=network.why_not())


class Wire:
    """A host that listens and one that talks to it."""

    def __init__(self, net: Network) -> None:
        self.net = net
        address, back = net.add("left"), net.add("right")
        self.to, self.back = (address, 5000), (back, 5000)
        self.left, self.right = self.bound("left", self.to), self.bound("right", self.back)

    def bound(self, host: str, address: tuple[str, int]) -> socket.socket:
        with self.net.on(host):
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(address)
        made.settimeout(0.3)
        return made

    def arrives(self, *, backwards: bool = False) -> bool:
        sender, receiver, to = (self.left, self.right, self.back) if backwards else (self.right, self.left, self.to)
        text = os.urandom(8)
        for _ in range(3):  # the first may find no neighbour yet
            sender.sendto(text, to)
            try:
                return receiver.recv(100) == text
            except TimeoutError:
                continue
        return False


@pytest.fixture
def wire() -> Iterator[Wire]:
    net = Network()
    try:
        made = Wire(net)
        yield made
        made.left.close()
        made.right.close()
    finally:
        net.close()


def test_cables_are_cut_and_mended_also_one_way(wire: Wire) -> None:
    assert wire.arrives() and wire.arrives(backwards=True)
    wire.net.cut("left")
    assert not wire.arrives() and not wire.arrives(backwards=True)
    wire.net.mend("left")
    assert wire.arrives()
    if not wire.net.cut_one_way("left", into=True):
        pytest.skip("this kernel has no queue that drops everything")
    assert not wire.arrives() and wire.arrives(backwards=True)
    wire.net.mend_one_way("left", into=True)
    assert wire.net.cut_one_way("left", into=False)
    assert wire.arrives() and not wire.arrives(backwards=True)
    wire.net.mend_one_way("left", into=False)
    assert wire.arrives(backwards=True)


def test_a_capture_sees_each_frame_once_and_frames_are_put_in_under_any_name(wire: Wire) -> None:
    wire.arrives()
    capture = wire.net.capture()
    texts = [random.randbytes(1000) for _ in range(200)]
    for text in texts:
        wire.right.sendto(text, wire.to)
        assert wire.left.recv(2000) == text
    seen = [found for found in datagrams(capture.stop()) if found.destination_port == 5000]
    assert [found.payload for found in seen] == texts and capture.lost == 0
    with wire.net.send_raw() as cable:
        cable.sendto(seen[0].with_payload(b"put in"), ("left", 0))
    data, sender = wire.left.recvfrom(100)
    assert data == b"put in" and sender == wire.back
    parsed = Datagram.parse(seen[0].with_payload(b"x"))
    assert parsed is not None and parsed.payload == b"x"


def test_what_a_killed_run_left_is_removed_by_the_next() -> None:
    code = (
        "import os, subprocess\n"
        "from tests.system.network import Network\n"
        "net = Network(); net.add('lost')\n"
        "child = subprocess.Popen(net.command('lost', ['sleep', '1000']), stdout=subprocess.DEVNULL)\n"
        "print(net.namespace('lost'), child.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False, cwd=root)
    name, pid = done.stdout.split()
    assert (NAMES / name).exists() and alive(int(pid))
    Network().close()
    assert not (NAMES / name).exists()
    wait_for(lambda: not alive(int(pid)), "the process that was left to be gone")
