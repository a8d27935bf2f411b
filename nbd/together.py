"""Several awaits side by side that fail as one: the first error, plain, not in a group."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

T = TypeVar("T")
R = TypeVar("R")


async def together(work: Callable[[T], Awaitable[R]], items: Sequence[T], limit: int = 8) -> list[R]:
    """`work` of each item, at most `limit` at once; results in the order of the items."""
    results: dict[int, R] = {}
    errors: list[Exception] = []
    room = trio.CapacityLimiter(limit)

    async def one(index: int, item: T) -> None:
        try:
            async with room:
                results[index] = await work(item)
        except Exception as error:
            errors.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for index, item in enumerate(items):
            nursery.start_soon(one, index, item)
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(items))]
