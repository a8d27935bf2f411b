"""The client's view of the nodes: which node has a drive, and one typed call to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from trivium.cluster.transport.interface import Buffer
from trivium.cluster.wire import NodeAnswer, NodeRequest

EMPTY = memoryview(b"")


@dataclass(slots=True)
class NodeReply:
    """A decoded answer with its payload. The receiver owns `fds`."""

    answer: NodeAnswer
    payload: memoryview = EMPTY
    fds: tuple[int, ...] = ()


class Nodes(Protocol):
    """Routes node messages by drive. The real one is `router.Router` (over connections); fakes are in tests/fakes."""

    async def call(self, drive: bytes, request: NodeRequest, payload: Buffer | Sequence[Buffer] = b"") -> NodeReply:
        """Send `request` to the node that holds `drive`. Raises ClusterError (Unavailable when it is away)."""
        ...

    def node_of(self, drive: bytes) -> bytes | None:
        """The node that holds the drive, None when unknown. Drives of one node share one message."""
        ...

    def is_up(self, drive: bytes) -> bool:
        """False when the drive is known to be down, failed or unknown. True is only a hope."""
        ...

    def is_local(self, drive: bytes) -> bool:
        """Same host: descriptors can be passed, and reads are preferred from here."""
        ...
