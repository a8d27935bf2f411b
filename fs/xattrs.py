"""Extended attributes: which names are kept, which are answered by the mount, which are refused.

| name                       | policy                                                                              |
|----------------------------|-------------------------------------------------------------------------------------|
| user.* security.* trusted.*| kept (who may is the kernel's check); at most 64 KiB                                |
| system.posix_acl_*         | EOPNOTSUPP: access lists are not enforced, so they are not accepted either          |
| trivium.*                  | answered by name (ino, version, used, chunks), never listed (rsync -X would copy it) |
| anything else              | EOPNOTSUPP                                                                          |
"""

from __future__ import annotations

import errno

from trivium.fs.contents import Contents
from trivium.fs.errors import failure
from trivium.fs.inodes import UNKNOWN, Inode
from trivium.fs.view import View
from trivium.metadata.messages import (
    XATTR_MAX,
    GetLayout,
    Layout,
    ListXattrs,
    RemoveXattr,
    SetXattr,
)

KEPT = (b"user.", b"security.", b"trusted.")
NAME_MAX = 255
CAPABILITY = b"security.capability"


class Xattrs:
    def __init__(self, view: View, contents: Contents) -> None:
        self._view, self._contents = view, contents

    async def get(self, ino: int, name: bytes) -> bytes:
        if name.startswith(b"trivium."):
            return await self._virtual(ino, name)
        if not name.startswith(KEPT):
            raise failure(errno.EOPNOTSUPP)
        if name == CAPABILITY and (known := self._view.inodes.get(ino)) is not None and known.virgin:
            raise failure(errno.ENODATA)  # asked before every write
        value = (await self._all(ino)).get(name)
        if value is None:
            raise failure(errno.ENODATA)
        return value

    async def names(self, ino: int) -> list[bytes]:
        return list(await self._all(ino))

    async def set(self, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        if not name.startswith(KEPT):
            raise failure(errno.EOPNOTSUPP)
        if len(name) > NAME_MAX:
            raise failure(errno.ERANGE)
        if len(value) > XATTR_MAX:
            raise failure(errno.E2BIG)
        await self._change(ino, SetXattr(ino, name, value, flags))

    async def remove(self, ino: int, name: bytes) -> None:
        if not name.startswith(KEPT):
            raise failure(errno.EOPNOTSUPP)
        await self._change(ino, RemoveXattr(ino, name))

    async def _change(self, ino: int, operation: SetXattr | RemoveXattr) -> None:
        inode = await self._view.known(ino)
        try:
            await self._contents.change(inode, operation, seal=False)
        finally:
            inode.xattrs = None
            inode.virgin = False

    async def _all(self, ino: int) -> dict[bytes, bytes]:
        inode = self._view.inodes.get(ino)
        if inode is not None and inode.xattrs is not None and self._view.trusts(inode):
            return inode.xattrs
        with self._view.inodes.watch() as seen:
            values: dict[bytes, bytes] = await self._view.metadata.ask(ListXattrs(ino))
            if inode is not None and inode.leased and ino not in seen and UNKNOWN not in seen:
                inode.xattrs = values
            return values

    async def _virtual(self, ino: int, name: bytes) -> bytes:
        inode: Inode = await self._view.fresh(ino)
        what = name.removeprefix(b"trivium.")
        if what == b"ino":
            return b"%d" % ino
        if what == b"version":
            return b"%d" % inode.attr.version
        if what == b"used":
            return b"%d" % inode.attr.used
        if what == b"chunks" and inode.is_regular:
            layout: Layout = await self._view.metadata.ask(GetLayout(ino, 0, max(1, inode.attr.size)))
            return "\n".join(sorted(str(p.chunk) for p in layout.placed)).encode()
        raise failure(errno.ENODATA)
