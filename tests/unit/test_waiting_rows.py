"""Members from before the pool was formed enter its database, however often their way there is cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from trivium.admin.identity import ClusterIdentity
from trivium.admin.waitingrows import WaitingRows
from trivium.cluster.clock import SystemClock
from trivium.cluster.identity.keys import PrivateKey, member_id
from trivium.metadata import membermessages as said
from trivium.metadata.messages import MetadataError


class Cut(Exception):
    """The process dies here."""


class Cutting(WaitingRows):
    """A database to which the connection ends after so many operations."""

    left = -1

    async def call(self, operation: object) -> object:
        if not self.left:
            raise Cut
        self.left -= 1
        return await super().call(operation)


def enrol(name: str, key: bytes) -> said.EnrolMember:
    return said.EnrolMember(name, key, ("node",), 0, (0,), 1)


@pytest.mark.parametrize("left", [0, 1, 2, 3])
def test_a_move_that_was_cut_anywhere_is_ended_by_the_next_start(tmp_path: Path, left: int) -> None:
    async def main() -> None:
        waiting, to = WaitingRows(tmp_path / "waiting.db"), Cutting(tmp_path / "db")
        good, bad = (PrivateKey.generate().public.raw for _ in range(2))
        await waiting.call(enrol("bad", bad))
        await waiting.call(said.RevokeMember(member_id(bad)))
        await waiting.call(enrol("good", good))
        to.left = left
        if left < 3:
            with pytest.raises(Cut):
                await waiting.move(to)
        else:  # everything is entered, the file is still there
            (tmp_path / "copy.db").hardlink_to(tmp_path / "waiting.db")
            await waiting.move(to)
            (tmp_path / "copy.db").rename(tmp_path / "waiting.db")
        to.left = -1
        await WaitingRows(tmp_path / "waiting.db").move(to)
        members = {row.name: bool(row.revoked) for row in await to.ask(said.ListMembers())}
        assert members == {"bad": True, "good": False} and not (tmp_path / "waiting.db").exists()
        assert (await to.ask(said.GetRevocations())).version == 1

    trio.run(main)


class Refusing(WaitingRows):
    async def move(self, to: object) -> int:
        await trio.lowlevel.checkpoint()
        raise MetadataError("EINVAL", "no such right")


def test_what_cannot_be_entered_does_not_stop_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        from types import SimpleNamespace

        rows = WaitingRows(tmp_path / "db")
        monkeypatch.setattr("trivium.admin.identity.LedRows", lambda client: rows)
        monkeypatch.setattr("trivium.admin.identity.WaitingRows", Refusing)
        (tmp_path / "keys").mkdir(mode=0o700)
        identity = ClusterIdentity(b"c" * 16, SystemClock(), tmp_path / "keys")
        await identity.wait()
        server = SimpleNamespace()
        await identity.serve(None, server)  # type: ignore[arg-type]
        assert server.issue_grant == identity.issue_grant and (tmp_path / "keys" / "waiting.db").exists()

    trio.run(main)
