"""Open groups: up to MAX_OPEN_GROUPS per pool take new chunks. A group is offered only after its record is durable.

    proposed --record--> open --a drive found dead, out, full--> closed (a row for ever: its chunks are on it)

Invariants:
1. What `offered` answers has been committed: a number never stands for other drives than those of its row.
2. A group that names a drive known to be down, out, draining or full takes no new chunks; another one is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import trio

from trivium.cluster import placement
from trivium.cluster.errors import NoSpace
from trivium.cluster.model import ClusterMap, Group, PoolRow
from trivium.metadata.chunkrows import split_drives
from trivium.metadata.tx import Reader, Tx
from trivium.metadata.writer import Writer


def read_open(reader: Reader) -> tuple[Group, ...]:
    rows = reader.all("SELECT id, pool, k, m, drives, codec FROM groups WHERE open = 1 ORDER BY id")
    return tuple(Group(id, pool, k, m, split_drives(drives), codec) for id, pool, k, m, drives, codec in rows)


def insert(tx: Tx, group: Group) -> None:
    tx.run(
        "INSERT INTO groups (id, pool, k, m, drives, codec, open) VALUES (?, ?, ?, ?, ?, ?, 1)",
        *(group.id, group.pool, group.k, group.m, b"".join(group.drives), group.codec),
    )


class OpenGroups:
    """`cluster_map` answers the newest map, `unfit` drives that are down or take no new shards (memory only)."""

    def __init__(
        self, writer: Writer, *, cluster_map: Callable[[], ClusterMap], unfit: Callable[[], frozenset[bytes]]
    ) -> None:
        self._writer = writer
        self._map = cluster_map
        self._unfit = unfit
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
        cluster_map = self._map()
        up = {drive.id for drive in cluster_map.drives} - self._unfit() - without
        return placement.propose_group(cluster_map, pool, up, number, self._of(pool.id))

    def _room(self, pool: PoolRow) -> bool:
        groups = self._of(pool.id)
        return len(groups) < placement.MAX_OPEN_GROUPS and self._propose(pool, frozenset()) is not None

    async def _fill(self, pool: PoolRow, without: frozenset[bytes]) -> None:
        missing = placement.MAX_OPEN_GROUPS - len(self._of(pool.id))
        for _ in range(missing):
            if await self._open(pool, without, ()) is None:
                return

    async def _open(self, pool: PoolRow, without: frozenset[bytes], closing: Iterable[Group]) -> Group | None:
        closing = tuple(closing)
        proposal = self._propose(pool, without)
        if proposal is None:
            return None

        def execute(tx: Tx) -> Group:
            group = self._propose(pool, without, tx.next_id("group"))
            assert group is not None
            insert(tx, group)
            for old in closing:
                tx.run("UPDATE groups SET open = 0 WHERE id = ?", old.id)
            return group

        group: Group = await self._writer.do(execute)
        for old in closing:
            self._groups.pop(old.id, None)
        self._groups[group.id] = group
        return group

    def _stale(self) -> list[Group]:
        dead = list(stale(self._groups.values(), self._map(), self._unfit()))
        return dead + [group for group in self._groups.values() if group not in dead and self._is_narrow(group)]

    def _is_narrow(self, group: Group) -> bool:
        """Opened when fewer drives were up than are now: a wider one takes its place."""
        pool = next((pool for pool in self._map().pools if pool.id == group.pool), None)
        if pool is None or group.profile.width == pool.k + pool.m:
            return False
        proposal = self._propose(pool, frozenset())
        return proposal is not None and proposal.profile.width > group.profile.width

    async def _close(self, groups: list[Group]) -> None:
        if not groups:
            return

        def execute(tx: Tx) -> None:
            for group in groups:
                tx.run("UPDATE groups SET open = 0 WHERE id = ?", group.id)

        for group in groups:  # not offered any more from here on; the row follows
            self._groups.pop(group.id, None)
        await self._writer.do(execute)


def stale(groups: Iterable[Group], cluster_map: ClusterMap, unfit: frozenset[bytes]) -> Iterator[Group]:
    """Open groups with a drive that takes no new shards."""
    usable = {drive.id for drive in cluster_map.drives if not drive.reason and drive.weight > 0} - unfit
    for group in groups:
        if not usable.issuperset(group.drives):
            yield group
