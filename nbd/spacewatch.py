"""No more writes are accepted than the pool has room for: what was accepted must find a place when it is sealed.

    asked: free bytes --less what was accepted lately, which the answer may not know yet--> credit of the core
    credit used up -> writers wait -> asked again -> credit | still unclear: again soon | full: ENOSPC

Invariants
1. Writers spend credit; none is given beyond half of the room that is certainly left (other volumes ask, too).
2. ENOSPC is said only when the pool itself says that there is less room than SPACE_MIN; doubt only makes writers wait.
"""

from __future__ import annotations

from collections import deque
from functools import partial

import trio

from trivium.cluster.errors import NoSpace
from trivium.cluster.model import MIB
from trivium.metadata.messages import FsInfo, StatFs
from trivium.nbd.leased import Leased

PERIOD_S = 2.0
SOON_S = 0.5  # between questions while writers wait
STALE_S = 6.0  # an answer is at most so old: drives report every two seconds
SPACE_MIN = 64 * MIB  # less room for client data than this: writes are refused
STEP_MIN = 4 * MIB  # smaller credits are not worth giving while a newer answer would tell more


class SpaceWatch:
    """Runs on the event loop."""

    def __init__(self, held: Leased) -> None:
        self._held = held
        self._hurry = trio.Event()
        self._history: deque[tuple[float, int]] = deque()  # (when, bytes written until then)

    def hurry(self) -> None:
        """A writer waits."""
        self._hurry.set()

    async def run(self) -> None:
        held = self._held
        while True:
            self._hurry = trio.Event()
            before = held.core.written_bytes
            info: FsInfo = await held.keep_trying(partial(held.metadata.ask, StatFs()))
            self._answered(info.bytes_free, before, trio.current_time())
            await trio.sleep(0 if held.core.credit_bytes > 0 else SOON_S)
            with trio.move_on_after(PERIOD_S):
                await self._hurry.wait()

    def _answered(self, free: int, written: int, now: float) -> None:
        """`written`: bytes accepted before the question was asked."""
        held, core, history = self._held, self._held.core, self._history
        history.append((now, written))
        while len(history) > 1 and history[1][0] <= now - STALE_S:
            history.popleft()
        # what was written since the newest moment that the answer surely knows
        known = history[0][1] if history[0][0] <= now - STALE_S else 0
        with core.lock:
            recent = core.written_bytes - known
            credit = free - SPACE_MIN - recent
            if recent:
                credit = credit // 2 if credit >= 2 * STEP_MIN else 0
            core.credit_bytes = max(0, credit)
        held.space_short = free < SPACE_MIN or (not recent and credit <= 0)
        if held.space_short:
            held.out_of_space(NoSpace("the pool is full"))
        else:
            held.has_space()
        held.kick()
