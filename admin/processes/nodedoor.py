"""What a node answers, to whom: its drives' messages by right, what the metadata server tells it about others.

Invariants
1. Nobody from elsewhere is answered without a key of the cluster and, unless it is a metadata server, without a grant.
2. Who is revoked is learnt from metadata servers only, by their signature, whoever carries it. The newest list is kept
   beside the key, for the next start.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import msgspec
import trio

from trivium.admin.processes.door import known
from trivium.cluster.errors import NotFound, Refused
from trivium.cluster.identity import keyfiles, messages
from trivium.cluster.identity.access import Access
from trivium.cluster.identity.member import Member
from trivium.cluster.identity.refusals import NotAdmitted, Reason
from trivium.cluster.identity.statements import Role
from trivium.cluster.node import Node
from trivium.cluster.transport.interface import Peer, Reply
from trivium.cluster.wire import Service

log = logging.getLogger(__name__)

KEPT = "revoked"  # the newest list, a Learn as it came
ACCEPTED = messages.encode(messages.Accepted())


class NodeDoor:
    """`member`: None for a node without a key, which only this host's processes reach."""

    def __init__(self, node: Node, member: Member | None, keys: Path | None = None) -> None:
        """`keys`: the folder of its key file, where the newest list is kept, too."""
        self._node, self._member, self._keys = node, member, keys
        self._stored: tuple[int, int] = (-1, -1)
        if member is not None and keys is not None:
            self._recall(member, keys / KEPT)
        self.outdated = trio.Event()  # the cluster has a newer key than the one that certified this node

    async def handle(self, peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
        access = known(peer)
        if service == Service.IDENTITY:
            self._identity(access, body)
            return Reply(ACCEPTED)
        if access is not None:
            access.allow_node(body)
        return await self._node.handle(peer, service, body, payload)

    def _identity(self, access: Access | None, body: bytes) -> None:
        try:
            request = messages.decode_request(body)
        except (msgspec.MsgspecError, ValueError):
            raise NotAdmitted(Reason.MALFORMED, "this is no message about identity") from None
        match request:
            case messages.Present():
                if access is not None:
                    access.renew(request.grant)
            case messages.Learn():
                if access is not None and not access.holder().has(Role.METADATA):
                    raise NotAdmitted(Reason.MISSING_RIGHT, f"{access.holder().name} is no metadata server")
                if self._member is not None:
                    self._learn(self._member, request)
            case _:
                raise NotAdmitted(Reason.MISSING_RIGHT, "a node lets nobody join: ask the metadata server")

    def _learn(self, member: Member, request: messages.Learn) -> None:
        _hand_over(member, request)
        found = member.trust.learn(request.revocations)
        if found is not None and (found.version, found.retired) != self._stored:
            self._keep(request, found.retired)
            self._stored = found.version, found.retired
        if member.outdated:
            self.outdated.set()
        closed = member.connections.check()
        if closed:
            log.info("%d connections were closed: their keys are revoked or their sessions have ended", closed)

    def _keep(self, news: messages.Learn, retired: int) -> None:
        if self._keys is None:
            return
        try:
            keyfiles.write_secret(self._keys / KEPT, messages.encode(news))
            keyfiles.forget_anchors(self._keys / "node", retired)
        except (OSError, Refused, NotFound) as error:
            log.warning("who is revoked, and which keys count, is not stored in %s: %s", self._keys, error)

    @staticmethod
    def _recall(member: Member, kept: Path) -> None:
        try:
            news = messages.decode_request(keyfiles.read_secret(kept))
            if isinstance(news, messages.Learn):
                _hand_over(member, news)
                member.trust.recall(news.revocations)
        except NotFound:
            pass
        except (Refused, OSError, msgspec.MsgspecError, ValueError) as error:
            log.warning("who was revoked before this start is not known (%s): the metadata server will say", error)


def _hand_over(member: Member, news: messages.Learn) -> None:
    for handover in news.handovers:
        with suppress(NotAdmitted):  # of a generation before those that are known here
            member.trust.hand_over(handover)
