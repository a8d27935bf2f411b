"""Rebuild what drive directories hold into an ordinary directory: `trivium drive export`.

    drives --scan--> shards --> metadata (dump + log) readable? --yes--> files/ by name, volumes/ as raw images
                                      `-- no --> lost+found/ by tables of contents
                       chunks that no row names --------------------------^

Invariants:
1. A file under its own name is whole and every byte of it was verified; one that lacks bytes is named NAME.damaged,
   has holes there, and the report says which ranges. What survives of a lost chunk (good data shards) is written.
2. Nothing is ever written outside of the target, whatever names the metadata holds; nothing there is overwritten.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote_from_bytes

import trio

from trivium.cluster.clock import Executor
from trivium.cluster.errors import ClusterError
from trivium.cluster.model import ChunkId, ChunkKind
from trivium.cluster.salvage import Salvage, Salvaged
from trivium.metadata import content, database, inodes, lostfound
from trivium.metadata.chunkrows import placed_of
from trivium.metadata.inodes import Inode
from trivium.metadata.messages import ROOT_INO
from trivium.metadata.salvage import restore
from trivium.metadata.tx import Reader

STEP = 1 << 20
MANY_EXTENTS = -1  # no limit


@dataclass(slots=True)
class Exported:
    files: int = 0
    bytes: int = 0
    volumes: int = 0
    lost: list[str] = field(default_factory=list)  # what could not be rebuilt, in words
    notes: list[str] = field(default_factory=list)


class Target:
    """Writes below one directory. Every file is made anew (O_EXCL, no links followed)."""

    def __init__(self, path: Path, done: Exported, progress: Callable[[int], None]) -> None:
        self.path, self.done, self._progress = path, done, progress

    def write(self, path: Path, size: int, parts: Iterator[tuple[int, bytes | str]], label: str) -> Path:
        """A file of `size` bytes; `parts` are (offset, bytes) or (offset, why those bytes are lost). Answers where it
        is: under another name when something is lost."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        lost: list[str] = []
        try:
            os.ftruncate(fd, size)
            for offset, part in parts:
                if isinstance(part, str):
                    lost.append(part)
                    continue
                os.pwrite(fd, part, offset)
                self.done.bytes += len(part)
                self._progress(len(part))
        finally:
            os.close(fd)
        if not lost:
            self.done.files += 1
            return path
        damaged = free_name(path.with_name(path.name[:240] + ".damaged"))
        os.rename(path, damaged)
        self.done.lost += [f"{label}: {text} (the rest is in {damaged.relative_to(self.path)})" for text in lost]
        return damaged


def free_name(path: Path) -> Path:
    number, found = 1, path
    while os.path.lexists(found):
        number += 1
        found = path.with_name(f"{path.name[:240]}.{number}")
    return found


# ---- by name ----------------------------------------------------------------------------------------------------


class Tree:
    """Files, directories and links as the metadata names them."""

    def __init__(self, reader: Reader, salvage: Salvage, target: Target) -> None:
        self._reader, self._salvage, self._target = reader, salvage, target
        self._links: dict[int, Path] = {}

    def export(self, top: Path) -> None:
        todo = [(ROOT_INO, top, "")]
        while todo:
            directory, path, label = todo.pop()
            path.mkdir(mode=0o700)
            rows = self._reader.all("SELECT sort_name, ino, hidden FROM dirents WHERE parent = ?", directory)
            for sort_name, ino, hidden in rows:
                inode = inodes.load(self._reader, ino)
                if inode is None:
                    self._target.done.lost.append(f"{label}/{_shown(sort_name)}: its inode is not there")
                elif stat.S_ISDIR(inode.mode):
                    todo.append((ino, path / _component(sort_name[:-1], False), f"{label}/{_shown(sort_name[:-1])}"))
                else:
                    name = _component(sort_name, bool(hidden))
                    self._one(inode, free_name(path / name), f"{label}/{_shown(sort_name)}")

    def _one(self, inode: Inode, path: Path, label: str) -> None:
        if stat.S_ISLNK(inode.mode):
            os.symlink(inode.target, path)
        elif not stat.S_ISREG(inode.mode):
            self._target.done.notes.append(f"{label}: a special file, left out")
        elif inode.nlink > 1 and inode.ino in self._links:
            os.link(self._links[inode.ino], path)
        else:
            made = self._target.write(path, inode.size, self._parts(inode), label)
            os.chmod(made, stat.S_IMODE(inode.mode) & 0o777)
            os.utime(made, ns=(inode.atime, inode.mtime))
            if made == path:
                self._links[inode.ino] = made

    def _parts(self, inode: Inode) -> Iterator[tuple[int, bytes | str]]:
        nonces: dict[ChunkId, bytes | None] = {}
        for start, row in content.visible(self._reader, inode, 0, inode.size, MANY_EXTENTS):
            if row.blob:
                yield start, content.read_blob(self._reader, row)
                continue
            chunk = ChunkId(row.session, row.counter)
            if chunk not in nonces:
                placed = placed_of(self._reader, chunk)
                nonces[chunk] = placed.nonce if placed is not None else None
            yield from self._get(chunk, nonces[chunk], start, row.ref_offset, row.length)

    def _get(
        self, chunk: ChunkId, nonce: bytes | None, start: int, offset: int, length: int
    ) -> Iterator[tuple[int, bytes | str]]:
        if nonce is None:
            yield start, _missing(start, length, f"chunk {chunk} has no row")
            return
        try:
            found = self._salvage.named(chunk, nonce)
        except ClusterError as error:
            yield start, _missing(start, length, str(error))
            return
        yield from _what_is_left(found, start, offset, length)


