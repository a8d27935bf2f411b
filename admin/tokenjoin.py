"""Joining from the command line: over the Unix socket of this host. QUIC passes another connection to `join`."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from trivium.admin.datadir import DataDir
from trivium.admin.errors import CommandError
from trivium.cluster.errors import NotFound, Refused
from trivium.cluster.identity import joining, keyfiles, statements, tokens
from trivium.cluster.identity.keys import PrivateKey
from trivium.cluster.identity.statements import Certificate, Role
from trivium.cluster.transport.unix import UnixConnection


@dataclass(frozen=True, slots=True)
class Joined:
    cluster: bytes
    name: str


async def join_and_store(data: DataDir, text: str, name: str, folder: Path) -> tuple[Joined, Path]:
    """A lost answer is asked for again with the same key: it is kept in `folder`/joining until the certificate is."""
    token = tokens.parse(text)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # noqa: ASYNC240 (a command of its own)
    waiting = folder / f"joining-{token.id.hex()}"
    try:
        key = PrivateKey.from_pem(keyfiles.read_secret(waiting))
    except NotFound:
        key = PrivateKey.generate()
        keyfiles.write_secret(waiting, key.private_pem())
    connection = UnixConnection(str(data.socket))
    try:
        identity = await joining.join(connection, token, key, name or socket.gethostname())
    except Refused:
        waiting.unlink()
        raise
    finally:
        await connection.aclose()
    certificate = statements.peek(Certificate, identity.statement)
    path = folder / ("client" if certificate.roles == (Role.CLIENT,) else "node")
    if path.exists():
        raise CommandError(f"{path} holds a key already: move it away and join again (the same token still works).")
    keyfiles.save_identity(path, identity)
    waiting.unlink()
    return Joined(identity.cluster, certificate.name), path
