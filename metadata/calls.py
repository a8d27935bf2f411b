"""Executing a Call once: its slot, its transaction, the recalls that stand in its way, its remembered answer.

new number -> job -> (leases of others in the way: recall them, job again)* -> record -> answer, remembered
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import trio

from trivium.cluster.errors import ClusterError
from trivium.metadata import granting, sessions
from trivium.metadata.leases import LeaseTable
from trivium.metadata.messages import RETRY, SESSION_ENDED, Call, Failed, MetadataError, Results, encode
from trivium.metadata.recalls import Recalls
from trivium.metadata.sessions import Session, Slot
from trivium.metadata.tx import Tx
from trivium.metadata.writer import Job, Outcome, Writer

Operations = Mapping[type, Callable[[Tx, Any], Any]]

LOST = encode(Failed("EIO", "the call was executed, but its answer was too large to survive the server's restart"))
_STORE = (
    "INSERT INTO slots (session, slot, number, result) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (session, slot) DO UPDATE SET number = excluded.number, result = excluded.result"
)


class Calls:
    def __init__(
        self,
        writer: Writer,
        leases: LeaseTable,
        recalls: Recalls,
        operations: Operations,
        *,
        nursery: trio.Nursery,
        grace_over: Callable[[], trio.Event],
        refusal: Callable[[Collection[Any]], MetadataError | None] = lambda operations: None,
        may_lease: Callable[[int], bool] = lambda session: False,
    ) -> None:
        """`refusal`: why operations are not executed at present (no room for what they add). `may_lease`: whether a
        session lives, and it is on record that it takes leases."""
        self._writer = writer
        self._leases = leases
        self._recalls = recalls
        self._operations = operations
        self._nursery = nursery
        self._grace_over = grace_over
        self._refusal = refusal
        self._may_lease = may_lease

    async def call(self, session: Session, call: Call, size: int) -> bytes:
        """The encoded answer (Results or Failed). Raises MetadataError for a misused slot, ClusterError when the
        outcome is unknown."""
        slot = sessions.begin(session, call.slot, call.number)
        if slot is None:
            slot = session.slots[call.slot]
            refused = self._refusal(call.operations)
            if refused is not None:
                settle(slot, Outcome(error=refused))
            else:
                self._submit(call, slot, size)
        if slot.running:
            await slot.done.wait()
            if slot.failure is not None:
                raise slot.failure
        return slot.answer

    def _submit(self, call: Call, slot: Slot, size: int) -> None:
        values: list[Any] = []
        execute = transaction(call, self._operations, values)
        chunks = {new.chunk: new for new in call.chunks}

        def finish(outcome: Outcome) -> None:
            if outcome.conflicts:
                self._nursery.start_soon(self._after_recalls, call.session, outcome.conflicts, again)
            else:
                if outcome.error is None:
                    self._lease(call, outcome, values)
                settle(slot, outcome)

        def again(held_back: Collection[tuple[int, bytes]]) -> None:
            def finish_again(outcome: Outcome) -> None:
                self._leases.let_go(held_back)
                finish(outcome)

            self._writer.submit(Job(execute, finish_again, call.session, chunks, size, repeatable=True))

        self._writer.submit(Job(execute, finish, call.session, chunks, size, repeatable=True))

    def _lease(self, call: Call, outcome: Outcome, values: list[Any]) -> None:
        """A lease on what the call made, in the step in which its change became visible. The stored answer is without:
        after a restart nobody has leases of an earlier life."""
        place = granting.made(call.operations)
        if place is None or not self._may_lease(call.session):
            return
        operation = call.operations[place]
        inos = granting.inodes(operation, values[place])
        grants = {ino: self._leases.grant(call.session, ino, outcome.seq) for ino in inos}
        values[place] = granting.mark(operation, values[place], lambda ino: grants[ino] is True)
        outcome.value = encode(Results(tuple(values), outcome.seq))

    async def _after_recalls(
        self,
        session: int,
        conflicts: Collection[tuple[int, bytes]],
        again: Callable[[Collection[tuple[int, bytes]]], None],
    ) -> None:
        if self._leases.unreclaimed - {session}:
            await self._grace_over().wait()
        self._leases.hold_back(conflicts)
        await self._recalls.recall(self._leases.to_recall(session, conflicts))
        again(conflicts)


def transaction(call: Call, operations: Operations, values: list[Any]) -> Callable[[Tx], bytes]:
    """What the writer runs: all of the operations or none, and the slot's row. `values` is set to the answers."""

    def execute(tx: Tx) -> bytes:
        if tx.one("SELECT 1 FROM sessions WHERE id = ?", tx.session) is None:
            raise MetadataError(SESSION_ENDED, "the session has ended")
        values.clear()
        for index, operation in enumerate(call.operations):
            handler = operations.get(type(operation))
            if handler is None:
                raise MetadataError("ENOSYS", f"{type(operation).__name__} is not known here", index)
            try:
                values.append(handler(tx, operation))
            except MetadataError as error:
                error.index = index
                raise
        answer = encode(Results(tuple(values), tx.seq))
        stored = answer if len(answer) <= sessions.STORED_MAX else b""
        tx.run(_STORE, tx.session, call.slot, call.number, stored)
        return answer

    return execute


def settle(slot: Slot, outcome: Outcome) -> None:
    """Remember how the call in flight ended."""
    error = outcome.error
    if error is None:
        sessions.finish(slot, outcome.value)
    elif isinstance(error, MetadataError) and error.code != RETRY:
        sessions.finish(slot, encode(Failed(error.code, error.text, error.index)))
    else:
        assert isinstance(error, ClusterError | MetadataError)
        sessions.finish(slot, None, error)
