"""Calls on the replicas of one log segment: create, append, seal, read. No decisions here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import trio

from trivium.cluster.errors import ClusterError, Corrupt, Unavailable
from trivium.cluster.logfile import LogRecord, decode_append
from trivium.cluster.nodes import NodeReply, Nodes
from trivium.cluster.wire import (
    AppendLog,
    AppendLogs,
    CreateLog,
    LogHead,
    LogState,
    NodeRequest,
    Outcomes,
    ReadLog,
    RemoveLog,
    SealLog,
    StatLog,
)

T = TypeVar("T")
Results = dict[bytes, ClusterError | None]
CAPACITY = 16 << 20
READ_BYTES = 4 << 20


async def at_each(drives: Iterable[bytes], ask: Callable[[bytes], Awaitable[T]]) -> dict[bytes, T | ClusterError]:
    """Ask all drives side by side; an answer or an error of each."""
    answers: dict[bytes, T | ClusterError] = {}

    async def one(drive: bytes) -> None:
        try:
            answers[drive] = await ask(drive)
        except ClusterError as error:
            answers[drive] = error

    async with trio.open_nursery() as nursery:
        for drive in drives:
            nursery.start_soon(one, drive)
    return answers


async def create(nodes: Nodes, head: LogHead, drives: Sequence[bytes], capacity: int, reserve_class: int) -> Results:
    """Create the empty segment, durable, on each drive."""

    async def ask(drive: bytes) -> None:
        await _state(nodes, drive, CreateLog(drive, head, capacity, reserve_class))

    answers = await at_each(drives, ask)
    return {drive: answers[drive] for drive in drives}


async def append(nodes: Nodes, segment: bytes, first_seq: int, data: bytes, drives: Iterable[bytes]) -> Results:
    """Make encoded records durable on each drive: one message a node. None = it is."""
    by_node: dict[bytes | None, list[bytes]] = {}
    for drive in drives:
        by_node.setdefault(nodes.node_of(drive), []).append(drive)
    results: Results = {}

    async def one(members: list[bytes]) -> None:
        appends = tuple(AppendLog(drive, segment, first_seq, len(data)) for drive in members)
        try:
            reply = await nodes.call(members[0], AppendLogs(appends), [data] * len(members))
            outcomes = _outcomes(reply, len(members))
        except ClusterError as error:
            results.update(dict.fromkeys(members, error))
        else:
            results.update(zip(members, outcomes, strict=True))

    if len(by_node) == 1:
        await one(*by_node.values())
    else:
        async with trio.open_nursery() as nursery:
            for members in by_node.values():
                nursery.start_soon(one, members)
    return results


def _outcomes(reply: NodeReply, count: int) -> list[ClusterError | None]:
    if not isinstance(reply.answer, Outcomes) or len(reply.answer.outcomes) != count:
        raise Unavailable("a node answered an append with something else")
    return [outcome.error() for outcome in reply.answer.outcomes]


async def seal(nodes: Nodes, drive: bytes, segment: bytes) -> LogState:
    return await _state(nodes, drive, SealLog(drive, segment))


async def stat(nodes: Nodes, drive: bytes, segment: bytes) -> LogState:
    return await _state(nodes, drive, StatLog(drive, segment))


async def remove(nodes: Nodes, drives: Iterable[bytes], segment: bytes) -> Results:
    """Remove the file on each drive."""

    async def ask(drive: bytes) -> None:
        reply = await nodes.call(drive, RemoveLog(drive, segment))
        for error in _outcomes(reply, 1):
            if error is not None:
                raise error

    return dict(await at_each(drives, ask))


async def read(
    nodes: Nodes, drive: bytes, segment: bytes, from_seq: int, max_bytes: int = READ_BYTES
) -> tuple[LogState, tuple[LogRecord, ...]]:
    """The replica's state and verified records from `from_seq` on (none when it ends before)."""
    reply = await nodes.call(drive, ReadLog(drive, segment, from_seq, max_bytes))
    if not isinstance(reply.answer, LogState):
        raise Unavailable("a node answered a log read with something else")
    if not len(reply.payload):
        return reply.answer, ()
    scan = decode_append(reply.payload, segment, from_seq)
    if scan.last_seq > reply.answer.last_seq:
        raise Corrupt(f"log segment {segment.hex()} has more records than its drive says")
    return reply.answer, scan.records


async def read_upto(nodes: Nodes, drive: bytes, segment: bytes, from_seq: int, upto: int) -> list[LogRecord]:
    """Exactly the records from_seq..upto of one replica, chained. Corrupt when it does not have them."""
    records: list[LogRecord] = []
    while from_seq + len(records) <= upto:
        _, more = await read(nodes, drive, segment, from_seq + len(records))
        if not more or (records and more[0].previous_hash != records[-1].hash):
            raise Corrupt(f"log segment {segment.hex()}: record {from_seq + len(records)} is not on {drive.hex()}")
        records.extend(more)
    return records[: upto - from_seq + 1]


async def hash_at(nodes: Nodes, drive: bytes, segment: bytes, seq: int) -> bytes:
    """The hash of record `seq`, or what the segment's first record follows when `seq` is just before it."""
    state = await stat(nodes, drive, segment)
    if seq == state.last_seq:
        return state.last_hash
    if seq == state.head.first_seq - 1:
        return state.head.previous_hash
    return (await read_upto(nodes, drive, segment, seq, seq))[0].hash


async def _state(nodes: Nodes, drive: bytes, request: NodeRequest) -> LogState:
    reply = await nodes.call(drive, request)
    if not isinstance(reply.answer, LogState):
        raise Unavailable(f"a node answered {type(request).__name__} with something else")
    return reply.answer


def failures(results: Mapping[bytes, ClusterError | None]) -> dict[bytes, ClusterError]:
    return {drive: error for drive, error in results.items() if error is not None}
