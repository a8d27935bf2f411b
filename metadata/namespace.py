"""One namespace for paths and keys: where a name lives, and what moves when directories and obstacles come and go.

A key is a path below its bucket. A row of `dirents` is a *directory* (`name/`, never hidden), a *plain* entry (a name
that a path can have) or a *hidden* one: the rest of a key that no path can hold (`a//b`, `.`, a part over 255 bytes,
`a/b` beside a file `a`), hanging from the deepest directory on its path. A plain entry beside a directory of its name
is not visible to paths either. Walking the rows of a directory in order of sort_name, descending into directories where
they stand, gives the keys in UTF-8 byte order.

Invariants:
1. No row `name/…` is in a directory that has the directory `name/`: when that appears they move under it.
2. A hidden row has a part that is no legal component, or an entry that is no directory stands in its way, or more
   than MOVE_LIMIT such rows wait at that name. When the obstacle goes they come back.
3. Both are kept by one function, rehome(), called for each name at which a directory appeared or an entry went.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, NamedTuple

from trivium.metadata import inodes
from trivium.metadata.inodes import Inode
from trivium.metadata.messages import NAME_MAX, MetadataError

if TYPE_CHECKING:
    from trivium.metadata.tx import Reader, Tx

MOVE_LIMIT = 1000  # hidden rows that move in one transaction
DIR_MODE = stat.S_IFDIR | 0o755
FILE_MODE = stat.S_IFREG | 0o644


class Found(NamedTuple):
    """A row of dirents."""

    sort_name: bytes
    ino: int
    id: int

    @property
    def is_dir(self) -> bool:
        """Only of rows that are not hidden."""
        return self.sort_name.endswith(b"/")


def is_component(name: bytes) -> bool:
    """Whether a path can have it as a part."""
    return 0 < len(name) <= NAME_MAX and name not in (b".", b"..") and b"/" not in name and b"\0" not in name


def check_component(name: bytes) -> None:
    if len(name) > NAME_MAX:
        raise MetadataError("ENAMETOOLONG", f"a name has at most {NAME_MAX} bytes")
    if not is_component(name):
        raise MetadataError("EINVAL", f"{name!r} is no name")


def could_be_path(rest: bytes) -> bool:
    """Whether each part is a legal component; the last may be empty (the body of a directory's own key)."""
    *parents, last = rest.split(b"/")
    return all(map(is_component, parents)) and (is_component(last) or (not last and bool(parents)))


# ---- finding ------------------------------------------------------------------------------------------------


def find(reader: Reader, parent: int, name: bytes) -> Found | None:
    """What a path sees at the name: the directory, else the plain entry."""
    sql = "SELECT sort_name, ino, id FROM dirents WHERE parent = ? AND sort_name = ? AND hidden = 0"
    row = reader.one(sql, parent, name + b"/") or reader.one(sql, parent, name)  # a tenth of the time of one IN (?, ?)
    return None if row is None else Found(*row)


def find_dir(reader: Reader, parent: int, name: bytes) -> int:
    """The inode of the directory at the name, 0 when there is none."""
    sql = "SELECT ino FROM dirents WHERE parent = ? AND sort_name = ? AND hidden = 0"
    row = reader.one(sql, parent, name + b"/")
    return 0 if row is None else int(row[0])


def find_plain(reader: Reader, parent: int, name: bytes) -> Found | None:
    """The entry of exactly this (perhaps hidden) name that is no directory."""
    sql = "SELECT sort_name, ino, id FROM dirents WHERE parent = ? AND sort_name = ? AND hidden = ?"
    row = reader.one(sql, parent, name, int(not is_component(name)))
    return None if row is None else Found(*row)


def resolve(reader: Reader, top: int, key: bytes) -> tuple[int, bytes]:
    """The deepest existing directory on the key's path below `top`, and the rest of the key."""
    directory, rest = top, key
    while (slash := rest.find(b"/")) >= 0:
        deeper = find_dir(reader, directory, rest[:slash])
        if not deeper:
            break
        directory, rest = deeper, rest[slash + 1 :]
    return directory, rest


def is_empty(reader: Reader, directory: int) -> bool:
    """No row of any kind."""
    return reader.one("SELECT 1 FROM dirents WHERE parent = ? LIMIT 1", directory) is None


# ---- rows ---------------------------------------------------------------------------------------------------


def add(tx: Tx, parent: int, name: bytes, ino: int, id: int = 0, *, directory: bool = False) -> None:
    """Insert a row; `id` keeps a moved entry's cookie."""
    tx.run(
        "INSERT INTO dirents (parent, sort_name, ino, id, hidden) VALUES (?, ?, ?, ?, ?)",
        *(parent, name + b"/" if directory else name, ino, id or tx.next_id("dirent")),
        0 if directory else int(not is_component(name)),
    )


def remove(tx: Tx, parent: int, sort_name: bytes) -> None:
    tx.run("DELETE FROM dirents WHERE parent = ? AND sort_name = ?", parent, sort_name)


def repoint(tx: Tx, parent: int, sort_name: bytes, ino: int) -> None:
    tx.run("UPDATE dirents SET ino = ? WHERE parent = ? AND sort_name = ?", ino, parent, sort_name)


def make_dir(tx: Tx, parent: Inode, name: bytes, made: Inode) -> None:
    """Give a new or moved directory its name; rows that waited for it move under it. The caller saves `parent`."""
    body = find_plain(tx, parent.ino, name + b"/")  # an object `name/` that waited beside a file: the directory's key
    if body is not None:
        remove(tx, parent.ino, name + b"/")
    add(tx, parent.ino, name, made.ino, directory=True)
    if body is not None:
        add(tx, made.ino, b"", body.ino, body.id)
    parent.nlink += 1
    rehome(tx, parent.ino, name)


def _imply(tx: Tx, parent: int, name: bytes) -> int:
    """Make a directory that a key implies."""
    above = inodes.need_dir(tx, parent)
    made = inodes.make(tx, DIR_MODE, uid=above.uid, gid=above.gid, parent=parent)
    tx.touch(parent, name)
    make_dir(tx, above, name, made)
    above.mtime = above.ctime = tx.now
    inodes.save(tx, above)
    return made.ino


def place(tx: Tx, top: int, key: bytes) -> tuple[int, bytes]:
    """Where the key's row belongs: resolves it, and makes the directories that it implies when a path can hold it."""
    directory, rest = resolve(tx, top, key)
    while (slash := rest.find(b"/")) >= 0:
        name = rest[:slash]
        if not could_be_path(rest) or find_plain(tx, directory, name) is not None:
            break
        if len(_waiting(tx, directory, name)) > MOVE_LIMIT:
            break
        directory, rest = _imply(tx, directory, name), rest[slash + 1 :]
    return directory, rest


# ---- what comes and goes --------------------------------------------------------------------------------------


def _waiting(tx: Tx, parent: int, name: bytes) -> list[tuple[bytes, int, int]]:
    """Hidden rows `name/…`, at most MOVE_LIMIT + 1."""
    return tx.all(
        "SELECT sort_name, ino, id FROM dirents WHERE parent = ? AND sort_name >= ? AND sort_name < ? AND hidden = 1"
        " ORDER BY sort_name LIMIT ?",
        *(parent, name + b"/", name + b"0", MOVE_LIMIT + 1),
    )


def rehome(tx: Tx, parent: int, name: bytes) -> None:
    """A directory appeared at the name, or an entry went from it: hidden rows `name/…` go where they belong now."""
    rows = _waiting(tx, parent, name)
    if not rows:
        return
    home = find_dir(tx, parent, name)
    if home and len(rows) > MOVE_LIMIT:
        raise MetadataError("EBUSY", f"more than {MOVE_LIMIT} keys below {name!r} are hidden from paths; delete some")
    if not home:
        stays = len(rows) > MOVE_LIMIT or find_plain(tx, parent, name) is not None
        if stays or not any(could_be_path(sort_name) for sort_name, _, _ in rows):
            return
        _imply(tx, parent, name)  # which calls back with a home
        return
    for sort_name, ino, id in rows:
        remove(tx, parent, sort_name)
        directory, rest = place(tx, home, sort_name[len(name) + 1 :])
        if find_plain(tx, directory, rest) is not None:
            raise MetadataError("ENOTEMPTY", f"the key {sort_name!r} is there twice")
        add(tx, directory, rest, ino, id)
    tx.touch(parent)


def vanish(tx: Tx, directory: int, top: int) -> None:
    """After an S3 delete: directories that are implied and empty now go, up to the bucket."""
    while directory != top:
        inode = inodes.need(tx, directory)
        if inode.explicit or not is_empty(tx, directory):
            return
        parent = inodes.need(tx, inode.parent)
        row = tx.one("SELECT sort_name FROM dirents WHERE ino = ? AND parent = ?", directory, parent.ino)
        assert row is not None
        tx.touch(directory)
        tx.touch(parent.ino, row[0][:-1])
        remove(tx, parent.ino, row[0])
        inodes.drop_dir(tx, inode)
        parent.nlink -= 1
        parent.mtime = parent.ctime = tx.now
        inodes.save(tx, parent)
        directory = parent.ino
