"""trivium rebuild-metadata: the metadata database anew, from what the drives hold."""

from __future__ import annotations

import os
from pathlib import Path

import click

from trivium.admin.cli.drivedir import opened
from trivium.admin.datadir import DataDir, default_data_dir
from trivium.admin.errors import CommandError


@click.command("rebuild-metadata")
@click.option(
    "--data", envvar="TRIVIUM_DATA", metavar="DIR", type=click.Path(path_type=Path, file_okay=False),
    help="Data directory of the stopped pool [env: TRIVIUM_DATA; default: ~/.local/share/trivium].",
)  # fmt: skip
def rebuild_metadata(data: Path | None) -> None:
    """Rebuild the metadata database of a stopped pool from the newest dump and the log on its drives.

    The old database is kept beside the new one, as trivium.db.old. When dumps and log are lost beyond what their
    copies cover, nothing is changed, and what can still be had is said: `trivium drive export` then gives every file
    that the drives hold, by name as far as a dump reaches and by tables of contents (lost+found) beyond it.
    """
    from trivium.admin.lock import LifeLock
    from trivium.cluster.errors import InUse

    directory = DataDir((data or default_data_dir()).absolute())
    if directory.read() is None:
        raise CommandError(f"there is no pool at {directory.path}: name its data directory with --data.")
    directory.metadata.mkdir(mode=0o700, exist_ok=True)
    try:
        lock = LifeLock(directory.metadata / "lock", str(directory.path))
    except InUse as error:
        raise CommandError(f"{error} (stop the pool first: trivium down)", 5) from None
    try:
        _rebuild(directory)
    finally:
        lock.close()


def _rebuild(directory: DataDir) -> None:
    import trio

    from trivium.cluster.clock import ThreadExecutor
    from trivium.cluster.salvage import Salvage
    from trivium.metadata.salvage import replace_database, restore

    path = directory.metadata / "trivium.db"
    beside = str(path) + ".rebuild"
    paths = _drive_paths(directory)
    with opened(paths, live=False) as drives:
        salvage = Salvage(drives)
        salvage.scan()
        for suffix in ("", "-wal", "-shm"):
            Path(beside + suffix).unlink(missing_ok=True)
        done = trio.run(restore, drives, salvage, beside, ThreadExecutor(1))
    for note in done.notes:
        click.echo(note)
    if not done.complete:
        for suffix in ("", "-wal", "-shm"):
            Path(beside + suffix).unlink(missing_ok=True)
        upto = f"only up to record {done.seq}" if done.seq else "not at all"
        raise CommandError(
            f"the metadata can be had {upto}: nothing was changed. Bring back drives that have more, or save what "
            f"there is: trivium drive export {' '.join(map(str, paths))} --to DIR",
            6,
        )
    replace_database(beside, str(path))
    began = f"the dump of record {done.dump_seq}" if done.dump_seq else "the log alone"
    click.echo(f"rebuilt {path} up to record {done.seq}, from {began}; start the pool with: trivium up")


def _drive_paths(directory: DataDir) -> tuple[Path, ...]:
    """Drive directories below drives/, and those elsewhere that any of their roots names."""
    from trivium.cluster.drivedir import DriveDir
    from trivium.cluster.errors import ClusterError
    from trivium.cluster.files import RealFiles
    from trivium.cluster.salvagelog import newest_root

    entries = sorted(directory.drives.iterdir()) if directory.drives.is_dir() else []
    inside = [entry for entry in entries if entry.is_dir()]
    found: dict[Path, None] = {}
    drives: list[DriveDir] = []
    for path in inside:
        try:
            drives.append(DriveDir.open(RealFiles(), str(path), live=True))
            found[path] = None
        except ClusterError as error:
            click.echo(f"{path}: {error}", err=True)
    root = newest_root(drives)
    for drive in drives:
        drive.close()
    for row in root[1].map.drives if root is not None else ():
        path = directory.path / row.path
        if row.reason != "removed" and os.path.isdir(path / "chunks"):
            found[path] = None
    if not found:
        raise CommandError(f"no drive of the pool is there: {directory.drives} has none.")
    return tuple(found)
