"""trivium rebuild-metadata: the metadata database anew, from what the drives hold."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trivium.admin.cli.drivedir import opened
from trivium.admin.datadir import ClusterFile, DataDir, default_data_dir
from trivium.admin.errors import CommandError

if TYPE_CHECKING:
    from trivium.admin.refound import Journal, Refound
    from trivium.cluster.drivedir import DriveDir


@click.command("rebuild-metadata")
@click.option(
    "--data", envvar="TRIVIUM_DATA", metavar="DIR", type=click.Path(path_type=Path, file_okay=False),
    help="Data directory of the stopped pool [env: TRIVIUM_DATA; default: ~/.local/share/trivium].",
)  # fmt: skip
@click.option("--from-shards", is_flag=True, help="Dump or log are lost: make database, log and root anew from shards.")
@click.option("--dry-run", is_flag=True, help="Only say what would be found. Changes nothing.")
@click.option("--yes", is_flag=True, help="Do not ask before --from-shards changes anything.")
@click.option(
    "--drive", "more", multiple=True, metavar="DIRECTORY", type=click.Path(path_type=Path, file_okay=False),
    help="With --from-shards: a drive that lies elsewhere than in DIR/drives. May be given several times.",
)  # fmt: skip
def rebuild_metadata(data: Path | None, from_shards: bool, dry_run: bool, yes: bool, more: tuple[Path, ...]) -> None:
    """Rebuild the metadata database of a stopped pool from the newest dump and the log on its drives.

    The old database is kept beside the new one, as trivium.db.old. When dumps and log are lost beyond what their
    copies cover, nothing is changed, and what can still be had is said.

    --from-shards then makes a whole pool of what is left, in place: of names what dump and log still give, and of
    everything else the shards' tables of contents. They know owners, versions and places of bytes, volumes and their
    newest state, but no names: such files are in /lost+found of the mount, by inode or body. Small contents (up to 16
    KiB) that lay in the metadata only are lost with them. --dry-run says what would be found. Old database, log and
    root are kept aside. Give every drive there is (on this machine): what is on others counts as down. The pool then
    starts as usual and deletes nothing from its drives until `trivium metadata confirm`. Until then the command may be
    repeated with more drives: it adds what they have.
    """
    from trivium.admin.lock import LifeLock
    from trivium.cluster.errors import InUse

    directory = DataDir((data or default_data_dir()).absolute())
    if directory.read(rebuilding=from_shards) is None and not (from_shards and directory.drives.is_dir()):
        raise CommandError(f"there is no pool at {directory.path}: name its data directory with --data.")
    if more and not from_shards:
        raise CommandError("--drive goes with --from-shards.")
    directory.metadata.mkdir(mode=0o700, exist_ok=True)
    try:
        lock = LifeLock(directory.metadata / "lock", str(directory.path))
    except InUse as error:
        raise CommandError(f"{error} (stop the pool first: trivium down)", 5) from None
    try:
        if from_shards:
            _from_shards(directory, more, dry_run, yes)
        else:
            _rebuild(directory, dry_run)
    finally:
        lock.close()


def _rebuild(directory: DataDir, dry_run: bool) -> None:
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
        _remove(beside)
        done = trio.run(restore, drives, salvage, beside, ThreadExecutor(1))
    for note in done.notes:
        click.echo(note)
    if not done.complete:
        _remove(beside)
        upto = f"only up to record {done.seq}" if done.seq else "not at all"
        raise CommandError(
            f"the metadata can be had {upto}: nothing was changed. Bring back drives that have more. Else make the "
            f"pool anew from its shards (look first: --from-shards --dry-run), or save what there is: "
            f"trivium drive export {' '.join(map(str, paths))} --to DIR",
            6,
        )
    began = f"the dump of record {done.dump_seq}" if done.dump_seq else "the log alone"
    if dry_run:
        _remove(beside)
        click.echo(f"the metadata can be had whole, up to record {done.seq}, from {began}; nothing was changed")
        return
    replace_database(beside, str(path))
    click.echo(f"rebuilt {path} up to record {done.seq}, from {began}; start the pool with: trivium up")


def _remove(path: str) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(path + suffix).unlink(missing_ok=True)


def _drive_paths(directory: DataDir, more: tuple[Path, ...] = ()) -> tuple[Path, ...]:
    """Drive directories below drives/, those elsewhere that any of their roots names, and those given."""
    from trivium.admin.refoundmap import drive_paths
    from trivium.cluster.drivedir import DriveDir
    from trivium.cluster.errors import ClusterError
    from trivium.cluster.files import RealFiles
    from trivium.cluster.salvagelog import newest_root

    found: dict[Path, None] = {}
    drives: list[DriveDir] = []
    for path in map(Path, drive_paths(directory, more)):
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


# ---- from shards --------------------------------------------------------------------------------------------------


def _from_shards(directory: DataDir, more: tuple[Path, ...], dry_run: bool, yes: bool) -> None:
    import random

    from trivium.admin.refound import Refound
    from trivium.cluster.files import RealFiles

    paths = _drive_paths(directory, more)
    with opened(paths, live=False) as drives:
        cluster = directory.read(rebuilding=True) or _cluster_of(drives)
        refound = Refound(directory, RealFiles(), cluster, random=random.SystemRandom())
        journal = refound.pending()
        if journal is not None:
            if dry_run:
                raise CommandError("a rebuild was decided and not finished: nothing else can be tried before it is.")
            click.echo("a rebuild that was interrupted after its decision is finished")
        else:
            with _folder(directory, dry_run) as folder:
                journal = _look(directory, cluster, drives, refound, folder, dry_run, yes)
        if journal is None:
            return
        for text in refound.finish(journal):
            click.echo(text)
    click.echo(
        f"the metadata are made anew; the old ones are in replaced-{journal.id}/. Start the pool with: trivium up. It "
        "deletes nothing from its drives until: trivium metadata confirm"
    )


@contextmanager
def _folder(directory: DataDir, dry_run: bool) -> Iterator[Path]:
    """Where the database is made: beside the pool's own, for there must be room for it; a trial's goes elsewhere."""
    with tempfile.TemporaryDirectory(prefix="rebuild-", dir=None if dry_run else directory.metadata) as folder:
        yield Path(folder)


def _look(
    directory: DataDir,
    cluster: ClusterFile,
    drives: list[DriveDir],
    refound: Refound,
    folder: Path,
    dry_run: bool,
    yes: bool,
) -> Journal | None:
    """Say what there is, ask, write it where nobody looks for it, decide. None: nothing is to be done."""
    import random

    import trio

    from trivium.admin import refoundwords
    from trivium.admin.refoundbuild import Builder
    from trivium.admin.refoundmap import look
    from trivium.cluster.clock import SystemClock, ThreadExecutor
    from trivium.cluster.salvage import Salvage

    rng = random.SystemRandom()
    seen = look(drives, bytes.fromhex(cluster.cluster), rng, directory)
    if not seen.drives:
        raise CommandError("none of the drives belongs to the pool.")
    salvage = Salvage(seen.drives)
    salvage.scan()
    for text in salvage.unreadable:
        click.echo(f"not readable: {text}", err=True)
    builder = Builder(directory, cluster, seen, salvage, clock=SystemClock(), random=rng)
    built = trio.run(builder.build, str(folder / "trivium.db"), ThreadExecutor(1))
    for text in refoundwords.found(built, seen):
        click.echo(text)
    if built.whole_log and seen.may_start() and not built.unconfirmed:
        raise CommandError("dump and log can be had whole: leave --from-shards out, or nothing may be wrong at all.")
    if dry_run:
        click.echo("nothing was changed")
        return None
    click.echo(refoundwords.WILL_DO.format(path=directory.path, drives=len(seen.drives)))
    if not yes and not click.confirm("Shall this be done?", default=False):
        raise CommandError("nothing was changed (--yes answers the question).")
    refound.clear([drive.path for drive in seen.drives])
    journal = refound.stage(built, seen)
    refound.decide(journal)
    return journal


def _cluster_of(drives: list[DriveDir]) -> ClusterFile:
    """The `cluster` file is lost as well: whose drives these are, they say themselves."""
    import secrets

    found = sorted({drive.cluster.hex() for drive in drives if any(drive.cluster)})
    if len(found) != 1:
        raise CommandError(f"{len(found)} clusters' drives are given: give those of one pool.")
    return ClusterFile(found[0], secrets.token_hex(16), "", forming=False)
