"""Keys: ECDSA on P-256, for TLS and for statements alike.

P-256, because the key's certificate must be taken by every TLS that the transport may use: qh3 as a client does not
complete a handshake with an Ed25519 server, aioquic and qh3 both do with P-256 (tests/unit/test_identity_tls.py).

Invariants:
1. A private key has no text form but `private_pem`, which only `keyfiles` calls: repr shows the public fingerprint.
2. A signature is 64 bytes, r and s, with s in the lower half of the order: one message and key, one valid encoding of
   a given signature, so that no flipped or rearranged byte is ever accepted.
3. What is signed begins with the name of its purpose (domain): a signature for one never verifies as another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from trivium.cluster.identity.refusals import NotAdmitted, Reason

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
PUBLIC_BYTES = 33  # a compressed point
SIGNATURE_BYTES = 64
FINGERPRINT_BYTES = 32
_HASH = ec.ECDSA(hashes.SHA256())


def fingerprint(public: bytes) -> bytes:
    """32 bytes that name a public key: what is pinned."""
    return sha256(b"trivium key\0" + public).digest()


def member_id(public: bytes) -> bytes:
    """16 bytes that name the holder of a key in rows, statements and logs."""
    return fingerprint(public)[:16]


@dataclass(frozen=True, slots=True)
class PublicKey:
    raw: bytes  # 33 bytes, compressed
    _key: ec.EllipticCurvePublicKey = field(repr=False, compare=False)

    @classmethod
    def load(cls, raw: bytes) -> PublicKey:
        if len(raw) != PUBLIC_BYTES or raw[0] not in (2, 3):
            raise NotAdmitted(Reason.MALFORMED, "this is no public key of a cluster's member")
        try:
            return cls(raw, ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), raw))
        except (ValueError, UnsupportedAlgorithm):
            raise NotAdmitted(Reason.MALFORMED, "this is no point of the curve P-256") from None

    @classmethod
    def of(cls, key: ec.EllipticCurvePublicKey) -> PublicKey:
        raw = key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
        return cls(raw, key)

    @property
    def fingerprint(self) -> bytes:
        return fingerprint(self.raw)

    @property
    def native(self) -> ec.EllipticCurvePublicKey:
        """For certificates."""
        return self._key

    def verify(self, domain: bytes, data: bytes, signature: bytes) -> None:
        """NotAdmitted unless this key's holder signed exactly these bytes for this purpose."""
        if len(signature) == SIGNATURE_BYTES:
            r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
            if 0 < r < ORDER and 0 < s <= ORDER // 2:
                try:
                    self._key.verify(encode_dss_signature(r, s), _framed(domain, data), _HASH)
                    return
                except InvalidSignature:
                    pass
        raise NotAdmitted(Reason.BAD_SIGNATURE, f"the signature of the {domain.decode()} does not verify")


class PrivateKey:
    __slots__ = ("_key", "public")

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.public = PublicKey.of(key.public_key())

    @classmethod
    def generate(cls) -> PrivateKey:
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_pem(cls, pem: bytes) -> PrivateKey:
        try:
            key = serialization.load_pem_private_key(pem, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise NotAdmitted(Reason.MALFORMED, "this is no private key in PEM") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise NotAdmitted(Reason.MALFORMED, "a member's key is of the curve P-256")
        return cls(key)

    def private_pem(self) -> bytes:
        """The secret. For key files of mode 0600 and the TLS engine's memory, nowhere else."""
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def native(self) -> ec.EllipticCurvePrivateKey:
        """For certificates."""
        return self._key

    def sign(self, domain: bytes, data: bytes) -> bytes:
        r, s = decode_dss_signature(self._key.sign(_framed(domain, data), _HASH))
        return r.to_bytes(32) + min(s, ORDER - s).to_bytes(32)

    def __repr__(self) -> str:
        return f"PrivateKey(of {self.public.fingerprint.hex()[:16]})"

    __str__ = __repr__

    def __reduce__(self) -> str:
        raise TypeError("a private key is not pickled")


def _framed(domain: bytes, data: bytes) -> bytes:
    return b"trivium " + len(domain).to_bytes(2) + domain + data
