"""Opens the drives of a data directory: what is there is opened, what is missing is named, nothing is made anew.

First start: the directories of DIR/drives (disks are mounted there), or new ones d0 ..., are formatted and the map is
drawn up from them. Their ids are in DIR/cluster before: an interrupted first start clears and formats only what it has
made itself, and what is empty. Later starts: every drive that the
newest reachable root's map names for this node is opened at its path; a path that has no drive, another cluster's
drive or a drive of another id is reported "missing" with the reason, and the pool starts degraded. A drive is known by
its id, wherever under drives/ it lies; of a drive that lies there twice only the one at its own path is used.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import platform
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from trivium.admin.datadir import DataDir
from trivium.admin.errors import CommandError
from trivium.cluster import rootfile
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


def format_drives(
    data: DataDir, files: FileOps, cluster: bytes, count: int | None, *, default: int = 0, keep: bool = False
) -> list[Store]:
    """Make and open the drives of a new pool: `count`, else those that there are directories for, else `default`. A
    first start that was interrupted left nothing that counts: start over. `keep`: nodes are formed into a pool with
    these drives, and may have a root already that names them: what is a drive of this cluster stays the one that it
    is."""
    begun = data.read()
    assert begun is not None, "the cluster file is written first"
    names = _names(data, begun.made, count, default)
    made = begun.made | {name: secrets.token_hex(16) for name in names if name not in begun.made}
    data.write(replace(begun, made=made))  # before there is any: what else is found later was not made here
    stores = []
    for name in names:
        path = data.drives / name
        if keep:
            with contextlib.suppress(NotFound, Corrupt, Refused):
                stores.append(Store.open(files, str(path), cluster=cluster))
                continue
        if path.exists():
            _remove_unfinished(path, bytes.fromhex(made[name]))
        Store.format(files, str(path), cluster=cluster, drive=bytes.fromhex(made[name]))
        stores.append(Store.open(files, str(path), cluster=cluster))
    return stores


def mounted(data: DataDir) -> set[str]:
    """The directories of drives/."""
    if not data.drives.is_dir():
        return set()
    return {path.name for path in data.drives.iterdir() if path.is_dir() and path.name != "lost+found"}


def _names(data: DataDir, made: dict[str, str], count: int | None, default: int) -> list[str]:
    names = sorted(mounted(data) | set(made), key=lambda name: (len(name), name))
    wanted = count if count is not None else (len(names) or default)
    numbered = (f"d{number}" for number in itertools.count())
    names += itertools.islice((name for name in numbered if name not in names), max(0, wanted - len(names)))
    return names[:wanted]


def _remove_unfinished(path: Path, drive: bytes) -> None:
    """What an interrupted first start of this directory made; anything else stays and the start is refused. `drive`:
    the id that it gave."""
    import shutil

    if (found := _drive_at(path)) != drive and (found is not None or _has_data(path)):
        what = f"drive {found.hex()[:8]} of a pool" if found else "data of a drive whose root file cannot be read"
        raise CommandError(
            f"{path} has {what} already: a new pool or node needs empty disks, and nothing was touched. Unmount it; a "
            "drive that is to go on in its pool belongs into the data directory that it comes from."
        )
    ours = {"root", "chunks", "log", "tmp", "quarantine", "ballast", "spare", "holder"}
    foreign = sorted(set(os.listdir(path)) - ours - {"lost+found"})
    if foreign:
        raise CommandError(f"{path} is not empty ({foreign[0]}): a new pool needs empty drive directories.")
    for name in ours & set(os.listdir(path)):
        inside = path / name
        shutil.rmtree(inside) if inside.is_dir() else inside.unlink()


def _drive_at(path: Path) -> bytes | None:
    """The id of the drive that lies there."""
    try:
        return rootfile.parse_head((path / "root").read_bytes()).drive
    except (OSError, Corrupt):
        return None
    except Refused as error:
        raise CommandError(f"{path} has {error}: nothing was touched. Unmount it.") from None


def _has_data(path: Path) -> bool:
    folders = (path / name for name in ("chunks", "log", "quarantine"))
    return any(names for folder in folders for _, _, names in os.walk(folder))


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
