"""Compares what lies on the drives with what the rows say: places that are empty, files that nobody names.

Invariants:
1. What no row, no dump and no live session's put names is an orphan candidate: queued by a transaction that checks
   again, never deleted here, never a source of repair.
2. A place is called empty only if its row named it both before and after the drive was listed.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Container, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from trivium.cluster.errors import ClusterError
from trivium.cluster.model import ChunkId
from trivium.cluster.nodes import Nodes
from trivium.cluster.wire import Inventory, InventoryPage
from trivium.metadata import chunkrows, queue
from trivium.metadata.tx import Reader, Tx

log = logging.getLogger(__name__)

PAGE = 5000
Place = tuple[int, int, int]  # session, counter, index

Read = Callable[[Callable[[Reader], Any]], Awaitable[Any]]
Do = Callable[[Callable[[Tx], Any]], Awaitable[Any]]


@dataclass(slots=True)
class Survey:
    """`empty`: (chunk, index, drive) of rows that name a place without a file. `unnamed`: files that no row names."""

    empty: list[tuple[ChunkId, int, bytes]] = field(default_factory=list)
    unnamed: list[tuple[ChunkId, int, bytes]] = field(default_factory=list)
    unread: list[bytes] = field(default_factory=list)  # drives that could not be listed


async def survey(read: Read, nodes: Nodes, drives: Iterable[bytes], held: Collection[ChunkId] = ()) -> Survey:
    """`held`: chunks of dumps, which have no rows."""
    found = Survey()
    for drive in drives:
        before: set[Place] = await read(partial(named_places, drive=drive))
        try:
            files = await _files(nodes, drive)
        except ClusterError as error:
            log.info("drive %s cannot be listed: %s", drive.hex(), error)
            found.unread.append(drive)
            continue
        after: set[Place] = await read(partial(named_places, drive=drive))
        found.empty += [(ChunkId(s, c), i, drive) for s, c, i in sorted((before & after) - files)]
        unnamed = ((ChunkId(s, c), i, drive) for s, c, i in sorted(files - before - after))
        found.unnamed += [place for place in unnamed if place[0] not in held]
    return found


def named_places(reader: Reader, drive: bytes) -> set[Place]:
    """What the rows place on a drive and do not list as missing."""
    places: set[Place] = set()
    for group, drives in reader.all("SELECT id, drives FROM groups WHERE instr(drives, ?) > 0", drive):
        for index, member in enumerate(chunkrows.split_drives(drives)):
            if member == drive:
                sql = f"SELECT session, counter FROM chunks WHERE group_id = ? AND NOT missing >> {index} & 1"
                places |= {(session, counter, index) for session, counter in reader.all(sql, group)}
    return places


async def collect_orphans(do: Do, found: Survey, moving: Container[ChunkId] = ()) -> int:
    """Queue files that nobody names and nobody will; answers how many. `moving`: chunks with a plan under way, whose
    new places no row names yet; looked at inside the transaction, after which a plan only can begin."""

    def execute(tx: Tx, places: list[tuple[ChunkId, int, bytes]]) -> int:
        return sum(queue.add_orphan(tx, *place) for place in places if place[0] not in moving)

    count = 0
    for start in range(0, len(found.unnamed), PAGE):
        count += await do(partial(execute, places=found.unnamed[start : start + PAGE]))
    return count


async def list_empty(do: Do, found: Survey) -> int:
    """Add empty places to their rows' missing lists (the repair queue)."""
    for chunk, index, drive in found.empty:
        await do(partial(chunkrows.add_missing, chunk=chunk, index=index, drive=drive))
    return len(found.empty)


async def _files(nodes: Nodes, drive: bytes) -> set[Place]:
    files: set[Place] = set()
    after: Place = (0, 0, -1)
    while True:
        reply = await nodes.call(drive, Inventory(drive, after, PAGE))
        page = reply.answer
        assert isinstance(page, InventoryPage)
        files |= {(entry.chunk.session, entry.chunk.counter, entry.index) for entry in page.entries}
        if not page.more or not page.entries:
            return files
        last = page.entries[-1]
        after = (last.chunk.session, last.chunk.counter, last.index)
