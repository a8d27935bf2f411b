"""Members and tokens of a pool that is not formed yet: nodes join before there are drives for a database.

    DIR/keys/waiting.db (0600): none --first start--> in use --formed: its rows enter the database--> none

Invariants:
1. The rules are those of metadata/members.py, on the same tables: a row is durable before a certificate is answered.
2. Rows enter the database one by one, those that are there already not again; the file goes only afterwards.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Protocol

import apsw
import trio

from trivium.metadata import membermessages as said
from trivium.metadata.members import MEMBER_OPERATIONS, MEMBER_QUERIES
from trivium.metadata.schema import MEMBER_TABLES
from trivium.metadata.tx import Reader, Tx

S = 1_000_000_000
COUNTERS = "CREATE TABLE counters (name TEXT NOT NULL PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;"


class Rows(Protocol):
    """Where members, tokens and keys are kept. MetadataError refuses."""

    async def call(self, operation: Any) -> Any: ...

    async def ask(self, query: Any) -> Any: ...


class WaitingRows:
    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        self._path = path
        self._db = apsw.Connection(str(path))
        self._db.pragma("synchronous", "extra")
        if not self._db.pragma("user_version"):
            with self._db:
                self._db.execute(COUNTERS + MEMBER_TABLES + "PRAGMA user_version = 1;")

    async def call(self, operation: Any) -> Any:
        await trio.lowlevel.checkpoint()
        with self._db:
            return MEMBER_OPERATIONS[type(operation)](Tx(self._db, now=time.time_ns(), seq=0), operation)

    async def ask(self, query: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return MEMBER_QUERIES[type(query)](Reader(self._db, now=time.time_ns(), seq=0), query)

    async def move(self, to: Rows) -> int:
        """Enter everything into the database that there is now, then be gone. Answers how many members there were."""
        members: tuple[said.MemberInfo, ...] = await self.ask(said.ListMembers())
        entered = {row.id: row.revoked for row in await to.ask(said.ListMembers())}  # by a try that did not end
        for row in members:
            if row.id not in entered:
                await to.call(
                    said.EnrolMember(row.name, row.public_key, row.roles, row.rights, row.pools, row.generation)
                )
            if row.revoked and not entered.get(row.id):
                await to.call(said.RevokeMember(row.id))
        there = {token.id for token in await to.ask(said.ListTokens())}
        hashes = dict(self._db.execute("SELECT id, hash FROM join_tokens"))
        for token in await self.ask(said.ListTokens()):
            lasts_s = (token.expires - time.time_ns()) // S
            if not token.used_by and token.id not in there and lasts_s > 0:
                await to.call(
                    said.AddToken(
                        token.id, hashes[token.id], token.roles, token.rights, token.pools, lasts_s, token.name
                    )
                )
        self._db.close()
        self._path.unlink()
        return len(members)
