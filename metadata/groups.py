"""Open groups: a bounded number per pool take new chunks. A group is offered only after its record is durable.

    proposed --record--> open --a drive found dead, out, full--> closed (a row for ever: its chunks are on it)
                              --ROTATE_CHUNKS chunks, in a pool of more drives than all open groups name-->

Invariants:
1. What `offered` answers has been committed: a number never stands for other drives than those of its row.
2. A group that names a drive known to be down, out, draining or full takes no new chunks; another one is opened.
3. In a pool of more drives than its open groups name, groups that have their share of chunks make place for others,
   so that every drive gets its share of new data, and the fuller ones less.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import trio

from trivium.cluster import placement
from trivium.cluster.errors import NoSpace
from trivium.cluster.model import ClusterMap, Group, PoolRow
from trivium.metadata.chunkrows import split_drives
from trivium.metadata.tx import Reader, Tx
from trivium.metadata.writer import Writer

ROTATE_CHUNKS = 4096  # 16 GiB of whole chunks
ROTATE_PAUSE_S = 60.0


def read_open(reader: Reader) -> tuple[Group, ...]:
    rows = reader.all("SELECT id, pool, k, m, drives, codec FROM groups WHERE open = 1 ORDER BY id")
    return tuple(Group(id, pool, k, m, split_drives(drives), codec) for id, pool, k, m, drives, codec in rows)


def insert(tx: Tx, group: Group) -> None:
    tx.run(
        "INSERT INTO groups (id, pool, k, m, drives, codec, open) VALUES (?, ?, ?, ?, ?, ?, 1)",
        *(group.id, group.pool, group.k, group.m, b"".join(group.drives), group.codec),
    )


class OpenGroups:
    """`cluster_map` answers the newest map, `unfit` drives that are down or take no new shards, `fill` how full drives
    are (0 to 1); the last two from memory only."""

    def __init__(
        self,
        writer: Writer,
        *,
        cluster_map: Callable[[], ClusterMap],
        unfit: Callable[[], frozenset[bytes]],
        fill: Callable[[], Mapping[bytes, float]] = dict,
    ) -> None:
        self._writer = writer
        self._map = cluster_map
        self._unfit = unfit
        self._fill_of = fill
        self._groups: dict[int, Group] = {}
        self._lock = trio.Lock()

    def load(self, groups: Iterable[Group]) -> None:
        self._groups = {group.id: group for group in groups}

    def offered(self) -> tuple[Group, ...]:
        """All open groups, of every pool."""
        return tuple(self._groups.values())

    async def refresh(self) -> None:
        """Close what has an unfit drive, then fill every pool up. Cheap when nothing has changed."""
        if self._stale() or any(self._room(pool) for pool in self._map().pools):
            async with self._lock:
                await self._close(self._stale())
                for pool in self._map().pools:
                    await self._fill(pool, frozenset())

    async def rotate(self, read: Callable[[Callable[[Reader], Any]], Awaitable[Any]]) -> None:
        """Close groups that have had their share, where that brings drives into use that no open group names."""
        full: list[Group] = []
        for pool in self._map().pools:
            groups = self._of(pool.id)
            named = {drive for group in groups for drive in group.drives}
            if self._usable() <= named:
                continue
            counts = await read(partial(count_chunks, groups=groups))
            full += [group for group in groups if counts[group.id] >= ROTATE_CHUNKS]
        if full:
            async with self._lock:
                await self._close([group for group in full if group.id in self._groups])
            await self.refresh()

    async def renew(self) -> None:
        """Close all and open others: drives have been added or weighted anew, and shall be used at once."""
        async with self._lock:
            await self._close(list(self._groups.values()))
            for pool in self._map().pools:
                await self._fill(pool, frozenset())

    def pool_of(self, group: int) -> int | None:
        """Of an open group; None for any other."""
        found = self._groups.get(group)
        return None if found is None else found.pool

    async def offer(self, pool: int, without: frozenset[bytes]) -> Group:
        """An open group of the pool that avoids `without`. NoSpace when there is no such drive set."""
        row = next((row for row in self._map().pools if row.id == pool), None)
        if row is None:
            raise NoSpace(f"there is no pool {pool}")
        group = self._widest(row, without)
        if group is None:
            async with self._lock:
                group = self._widest(row, without) or await self._replace(row, without)
        return group

    # ---- inside ---------------------------------------------------------------------------------------------

    def _of(self, pool: int) -> list[Group]:
        return [group for group in self._groups.values() if group.pool == pool]

    def _widest(self, pool: PoolRow, without: frozenset[bytes]) -> Group | None:
        """A group without these drives, but only if none wider could be opened."""
        fit = [group for group in self._of(pool.id) if without.isdisjoint(group.drives)]
        best = max(fit, key=lambda group: group.profile.width, default=None)
        proposal = self._propose(pool, without)
        if best is not None and proposal is not None and proposal.profile.width > best.profile.width:
            return None
        return best

    async def _replace(self, pool: PoolRow, without: frozenset[bytes]) -> Group:
        """Open one that avoids the drives; the open ones that have them are closed by the same record."""
        closing = [group for group in self._of(pool.id) if not without.isdisjoint(group.drives)]
        opened = await self._open(pool, without, closing)
        if opened is None:
            raise NoSpace(f"pool {pool.name}: no set of drives has room for new data")
        return opened

    def _propose(self, pool: PoolRow, without: frozenset[bytes], number: int = 0) -> Group | None:
        up = {drive.id for drive in self._map().drives} - self._unfit() - without
        return placement.propose_group(self._map(), pool, up, number, self._of(pool.id), self._fill_of())

    def _usable(self) -> frozenset[bytes]:
        up = {drive.id for drive in self._map().drives} - self._unfit()
        return frozenset(row.id for row in placement.usable(self._map(), up))

    def _wanted(self, pool: PoolRow) -> int:
        return placement.open_groups(len(self._usable()), pool.k + pool.m)

    def _room(self, pool: PoolRow) -> bool:
        return len(self._of(pool.id)) < self._wanted(pool) and self._propose(pool, frozenset()) is not None

    async def _fill(self, pool: PoolRow, without: frozenset[bytes]) -> None:
        """A few at once: a large pool takes data before all of its groups are open."""
        missing = self._wanted(pool) - len(self._of(pool.id))
        for _ in range(min(missing, placement.MAX_OPEN_GROUPS)):
            if await self._open(pool, without, ()) is None:
                return

    async def _open(self, pool: PoolRow, without: frozenset[bytes], closing: Iterable[Group]) -> Group | None:
        closing = tuple(closing)
        if self._propose(pool, without) is None:
            return None

        def execute(tx: Tx) -> Group | None:
            group = self._propose(pool, without, tx.next_id("group"))
            if group is None:  # drives have gone while this waited for its turn
                return None
            insert(tx, group)
            for old in closing:
                tx.run("UPDATE groups SET open = 0 WHERE id = ?", old.id)
            return group

        group: Group | None = await self._writer.do(execute)
        if group is None:
            return None
        for old in closing:
            self._groups.pop(old.id, None)
        self._groups[group.id] = group
        return group

    def _stale(self) -> list[Group]:
        dead = list(stale(self._groups.values(), self._map(), self._unfit()))
        return dead + [group for pool in self._map().pools for group in self._narrow(pool) if group not in dead]

    def _narrow(self, pool: PoolRow) -> list[Group]:
        """Opened when fewer drives were up than are now: wider ones take their place."""
        narrow = [group for group in self._of(pool.id) if group.profile.width != pool.k + pool.m]
        proposal = self._propose(pool, frozenset()) if narrow else None
        if proposal is None:
            return []
        return [group for group in narrow if proposal.profile.width > group.profile.width]

    async def _close(self, groups: list[Group]) -> None:
        if not groups:
            return

        def execute(tx: Tx) -> None:
            for group in groups:
                tx.run("UPDATE groups SET open = 0 WHERE id = ?", group.id)

        for group in groups:  # not offered any more from here on; the row follows
            self._groups.pop(group.id, None)
        await self._writer.do(execute)


def count_chunks(reader: Reader, groups: Iterable[Group]) -> dict[int, int]:
    """Of each group, up to ROTATE_CHUNKS."""
    sql = "SELECT count(*) FROM (SELECT 1 FROM chunks WHERE group_id = ? LIMIT ?)"
    rows = ((group.id, reader.one(sql, group.id, ROTATE_CHUNKS)) for group in groups)
    return {id: int(row[0]) if row else 0 for id, row in rows}


def stale(groups: Iterable[Group], cluster_map: ClusterMap, unfit: frozenset[bytes]) -> Iterator[Group]:
    """Open groups with a drive that takes no new shards."""
    usable = {drive.id for drive in cluster_map.drives if not drive.reason and drive.weight > 0} - unfit
    for group in groups:
        if not usable.issuperset(group.drives):
            yield group
