"""Open connections by member and session: a revoked key, an ended session or an expired
certificate loses them at once.

Invariants:
1. `enter` after revocation closes at once: there is no gap between HELLO's check and the registry.
2. Each `close` is called at most once, and never after its `leave`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from trivium.cluster.errors import Unavailable
from trivium.cluster.identity.access import Access
from trivium.cluster.identity.refusals import NotAdmitted
from trivium.cluster.identity.trust import Trust

Close = Callable[[str], None]
"""The transport's way to end one connection; the text is the reason for the other side. Must not raise or await."""


class Connections:
    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        self._open: dict[int, tuple[Access, Close]] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, access: Access, close: Close) -> Callable[[], None]:
        """The transport has admitted a connection. Call the answer (leave) when it is gone."""
        self._next += 1
        number = self._next
        self._open[number] = (access, close)
        self._check(number)

        def leave() -> None:
            self._open.pop(number, None)

        return leave

    def check(self) -> int:
        """After the list of the revoked, or an end of a session, was learnt: close whoever it concerns."""
        return sum(self._check(number) for number in list(self._open))

    def end_sessions(self, sessions: Iterable[int]) -> int:
        self._trust.end_sessions(sessions)
        return self.check()

    def revoke(self, version: int, members: Iterable[bytes]) -> int:
        self._trust.revoke(version, members)
        return self.check()

    def _check(self, number: int) -> bool:
        access, close = self._open[number]
        try:
            if access.certificate is not None:
                access.holder()
                if access.grant is not None:
                    self._trust.check_session(access.grant.session)
        except (NotAdmitted, Unavailable) as error:
            del self._open[number]
            access.closed = str(error)
            close(str(error))
            return True
        return False
