"""What readers may see: a dict of names, each with the values that are allowed.

One value when the last change was answered; more when a change has no answer. A name whose change will never be
answered (its client died, its session ended) is frozen: nobody changes it again, and every later read must give one of
its values.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Value = bytes | None  # None: there is no such name


@dataclass(slots=True)
class Model:
    allowed: dict[bytes, set[Value]] = field(default_factory=dict)
    frozen: set[bytes] = field(default_factory=set)
    answered: int = 0

    def begin(self, name: bytes, value: Value) -> None:
        self.allowed.setdefault(name, {None}).add(value)
        self.frozen.add(name)  # until it is answered

    def answer(self, name: bytes, value: Value) -> None:
        self.allowed[name] = {value}
        self.frozen.discard(name)
        self.answered += 1

    def refuse(self, name: bytes, before: set[Value]) -> None:
        """It surely did not happen."""
        self.allowed[name] = before
        self.frozen.discard(name)

    def values(self, name: bytes) -> set[Value]:
        return set(self.allowed.get(name, {None}))

    def check(self, name: bytes, found: Value, where: str) -> None:
        allowed = self.allowed.get(name, {None})
        assert found in allowed, f"{where}: {name!r} is {show(found)}, allowed {[show(v) for v in allowed]}"


def show(value: Value) -> str:
    return "absent" if value is None else f"{len(value)} bytes {value[:16].hex()}"
