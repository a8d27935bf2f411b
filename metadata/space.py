"""How much room there is: StatFs, from the map and the rows of chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trivium.metadata.messages import FsInfo, StatFs

if TYPE_CHECKING:
    from trivium.metadata.tx import Reader

CLIENT_SHARE = 0.85  # above it a drive takes no new shards of clients


def statfs(reader: Reader, query: StatFs) -> FsInfo:
    """From rows alone: sizes of drives as they were added, bytes of chunks as they are. The server knows better what
    each drive has free and may answer from that."""
    pool = reader.one("SELECT k, m FROM pools ORDER BY id LIMIT 1")
    k, m = pool or (1, 0)
    # drives that share a disk share its room: its size is an upper bound for each
    rows = reader.all("SELECT node, device, max(bytes_total) FROM drives WHERE reason = '' GROUP BY node, device")
    total = int(sum(row[2] for row in rows) * k / (k + m))
    row = reader.one("SELECT coalesce(sum(length), 0) FROM chunks")
    used = int(row[0]) if row is not None else 0
    count = reader.one("SELECT count(*) FROM inodes")
    free = max(0, int(total * CLIENT_SHARE) - used)
    return FsInfo(total, free, int(count[0]) if count is not None else 0)
