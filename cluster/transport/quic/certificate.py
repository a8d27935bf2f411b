"""The server's certificate: self-signed, one per cluster or node, known to clients by its pin.

The pin is the SHA-256 of the public key (SubjectPublicKeyInfo), so that a certificate may be issued anew for the same
key. Names and dates in the certificate mean nothing; the pin is all that a client checks, and without one that fits it
sends nothing.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from trivium.cluster.errors import Refused

ServerCheck = Callable[[bytes], object]
"""Gets the server's certificate (DER) once the handshake is complete; Refused says why it is not the wanted server."""


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """Certificate and private key in PEM. The key is a secret: files that hold it are 0600."""

    certificate_pem: bytes
    key_pem: bytes

    def __repr__(self) -> str:
        return f"ServerCertificate(pin={self.pin.hex()})"

    @property
    def pin(self) -> bytes:
        """What clients of this certificate's server must be given."""
        return pin_of(x509.load_pem_x509_certificate(self.certificate_pem))

    def check(self) -> None:
        """Refused when key and certificate do not belong together."""
        try:
            key = load_pem_private_key(self.key_pem, None).public_key()
            fits = _spki(key) == _spki(x509.load_pem_x509_certificate(self.certificate_pem).public_key())
        except (ValueError, TypeError) as error:
            raise Refused(f"the server's certificate or key is unreadable: {error}") from error
        if not fits:
            raise Refused("the server's private key does not belong to its certificate")


def make_certificate(name: str = "trivium", key_pem: bytes | None = None) -> ServerCertificate:
    """A self-signed certificate for a new P-256 key, or for the one given."""
    key = ec.generate_private_key(ec.SECP256R1()) if key_pem is None else load_pem_private_key(key_pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Refused("the server's private key must be a P-256 key")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return ServerCertificate(
        certificate.public_bytes(Encoding.PEM), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )


def _spki(key: object) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined,no-any-return]


def pin_of(certificate: x509.Certificate) -> bytes:
    return hashlib.sha256(_spki(certificate.public_key())).digest()


def pin_of_der(der: bytes) -> bytes:
    return pin_of(x509.load_der_x509_certificate(der))


def pinned(pins: Collection[bytes]) -> ServerCheck:
    """Any server whose public key has one of these pins. Refused without a pin."""
    if not pins:
        raise Refused("a QUIC client needs the pin of the server's key")
    known = frozenset(pins)

    def check(der: bytes) -> None:
        if pin_of_der(der) not in known:
            raise Refused("the server does not hold the cluster's key (another cluster, or somebody in between)")

    return check
