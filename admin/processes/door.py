"""What a metadata server answers on all of its listeners (Unix socket, QUIC), from its first moment on.

    starting --gather--> gathering (the pool is being formed) --open--> open        starting --open--> open

Invariants
1. Nobody from elsewhere is answered without a key of the cluster; a joiner, who has none yet, may only join.
2. Before `open` only the commands of joining nodes and those about keys and tokens are answered; the rest is told to
   ask again.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import trio

from trivium.admin import listening
from trivium.admin.errors import CommandError
from trivium.admin.identity import ClusterIdentity
from trivium.admin.processes.lead import Leader
from trivium.cluster.errors import Unavailable
from trivium.cluster.identity.access import Access
from trivium.cluster.identity.refusals import NotAdmitted, Reason
from trivium.cluster.transport.interface import Peer, Reply
from trivium.cluster.wire import Service
from trivium.metadata import messages, rights
from trivium.metadata.messages import RETRY, MetadataError

log = logging.getLogger(__name__)

Commands = Mapping[str, Callable[[dict[str, Any]], Awaitable[Any]]]


class Door:
    def __init__(self, identity: ClusterIdentity) -> None:
        self._identity = identity
        self._commands: Commands = {}
        self._leader: Leader | None = None

    def gather(self, commands: Commands) -> None:
        """The pool is being formed: answer these."""
        self._commands = {**self._identity.commands(), **commands}

    def open(self, leader: Leader) -> None:
        """Everything answers."""
        self._leader = leader

    async def handle(self, peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
        access = known(peer)
        if access is not None and access.guest and service != Service.NODE:
            access.speaker()
        if service == Service.IDENTITY:
            return await self._identity.handle(peer, body)
        if service == Service.METADATA:
            return await self._metadata(peer, body, payload)
        if self._leader is None:
            raise Unavailable("the metadata server is starting")
        if access is not None:
            access.allow_node(body)
        return await self._leader.substrate.node.handle(peer, service, body, payload)

    async def _metadata(self, peer: Peer, body: bytes, payload: memoryview) -> Reply:
        if self._leader is not None:
            return await self._leader.server.handle(peer, Service.METADATA, body, payload)
        request = messages.decode_request(body)
        try:
            command = self._commands.get(request.command) if isinstance(request, messages.Admin) else None
            if command is None or not isinstance(request, messages.Admin):
                raise MetadataError(RETRY, "the metadata server is starting: it waits for the drives of its nodes")
            arguments = rights.command_of(peer, request)
            return Reply(messages.encode(messages.AdminAnswer(await command(arguments))))
        except MetadataError as error:
            return Reply(messages.encode(messages.Failed(error.code, error.text, error.index)))

    async def events(self, peer: Peer, service: int, body: bytes) -> AsyncIterator[bytes]:
        access = known(peer)
        if access is not None:
            access.speaker()
        if self._leader is None:
            raise Unavailable("the metadata server is starting")
        async for event in self._leader.server.events(peer, service, body):
            yield event


def known(peer: Peer) -> Access | None:
    """What the peer's key allows; None for a local one. NotAdmitted for anybody else."""
    access = rights.access_of(peer)
    if access is None and not peer.local:
        raise NotAdmitted(Reason.UNKNOWN_KEY, "this connection has not said who it is")
    return access


async def listen_over_quic(
    identity: ClusterIdentity, where: tuple[str, int], advertise: str, door: Door, nursery: trio.Nursery
) -> None:
    """From now on others reach this metadata server by UDP, and tokens say where."""
    if identity.member is None:
        raise CommandError(
            "this pool has no key to listen with: its cluster key is gone, or it was never started by this release. "
            "Start it once without --listen."
        )
    server = await listening.listen(identity.member, where, joiners=True)
    identity.addresses = (listening.told(server, advertise),)
    await nursery.start(server.serve, door.handle, door.events)
    log.info("listening on %s, known to others as %s", server.address, identity.addresses[0])
