"""An in-memory Catalog: rows in a dict, groups by placement, reports recorded. What the metadata server would do."""

from __future__ import annotations

from collections.abc import Iterable

from trivium.cluster.errors import NoSpace, Refused, Unavailable
from trivium.cluster.model import ChunkId, ClusterMap, DriveRow, Group, NewChunk, NodeRow, Placed, PoolRow
from trivium.cluster.pieces import Stored
from trivium.cluster.placement import MAX_OPEN_GROUPS, propose_group


def simple_map(drives: int, profile: tuple[int, int] = (4, 2), *, hosts: int = 1, pool: int = 1) -> ClusterMap:
    """`drives` drives dealt over `hosts` hosts of one node each."""
    rows = tuple(
        DriveRow(drive_id(n), f"d{n}", node_id(n % hosts), f"rack/h{n % hosts}", 1.0, device=100 + n)
        for n in range(drives)
    )
    nodes = tuple(NodeRow(node_id(n), f"h{n}") for n in range(hosts))
    return ClusterMap(1, rows, nodes, (PoolRow(pool, "default", *profile),))


def drive_id(number: int) -> bytes:
    return b"drive" + number.to_bytes(11, "big")


def node_id(number: int) -> bytes:
    return b"node" + number.to_bytes(12, "big")


class FakeCatalog:
    def __init__(self, cluster_map: ClusterMap, *, session: int = 7, groups: int = 4) -> None:
        self._map = cluster_map
        self._session = session
        self._counter = 0
        self._open: dict[int, list[Group]] = {}
        self.down: set[bytes] = set()  # drives that get no new groups
        self.available = True
        self.groups: dict[int, Group] = {}
        self.rows: dict[ChunkId, Placed] = {}
        self.cached: dict[ChunkId, Placed] = {}  # what locate() answers without fresh, where it differs
        self.reports: list[tuple[ChunkId, int, bytes, str]] = []
        self.settled: list[ChunkId] = []
        self.given_up: list[ChunkId] = []
        self.offers: list[frozenset[bytes]] = []
        for pool in cluster_map.pools:
            for _ in range(min(groups, MAX_OPEN_GROUPS)):
                self._new_group(pool.id, frozenset())

    # ---- Catalog --------------------------------------------------------------------------------------------

    @property
    def session(self) -> int:
        return self._session

    def map(self) -> ClusterMap:
        return self._map

    def next_counter(self) -> int:
        self._counter += 1
        return self._counter

    def settle(self, chunk: ChunkId) -> None:
        self.settled.append(chunk)

    def give_up(self, chunk: ChunkId) -> None:
        self.given_up.append(chunk)

    def open_groups(self, pool: int) -> tuple[Group, ...]:
        return tuple(self._open.get(pool, ()))

    async def offer(self, pool: int, without: frozenset[bytes] = frozenset()) -> Group:
        self._require()
        self.offers.append(without)
        fit = [group for group in self._open[pool] if without.isdisjoint(group.drives)]
        group = fit[-1] if fit else self._new_group(pool, without)
        self._open[pool] = [*(one for one in fit if one is not group), group]
        return group

    async def locate(self, chunks: tuple[ChunkId, ...], *, fresh: bool = False) -> tuple[Placed | None, ...]:
        self._require()
        return tuple((None if fresh else self.cached.get(chunk)) or self.rows.get(chunk) for chunk in chunks)

    async def report(self, chunk: ChunkId, index: int, drive: bytes, what: str) -> None:
        self._require()
        self.reports.append((chunk, index, drive, what))
        row = self.rows.get(chunk)
        if row is not None and row.group.drives[index] == drive:
            self.rows[chunk] = _with(row, missing=row.missing | 1 << index)

    # ---- what tests do --------------------------------------------------------------------------------------

    def set_map(self, cluster_map: ClusterMap) -> None:
        self._map = cluster_map

    def commit(self, stored: Stored | Iterable[NewChunk], seq: int = 1) -> None:
        """Introduce the chunks, as a commit that names their refs would."""
        for new in stored.chunks if isinstance(stored, Stored) else stored:
            group = self.groups[new.group]
            if group.digest != new.group_digest:
                raise Refused("the group is another")
            self.rows.setdefault(new.chunk, Placed(new.chunk, new.nonce, new.length, new.missing, seq, group, new.kind))

    def relocate(self, chunk: ChunkId, group: Group, missing: int, plan_seq: int) -> None:
        self.groups[group.id] = group
        self.rows[chunk] = _with(self.rows[chunk], group=group, missing=missing, plan_seq=plan_seq)

    def close_groups(self, pool: int = 1) -> None:
        self._open[pool] = []

    def _new_group(self, pool: int, without: frozenset[bytes]) -> Group:
        row = next(row for row in self._map.pools if row.id == pool)
        up = {drive.id for drive in self._map.drives} - self.down - without
        group = propose_group(self._map, row, up, len(self.groups) + 1, self._open.get(pool, ()))
        if group is None:
            raise NoSpace("no drives for a group")
        self.groups[group.id] = group
        self._open.setdefault(pool, []).append(group)
        return group

    def _require(self) -> None:
        if not self.available:
            raise Unavailable("no metadata server answers")


def _with(row: Placed, **changes: object) -> Placed:
    fields = {name: getattr(row, name) for name in Placed.__struct_fields__}
    return Placed(**(fields | changes))
