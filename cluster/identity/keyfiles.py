"""Key files: DIR/keys/cluster (the cluster's private keys), DIR/keys/{node,client} (one member's identity).

Invariants:
1. A file has mode 0600 from its first byte on, and appears whole or not at all (temporary file, sync, rename, sync).
2. A file that others may read, or that is not a plain file, is refused: its secret may be known.
3. Nothing here is ever logged; reprs show no secret.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import msgspec

from trivium.cluster.errors import NotFound
from trivium.cluster.identity.keys import PrivateKey
from trivium.cluster.identity.refusals import NotAdmitted, Reason

FORMAT = 1
FILE_MAX = 256 * 1024


class _ClusterKey(msgspec.Struct, frozen=True):
    generation: int
    private: str
    certificate: str


class _ClusterFile(msgspec.Struct, frozen=True):
    format: int
    cluster: str
    keys: list[_ClusterKey]


class _Anchor(msgspec.Struct, frozen=True):
    generation: int
    certificate: str


class _IdentityFile(msgspec.Struct, frozen=True):
    format: int
    cluster: str
    private: str
    statement: str
    anchors: list[_Anchor]
    tls: str = ""
    addresses: list[str] = []


F = TypeVar("F", _ClusterFile, _IdentityFile)


@dataclass(frozen=True, slots=True)
class ClusterKey:
    generation: int
    key: PrivateKey
    certificate: bytes  # PEM, self-signed


@dataclass(frozen=True, slots=True)
class ClusterKeys:
    """The cluster's own keys, newest last."""

    cluster: bytes
    keys: tuple[ClusterKey, ...]

    def of(self, generation: int) -> ClusterKey | None:
        return next((key for key in self.keys if key.generation == generation), None)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a member keeps: its key, what the cluster says of it, and the cluster's certificates that it pins."""

    cluster: bytes
    key: PrivateKey
    statement: bytes = field(repr=False)  # statements.Certificate, signed
    anchors: tuple[tuple[int, bytes], ...]  # (generation, certificate PEM)
    tls: bytes = b""  # PEM, of a member that listens
    addresses: tuple[str, ...] = ()


def save_cluster(path: Path, keys: ClusterKeys) -> None:
    listed = [_ClusterKey(k.generation, k.key.private_pem().decode(), k.certificate.decode()) for k in keys.keys]
    write_secret(path, msgspec.json.encode(_ClusterFile(FORMAT, keys.cluster.hex(), listed)))


def load_cluster(path: Path) -> ClusterKeys:
    """NotFound when there is none, NotAdmitted when it cannot be used."""
    found = _decode(path, _ClusterFile)
    try:
        keys = tuple(
            ClusterKey(k.generation, PrivateKey.from_pem(k.private.encode()), k.certificate.encode())
            for k in found.keys
        )
        if not keys:
            raise ValueError
        return ClusterKeys(bytes.fromhex(found.cluster), tuple(sorted(keys, key=lambda key: key.generation)))
    except ValueError:
        raise _damaged(path) from None


def save_identity(path: Path, identity: Identity) -> None:
    document = _IdentityFile(
        FORMAT,
        identity.cluster.hex(),
        identity.key.private_pem().decode(),
        identity.statement.hex(),
        [_Anchor(generation, pem.decode()) for generation, pem in identity.anchors],
        identity.tls.decode(),
        list(identity.addresses),
    )
    write_secret(path, msgspec.json.encode(document))


def load_identity(path: Path) -> Identity:
    found = _decode(path, _IdentityFile)
    try:
        return Identity(
            bytes.fromhex(found.cluster),
            PrivateKey.from_pem(found.private.encode()),
            bytes.fromhex(found.statement),
            tuple((anchor.generation, anchor.certificate.encode()) for anchor in found.anchors),
            found.tls.encode(),
            tuple(found.addresses),
        )
    except ValueError:
        raise _damaged(path) from None


def forget_anchors(path: Path, retired: int) -> None:
    """The cluster's keys up to this generation count no more, also not for the next process that loads the file."""
    found = load_identity(path)
    kept = tuple(anchor for anchor in found.anchors if anchor[0] > retired)
    if kept and kept != found.anchors:
        save_identity(path, replace(found, anchors=kept))


def write_secret(path: Path, data: bytes) -> None:
    """Atomically and durably, readable by the owner alone whatever the umask is."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    temporary = f".{path.name}.{secrets.token_hex(8)}"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            os.fchmod(fd, 0o600)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        raise
    finally:
        os.close(folder)


def read_secret(path: Path) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFound(f"there is no key file {path}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_MAX:
            raise _damaged(path)
        if status.st_mode & 0o077:
            raise NotAdmitted(
                Reason.MALFORMED,
                f"{path} can be read by others (mode {stat.S_IMODE(status.st_mode):04o}): its secret may be known. "
                f"`chmod 600 {path}` if you know that it is not; else revoke this key and join again",
            )
        with os.fdopen(os.dup(fd), "rb") as file:
            return file.read()
    finally:
        os.close(fd)


def _decode(path: Path, kind: type[F]) -> F:
    try:
        found = msgspec.json.decode(read_secret(path), type=kind)
    except (msgspec.MsgspecError, ValueError):
        raise _damaged(path) from None
    if found.format > FORMAT:
        raise NotAdmitted(Reason.MALFORMED, f"{path} was written by a newer trivium: upgrade this program")
    return found


def _damaged(path: Path) -> NotAdmitted:
    return NotAdmitted(Reason.MALFORMED, f"{path} is no key file, or it is damaged: restore it")
