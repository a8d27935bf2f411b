"""Join tokens: one line of text that lets one process join, once, until it expires.

    tj1 + base32 of: version u8, pin 16 (of the cluster's key), secret 16, addresses (text), CRC32C u32

Invariants:
1. Only `digest(secret)` is stored; the secret exists in the text that the operator copies. 128 random bits need no
   slow hash.
2. A text has one form: what parses is exactly what was printed, or it is refused before anybody is asked.
3. The pin travels with the secret: a joiner gives the secret only to who has the cluster's key.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from dataclasses import dataclass, field
from hashlib import sha256

from crc32c import crc32c

from trivium.cluster.identity.refusals import NotAdmitted, Reason

PREFIX = "tj1"
PIN_BYTES = SECRET_BYTES = 16
ID_BYTES = 8
ADDRESSES_MAX = 512
_FIXED = 1 + PIN_BYTES + SECRET_BYTES
_VERSION = 1


@dataclass(frozen=True, slots=True)
class JoinToken:
    pin: bytes  # the first 16 bytes of the fingerprint of the cluster's key
    secret: bytes = field(repr=False)
    addresses: tuple[str, ...] = ()  # quic:HOST:PORT or unix:PATH of metadata servers

    @property
    def id(self) -> bytes:
        """8 bytes that name it in lists and rows; says nothing about the secret."""
        return token_id(self.secret)

    def text(self) -> str:
        """The secret in words. For the operator's eyes once, never for a log."""
        payload = bytes((_VERSION,)) + self.pin + self.secret + ",".join(self.addresses).encode()
        whole = payload + crc32c(payload).to_bytes(4, "big")
        return PREFIX + base64.b32encode(whole).decode().rstrip("=").lower()


def make(cluster_fingerprint: bytes, addresses: tuple[str, ...] = ()) -> JoinToken:
    if len(",".join(addresses).encode()) > ADDRESSES_MAX or any("," in address or not address for address in addresses):
        raise NotAdmitted(Reason.MALFORMED, f"the addresses of a token take at most {ADDRESSES_MAX} bytes, no commas")
    return JoinToken(cluster_fingerprint[:PIN_BYTES], secrets.token_bytes(SECRET_BYTES), addresses)


def parse(text: str) -> JoinToken:
    """NotAdmitted says that it was not copied whole; nothing is asked of anybody for a mistyped token."""
    line = text.strip()
    try:
        if not line.startswith(PREFIX) or len(line) > 2 * (ADDRESSES_MAX + _FIXED + 4):
            raise ValueError
        encoded = line[len(PREFIX) :].upper()
        whole = base64.b32decode(encoded + "=" * (-len(encoded) % 8))
        payload, check = whole[:-4], whole[-4:]
        if len(payload) < _FIXED or crc32c(payload).to_bytes(4, "big") != check or payload[0] != _VERSION:
            raise ValueError
        listed = payload[_FIXED:].decode()
        addresses = tuple(listed.split(",")) if listed else ()
        token = JoinToken(payload[1 : 1 + PIN_BYTES], payload[1 + PIN_BYTES : _FIXED], addresses)
        if token.text() != line:
            raise ValueError
    except (ValueError, binascii.Error):
        raise NotAdmitted(
            Reason.TOKEN, "this is no join token, or it was not copied whole; `trivium cluster token create` makes one"
        ) from None
    return token


def token_id(secret: bytes) -> bytes:
    return sha256(b"trivium token id\0" + secret).digest()[:ID_BYTES]


def digest(secret: bytes) -> bytes:
    """What is stored."""
    return sha256(b"trivium token\0" + secret).digest()


def matches(secret: bytes, stored: bytes) -> bool:
    """In constant time."""
    return hmac.compare_digest(digest(secret), stored)
