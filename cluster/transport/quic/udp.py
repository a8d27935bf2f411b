"""One UDP socket: batches by GSO and GRO where the kernel has them, single datagrams where not.

Invariants
1. A GSO group has one destination and equal datagrams (the last may be shorter), at most 64 and 65,000 bytes.
2. What the kernel does not take is either handed back (the buffer is full: wait) or dropped like any lost datagram.
3. A GSO send that the kernel or driver refuses turns GSO off for good and goes out datagram by datagram.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress

import trio

from trivium.cluster.transport.quic.address import Endpoint
from trivium.cluster.transport.quic.engine import Datagram

SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
GSO_SEGMENTS, GSO_BYTES = 64, 65_000
BUFFER_BYTES = 8 << 20
RECEIVE_BYTES = 65_535
_U16 = struct.Struct("H")
_INT = struct.Struct("i")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_INT.size)
_BUSY = (errno.EAGAIN, errno.ENOBUFS)
_NO_GSO = (errno.EIO, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EMSGSIZE)


class UdpSocket:
    """Non-blocking; a client's is connected, so that the kernel reports a port where nobody listens."""

    def __init__(self, family: socket.AddressFamily, *, offload: bool = True) -> None:
        self.sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        for force, plain in ((32, socket.SO_SNDBUF), (33, socket.SO_RCVBUF)):  # SO_SNDBUFFORCE, SO_RCVBUFFORCE
            for option in (force, plain):
                with suppress(OSError):
                    self.sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
                    break
        self.gso = offload and self._probe(UDP_SEGMENT, 0)
        self.gro = offload and self._probe(UDP_GRO, 1)
        self._connected = False

    def _probe(self, option: int, value: int) -> bool:
        try:
            self.sock.setsockopt(SOL_UDP, option, value)
        except OSError:
            return False
        return True

    def bind(self, address: Endpoint) -> Endpoint:
        self.sock.bind(address)
        name = self.sock.getsockname()
        return name[0], name[1]

    def connect(self, address: Endpoint) -> None:
        self.sock.connect(address)
        self._connected = True

    def close(self) -> None:
        if self.sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()

    async def wait_readable(self) -> None:
        await trio.lowlevel.wait_readable(self.sock)

    async def wait_writable(self) -> None:
        await trio.lowlevel.wait_writable(self.sock)

    def receive(self) -> tuple[bytes, int, Endpoint] | None:
        """(bytes, size of each datagram in them, sender), or None when there is nothing. OSError of the peer's port."""
        try:
            data, ancillary, _, sender = self.sock.recvmsg(RECEIVE_BYTES, _ANCILLARY_BYTES)
        except BlockingIOError:
            return None
        segment = len(data)
        for level, kind, value in ancillary:
            if level == SOL_UDP and kind == UDP_GRO:
                segment = _INT.unpack(value[: _INT.size])[0]
        return data, segment, (sender[0], sender[1]) if sender else ("", 0)

    def send(self, datagrams: Sequence[Datagram]) -> Sequence[Datagram]:
        """Send; what the kernel has no room for now comes back. ConnectionRefusedError from a connected socket."""
        index = 0
        while index < len(datagrams):
            end = self._group(datagrams, index) if self.gso else index + 1
            try:
                self._send_group(datagrams[index:end])
            except ConnectionRefusedError:
                raise
            except OSError as error:
                if error.errno in _BUSY:
                    return datagrams[index:]
                if end - index > 1 and error.errno in _NO_GSO:
                    self.gso = False
                    continue
                # no route, no permission, too large for the path: lost, as on any network; QUIC sends again
            index = end
        return ()

    @staticmethod
    def _group(datagrams: Sequence[Datagram], start: int) -> int:
        """The end of the group that may go out in one call."""
        first, target = datagrams[start]
        size = len(first)
        end, last = start + 1, min(len(datagrams), start + min(GSO_SEGMENTS, GSO_BYTES // size))
        while end < last:
            data, address = datagrams[end]
            if len(data) > size or address != target:
                break
            end += 1
            if len(data) < size:
                break
        return end

    def _send_group(self, group: Sequence[Datagram]) -> None:
        data, address = group[0]
        target = () if self._connected else (address,)
        if len(group) == 1:
            if self._connected:
                self.sock.send(data)
            else:
                self.sock.sendto(data, address)
            return
        ancillary = [(SOL_UDP, UDP_SEGMENT, _U16.pack(len(data)))]
        self.sock.sendmsg([datagram[0] for datagram in group], ancillary, 0, *target)
