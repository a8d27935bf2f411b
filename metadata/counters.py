"""A session's chunk counters and their floor. Pure.

Invariant: `floor` is the smallest counter that is neither settled nor given up (or was not given yet).
"""

from __future__ import annotations


class Counters:
    def __init__(self) -> None:
        self._next = 1
        self._unsettled: dict[int, None] = {}  # in the order given
        self._given_up: list[int] = []

    def next(self) -> int:
        counter = self._next
        self._next += 1
        self._unsettled[counter] = None
        return counter

    def settle(self, counter: int) -> None:
        self._unsettled.pop(counter, None)

    def give_up(self, counter: int) -> None:
        if counter in self._unsettled:
            del self._unsettled[counter]
            self._given_up.append(counter)

    @property
    def floor(self) -> int:
        return next(iter(self._unsettled), self._next)

    @property
    def top(self) -> int:
        return self._next - 1

    def take_given_up(self) -> tuple[int, ...]:
        """Those not reported yet; `put_back_given_up` when the report did not arrive."""
        taken, self._given_up = tuple(self._given_up), []
        return taken

    def put_back_given_up(self, counters: tuple[int, ...]) -> None:
        self._given_up.extend(counters)
