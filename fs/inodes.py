"""What the mount knows of inodes: attributes, names, leases, and what the kernel knows of them.

Invariants: (1) attributes, names, xattrs and layouts are answered from here only while the inode's lease is held and
nothing disturbed them since; (2) an answer that was asked for before a recall or a change of our own arrived is used
once and not kept (`watch`, `disturb`); (3) an inode leaves the table only when the kernel forgot it, no handle is
open and nothing waits to be written; (4) while a lease is given back (`giving_back`), no answer's lease on that inode
is believed: the server may drop it right after granting it; (5) an inode that only a listing told of (`ahead`) is in
the table until it is asked for, or newer ones need its place.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from trivium.fs.layers import Pending
from trivium.fs.layoutcache import LayoutCache
from trivium.metadata.messages import Attr

UNKNOWN = -1
LIST_AFTER = 2
AHEAD_MAX = 4000  # inodes that a listing told of and the kernel has not asked for yet


class Inode:
    """One inode. `lookups` counts what the kernel will forget, `opens` our open handles."""

    __slots__ = (
        "asked",
        "attr",
        "changes",
        "clean_pages",
        "complete",
        "dentries",
        "fresh",
        "held",
        "ino",
        "last_name",
        "layout",
        "leased",
        "links",
        "list_after",
        "lookups",
        "names",
        "opens",
        "orphaned",
        "pending",
        "recalling",
        "stale_names",
        "unleased_reads",
        "unlinked_here",
        "virgin",
        "xattrs",
    )

    def __init__(self, attr: Attr) -> None:
        self.ino = attr.ino
        self.attr = attr
        self.changes = 0  # recalls and changes of our own so far
        self.leased = False  # a read lease: what follows may be trusted
        self.fresh = False  # `attr` is the newest (and leased)
        self.names: dict[bytes, int] = {}  # of a leased directory; 0 = no such name, UNKNOWN = ask
        self.asked = 0  # look-ups that had to be asked under this lease
        self.list_after = LIST_AFTER  # so many of them make listing the directory worth it
        self.virgin = False  # made here, no attribute set since
        self.complete = False  # `names` holds every name of the directory
        self.xattrs: dict[bytes, bytes] | None = None
        self.layout: LayoutCache | None = None
        self.lookups = 0
        self.opens = 0
        self.unlinked_here = False  # its last name went by a call of this mount: the kernel has no name for it
        self.held = False  # the server keeps the contents for us: give them back with Release
        self.dentries: dict[bytes, int] = {}  # of a directory: names that the kernel was told of
        self.links: set[tuple[int, bytes]] = set()  # where those names are: (parent, name)
        self.last_name: tuple[int, bytes] | None = None  # for messages
        self.pending = Pending()
        self.recalling = 0  # recalls being answered
        self.orphaned = 0  # the kernel is giving up pages that were written under a session that has ended
        self.stale_names: dict[int, tuple[int, bytes]] = {}  # mark -> kernel name that is being invalidated: ESTALE
        self.clean_pages = False  # every page that the kernel has was read under the present lease
        self.unleased_reads = False

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.attr.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.attr.mode)

    @property
    def idle(self) -> bool:
        return self.lookups == 0 and self.opens == 0 and not self.pending.dirty and not self.held

    def size(self) -> int:
        """As this mount sees it: what is not sent yet included."""
        return max(self.attr.size, self.pending.end)

    def drop(self) -> None:
        """The lease is gone: trust nothing."""
        self.leased = self.fresh = self.complete = self.clean_pages = self.virgin = False
        self.asked = 0
        self.list_after = min(1 << 20, self.list_after * 2)
        self.names.clear()
        self.xattrs = None
        self.layout = None


class Inodes:
    """The table."""

    def __init__(self) -> None:
        self._table: dict[int, Inode] = {}
        self._asked: dict[int, set[int]] = {}  # by question: equal sets are not the same
        self._questions = 0
        self._marks = 0
        self._forgotten: set[int] = set()  # left the table with their leases
        self._returning: set[int] = set()
        self._ahead: dict[int, None] = {}  # oldest first

    # ---- which inodes changed while a question was on its way ------------------------------------------------

    @contextmanager
    def watch(self) -> Iterator[set[int]]:
        seen: set[int] = set()
        self._questions += 1
        question = self._questions
        self._asked[question] = seen
        try:
            yield seen
        finally:
            del self._asked[question]

    def disturb_all(self) -> None:
        """Every lease is gone, those of answers on their way too."""
        for seen in self._asked.values():
            seen.add(UNKNOWN)
        for inode in self._table.values():
            inode.changes += 1

    def disturb(self, *inos: int) -> None:
        for seen in self._asked.values():
            seen.update(inos)
        for ino in inos:
            inode = self._table.get(ino)
            if inode is not None:
                inode.changes += 1

    # ---- the table ------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._table)

    def all(self) -> list[Inode]:
        return list(self._table.values())

    def get(self, ino: int) -> Inode | None:
        return self._table.get(ino)

    def install(self, attr: Attr, seen: set[int], *, mutation: bool = False) -> Inode:
        """Take an answer in. `seen`: what was disturbed while it was on its way."""
        inode = self._table.get(attr.ino)
        if inode is None:
            inode = self._table[attr.ino] = Inode(attr)
        self._ahead.pop(attr.ino, None)
        if attr.ino in seen or UNKNOWN in seen:
            if mutation:  # of unknown age: good for this answer only
                inode.attr, inode.layout = attr, None
                inode.leased = inode.fresh = False
            return inode
        if attr.lease and attr.ino not in self._returning:
            inode.leased = True
        if inode.attr.version != attr.version and not mutation:
            inode.layout = None
        inode.attr = attr
        # A directory whose names are recalled one by one keeps its lease while somebody's change is still to come.
        inode.fresh = inode.leased and bool(attr.lease or mutation or not inode.is_dir)
        return inode

    def ahead(self, attr: Attr, seen: set[int]) -> None:
        """Remember what a listing said of an inode that nobody has asked for."""
        if attr.ino in self._table or not attr.lease or attr.ino in seen or UNKNOWN in seen:
            return
        self.install(attr, seen)
        self._ahead[attr.ino] = None
        while len(self._ahead) > AHEAD_MAX:
            self._drop_ahead(next(iter(self._ahead)))

    def asked_for(self, inode: Inode) -> Inode:
        self._ahead.pop(inode.ino, None)
        return inode

    def forget_ahead(self) -> None:
        """All leases are gone: nothing is left of what listings told."""
        while self._ahead:
            self._drop_ahead(next(iter(self._ahead)))

    def _drop_ahead(self, ino: int) -> None:
        del self._ahead[ino]
        inode = self._table.get(ino)
        if inode is not None:
            self.evict(inode)

    def stale(self, ino: int) -> None:
        """A change of our own that did not answer this inode's attributes."""
        self.disturb(ino)
        inode = self._table.get(ino)
        if inode is not None:
            inode.fresh = False

    def forget(self, ino: int, count: int) -> Inode | None:
        """The kernel dropped `count` references. Answers the inode when it left the table."""
        inode = self._table.get(ino)
        if inode is None:
            return None
        inode.lookups = max(0, inode.lookups - count)
        if inode.lookups == 0:
            self._unlink_dentries(inode)
        return self.evict(inode)

    def evict(self, inode: Inode) -> Inode | None:
        if inode.idle and self._table.pop(inode.ino, None) is not None:
            self._unlink_dentries(inode)
            if inode.leased:
                self._forgotten.add(inode.ino)
            return inode
        return None

    # ---- leases of inodes that left the table ---------------------------------------------------------------

    def take_forgotten(self, most: int) -> list[int]:
        """Inodes that left the table with a lease and did not come back."""
        taken: list[int] = []
        while self._forgotten and len(taken) < most:
            ino = self._forgotten.pop()
            if ino not in self._table:
                taken.append(ino)
        return taken

    @contextmanager
    def giving_back(self, inos: Collection[int]) -> Iterator[None]:
        self._returning.update(inos)
        self.disturb(*inos)
        try:
            yield
        finally:
            self._returning.difference_update(inos)
            self.disturb(*inos)

    def keeps_lease(self, ino: int) -> bool:
        return ino not in self._returning

    def forget_leases(self) -> None:
        """All leases are gone: there is nothing to give back."""
        self._forgotten.clear()

    def path_of(self, inode: Inode) -> str:
        """For messages: a path below the mount's root, as names were last known, and the number."""
        names: list[bytes] = []
        at: Inode | None = inode
        while at is not None and at.last_name is not None and len(names) < 64:
            names.append(at.last_name[1])
            at = self._table.get(at.last_name[0])
        path = b"/".join(reversed(names)).decode(errors="backslashreplace")
        return f"{path} (inode {inode.ino})" if path else f"inode {inode.ino}"

    def _unlink_dentries(self, inode: Inode) -> None:
        for parent, name in inode.links:
            directory = self._table.get(parent)
            if directory is not None and directory.dentries.get(name) == inode.ino:
                del directory.dentries[name]
        inode.links.clear()

    # ---- kernel names whose invalidation is under way --------------------------------------------------------

    @property
    def mark(self) -> int:
        """Invalidations that have begun so far."""
        return self._marks

    def name_is_stale(self, parent: int, name: bytes, inode: Inode) -> int:
        """The kernel may still come to the inode by this name. Answers what to take out of `stale_names` again."""
        self._marks += 1
        inode.stale_names[self._marks] = (parent, name)
        return self._marks

    def name_was_looked_up(self, parent: int, name: bytes, inode: Inode, mark: int) -> None:
        """The kernel asked after `mark` and was told that the name is this inode's: what is being invalidated since
        before that is right by now, however long the invalidation still takes."""
        for number, where in tuple(inode.stale_names.items()):
            if number <= mark and where == (parent, name):
                del inode.stale_names[number]

    def dentry(self, parent: int, name: bytes, inode: Inode) -> None:
        """The kernel was told that `name` in `parent` is `inode`."""
        directory = self._table.get(parent)
        if directory is None:
            return
        old = directory.dentries.get(name)
        if old is not None and old != inode.ino:
            self.no_dentry(parent, name)
        directory.dentries[name] = inode.ino
        inode.last_name = (parent, name)
        inode.links.add(inode.last_name)

    def no_dentry(self, parent: int, name: bytes) -> int:
        """The kernel has this name no more. Answers the inode that it named, or 0."""
        directory = self._table.get(parent)
        if directory is None:
            return 0
        ino = directory.dentries.pop(name, 0)
        inode = self._table.get(ino)
        if inode is not None:
            inode.links.discard((parent, name))
        return ino
