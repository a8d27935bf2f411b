"""aws-chunked bodies: a pure decoder. Bytes in, views of the payload out; the trailers are left in `trailers`.

    size line:  hex [;chunk-signature=hex64] CRLF, then data CRLF, the last with size 0
    trailers:   name:value CRLF …, x-amz-trailer-signature:hex64 CRLF when signed, then CRLF

States: SIZE -> DATA -> DATA_END -> SIZE ...; size 0 -> TRAILER -> DONE. The framing is strict: anything else raises
S3Error and nothing of the request may become visible. In signed forms each chunk's signature is checked at its end,
so payload is handed out before it is proven: the caller commits only when `done`.
"""

from __future__ import annotations

import hashlib
from enum import Enum

from trivium.s3.errors import S3Error
from trivium.s3.sigv4 import ChunkSigner

MAX_LINE = 1024
MAX_TRAILER = 16 * 1024
MAX_CHUNK = 5 << 30


class State(Enum):
    SIZE = 1
    DATA = 2
    DATA_END = 3
    TRAILER = 4
    DONE = 5


class AwsChunked:
    """`signer` None: unsigned chunks. `trailer`: the one checksum header that must follow, "" = none may."""

    def __init__(self, decoded_length: int, signer: ChunkSigner | None = None, trailer: str = "") -> None:
        self._signer, self._trailer_name = signer, trailer
        self._left_of_body = decoded_length
        self._state = State.SIZE
        self._line = b""
        self._left = 0
        self._size = 0
        self._signature = ""
        self._sha256 = hashlib.sha256()
        self._trailer_lines: list[bytes] = []
        self.trailers: dict[str, str] = {}

    @property
    def done(self) -> bool:
        return self._state is State.DONE

    def feed(self, data: memoryview) -> list[memoryview]:
        """The payload in `data`. S3Error for bad framing or a bad signature."""
        payload: list[memoryview] = []
        while len(data):
            if self._state is State.DATA:
                piece, data = data[: self._left], data[self._left :]
                self._left -= len(piece)
                payload.append(piece)
                if self._signer is not None:
                    self._sha256.update(piece)
                if self._left == 0:
                    self._state = State.DATA_END
            elif self._state is State.DONE:
                raise _malformed("bytes follow the end")
            else:
                data = self._take_line(data)
        return payload

    def _take_line(self, data: memoryview) -> memoryview:
        window = bytes(data[: MAX_LINE + 2])
        joined = self._line + window
        end = joined.find(b"\r\n")
        if end < 0:
            if len(joined) > MAX_LINE:
                raise _malformed("a line is too long")
            self._line = joined
            return data[len(window) :]
        used = end + 2 - len(self._line)
        self._line = b""
        self._on_line(joined[:end])
        return data[used:]

    def _on_line(self, line: bytes) -> None:
        if self._state is State.SIZE:
            self._on_size(line)
        elif self._state is State.DATA_END:
            if line:
                raise _malformed("a chunk is not followed by CRLF")
            self._check_chunk()
            self._state = State.SIZE
        elif line:
            self._trailer_lines.append(line)
            if sum(map(len, self._trailer_lines)) > MAX_TRAILER:
                raise _malformed("the trailers are too long")
        else:
            self._end()

    def _on_size(self, line: bytes) -> None:
        size_text, semicolon, extension = line.partition(b";")
        if not size_text or len(size_text) > 16 or size_text.strip(b"0123456789abcdefABCDEF"):
            raise _malformed("a chunk's size is not a hexadecimal number")
        self._size = self._left = int(size_text, 16)
        if self._size > min(self._left_of_body, MAX_CHUNK):
            raise _malformed("the chunks hold more than x-amz-decoded-content-length")
        self._left_of_body -= self._size
        if self._signer is None:
            if semicolon:
                raise _malformed("an unsigned chunk has an extension")
        else:
            name, _, value = extension.partition(b"=")
            if name.strip() != b"chunk-signature":
                raise _malformed("a chunk has no signature")
            self._signature = value.strip().decode("latin-1")
        if self._size:
            self._state = State.DATA
            return
        self._check_chunk()
        if self._left_of_body:
            raise S3Error("IncompleteBody", "The chunks hold less than x-amz-decoded-content-length.")
        self._state = State.TRAILER

    def _check_chunk(self) -> None:
        if self._signer is None:
            return
        if not self._signer.check_chunk(self._sha256.hexdigest(), self._signature):
            raise S3Error("SignatureDoesNotMatch", "A chunk's signature does not match.")
        self._sha256 = hashlib.sha256()

    def _end(self) -> None:
        canonical = b""
        signature = ""
        for line in self._trailer_lines:
            name_bytes, colon, value = line.partition(b":")
            name = name_bytes.decode("latin-1").strip().lower()
            if not colon or name in self.trailers or not name:
                raise _malformed("a trailer is malformed")
            if name == "x-amz-trailer-signature":
                signature = value.strip().decode("latin-1")
                continue
            if name != self._trailer_name:
                raise _malformed("a trailer was not announced")
            self.trailers[name] = value.strip().decode("latin-1")
            canonical += name.encode() + b":" + value.strip() + b"\n"
        if self._trailer_name and self._trailer_name not in self.trailers:
            raise _malformed("the announced trailer is missing")
        if self._trailer_name and self._signer is not None and not self._signer.check_trailer(canonical, signature):
            raise S3Error("SignatureDoesNotMatch", "The trailer's signature does not match.")
        self._state = State.DONE


def _malformed(text: str) -> S3Error:
    code = "MalformedTrailerError" if "trailer" in text else "InvalidRequest"
    return S3Error(code, f"The chunked body is malformed: {text}.")
