"""HTTP/1.1 server on trio: heads are parsed by httptools (llhttp), bodies are framed here and never held whole.

Invariants
1. Requests of one connection are answered one after another, in order; pipelined bytes wait in the wire.
2. A body has exactly one framing: Content-Length or chunked, never both (llhttp refuses it, so do we).
3. What the handler leaves unread of a body is read away when it is little, else the connection is closed after the
   answer: the next request never begins inside a body.
4. A response is sent whole or the connection is cut: a client never takes half a body for all of it.
5. `100 Continue` goes out only when somebody asks for the body.

States of a connection: idle -> head -> body/answer -> idle | closed. `stop()` closes idle ones at once and gives the
others a grace.
"""

from __future__ import annotations

import email.utils
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus

import httptools
import trio

from trivium.cluster.transport.interface import Buffer
from trivium.s3.wire import RECEIVE_SIZE, Disconnected, Wire

log = logging.getLogger(__name__)

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
REASONS = {status.value: status.phrase for status in HTTPStatus}


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one HTTP server."""

    head_bytes: int = 64 * 1024
    headers: int = 256
    idle_s: float = 75.0  # between requests
    head_s: float = 30.0  # for a whole head
    progress_s: float = 30.0  # a body or an answer must move within
    drain_bytes: int = 256 * 1024  # of an unread body that is read away to keep the connection
    connections: int = 4096
    grace_s: float = 10.0  # for requests in flight when the server stops


class HttpError(Exception):
    """The request is no acceptable HTTP. The connection is closed after the answer."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Truncated(Exception):
    """The peer stopped in the middle of a body."""


