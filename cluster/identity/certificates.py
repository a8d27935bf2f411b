"""X.509 for TLS: the cluster's own certificate, and one for each process that listens. The rest is statements.py.

A server's certificate names what it is: `<cluster>.trivium`, `<member>.trivium`, `node.trivium`, `metadata.trivium`
(as its roles are). They do not expire by date, for a cold cluster's clocks may be wrong: a key ends by revocation or
by rotation of the cluster's key.

Invariants:
1. `verify_server` ends in a ServerIdentity or NotAdmitted, whatever the bytes are.
2. It believes a leaf only by a pinned public key of the cluster; names and chain are what the pin has signed.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, SignatureAlgorithmOID

from trivium.cluster.identity.keys import PrivateKey, PublicKey, member_id
from trivium.cluster.identity.refusals import NotAdmitted, Reason
from trivium.cluster.identity.statements import Role

DOMAIN = "trivium"
CERTIFICATE_MAX = 4096
ISSUER = x509.ObjectIdentifier(f"2.25.{int.from_bytes(b'trivium')}.1")  # the public key of the cluster, as 33 bytes
_BEGIN = datetime.datetime(2020, 1, 1)
_END = datetime.datetime(2120, 1, 1)


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    cluster: bytes
    member: bytes
    roles: tuple[Role, ...]


def server_name(cluster: bytes) -> str:
    """What a TLS client asks for: any server of this cluster."""
    return f"{cluster.hex()}.{DOMAIN}"


def cluster_certificate(key: PrivateKey, cluster: bytes, generation: int) -> bytes:
    """Self-signed, PEM: what clients load as their only authority."""
    name = _name(f"trivium cluster {cluster.hex()} key {generation}")
    builder = (
        _builder(name, name, key.public)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public.native), critical=False)
    )
    return builder.sign(key.native, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def server_certificate(
    cluster_key: PrivateKey, cluster: bytes, generation: int, public: bytes, roles: Sequence[Role]
) -> bytes:
    """For a process that listens, PEM."""
    key = PublicKey.load(public)
    member = member_id(public).hex()
    names = [server_name(cluster), f"{member}.{DOMAIN}", *(f"{role.value}.{DOMAIN}" for role in roles)]
    issuer = _name(f"trivium cluster {cluster.hex()} key {generation}")
    builder = (
        _builder(_name(f"trivium {member}"), issuer, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(cluster_key.public.native),
            critical=False,
        )
        .add_extension(x509.UnrecognizedExtension(ISSUER, cluster_key.public.raw), critical=False)
    )
    return builder.sign(cluster_key.native, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def der_of(pem: bytes) -> bytes:
    return _load(lambda: x509.load_pem_x509_certificate(pem)).public_bytes(serialization.Encoding.DER)


def public_of(pem: bytes) -> bytes:
    """The public key that a certificate is about."""
    return _public(_load(lambda: x509.load_pem_x509_certificate(pem))).raw


def verify_server(leaf_der: bytes, pins: Iterable[PublicKey], role: Role | None = None) -> ServerIdentity:
    """Who serves, by keys of the cluster that are pinned here. With `role`, only such a one will do."""
    if len(leaf_der) > CERTIFICATE_MAX:
        raise NotAdmitted(Reason.MALFORMED, "the server's certificate is too large")
    leaf = _load(lambda: x509.load_der_x509_certificate(leaf_der))
    if leaf.public_bytes(serialization.Encoding.DER) != leaf_der:
        raise NotAdmitted(Reason.MALFORMED, "the server's certificate is not in its one form")
    if not any(_signed_by(leaf, pin) for pin in pins):
        raise NotAdmitted(Reason.UNKNOWN_KEY, "the server's certificate is not signed by the cluster's key pinned here")
    found = _identity(leaf)
    if role is not None and role not in found.roles:
        raise NotAdmitted(Reason.MISSING_RIGHT, f"the server is no {role.value} server")
    return found


def claimed_issuer(leaf_der: bytes) -> PublicKey:
    """The cluster's key as the leaf itself names it: worth nothing until its fingerprint is one that is known."""
    if len(leaf_der) > CERTIFICATE_MAX:
        raise NotAdmitted(Reason.MALFORMED, "the server's certificate is too large")
    leaf = _load(lambda: x509.load_der_x509_certificate(leaf_der))
    try:
        extension = leaf.extensions.get_extension_for_oid(ISSUER).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        raise NotAdmitted(Reason.MALFORMED, "the server's certificate does not name the cluster's key") from None
    return PublicKey.load(extension.public_bytes())


def _identity(leaf: x509.Certificate) -> ServerIdentity:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
            x509.DNSName
        )
        labels = [name.removesuffix(f".{DOMAIN}") for name in names]
        cluster, member = bytes.fromhex(labels[0]), bytes.fromhex(labels[1])
        roles = tuple(Role(label) for label in labels[2:])
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError, IndexError):
        raise NotAdmitted(Reason.MALFORMED, "the server's certificate does not say what it is") from None
    if member != member_id(_public(leaf).raw):
        raise NotAdmitted(Reason.MALFORMED, "the server's certificate names another key's member")
    return ServerIdentity(cluster, member, roles)


def _signed_by(leaf: x509.Certificate, pin: PublicKey) -> bool:
    try:
        if leaf.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
            return False
        pin.native.verify(leaf.signature, leaf.tbs_certificate_bytes, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def _public(certificate: x509.Certificate) -> PublicKey:
    key: object
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise NotAdmitted(Reason.MALFORMED, "a certificate of this cluster is about a key of the curve P-256")
    return PublicKey.of(key)


def _load(parse: Callable[[], x509.Certificate]) -> x509.Certificate:
    try:
        certificate = parse()
        certificate.version, certificate.extensions  # noqa: B018 (parsed lazily: errors belong here)
        return certificate
    except Exception:  # the parser has many: whatever it is, these bytes are no certificate
        raise NotAdmitted(Reason.MALFORMED, "this is no certificate") from None


def _builder(subject: x509.Name, issuer: x509.Name, key: PublicKey) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.native)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_BEGIN)
        .not_valid_after(_END)
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
