"""Opens the drives of a data directory: what is there is opened, what is missing is named, nothing is made anew.

First start: DIR/drives/d0 ... are formatted and the map is drawn up from them. Later starts: every drive that the
newest reachable root's map names for this node is opened at its path; a path that has no drive, another cluster's
drive or a drive of another id is reported "missing" with the reason, and the pool starts degraded. A drive is known by
its id, wherever under drives/ it lies; of a drive that lies there twice only the one at its own path is used.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from trivium.admin.datadir import DataDir
from trivium.admin.errors import CommandError
from trivium.cluster.errors import ClusterError, Corrupt, InUse, NotFound, Refused
from trivium.cluster.files import FileOps
from trivium.cluster.model import ClusterMap, DriveRow, NodeRow, PoolRow, Root
from trivium.cluster.store import Store
from trivium.cluster.wire import DriveReport

log = logging.getLogger(__name__)

DEFAULT_DRIVES = 6
DEFAULT_POOL = 1


@dataclass(slots=True)
class Opened:
    """`stores` are in use; `absent` are drives of the map that could not be opened, each with the reason."""

    stores: list[Store] = field(default_factory=list)
    absent: list[DriveReport] = field(default_factory=list)
    newest: Root | None = None
    reasons: dict[str, str] = field(default_factory=dict)  # path -> why nothing there was opened
    copies: list[str] = field(default_factory=list)  # sentences about second directories of one drive, left alone


def absolute(data: DataDir, path: str) -> str:
    """A drive's path as the map stores it (relative inside the data directory) made absolute."""
    return str(data.path / path)


def relative(data: DataDir, path: str) -> str:
    """A drive's path as the map stores it."""
    inside = Path(path)
    return str(inside.relative_to(data.path)) if inside.is_relative_to(data.path) else path


def format_drives(data: DataDir, files: FileOps, cluster: bytes, count: int, *, keep: bool = False) -> list[Store]:
    """Make and open d0 ... of a new pool. A first start that was interrupted left nothing that counts: start over.
    `keep`: nodes are formed into a pool with these drives, and may have a root already that names them: what is a drive
    of this cluster stays the one that it is."""
    stores = []
    for number in range(count):
        path = data.drives / f"d{number}"
        if keep:
            with contextlib.suppress(NotFound, Corrupt, Refused):
                stores.append(Store.open(files, str(path), cluster=cluster))
                continue
        if path.exists():
            _remove_unfinished(path)
        Store.format(files, str(path), cluster=cluster, drive=secrets.token_bytes(16))
        stores.append(Store.open(files, str(path), cluster=cluster))
    return stores


def _remove_unfinished(path: Path) -> None:
    """What an interrupted first start of this directory made; anything else stays and the start is refused."""
    import shutil

    ours = {"root", "chunks", "log", "tmp", "quarantine", "ballast", "spare", "holder"}
    foreign = sorted(set(os.listdir(path)) - ours - {"lost+found"})
    if foreign:
        raise CommandError(f"{path} is not empty ({foreign[0]}): a new pool needs empty drive directories.")
    for name in ours & set(os.listdir(path)):
        inside = path / name
        shutil.rmtree(inside) if inside.is_dir() else inside.unlink()


def first_map(data: DataDir, stores: Iterable[Store], node: bytes, profile: tuple[int, int]) -> ClusterMap:
    """The map of a new pool: this machine's drives, each in the domain of this host."""
    host = platform.node() or "localhost"
    drives = []
    for store in stores:
        report = store.report()
        name = Path(store.path).name
        drives.append(
            DriveRow(store.drive, name, node, f"default/{host}", 1.0, "", relative(data, store.path),
                     report.bytes_total, report.device)
        )  # fmt: skip
    nodes = (NodeRow(node, host, ("unix:run/trivium.sock",)),)
    return ClusterMap(1, tuple(drives), nodes, (PoolRow(DEFAULT_POOL, "default", *profile),))


def open_drives(data: DataDir, files: FileOps, cluster: bytes, node: bytes, *, strangers: bool = False) -> Opened:
    """Open what is there and say what is not. InUse when another process has one of them. `strangers`: also drives of
    this cluster that the newest map here does not name, as it may be older than they are."""
    opened = Opened()
    reasons = opened.reasons
    seen: dict[str, Store] = {}
    for entry in sorted(data.drives.iterdir()) if data.drives.is_dir() else []:
        _try(files, str(entry), cluster, seen, reasons)
    opened.newest = _newest(seen.values())
    rows = [row for row in opened.newest.map.drives if row.node == node] if opened.newest else []
    for row in rows:
        path = absolute(data, row.path)
        if row.reason != "removed" and path not in seen and path not in reasons:
            _try(files, path, cluster, seen, reasons)
    known = {row.id: row for row in rows if row.reason != "removed"}
    _leave_copies(data, seen, known, opened)
    for store in seen.values():
        named = opened.newest is not None and any(row.id == store.drive for row in opened.newest.map.drives)
        if opened.newest is None or store.drive in known or (strangers and not named):
            opened.stores.append(store)
        else:
            store.close()  # removed or never taken in: its shards are nobody's
    have = {store.drive for store in opened.stores}
    for row in known.values():
        if row.id not in have:
            path = absolute(data, row.path)
            text = reasons.get(path) or f"another drive lies at {path}"
            opened.absent.append(DriveReport(row.id, "missing", text, row.bytes_total, 0, row.device, row.path))
    return opened


def _leave_copies(data: DataDir, seen: dict[str, Store], known: dict[bytes, DriveRow], opened: Opened) -> None:
    """A drive that lies at several paths is the one at the map's path; the copies are left alone, and named. When none
    of them lies there nobody knows which is the newer one: the drive stays down until the operator has decided."""
    by_drive: dict[bytes, list[str]] = {}
    for path, store in seen.items():
        by_drive.setdefault(store.drive, []).append(path)
    for drive, paths in by_drive.items():
        if len(paths) == 1 or drive not in known:
            continue
        row = known[drive]
        at_home = absolute(data, row.path)
        for path in paths:
            if path != at_home:
                seen.pop(path).close()
        if at_home in paths:
            others = ", ".join(path for path in paths if path != at_home)
            opened.copies.append(f"drive {row.name} lies at {at_home}; its copies are left alone: {others}")
            log.warning("%s", opened.copies[-1])
        else:
            where = ", ".join(paths)
            opened.reasons[at_home] = f"several directories say that they are this drive ({where}): leave one"


def _newest(stores: Iterable[Store]) -> Root | None:
    """The newest root that any of the drives has; a hint for finding the others (the register decides)."""
    slots = []
    for store in stores:
        with contextlib.suppress(ClusterError):  # a root that fails its CRC does not count
            slots.append(store.root.read())
    newest = max((slot for slot in slots if slot.root), key=lambda slot: (slot.accepted, slot.version), default=None)
    return newest.root if newest is not None else None


def _try(files: FileOps, path: str, cluster: bytes, seen: dict[str, Store], reasons: dict[str, str]) -> None:
    try:
        seen[path] = Store.open(files, path, cluster=cluster)
    except InUse:
        raise
    except ClusterError as error:
        reasons[path] = str(error)
    except OSError as error:
        reasons[path] = f"{path}: {error.strerror}"