class Body:
    """A request's body, read once, in order. `length` is None when it is chunked (unknown)."""

    __slots__ = ("_chunk_left", "_expect", "_timeout_s", "_wire", "done", "left", "length")

    def __init__(self, wire: Wire, length: int | None, expect: bool, timeout_s: float) -> None:
        self._wire, self.length, self._expect, self._timeout_s = wire, length, expect, timeout_s
        self.left = 0 if length is None else length  # of the framing's current unit
        self.done = length == 0
        self._chunk_left = -1  # chunked: -1 before the first size line

    @property
    def untouched(self) -> bool:
        """The peer still waits for `100 Continue`."""
        return self._expect and not self.done

    async def read_into(self, view: memoryview) -> int:
        """Fill some of `view`; 0 at the end. Truncated when the peer stops before it."""
        if self.done or not len(view):
            return 0
        await self._begin()
        if self.length is None and not await self._next_chunk():
            return 0
        count = await self._wire.receive_into(view[: self.left], self._timeout_s)
        return self._took(count)

    async def read(self, limit: int = RECEIVE_SIZE) -> bytes:
        """At most `limit` bytes; b"" at the end."""
        if self.done:
            return b""
        await self._begin()
        if self.length is None and not await self._next_chunk():
            return b""
        data = await self._wire.receive(min(limit, self.left), self._timeout_s)
        self._took(len(data))
        return data

    async def read_all(self, limit: int) -> bytes | None:
        """The whole body, None when it is longer than `limit`."""
        if self.length is not None and self.length > limit:
            return None
        parts, size = [], 0
        while data := await self.read():
            size += len(data)
            if size > limit:
                return None
            parts.append(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _begin(self) -> None:
        if self._expect:
            self._expect = False
            await self._wire.send([CONTINUE], self._timeout_s)

    def _took(self, count: int) -> int:
        if count == 0:
            raise Truncated
        self.left -= count
        if self.length is not None:
            self.done = self.left == 0
        return count

    async def _next_chunk(self) -> bool:
        """Make `left` positive, or note the end. Strict: hexadecimal size, CRLF, no extensions beyond the line."""
        if self.left:
            return True
        if self._chunk_left >= 0 and await self._line() != b"":
            raise HttpError("BadRequest", "A chunk is not followed by CRLF.")
        size_text = (await self._line()).partition(b";")[0].strip()
        if not size_text or len(size_text) > 16 or size_text.strip(b"0123456789abcdefABCDEF"):
            raise HttpError("BadRequest", "A chunk's size is not a hexadecimal number.")
        self._chunk_left = self.left = int(size_text, 16)
        if self.left:
            return True
        for _ in range(64):  # trailers, which HTTP itself makes optional: read and dropped
            if await self._line() == b"":
                self.done = True
                return False
        raise HttpError("BadRequest", "Too many trailers.")

    async def _line(self) -> bytes:
        line = b""
        while (end := line.find(b"\r\n")) < 0:
            if len(line) > 8192:
                raise HttpError("BadRequest", "A chunk's line is too long.")
            data = await self._wire.receive(RECEIVE_SIZE, self._timeout_s)
            if not data:
                raise Truncated
            line += data
        self._wire.unread(line[end + 2 :])
        return line[:end]


@dataclass(slots=True)
class Request:
    method: str
    target: str  # as sent: path and query, still encoded
    headers: dict[str, str]  # names in lower case; repeated ones joined with ", "; Latin-1, so that bytes survive
    body: Body
    peer: str
    keep_alive: bool
    repeated: frozenset[str] = frozenset()

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query_string(self) -> str:
        return self.target.partition("?")[2]


Send = Callable[[Buffer], Awaitable[None]]


@dataclass(slots=True)
class Response:
    """An answer: `body`, or `stream` which sends exactly `length` bytes. `finish` is awaited whatever happens."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: Buffer = b""
    stream: Callable[[Send], Awaitable[None]] | None = None
    length: int = -1  # of the stream; for HEAD: what is announced
    finish: Callable[[], Awaitable[None]] | None = None
    close: bool = False


Handler = Callable[[Request], Awaitable[Response]]
Refusal = Callable[[HttpError], Response]


class _Head:
    """httptools' callbacks: collects one head."""

    __slots__ = ("headers", "repeated", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: dict[str, str] = {}
        self.repeated: set[str] = set()

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        if key in self.headers:
            self.repeated.add(key)
            text = f"{self.headers[key]},{text}"
        self.headers[key] = text


_date: tuple[int, bytes] = (0, b"")


def _date_line() -> bytes:
    global _date
    now = int(time.time())
    if now != _date[0]:
        _date = (now, f"Date: {email.utils.formatdate(now, usegmt=True)}\r\nServer: trivium\r\n".encode())
    return _date[1]


_UNSAFE = {code: " " for code in (*range(32), 127)}


def encode_head(response: Response, length: int, keep_alive: bool) -> bytes:
    """The status line and headers. Control characters in values become spaces: nothing can be injected."""
    lines = [f"HTTP/1.1 {response.status} {REASONS.get(response.status, 'Unknown')}\r\n"]
    for name, value in response.headers.items():
        lines.append(f"{name}: {value if value.isprintable() else value.translate(_UNSAFE)}\r\n")
    if response.status != 304 and response.status != 204:
        lines.append(f"Content-Length: {length}\r\n")
    if not keep_alive:
        lines.append("Connection: close\r\n")
    return b"".join(("".join(lines).encode("latin-1", "replace"), _date_line(), b"\r\n"))


def parse_head(data: bytes, limits: Limits) -> tuple[str, str, dict[str, str], bool, frozenset[str], bool]:
    """(method, target, headers, keep alive, repeated headers, upgrade) of a complete head. HttpError."""
    head = _Head()
    parser = httptools.HttpRequestParser(head)
    upgrade = False
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        upgrade = True
    except httptools.HttpParserInvalidURLError as error:
        raise HttpError("InvalidURI", f"The request target is not valid: {error}.") from None
    except httptools.HttpParserError as error:
        raise HttpError("BadRequest", f"The request is not well-formed HTTP: {error}.") from None
    if parser.get_http_version() not in ("1.1", "1.0"):
        raise HttpError("BadRequest", "Only HTTP/1.0 and HTTP/1.1 are spoken here.")
    if len(head.headers) > limits.headers:
        raise HttpError("RequestHeaderSectionTooLarge", f"More than {limits.headers} headers.")
    repeated = head.repeated & {"host", "content-length", "transfer-encoding", "authorization", "x-amz-date"}
    if repeated or ("host" not in head.headers and parser.get_http_version() == "1.1"):
        raise HttpError("BadRequest", f"Missing or repeated header: {', '.join(sorted(repeated)) or 'host'}.")
    method, version = parser.get_method().decode("ascii"), parser.get_http_version()
    tokens = {token.strip().lower() for token in head.headers.get("connection", "").split(",")}
    keep_alive = "close" not in tokens if version == "1.1" else "keep-alive" in tokens
    target = head.target.decode("latin-1")
    return method, target, head.headers, keep_alive and not upgrade, frozenset(head.repeated), upgrade


def body_length(headers: dict[str, str]) -> int | None:
    """Bytes of the body, None when it is chunked. HttpError."""
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None:
        if length is not None or coding.strip().lower() != "chunked":
            raise HttpError("BadRequest", "A body is framed by Content-Length or by chunked, nothing else.")
        return None
    if length is None:
        return 0
    if not length.isascii() or not length.isdigit() or len(length) > 18:
        raise HttpError("BadRequest", "Content-Length is not a number.")
    return int(length)


class HttpServer:
    """Serves one handler on any number of listeners until cancelled or stopped."""

    def __init__(self, handler: Handler, refusal: Refusal, limits: Limits | None = None) -> None:
        self._handler, self._refusal = handler, refusal
        self._limits = limits or Limits()
        self._stopping = trio.Event()
        self._idle: set[trio.CancelScope] = set()
        self.connections = 0
        self.connections_total = 0
        self.bytes_received = 0
        self.bytes_sent = 0

    def stop(self) -> None:
        """Take no more connections, close idle ones, finish what is in flight (at most the grace)."""
        self._stopping.set()

    async def serve(
        self,
        listeners: list[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(self._accept, listeners, connections, task_status)
                await self._stopping.wait()
                accepting.cancel_scope.cancel()
            for scope in list(self._idle):
                scope.cancel()
            connections.cancel_scope.deadline = trio.current_time() + self._limits.grace_s

    async def _accept(
        self,
        listeners: list[trio.SocketListener],
        nursery: trio.Nursery,
        task_status: trio.TaskStatus[list[trio.SocketListener]],
    ) -> None:
        async def one(stream: trio.SocketStream) -> None:
            peer = stream.socket.getpeername() if stream.socket.family != socket.AF_UNIX else "unix"
            with socket.socket(fileno=stream.socket.detach()) as sock:
                await self._connection(sock, peer[0] if isinstance(peer, tuple) else "unix")

        await trio.serve_listeners(one, listeners, handler_nursery=nursery, task_status=task_status)

    async def _connection(self, sock: socket.socket, peer: str) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connections += 1
        self.connections_total += 1
        scope = trio.CancelScope()
        wire = Wire(sock, scope)
        try:
            with scope:
                if self.connections > self._limits.connections:
                    await self._refuse(wire, HttpError("SlowDown", "Too many connections."))
                    return
                while not self._stopping.is_set() and await self._exchange(wire, peer):
                    pass
        except* (Disconnected, Truncated):
            pass
        except* Exception:
            log.exception("a connection ended by an error of ours")
        finally:
            self.connections -= 1
            self.bytes_received += wire.received
            self.bytes_sent += wire.sent

    async def _exchange(self, wire: Wire, peer: str) -> bool:
        """One request and its answer; True when the connection can be used again."""
        try:
            request = await self._receive_head(wire, peer)
        except HttpError as error:
            await self._refuse(wire, error)
            return False
        if request is None:
            return False
        try:
            response = await self._handler(request)
        except HttpError as error:
            response = self._refusal(error)
            response.close = True
        try:
            return await self._answer(wire, request, response)
        finally:
            if response.finish is not None:
                with trio.CancelScope(shield=True):
                    await response.finish()

    async def _receive_head(self, wire: Wire, peer: str) -> Request | None:
        limits = self._limits
        data = await self._first_bytes(wire)
        if not data:
            return None
        until = trio.current_time() + limits.head_s
        data = data.lstrip(b"\r\n") if data[:1] in b"\r\n" else data
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > limits.head_bytes:
                raise HttpError("RequestHeaderSectionTooLarge", f"The head exceeds {limits.head_bytes} bytes.")
            more = await wire.receive(RECEIVE_SIZE, max(0.001, until - trio.current_time()))
            if not more:
                return None
            data += more
        if end > limits.head_bytes:
            raise HttpError("RequestHeaderSectionTooLarge", f"The head exceeds {limits.head_bytes} bytes.")
        rest = data[end + 4 :] if len(data) > end + 4 else b""
        method, target, headers, keep_alive, repeated, upgrade = parse_head(data[: end + 4] if rest else data, limits)
        length = body_length(headers)
        if upgrade and length != 0:
            raise HttpError("BadRequest", "Upgrades are not supported.")
        if rest:
            wire.unread(rest)
        expect = headers.get("expect", "").lower() == "100-continue" and length != 0
        body = Body(wire, length, expect, limits.progress_s)
        return Request(method, target, headers, body, peer, keep_alive, repeated)

    async def _first_bytes(self, wire: Wire) -> bytes:
        self._idle.add(wire.scope)
        try:
            return await wire.receive(RECEIVE_SIZE, self._limits.idle_s)
        finally:
            self._idle.discard(wire.scope)

    async def _answer(self, wire: Wire, request: Request, response: Response) -> bool:
        head_only = request.method == "HEAD"
        body = request.body
        keep = request.keep_alive and not response.close and not self._stopping.is_set()
        drain = 0
        if not body.done:
            drain = body.left if body.length is not None else self._limits.drain_bytes
            keep = keep and not body.untouched and drain <= self._limits.drain_bytes
        timeout_s = self._limits.progress_s
        length = response.length if response.length >= 0 else len(response.body)
        head = encode_head(response, length, keep)
        if head_only or response.status in (204, 304):
            await wire.send([head], timeout_s)
        elif response.stream is None:
            await wire.send([head, response.body], timeout_s)
        else:
            await self._stream(wire, head, response)
        if body.done:
            return keep
        if keep and await body.read_all(self._limits.drain_bytes) is not None:
            return True
        await wire.linger(64 << 20, 2.0)
        return False

    async def _stream(self, wire: Wire, head: bytes, response: Response) -> None:
        """The head goes out with the first bytes of the body: one system call for a small answer."""
        assert response.stream is not None
        pending: list[bytes] = [head]
        left = response.length
        gone = False

        async def send(data: Buffer) -> None:
            nonlocal left, gone
            left -= len(data)
            if left < 0:
                raise ValueError("the stream is longer than announced")
            buffers: list[Buffer] = [*pending, data]
            pending.clear()
            try:
                await wire.send(buffers, self._limits.progress_s)
            except Disconnected:
                gone = True
                raise

        try:
            await response.stream(send)
            if pending:
                await wire.send(pending, self._limits.progress_s)
        except Exception:
            if not gone:
                log.exception("an answer broke off; the connection is cut")
            raise Disconnected("an answer broke off") from None
        if left:
            log.error("an answer was %d bytes short; the connection is cut", left)
            raise Disconnected("an answer was short")

    async def _refuse(self, wire: Wire, error: HttpError) -> None:
        response = self._refusal(error)
        head = encode_head(response, len(response.body), False)
        await wire.send([head, response.body], self._limits.progress_s)
        await wire.linger(1 << 20, 1.0)


def open_listener(host: str, port: int, *, reuse_port: bool = False, backlog: int = 1024) -> trio.SocketListener:
    """A listening TCP socket. `reuse_port`: several worker processes share one port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
