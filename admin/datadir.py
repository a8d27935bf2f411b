"""The data directory of a pool on this machine: where its files are, and the `cluster` file that says whose it is.

    DIR/cluster            JSON: format, cluster id, profile, forming     (0600)
    DIR/keys/              private keys and generated credentials         (0700, files 0600)
    DIR/metadata/          lock, trivium.db, ballast: only what log and dump restore
    DIR/run/               trivium.sock, up.log, sessions/<id>
    DIR/drives/d0 ...      one directory per drive
    DIR/rebuild/           a rebuild from shards under way (refound.py); DIR/replaced-<id>/ what it replaced

State of a directory: absent or empty -> forming (written first, durable) -> formed. One that is still forming starts
over; one that is formed is never formed again, whatever is missing in it (attack 59).
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from trivium.admin.errors import CommandError, of_os_error
from trivium.cluster.errors import NotFound, Refused
from trivium.metadata.reach import Reach

FORMAT = 1


def default_data_dir() -> Path:
    """Where a pool lives when nobody says: $XDG_DATA_HOME/trivium, else ~/.local/share/trivium."""
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "trivium"


@dataclass(frozen=True, slots=True)
class ClusterFile:
    cluster: str  # 32 hex digits
    node: str  # 32 hex digits: this machine's node
    profile: str  # "4+2"
    forming: bool
    format: int = FORMAT
    made: dict[str, str] = field(default_factory=dict)  # by the first start: directory of drives/ -> its drive's id


@dataclass(frozen=True, slots=True)
class DataDir:
    """`where`: how to reach the pool, when it is not (only) by what lies in the directory."""

    path: Path
    where: Reach | None = None

    @property
    def reach(self) -> Reach:
        return self.where or Reach(self.path)

    @property
    def cluster_file(self) -> Path:
        return self.path / "cluster"

    @property
    def keys(self) -> Path:
        return self.path / "keys"

    @property
    def metadata(self) -> Path:
        return self.path / "metadata"

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def socket(self) -> Path:
        return self.run / "trivium.sock"

    @property
    def log_file(self) -> Path:
        return self.run / "up.log"

    @property
    def drives(self) -> Path:
        return self.path / "drives"

    @property
    def rebuild(self) -> Path:
        """What a rebuild from shards has under way; its journal exists from its decision to its end."""
        return self.path / "rebuild"

    def read(self, *, rebuilding: bool = False) -> ClusterFile | None:
        """The `cluster` file; None when there is none. CommandError when it is damaged or of a newer version, or when
        a rebuild from shards was decided and not finished (`rebuilding`: who asks finishes it)."""
        if not rebuilding and (self.rebuild / "journal").exists():
            raise CommandError(
                f"a rebuild of the metadata of {self.path} was interrupted after its decision. "
                f"Finish it: trivium rebuild-metadata --from-shards --data {self.path}"
            )
        try:
            fields = json.loads(self.cluster_file.read_text())
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise of_os_error(error) from None
        except (OSError, ValueError) as error:
            raise CommandError(
                f"cannot read {self.cluster_file}: {error}. Restore it, or choose another --data."
            ) from None
        if fields.get("format", 0) > FORMAT:
            raise CommandError(
                f"{self.path} was written by a newer trivium (format {fields['format']}, this one knows {FORMAT}): "
                "upgrade this program; nothing was touched."
            )
        try:
            known = {name: fields[name] for name in ("cluster", "node", "profile", "forming", "format")}
            return ClusterFile(**known, made=fields.get("made", {}))
        except KeyError as error:
            raise CommandError(f"{self.cluster_file} lacks {error}. Restore it, or choose another --data.") from None

    def write(self, cluster: ClusterFile) -> None:
        """Durably, by temporary file and rename."""
        temporary = self.cluster_file.with_suffix(".new")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, json.dumps(asdict(cluster), indent=1).encode() + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, self.cluster_file)
        directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def begin(self, profile: str) -> ClusterFile:
        """Make the directories and a `cluster` file that says forming. The directory must be empty or forming."""
        old = self.read()
        if old is not None and not old.forming:
            raise AssertionError("a formed directory is never formed again")
        if old is None and self.path.exists() and (left := self.foreign_entries()):
            raise CommandError(
                f"{self.path} is not empty ({', '.join(left[:3])} ...) and holds no pool: choose an empty --data."
            )
        for directory, mode in ((self.path, 0o700), (self.keys, 0o700), (self.metadata, 0o700), (self.run, 0o700)):
            directory.mkdir(mode=mode, parents=True, exist_ok=True)
        self.drives.mkdir(mode=0o700, exist_ok=True)
        (self.run / "sessions").mkdir(mode=0o700, exist_ok=True)
        made = old.made if old is not None else {}
        fresh = ClusterFile(self._cluster_of_keys(), secrets.token_hex(16), profile, forming=True, made=made)
        self.write(fresh)
        return fresh

    def _cluster_of_keys(self) -> str:
        """A new id, or the one that `trivium cluster init` made its key for."""
        from trivium.cluster.identity.keyfiles import load_cluster

        try:
            return load_cluster(self.keys / "cluster").cluster.hex()
        except NotFound:
            return secrets.token_hex(16)
        except Refused as error:
            raise CommandError(str(error)) from None

    def formed(self, cluster: ClusterFile) -> ClusterFile:
        """The pool exists: clear `forming`."""
        written = self.read()
        done = replace(cluster, forming=False, made=written.made if written is not None else cluster.made)
        self.write(done)
        return done

    def refuse_foreign(self) -> None:
        """CommandError when something else than a pool is in the directory. Makes nothing."""
        if self.read() is None and self.path.exists() and (left := self.foreign_entries()):
            raise CommandError(f"{self.path} is not empty ({left[0]}) and holds no pool: choose an empty --data.")

    @property
    def is_nodes(self) -> bool:
        """A node runs or ran here."""
        return (self.run / "node.lock").exists()

    def refuse_node(self) -> None:
        """CommandError where a node's drives are: they belong to the pool that it joined, not to us."""
        if self.is_nodes:
            raise CommandError(
                f"{self.path} is a node's: start it with `trivium node --data {self.path}`, or choose another --data."
            )

    def foreign_entries(self) -> list[str]:
        """What is in the directory that a first start did not make (an interrupted start leaves its own behind), but
        for empty directories of drives/: disks are mounted there before the first start."""
        ours = {"cluster.new", "keys", "metadata", "run", "drives", "lost+found"}
        found = sorted(set(os.listdir(self.path)) - ours)
        mounted = sorted(self.drives.iterdir()) if self.drives.is_dir() else []
        return found + [f"drives/{path.name}" for path in mounted if path.name != "lost+found" and not is_empty(path)]


def is_empty(path: Path) -> bool:
    """Whether this is a directory without anything, or a file system without anything."""
    try:
        return set(os.listdir(path)) <= {"lost+found"}
    except OSError:
        return False
