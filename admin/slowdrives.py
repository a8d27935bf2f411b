"""Drives that this process reads last because they are slow or err (cluster/drivepace): logged, shown in status."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from trivium.admin.processes.lead import Leader

log = logging.getLogger(__name__)

PERIOD_S = 5.0


class SlowDrives:
    def __init__(self, leader: Leader) -> None:
        self._leader = leader
        self._said: frozenset[bytes] = frozenset()

    def in_words(self) -> dict[bytes, str]:
        found = self._leader.chunks.paces.slow(trio.current_time())
        return {drive: f"{why}; it is read last" for drive, why in found.items()}

    async def run(self) -> None:
        while True:
            found = self.in_words()
            for row in self._leader.server.map.drives:
                if row.id in found and row.id not in self._said:
                    log.warning("drive %s: %s", row.name, found[row.id])
            self._said = frozenset(found)
            await trio.sleep(PERIOD_S)
