"""The network between simulated machines: requests take a while, get lost on either way, and arrive again later."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import trio

from trivium.cluster.errors import ClusterError, Unavailable
from trivium.cluster.transport.interface import Buffer, Connection, Reply
from trivium.cluster.transport.memory import MemoryServer
from trivium.cluster.wire import Service

Target = Callable[[], MemoryServer | None]
LATE_S = 5.0  # nothing arrives later than this after it was sent


@dataclass(slots=True)
class Weather:
    """What happens to messages. `loss` of requests or answers, `repeat` of requests to the metadata server."""

    loss: float = 0.0
    repeat: float = 0.0
    delay_s: float = 0.01


class Network:
    def __init__(self, rng: random.Random, weather: Weather, nursery: trio.Nursery) -> None:
        self.rng, self.weather, self._nursery = rng, weather, nursery

    def connect(self, target: Target, dead: Callable[[], bool], cut: Callable[[], str] = str) -> LossyConnection:
        return LossyConnection(self, target, dead, cut)

    async def silence(self) -> None:
        """Nothing comes, or an error does: it depends on who has cut the line."""
        if self.rng.random() < 0.3:
            await trio.sleep(10)

    async def travel(self) -> None:
        await trio.sleep(self.rng.random() * self.weather.delay_s)

    def loses(self) -> bool:
        return self.rng.random() < self.weather.loss

    def again(self, target: Target, service: Service, body: bytes) -> None:
        """A copy of the request arrives later; nobody waits for its answer."""

        async def deliver() -> None:
            await trio.sleep(self.rng.random() * LATE_S)
            if (server := target()) is not None:
                with suppress(ClusterError):
                    await server.connect(local=False).request(service, body)

        self._nursery.start_soon(deliver)


class LossyConnection:
    """A Connection from a client machine (`dead` when it has crashed: nothing of it is sent any more). `cut`: "there",
    "back" or "both" while a partition lasts: what it asks does not arrive, or is done and it never hears of it."""

    local = False

    def __init__(self, network: Network, target: Target, dead: Callable[[], bool], cut: Callable[[], str]) -> None:
        self._network, self._target, self._dead, self._cut = network, target, dead, cut

    def _way(self) -> Connection:
        server = self._target()
        if self._dead() or server is None:
            raise Unavailable("nobody answers")
        return server.connect(local=False)

    async def request(self, service: Service, body: bytes, payload: Buffer | Sequence[Buffer] = b"") -> Reply:
        network = self._network
        await network.travel()
        if self._cut() in ("there", "both"):
            await network.silence()
            raise Unavailable("cut off: it never arrives")
        if network.loses():
            if network.rng.random() < 0.5 and not self._dead() and service == Service.METADATA:
                network.again(self._target, service, bytes(body))  # lost here, and yet it arrives
            if network.rng.random() < 0.2:
                await trio.sleep(10)  # silence instead of an error
            raise Unavailable("lost on the way there")
        reply = await self._way().request(service, body, payload)
        if service == Service.METADATA and network.rng.random() < network.weather.repeat and not self._dead():
            network.again(self._target, service, bytes(body))
        await network.travel()
        if self._cut() in ("back", "both"):
            reply.close()
            await network.silence()
            raise Unavailable("cut off: no answer arrives")
        if network.loses():
            reply.close()
            raise Unavailable("lost on the way back")
        return reply

    async def subscribe(self, service: Service, body: bytes) -> AsyncIterator[bytes]:
        await self._network.travel()
        if self._cut() in ("there", "both"):
            raise Unavailable("cut off: it never arrives")
        async for event in self._way().subscribe(service, body):
            if self._cut() in ("back", "both") or self._network.loses():
                raise Unavailable("the stream broke")
            yield event

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
