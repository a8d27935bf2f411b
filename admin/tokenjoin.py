"""Joining from the command line: over QUIC by the addresses in the token, or over the Unix socket of this host.

    no key --key made, kept in joining-ID--> asked --answer--> key file     asked --refused--> no key
                                              `--answer lost--> asked again with the same key
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

import trio

from trivium.admin.datadir import DataDir
from trivium.admin.errors import CommandError
from trivium.cluster.errors import NotFound, Refused, Unavailable
from trivium.cluster.identity import joining, keyfiles, statements, tokens
from trivium.cluster.identity.keyfiles import Identity
from trivium.cluster.identity.keys import PrivateKey
from trivium.cluster.identity.member import stranger
from trivium.cluster.identity.statements import Certificate, Role
from trivium.cluster.identity.tokens import JoinToken
from trivium.cluster.transport.interface import Connection
from trivium.cluster.transport.unix import UnixConnection


@dataclass(frozen=True, slots=True)
class Joined:
    cluster: bytes
    name: str


async def join_and_store(data: DataDir | None, text: str, name: str, folder: Path) -> tuple[Joined, Path]:
    """`data`: where the pool is, when the token does not say it or says something old. Refused, Unavailable."""
    token = tokens.parse(text)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # noqa: ASYNC240 (a command of its own)
    waiting = folder / f"joining-{token.id.hex()}"
    try:
        key = PrivateKey.from_pem(keyfiles.read_secret(waiting))
    except NotFound:
        key = PrivateKey.generate()
        keyfiles.write_secret(waiting, key.private_pem())
    try:
        identity = await _ask(data, token, key, name or socket.gethostname())
    except Refused:
        waiting.unlink()
        raise
    certificate = statements.peek(Certificate, identity.statement)
    path = folder / ("client" if certificate.roles == (Role.CLIENT,) else "node")
    if path.exists():
        raise CommandError(f"{path} holds a key already: move it away and join again (the same token still works).")
    keyfiles.save_identity(path, identity)
    waiting.unlink()
    return Joined(identity.cluster, certificate.name), path


async def _ask(data: DataDir | None, token: JoinToken, key: PrivateKey, name: str) -> Identity:
    """At each address in turn; who refuses has the last word. Unavailable when nobody answers."""
    ways: list[tuple[str, Connection]] = []
    for address in (data is not None and data.reach.addresses) or token.addresses:
        ways.append((address, stranger(address, token, key)))
    if data is not None and data.reach.local and data.socket.exists():
        ways.append((str(data.socket), UnixConnection(str(data.socket))))
    failures = []
    for address, connection in ways:
        try:
            return await joining.join(connection, token, key, name)
        except Unavailable as error:
            failures.append(f"{address}: {error}")
        finally:
            with trio.CancelScope(shield=True):
                await connection.aclose()
    if not ways:
        raise CommandError(
            "this token names no address: give the metadata server's with --connect HOST:PORT, or its data directory "
            "on this host with --connect DIR.",
            3,
        )
    raise Unavailable(f"no metadata server answers ({'; '.join(failures)})")
