"""A non-blocking socket under one deadline that moves with progress.

Invariants
1. The deadline belongs to the peer: it is set only while we wait for it to send or to take bytes, and each wait starts
   it anew. While the server itself works there is none. One cancel scope per connection, no scope per chunk.
2. Bytes that were received but not asked for (the start of a body, a pipelined request) wait in `_left` and are given
   out first.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Sequence

import trio

from trivium.cluster.transport.interface import Buffer

RECEIVE_SIZE = 64 * 1024
TURNS = 32  # operations that did not block before the event loop gets its turn


class Disconnected(Exception):
    """The peer closed or reset the connection."""


class Wire:
    """Reads and writes of one connection. `scope` is cancelled by its deadline when the peer makes no progress."""

    __slots__ = ("_left", "_sock", "_turns", "received", "scope", "sent")

    def __init__(self, sock: socket.socket, scope: trio.CancelScope) -> None:
        self._sock, self.scope = sock, scope
        self._left: memoryview = memoryview(b"")
        self._turns = 0
        self.received = self.sent = 0

    async def _wait(self, readable: bool, timeout_s: float) -> None:
        self.scope.deadline = trio.current_time() + timeout_s
        if readable:
            await trio.lowlevel.wait_readable(self._sock)
        else:
            await trio.lowlevel.wait_writable(self._sock)
        self.scope.deadline = math.inf
        self._turns = 0

    async def _turn(self) -> None:
        self._turns += 1
        if self._turns >= TURNS:
            self._turns = 0
            await trio.lowlevel.checkpoint()

    def unread(self, data: Buffer) -> None:
        """Give bytes back; they come first at the next read."""
        if not len(data):
            return
        self._left = memoryview(b"".join((data, self._left)) if len(self._left) else data)

    async def receive(self, limit: int, timeout_s: float) -> bytes:
        """At most `limit` bytes; b"" when the peer will send no more."""
        if self._left:
            data = bytes(self._left[:limit])
            self._left = self._left[limit:]
            return data
        while True:
            try:
                data = self._sock.recv(min(limit, RECEIVE_SIZE))
            except BlockingIOError:
                await self._wait(True, timeout_s)
                continue
            except OSError as error:
                raise Disconnected(str(error)) from None
            await self._turn()
            self.received += len(data)
            return data

    async def receive_into(self, view: memoryview, timeout_s: float) -> int:
        """Fill some of `view` and say how much; 0 when the peer will send no more."""
        if self._left:
            count = min(len(view), len(self._left))
            view[:count] = self._left[:count]
            self._left = self._left[count:]
            return count
        while True:
            try:
                count = self._sock.recv_into(view)
            except BlockingIOError:
                await self._wait(True, timeout_s)
                continue
            except OSError as error:
                raise Disconnected(str(error)) from None
            await self._turn()
            self.received += count
            return count

    async def send(self, buffers: Sequence[Buffer], timeout_s: float) -> None:
        """All of them, in as few system calls as the socket allows."""
        views = [memoryview(buffer) for buffer in buffers if len(buffer)]
        while views:
            try:
                count = self._sock.sendmsg(views)
            except BlockingIOError:
                await self._wait(False, timeout_s)
                continue
            except OSError as error:
                raise Disconnected(str(error)) from None
            self.sent += count
            while views and count >= len(views[0]):
                count -= len(views.pop(0))
            if views:
                views[0] = views[0][count:]
        await self._turn()

    async def linger(self, limit: int, timeout_s: float) -> None:
        """Say that nothing more comes, then take what the peer still sends: it would lose our answer to a reset."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            return
        deadline = trio.current_time() + timeout_s
        self._left = memoryview(b"")
        try:
            while limit > 0 and (left_s := deadline - trio.current_time()) > 0:
                data = await self.receive(RECEIVE_SIZE, left_s)
                if not data:
                    return
                limit -= len(data)
        except Disconnected:
            return
