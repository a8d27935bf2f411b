"""Paths and keys over one namespace against a dict: S3 lists what was put, in order; nothing comes back."""

from __future__ import annotations

import random
import stat
from collections.abc import Callable

import pytest

from tests.fakes.metadb import MetaDb
from trivium.metadata import fsck, namespace
from trivium.metadata.messages import (
    Body,
    CopyObject,
    Create,
    CreateBucket,
    DeleteObject,
    HeadObject,
    ListObjects,
    Lookup,
    MetadataError,
    ObjectMeta,
    PutObject,
    ReadDir,
    Rename,
    Rmdir,
    Unlink,
)

PARTS = (b"a", b"b", b"a", b"b", b"c", b"a-", b"a0", b"", b".", b"n" * 256, "é".encode())


class Model:
    """key -> inode of everything that S3 must list; paths are keys without the bucket."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.db = MetaDb()
        self.top = self.db.call(CreateBucket(b"bucket", "me")).ino
        self.keys: dict[bytes, int] = {}
        self.log: list[object] = []

    # ---- choices ----
    def key(self) -> bytes:
        if self.keys and self.random.random() < 0.4:
            return self.random.choice(sorted(self.keys))
        key = b"/".join(self.random.choice(PARTS) for _ in range(self.random.randint(1, 4)))
        return key or b"a"

    def path(self) -> tuple[int, bytes, bytes]:
        """(directory, path of it with a slash, name)"""
        directory, path = self.top, b""
        while self.random.random() < 0.5:
            names = [e for e in self.db.ask(ReadDir(directory)).entries if stat.S_ISDIR(e.attr.mode)]
            if not names:
                break
            entry = self.random.choice(names)
            directory, path = entry.attr.ino, path + entry.name + b"/"
        names = self.db.ask(ReadDir(directory)).entries
        if names and self.random.random() < 0.6:
            return directory, path, self.random.choice(names).name
        return directory, path, self.random.choice((b"a", b"b", b"c", b"a-"))

    def attempt(self, operation: object) -> object:
        self.log.append(operation)
        try:
            return self.db.call(operation) or True
        except MetadataError as error:
            self.log.append(error.code)
            return None

    def explicit(self, directory: int, path: bytes) -> None:
        if path:
            self.keys.setdefault(path, directory)

    # ---- operations ----
    def put(self) -> None:
        key = self.key()
        body = Body(3, b"abc") if self.random.random() < 0.7 else Body(0)
        info = self.db.call(PutObject(b"bucket", key, body, "e" * 32, ObjectMeta()))  # no legal call fails
        self.log.append(("put", key, body.size))
        self.keys[key] = info.ino

    def copy(self) -> None:
        if not self.keys:
            return
        source, key = self.random.choice(sorted(self.keys)), self.key()
        self.log.append(("copy", source, key))
        self.keys[key] = self.db.call(CopyObject(b"bucket", source, b"bucket", key)).ino

    def delete(self) -> None:
        key = self.key()
        self.log.append(("delete", key))
        assert self.db.call(DeleteObject(b"bucket", key)) == (key in self.keys)
        self.keys.pop(key, None)

    def create(self) -> None:
        directory, path, name = self.path()
        made = self.attempt(Create(directory, name, self.random.choice((0o100644, 0o040755))))
        if made is not None:
            self.explicit(directory, path)
            attr = made.attr  # type: ignore[attr-defined]
            self.keys[path + name + (b"/" if stat.S_ISDIR(attr.mode) else b"")] = attr.ino
            if stat.S_ISDIR(attr.mode):
                self.refresh_body(path + name + b"/")

    def refresh_body(self, key: bytes) -> None:
        """A key `dir/` that waited with a body is that directory's own key now."""
        self.keys[key] = self.db.ask(HeadObject(b"bucket", key)).ino

    def remove(self) -> None:
        directory, path, name = self.path()
        if self.attempt(Unlink(directory, name)) is not None:
            self.explicit(directory, path)
            del self.keys[path + name]
        elif self.attempt(Rmdir(directory, name)) is not None:
            self.explicit(directory, path)
            del self.keys[path + name + b"/"]

    def rename(self) -> None:
        (old, path, name), (new, new_path, new_name) = self.path(), self.path()
        was = self.db.ask(Lookup(old, name)).attr
        target = self.db.ask(Lookup(new, new_name)).attr
        flags = self.random.choice((0, 0, 1, 2))
        if self.attempt(Rename(old, name, new, new_name, flags)) is None or (target and was.ino == target.ino):
            return
        source, goal = path + name, new_path + new_name
        if flags == 2:
            self.exchange(source, stat.S_ISDIR(was.mode), goal, stat.S_ISDIR(target.mode))
        else:
            if target is not None:
                del self.keys[goal + (b"/" if stat.S_ISDIR(target.mode) else b"")]
            self.insert(goal, self.extract(source, stat.S_ISDIR(was.mode)))
        self.explicit(old, self.moved(old))
        self.explicit(new, self.moved(new))
        for key in [key for key in self.keys if key.endswith(b"/")]:
            self.refresh_body(key)

    def moved(self, directory: int) -> bytes:
        """Where a directory is now (a rename may have moved it)."""
        path = b""
        while directory != self.top:
            name, parent = self.db.db.execute(
                "SELECT sort_name, parent FROM dirents WHERE ino = ?", (directory,)
            ).fetchone()
            path, directory = name + path, parent
        return path

    def extract(self, path: bytes, is_dir: bool) -> dict[bytes, int]:
        """Take a file's key, or all below a directory; what is left of each key after the path."""
        taken = [key for key in self.keys if key == path or (is_dir and key.startswith(path + b"/"))]
        taken = [key for key in taken if key != path] if is_dir else [path]
        return {key[len(path) :]: self.keys.pop(key) for key in taken}

    def insert(self, path: bytes, rests: dict[bytes, int]) -> None:
        for rest, ino in rests.items():
            assert path + rest not in self.keys or rest == b"/", (path, rest)
            self.keys[path + rest] = ino

    def exchange(self, one: bytes, one_dir: bool, other: bytes, other_dir: bool) -> None:
        first, second = self.extract(one, one_dir), self.extract(other, other_dir)
        self.insert(other, first)
        self.insert(one, second)

    # ---- checks ----
    def check(self) -> None:
        listed: list[bytes] = []
        after = b""
        while True:
            page = self.db.ask(ListObjects(b"bucket", after=after, limit=self.random.choice((1, 3, 1000))))
            for info in page.entries:
                assert self.keys.get(info.key) == info.ino, (info.key, self.keys.get(info.key), info.ino)
            listed += [info.key for info in page.entries]
            if not page.truncated:
                break
            after = page.next_after
        assert listed == sorted(self.keys)
        for key, ino in self.keys.items():
            assert self.db.ask(HeadObject(b"bucket", key)).ino == ino
        self.check_rolled()
        findings = fsck.check(self.db.reader())
        assert not findings, findings

    def check_rolled(self) -> None:
        prefix = self.random.choice((b"", b"a", b"a/", b"a/b/", b"b/"))
        delimiter = self.random.choice((b"/", b"a", b"/a"))
        rolled: dict[bytes, bool] = {}
        for key in sorted(self.keys):
            if key.startswith(prefix):
                at = key.find(delimiter, len(prefix))
                rolled[key if at < 0 else key[: at + len(delimiter)]] = at >= 0
        got: list[bytes] = []
        after = b""
        while True:
            page = self.db.ask(ListObjects(b"bucket", prefix, delimiter, after, self.random.choice((1, 2, 1000))))
            assert all(rolled[info.key] is False for info in page.entries)
            assert all(rolled[one] for one in page.prefixes)
            got += sorted([info.key for info in page.entries] + list(page.prefixes))
            if not page.truncated:
                break
            after = page.next_after
        assert got == sorted(rolled), (prefix, delimiter)


