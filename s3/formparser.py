"""multipart/form-data of a POST upload: a pure, streaming parser. Bytes in; fields collected, the file's bytes out.

States: PREAMBLE -> HEADERS -> FIELD -> HEADERS … -> FILE -> DONE. The file is the last part that counts: what follows
it is read and dropped, as S3 does. Everything before it is bounded.
"""

from __future__ import annotations

import re
from enum import Enum

from trivium.s3.errors import S3Error

MAX_FIELDS = 20 * 1024
MAX_HEADERS = 8 * 1024
_NAME = re.compile(r';\s*name="((?:[^"\\]|\\.)*)"|;\s*name=([^;"\s]+)', re.IGNORECASE)
_FILENAME = re.compile(r';\s*filename="((?:[^"\\]|\\.)*)"|;\s*filename=([^;"\s]+)', re.IGNORECASE)
_BOUNDARY = re.compile(r'boundary=(?:"([^"\r\n]{1,70})"|([^\s;",\r\n]{1,70}))', re.IGNORECASE)


class State(Enum):
    PREAMBLE = 1
    HEADERS = 2
    FIELD = 3
    FILE = 4
    DONE = 5


def boundary_of(content_type: str) -> bytes:
    """S3Error unless the body is a form."""
    kind, _, rest = content_type.partition(";")
    found = _BOUNDARY.search(rest)
    if kind.strip().lower() != "multipart/form-data" or found is None:
        raise S3Error("MalformedPOSTRequest")
    return (found[1] or found[2]).encode("latin-1")


class FormParser:
    """`fields`: names in lower case. `filename`: what the client calls the file."""

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._data = b"\r\n"  # so that a boundary at the very start is found like any other
        self._state = State.PREAMBLE
        self._field = ""
        self._seen = 0
        self.fields: dict[str, str] = {}
        self.filename = ""

    @property
    def in_file(self) -> bool:
        """The fields are complete."""
        return self._state in (State.FILE, State.DONE)

    @property
    def done(self) -> bool:
        """The file is complete."""
        return self._state is State.DONE

    def feed(self, data: bytes) -> bytes:
        """The file's bytes in `data`. S3Error."""
        if self._state is State.DONE:
            return b""
        self._data += data
        while self._state in (State.PREAMBLE, State.HEADERS, State.FIELD):
            if not self._advance():
                self._check_size()
                return b""
        return self._file()

    def _check_size(self) -> None:
        if self._seen + len(self._data) > MAX_FIELDS + MAX_HEADERS:
            raise S3Error("MaxPostPreDataLengthExceeded")

    def _advance(self) -> bool:
        """One step before the file; False when more bytes are needed."""
        if self._state is State.HEADERS:
            return self._headers()
        end = self._data.find(self._delimiter)
        if end < 0 or len(self._data) < end + len(self._delimiter) + 2:
            return False
        value, after = self._data[:end], self._data[end + len(self._delimiter) :]
        if self._state is State.FIELD:
            self._keep(value)
        elif end > 0:
            raise S3Error("MalformedPOSTRequest")
        if not after.startswith(b"\r\n"):
            raise S3Error("InvalidArgument", "POST requires exactly one file upload per request.", ArgumentName="file")
        self._seen += end
        self._data = after[2:]
        self._state = State.HEADERS
        self._check_fields()
        return True

    def _keep(self, value: bytes) -> None:
        if self._field in self.fields:
            raise S3Error("InvalidArgument", "A form field is given twice.", ArgumentName=self._field[:64])
        try:
            self.fields[self._field] = value.decode()
        except UnicodeDecodeError:
            raise S3Error("MalformedPOSTRequest", "A form field is not UTF-8.") from None

    def _check_fields(self) -> None:
        if self._seen > MAX_FIELDS:
            raise S3Error("MaxPostPreDataLengthExceeded")

    def _headers(self) -> bool:
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            if len(self._data) > MAX_HEADERS:
                raise S3Error("MaxPostPreDataLengthExceeded")
            return False
        lines = self._data[:end].decode("utf-8", "replace").split("\r\n")
        self._seen += end
        # the delimiter's CRLF may be the one that ended the headers: an empty value
        self._data = (
            self._data[end + 2 :] if self._data[end + 4 :].startswith(self._delimiter[2:]) else self._data[end + 4 :]
        )
        self._begin(lines)
        return True

    def _begin(self, lines: list[str]) -> None:
        disposition = next((line for line in lines if line.lower().startswith("content-disposition:")), "")
        name = _NAME.search(disposition)
        if "form-data" not in disposition.lower() or name is None:
            raise S3Error("MalformedPOSTRequest")
        self._field = (name[1] if name[1] is not None else name[2]).lower()
        self._state = State.FIELD
        if self._field == "file":
            found = _FILENAME.search(disposition)
            self.filename = ((found[1] if found[1] is not None else found[2]) if found else "").rpartition("/")[2]
            self._state = State.FILE

    def _file(self) -> bytes:
        end = self._data.find(self._delimiter)
        if end >= 0:
            data, self._data = self._data[:end], b""
            self._state = State.DONE
            return data
        keep = len(self._delimiter) - 1
        data, self._data = self._data[:-keep], self._data[-keep:]
        return data
