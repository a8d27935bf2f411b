"""One socket that carries frames, driven by trio: few system calls, few copies.

Invariants
1. A frame is sent with sendmsg from the caller's own buffers and received into one fresh bytearray.
2. Descriptors that arrive are owned by exactly one FrameIn, or closed at once (errors, cancellation, truncation).
3. After any exception out of send() or receive() the stream is in the middle of a frame: it must be closed.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from trivium.cluster.errors import Unavailable
from trivium.cluster.transport.frames import MAX_FDS, Head, Limits
from trivium.cluster.wire import HEAD

STAGE_BYTES = 32 * 1024  # head, body and small payloads arrive in one call
SEND_BUFFER_BYTES = 4 << 20
IOV_MAX = 512
ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_FDS * 4)
_RECEIVE_FLAGS = getattr(socket, "MSG_CMSG_CLOEXEC", 0x40000000)


class Closed(Unavailable):
    """The peer closed the stream between two frames."""


@dataclass(slots=True)
class FrameIn:
    head: Head
    body: bytes
    payload: memoryview
    fds: tuple[int, ...] = ()

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = ()


def tune(sock: socket.socket) -> None:
    """Room for a whole chunk in the kernel, so that a sender is not woken for every 200 KiB."""
    sock.setblocking(False)
    for option in (getattr(socket, "SO_SNDBUFFORCE", 32), socket.SO_SNDBUF):
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, SEND_BUFFER_BYTES)
            return
        except OSError:
            continue


class FrameStream:
    """Frames over a connected non-blocking stream socket."""

    __slots__ = ("_end", "_fds", "_stage", "_start", "_takes_fds", "_view", "sock")

    def __init__(self, sock: socket.socket, *, takes_fds: bool) -> None:
        self.sock = sock
        self._takes_fds = takes_fds
        self._stage = bytearray(STAGE_BYTES)
        self._view = memoryview(self._stage)
        self._start = self._end = 0
        self._fds: list[int] = []

    def close(self) -> None:
        if self.sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()
        self._drop_fds()

    def _drop_fds(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    async def send(self, buffers: Sequence[memoryview], fds: Sequence[int] = ()) -> None:
        """Send all buffers. OSError when the peer is gone."""
        todo = list(buffers)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
        while todo:
            try:
                sent = self.sock.sendmsg(todo[:IOV_MAX], ancillary, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self.sock)
                continue
            ancillary = []
            todo = _rest(todo, sent)

    async def receive(self, limits: Limits) -> FrameIn:
        """The next frame. Closed at a clean end; Refused for one over the limits (whose bytes are still to come);
        Unavailable when the stream breaks off."""
        try:
            while self._end - self._start < HEAD.size:
                if not await self._fill():
                    if self._end == self._start:
                        raise Closed("the peer closed the connection")
                    raise Unavailable("the connection broke in the middle of a message")
            head = Head.parse(self._stage, self._start)
            self._start += HEAD.size
            limits.check(head.body_bytes, head.payload_bytes)
            body = bytes(await self._take(head.body_bytes))
            payload = await self._take(head.payload_bytes)
            fds, self._fds = tuple(self._fds), []
            return FrameIn(head, body, payload, fds)
        except BaseException:
            self._drop_fds()
            raise

    async def wait_end(self) -> None:
        """Return when the peer closes (or sends what it must not)."""
        await self._fill()

    async def drain(self) -> None:
        """Read and forget until the peer closes."""
        self._start = self._end = 0
        while await self._fill():
            self._start = self._end = 0

    async def _take(self, count: int) -> memoryview:
        """`count` bytes in memory of their own."""
        if not count:
            return memoryview(b"")
        staged = min(count, self._end - self._start)
        if staged == count:
            taken = memoryview(self._stage[self._start : self._start + count])
            self._start += count
            return taken
        into = memoryview(bytearray(count))
        into[:staged] = self._view[self._start : self._start + staged]
        self._start = self._end = 0
        while staged < count:
            received = await self._receive_into(into[staged:])
            if not received:
                raise Unavailable("the connection broke in the middle of a message")
            staged += received
        return into

    async def _fill(self) -> int:
        """Append what there is to the stage; 0 at the end of the stream."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == STAGE_BYTES:
            self._stage[: self._end - self._start] = self._stage[self._start : self._end]
            self._start, self._end = 0, self._end - self._start
        received = await self._receive_into(self._view[self._end :])
        self._end += received
        return received

    async def _receive_into(self, view: memoryview) -> int:
        while True:
            try:
                if not self._takes_fds:
                    return self.sock.recv_into(view)  # the kernel closes descriptors that nobody asked for
                received, ancillary, flags, _ = self.sock.recvmsg_into([view], ANCILLARY_BYTES, _RECEIVE_FLAGS)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.sock)
                continue
            if ancillary:
                self._keep_fds(ancillary)
            if flags & socket.MSG_CTRUNC:
                raise Unavailable("the peer sent more descriptors than a message may carry")
            return received

    def _keep_fds(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                self._fds.extend(fds)


def _rest(buffers: list[memoryview], sent: int) -> list[memoryview]:
    """What remains of `buffers` after `sent` bytes."""
    for index, buffer in enumerate(buffers):
        if sent < len(buffer):
            return [buffer[sent:], *buffers[index + 1 :]]
        sent -= len(buffer)
    return []