@pytest.mark.parametrize("limit", [2, 1000])
@pytest.mark.parametrize("block", range(6))
def test_keys_and_paths_agree_with_a_dict(block: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "MOVE_LIMIT", limit)
    for seed in range(block * 8, block * 8 + 8):
        model = Model(seed)
        steps: list[Callable[[], None]] = [
            *(model.put, model.put, model.delete, model.create, model.remove, model.rename, model.copy),
        ]
        try:
            for _ in range(40):
                model.random.choice(steps)()
                model.check()
        except BaseException:
            print("seed", seed, "limit", limit, *model.log[-12:], sep="\n  ")
            raise


def test_walking_a_directory_while_it_is_emptied_meets_every_entry_once() -> None:
    model = Model(0)
    names = [b"f%03d" % i for i in range(300)]
    for name in names:
        model.db.call(Create(model.top, name, 0o100644))
    met, after = [], 0
    while True:
        page = model.db.ask(ReadDir(model.top, after, 7))
        for entry in page.entries:
            met.append(entry.name)
            model.db.call(Unlink(model.top, entry.name))
            after = entry.id
        if not page.more:
            break
    assert met == names and not model.db.ask(ReadDir(model.top)).entries


def test_moving_a_directory_onto_the_keys_that_wait_at_its_new_name() -> None:
    model = Model(0)
    for key in (b"x/1", b"x//b", b"a//b"):
        model.db.call(PutObject(b"bucket", key, Body(1, b"k"), "e", ObjectMeta()))
    with pytest.raises(MetadataError) as refused:
        model.db.call(Rename(model.top, b"x", model.top, b"a"))
    assert refused.value.code == "ENOTEMPTY"
    model.db.call(DeleteObject(b"bucket", b"x//b"))
    model.db.call(Rename(model.top, b"x", model.top, b"a"))
    assert [e.key for e in model.db.ask(ListObjects(b"bucket")).entries] == [b"a//b", b"a/1"]
    assert not fsck.check(model.db.reader())


def test_directories_cannot_be_moved_into_each_other() -> None:
    model = Model(0)
    a = model.db.call(Create(model.top, b"a", 0o040755)).attr.ino
    b = model.db.call(Create(model.top, b"b", 0o040755)).attr.ino
    model.db.call(Rename(model.top, b"a", b, b"a"))
    for parent, name, new, code in ((model.top, b"b", a, "EINVAL"), (b, b"a", a, "EINVAL")):
        with pytest.raises(MetadataError) as refused:
            model.db.call(Rename(parent, name, new, b"x"))
        assert refused.value.code == code
    with pytest.raises(MetadataError) as refused:
        model.db.call(Rename(b, b"a", model.top, b"b"))
    assert refused.value.code == "ENOTEMPTY"
    assert not fsck.check(model.db.reader())