def _what_is_left(found: Salvaged, start: int, offset: int, length: int) -> Iterator[tuple[int, bytes | str]]:
    """A range of a chunk that is the file's from `start` on: bytes where they survive, words where they do not."""
    for first, end, lost in found.split(offset, length):
        at = start + first - offset
        yield at, _missing(at, end - first, found.why) if lost else found.data[first:end]


def _missing(start: int, length: int, why: str) -> str:
    return f"bytes {start} to {start + length - 1}: {why}"


def _component(name: bytes, hidden: bool) -> str:
    """A name that is one component of a path: hidden keys (which no path can hold) are quoted like URLs."""
    if not hidden and name and b"/" not in name and name not in (b".", b".."):
        return os.fsdecode(name)
    return ("%" + quote_from_bytes(name, safe=""))[:240]


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


async def export(salvage: Salvage, target: Target, executor: Executor) -> Exported:
    """Everything that the drives give, below the target's directory (which is empty)."""
    from trivium.admin.exportvolumes import export_volumes

    done = target.done
    named: set[ChunkId] = set()
    with tempfile.TemporaryDirectory(prefix=".metadata-", dir=target.path) as folder:
        path = os.path.join(folder, "trivium.db")
        restored = await restore(salvage.drives, salvage, path, executor)
        done.notes += restored.notes
        if restored.seq:
            done.notes.append(f"the metadata are those of record {restored.seq}")
            db = database.open_reader(path)
            try:
                reader = Reader(db, now=0, seq=restored.seq)
                named = {ChunkId(*row) for row in reader.all(_KNOWN)}
                await trio.to_thread.run_sync(Tree(reader, salvage, target).export, target.path / "files")
                await export_volumes(reader, salvage, target)
            finally:
                db.close()
        elif restored.root is not None:
            done.notes.append("there are no metadata: files are named by their tables of contents, in lost+found")
    top = target.path / "lost+found"
    await trio.to_thread.run_sync(export_unnamed, salvage, named.__contains__, target, top)
    done.lost += _unnamed_volumes(salvage, named)
    return done


def _unnamed_volumes(salvage: Salvage, named: set[ChunkId]) -> list[str]:
    """Volumes whose row is not there: their chunks are counted, so that nobody takes the export for complete."""
    counts: dict[int, int] = {}
    for put in salvage.all():
        if put.kind == ChunkKind.VOLUME and put.key.chunk not in named and put.pieces:
            volume = int.from_bytes(put.pieces[0].owner, "little")
            counts[volume] = counts.get(volume, 0) + 1
    return [f"volume {volume}: {count} chunks of it that no metadata name" for volume, count in sorted(counts.items())]


_KNOWN = "SELECT session, counter FROM chunks UNION SELECT session, counter FROM queue WHERE kind = 1"


# ---- by tables of contents ------------------------------------------------------------------------------------------


def export_unnamed(salvage: Salvage, named: Callable[[ChunkId], bool], target: Target, top: Path) -> None:
    """Files of chunks that no row names, into `top` (made when there is one)."""
    puts = [put for put in salvage.all() if not named(put.key.chunk)]
    for file in lostfound.assemble(puts):
        top.mkdir(mode=0o700, exist_ok=True)
        name = file.name + (".doubtful" if file.doubtful else "")
        target.write(free_name(top / name), file.size, _span_parts(salvage, file), f"{top.name}/{name}")


def _span_parts(salvage: Salvage, file: lostfound.LostFile) -> Iterator[tuple[int, bytes | str]]:
    for span in file.spans:
        if span.put is None:
            continue
        yield from _what_is_left(salvage.rest(span.put), span.offset, span.chunk_offset, span.length)
