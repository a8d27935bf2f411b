"""Files and directories that tables of contents make: /lost+found of a pool whose names are lost.

Invariants:
1. Nothing replaces a row: an inode that the restored state has keeps what that state says, and what else is found of
   it becomes a file of its own.
2. An inode whose number is known keeps it, and goes on from the highest version found: tables of contents that are
   written later order behind the old ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trivium.cluster.errors import ClusterError
from trivium.cluster.salvage import FoundPut, Salvage
from trivium.metadata import extents, inodes, namespace
from trivium.metadata.inodes import Inode
from trivium.metadata.lostfound import LostFile, Span, assemble
from trivium.metadata.messages import ROOT_INO

if TYPE_CHECKING:
    from trivium.metadata.tx import Tx

LOST_FOUND = b"lost+found"
DIR_MODE, FILE_MODE = 0o40700, 0o100600


@dataclass(slots=True)
class Files:
    """What was put into lost+found: counted by what named it."""

    counts: dict[str, int] = field(default_factory=dict)  # inode, object, content, chunk
    bytes: int = 0
    doubtful: int = 0

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def enter(tx: Tx, salvage: Salvage, fresh: Sequence[FoundPut]) -> Files:
    """A file for each owner of pieces in chunks that no row named."""
    done = Files()
    files = assemble(fresh, lambda one, other: _equal(salvage, one, other))
    if not files:
        return done
    home = _home(tx)
    for file in files:
        name = file.name + (".doubtful" if file.doubtful else "")
        _enter(tx, home, _free(tx, home, name.encode()), file)
        kind = file.name.partition("-")[0]
        done.counts[kind] = done.counts.get(kind, 0) + 1
        done.bytes += sum(span.length for span in file.spans if span.put is not None)
        done.doubtful += file.doubtful
    return done


def _equal(salvage: Salvage, one: Span, other: Span) -> bool:
    """The same body may have been put twice: that is no doubt."""
    if one.put is None or other.put is None:
        return one.put is other.put
    try:
        data = [
            salvage.read(put)[span.chunk_offset : span.chunk_offset + span.length]
            for span, put in ((one, one.put), (other, other.put))
        ]
    except ClusterError:
        return False
    return data[0] == data[1]


def _home(tx: Tx) -> int:
    """The directory; its name is free or it is there from an earlier time."""
    name = LOST_FOUND
    number = 1
    while (found := namespace.find(tx, ROOT_INO, name)) is not None:
        if found.is_dir:
            return found.ino
        number += 1
        name = LOST_FOUND + b"-%d" % number
    root = inodes.need(tx, ROOT_INO)
    made = inodes.make(tx, DIR_MODE, uid=root.uid, gid=root.gid, parent=ROOT_INO, explicit=1)
    namespace.make_dir(tx, root, name, made)
    inodes.save(tx, root)
    return made.ino


def _free(tx: Tx, home: int, name: bytes) -> bytes:
    number, found = 1, name
    while namespace.find(tx, home, found) is not None:
        number += 1
        found = name + b"-%d" % number
    return found


def _enter(tx: Tx, home: int, name: bytes, file: LostFile) -> None:
    root = inodes.need(tx, ROOT_INO)
    inode = _inode(tx, file, root.uid, root.gid)
    used = 0
    for span in file.spans:
        if span.put is not None:
            chunk = span.put.key.chunk
            row = extents.Row(span.offset, span.length, chunk.session, chunk.counter, span.chunk_offset, 0)
            extents.insert(tx, inode.content, 0, row)
            used += span.length
    inode.size, inode.used = file.size, used
    inode.version = max([1, *(span.version for span in file.spans)])
    inodes.save(tx, inode)
    namespace.add(tx, home, name, inode.ino)


def _inode(tx: Tx, file: LostFile, uid: int, gid: int) -> Inode:
    kind, _, number = file.name.partition("-")
    wanted = int(number) if kind == "inode" and number.isdigit() else 0
    if wanted and inodes.load(tx, wanted) is None:
        inode = inodes.make(tx, FILE_MODE, uid=uid, gid=gid, ino=wanted)
    else:
        inode = inodes.make(tx, FILE_MODE, uid=uid, gid=gid)
    inode.content = tx.next_id("content")
    return inode
