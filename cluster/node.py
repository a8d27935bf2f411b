"""A node: several drives behind one handler of node messages.

Lists (puts, appends, deletes) run side by side, one thread per drive; everything that blocks goes through the
executor. The handler answers, or raises a ClusterError; anything else is logged and told as one.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

import msgspec
import trio

from trivium.cluster import wire
from trivium.cluster.clock import Executor
from trivium.cluster.errors import ClusterError, Corrupt, Refused, Unavailable
from trivium.cluster.files import FileOps
from trivium.cluster.identity.access import is_client
from trivium.cluster.model import BLOCK, Ballot
from trivium.cluster.store import Store
from trivium.cluster.store.logs import Logs
from trivium.cluster.transport.interface import Buffer, Peer, Reply
from trivium.cluster.wire import DriveReport, NodeAnswer, NodeRequest, Outcome, Service

log = logging.getLogger(__name__)
T = TypeVar("T")
Entry = TypeVar("Entry", wire.PutShard, wire.AppendLog, wire.DeleteShard)
Result = ClusterError | None
Work = Callable[[Store, list[tuple[Entry, memoryview]]], list[Result]]

MAX_READ = wire.MAX_PAYLOAD


class Node:
    def __init__(
        self,
        node_id: bytes,
        stores: Iterable[Store],
        *,
        files: FileOps,
        executor: Executor,
        cluster: bytes,
        make_path: Callable[[str], str] | None = None,
        absent: Sequence[DriveReport] = (),
    ) -> None:
        """`make_path` turns the path of a FormatDrive into an absolute one; `absent` are drives that this node should
        have but could not open (state "missing"), reported until they are closed."""
        self.node_id = node_id
        self.process = secrets.token_bytes(8)
        self._stores = {store.drive: store for store in stores}
        self._inside: dict[bytes, int] = {}  # calls that run on a drive's descriptors
        self._left = trio.Event()  # replaced each time that somebody leaves
        self._confirmed: dict[bytes, tuple[Ballot, float]] = {}  # drive -> the root's holder that asked last, and when
        self._absent = {report.drive: report for report in absent}
        self._files, self._executor, self._cluster = files, executor, cluster
        self._make_path = make_path or (lambda path: path)
        self._handlers: dict[type, Callable[..., Awaitable[Reply]]] = {
            wire.PutShards: self._put,
            wire.ReadShard: self._read,
            wire.OpenShard: self._open,
            wire.DeleteShards: self._delete,
            wire.Inventory: self._inventory,
            wire.VerifyShard: self._verify,
            wire.Quarantine: self._quarantine,
            wire.CreateLog: self._create_log,
            wire.AppendLogs: self._append,
            wire.SealLog: self._seal_log,
            wire.StatLog: self._stat_log,
            wire.ReadLog: self._read_log,
            wire.RemoveLog: self._remove_log,
            wire.ListLogs: self._list_logs,
            wire.ReadRoot: self._read_root,
            wire.PromiseRoot: self._promise_root,
            wire.AcceptRoot: self._accept_root,
            wire.Ping: self._ping,
            wire.FormatDrive: self._format,
            wire.CloseDrive: self._close,
        }

    @property
    def stores(self) -> Mapping[bytes, Store]:
        return self._stores

    async def handle(self, peer: Peer, service: int, body: bytes, payload: memoryview) -> Reply:
        """The transport's handler for Service.NODE."""
        if service != Service.NODE:
            raise Refused(f"a node does not serve {service}")
        try:
            request = wire.decode_node_request(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refused(f"a node message cannot be decoded: {error}") from None
        return await self.call(peer, request, memoryview(payload))

    async def call(self, peer: Peer, request: NodeRequest, payload: memoryview) -> Reply:
        """The same for a decoded message."""
        try:
            return await self._handlers[type(request)](peer, request, payload)
        except ClusterError:
            raise
        except Exception as error:
            log.exception("%s failed", type(request).__name__)
            raise _internal(error) from error

    async def aclose(self) -> None:
        """Close every drive (their locks are released)."""
        for drive in list(self._stores):
            await self._close_store(drive)

    async def open_drive(self, drive: bytes, path: str) -> None:
        """Open a drive that the map names and the start did not know of; reported "missing" when it cannot be."""
        if drive in self._stores or drive in self._absent:
            return
        try:
            opening = partial(Store.open, self._files, self._make_path(path), cluster=self._cluster)
            store = await self._executor.run(opening)
            if store.drive != drive:
                store.close()
                raise Refused(f"another drive lies at {path}")
        except ClusterError as error:
            self._absent[drive] = DriveReport(drive, "missing", str(error), 0, 0, 0, path)
        else:
            self._stores[drive] = store

    # ---- shards ---------------------------------------------------------------------------------------------

    async def _put(self, peer: Peer, request: wire.PutShards, payload: memoryview) -> Reply:
        return await self._side_by_side(request.puts, _cut(payload, [p.length for p in request.puts]), _write_shards)

    async def _delete(self, peer: Peer, request: wire.DeleteShards, payload: memoryview) -> Reply:
        empty = memoryview(b"")
        return await self._side_by_side(request.deletes, [empty] * len(request.deletes), _delete_shards)

    async def _read(self, peer: Peer, r: wire.ReadShard, payload: memoryview) -> Reply:
        if r.first_block < 0 or not 0 <= r.blocks * BLOCK <= MAX_READ:
            raise Refused("a read of an impossible range")
        header, data = await self._run(
            r.drive,
            lambda s: s.shards.read(
                r.chunk, r.index, r.first_block, r.blocks, r.with_header, dumps=not is_client(peer)
            ),
        )
        return _reply(wire.ShardData(len(header)), [header, data])

    async def _open(self, peer: Peer, r: wire.OpenShard, payload: memoryview) -> Reply:
        if not peer.local:
            raise Refused("descriptors are passed on the same host only")
        fd = await self._run(r.drive, lambda s: s.shards.open(r.chunk, r.index))
        return Reply(wire.encode_node_answer(wire.ShardData(0)), fds=(self._files.export(fd),))

    async def _inventory(self, peer: Peer, r: wire.Inventory, payload: memoryview) -> Reply:
        limit = min(max(r.limit, 1), 50_000)
        entries, more = await self._run(r.drive, lambda s: s.shards.inventory(r.after, limit))
        return _reply(wire.InventoryPage(tuple(entries), more))

    async def _verify(self, peer: Peer, r: wire.VerifyShard, payload: memoryview) -> Reply:
        return await self._one(r.drive, lambda s: s.shards.verify(r.chunk, r.index, r.nonce))

    async def _quarantine(self, peer: Peer, r: wire.Quarantine, payload: memoryview) -> Reply:
        work = _put_aside_if_bad if is_client(peer) else _put_aside
        return await self._one(r.drive, lambda s: work(s, r))

    # ---- logs -----------------------------------------------------------------------------------------------

    async def _create_log(self, peer: Peer, r: wire.CreateLog, payload: memoryview) -> Reply:
        return _reply(await self._run(r.drive, lambda s: s.logs.create(r.head, r.capacity, r.reserve_class)))

    async def _append(self, peer: Peer, request: wire.AppendLogs, payload: memoryview) -> Reply:
        parts = _cut(payload, [a.length for a in request.appends])
        return await self._side_by_side(request.appends, parts, partial(_append_logs, peer))

    async def _seal_log(self, peer: Peer, r: wire.SealLog, payload: memoryview) -> Reply:
        return _reply(await self._run(r.drive, lambda s: _logs(peer, s, r.segment).seal(r.segment)))

    async def _stat_log(self, peer: Peer, r: wire.StatLog, payload: memoryview) -> Reply:
        return _reply(await self._run(r.drive, lambda s: _logs(peer, s, r.segment).stat(r.segment)))

    async def _read_log(self, peer: Peer, r: wire.ReadLog, payload: memoryview) -> Reply:
        limit = min(max(r.max_bytes, 1), MAX_READ)
        state, data = await self._run(r.drive, lambda s: _logs(peer, s, r.segment).read(r.segment, r.from_seq, limit))
        return _reply(state, data)

    async def _remove_log(self, peer: Peer, r: wire.RemoveLog, payload: memoryview) -> Reply:
        return await self._one(r.drive, lambda s: s.logs.remove(r.segment))

    async def _list_logs(self, peer: Peer, r: wire.ListLogs, payload: memoryview) -> Reply:
        return _reply(wire.LogList(tuple(await self._run(r.drive, lambda s: s.logs.heads()))))

    # ---- root -----------------------------------------------------------------------------------------------

    async def _read_root(self, peer: Peer, r: wire.ReadRoot, payload: memoryview) -> Reply:
        slot = await self._run(r.drive, Store.read_root)
        if r.holder is not None and r.holder >= slot.promised:
            self._confirmed[r.drive] = (r.holder, trio.current_time())
        holder, when = self._confirmed.get(r.drive, (None, 0.0))
        ago = trio.current_time() - when if holder is not None and holder >= slot.promised else -1.0
        return _reply(wire.RootCopy(slot, ago))

    async def _promise_root(self, peer: Peer, r: wire.PromiseRoot, payload: memoryview) -> Reply:
        return _reply(wire.RootCopy(await self._run(r.drive, lambda s: s.root.promise(r.ballot))))

    async def _accept_root(self, peer: Peer, r: wire.AcceptRoot, payload: memoryview) -> Reply:
        return _reply(wire.RootCopy(await self._run(r.drive, lambda s: s.root.accept(r.slot, r.hint))))

    # ---- drives ---------------------------------------------------------------------------------------------

    async def _ping(self, peer: Peer, r: wire.Ping, payload: memoryview) -> Reply:
        await self._look_again()
        stores = list(self._stores.values())
        if not r.drives:
            return _reply(wire.NodeReport(self.node_id, (), self.process))
        with self._entered(list(self._stores)):
            reports = await self._executor.run(lambda: [store.report() for store in stores])
        return _reply(wire.NodeReport(self.node_id, (*reports, *self._absent.values()), self.process))

    async def _look_again(self) -> None:
        """A drive that was missing may lie there again (mounted late, plugged in): the same drive is opened as at a
        start. One that has failed or was wiped is not: that verdict is final for this process."""
        for drive, store in list(self._stores.items()):
            if store.health.state == "missing" and not self._inside.get(drive):
                self._absent[drive] = DriveReport(drive, "missing", store.health.text, 0, 0, 0, store.path)
                await self._close_store(drive)
        for drive, report in list(self._absent.items()):
            opening = partial(Store.open, self._files, self._make_path(report.path), cluster=self._cluster)
            with suppress(ClusterError, OSError):
                store = await self._executor.run(opening)
                if store.drive == drive and drive in self._absent:
                    self._stores[drive] = store
                    del self._absent[drive]
                else:
                    await self._executor.run(store.close)

    async def _format(self, peer: Peer, r: wire.FormatDrive, payload: memoryview) -> Reply:
        if len(r.drive) != 16 or r.drive in self._stores:
            raise Refused("a new drive needs a new id of 16 bytes")
        store = await self._executor.run(self._format_and_open, self._make_path(r.path), r.drive)
        self._stores[r.drive] = store
        return _reply(wire.RootCopy(store.root.read()))

    def _format_and_open(self, path: str, drive: bytes) -> Store:
        Store.format(self._files, path, cluster=self._cluster, drive=drive)
        return Store.open(self._files, path, cluster=self._cluster)

    async def _close(self, peer: Peer, r: wire.CloseDrive, payload: memoryview) -> Reply:
        self._absent.pop(r.drive, None)
        await self._close_store(r.drive)
        return _reply(wire.Outcomes((wire.OK,)))

    async def _close_store(self, drive: bytes) -> None:
        store = self._stores.pop(drive, None)
        if store is None:
            return
        with trio.CancelScope(shield=True):
            while self._inside.get(drive):
                await self._left.wait()
            await self._executor.run(store.close)

    # ---- how calls are run ----------------------------------------------------------------------------------

    @contextmanager
    def _entered(self, drives: Iterable[bytes]) -> Iterator[None]:
        """While a call is inside a drive, the drive is not closed under it."""
        for drive in drives:
            self._inside[drive] = self._inside.get(drive, 0) + 1
        try:
            yield
        finally:
            for drive in drives:
                self._inside[drive] -= 1
            self._left.set()
            self._left = trio.Event()

    async def _run(self, drive: bytes, call: Callable[[Store], T]) -> T:
        store = self._stores.get(drive)
        if store is None:
            raise _elsewhere(drive)
        with self._entered((drive,)):
            return await self._executor.run(call, store)

    async def _one(self, drive: bytes, call: Callable[[Store], None]) -> Reply:
        outcome = wire.OK
        try:
            await self._run(drive, call)
        except ClusterError as error:
            outcome = Outcome.of(error)
        return _reply(wire.Outcomes((outcome,)))

    async def _side_by_side(
        self, entries: Sequence[Entry], parts: Sequence[memoryview], work: Work[Entry]
    ) -> Reply:
        """Run a list's entries, those of one drive in order, the drives in parallel; outcomes in list order."""
        drives: dict[bytes, list[int]] = {}
        for place, entry in enumerate(entries):
            drives.setdefault(entry.drive, []).append(place)
        calls = [
            partial(_on_drive, self._stores.get(drive), drive, work, [(entries[i], parts[i]) for i in places])
            for drive, places in drives.items()
        ]
        outcomes: list[Outcome] = [wire.OK] * len(entries)
        with self._entered(drives):
            answers = await self._executor.run_all(calls)
        for places, results in zip(drives.values(), answers, strict=True):
            for place, error in zip(places, results, strict=True):
                if error is not None:
                    outcomes[place] = Outcome.of(error)
        return _reply(wire.Outcomes(tuple(outcomes)))


# ---- work of one drive, on its thread -----------------------------------------------------------------------


def _on_drive(
    store: Store | None, drive: bytes, work: Work[Entry], entries: list[tuple[Entry, memoryview]]
) -> list[Result]:
    """Never raises: an error of the whole drive is every entry's."""
    if store is None:
        return [_elsewhere(drive)] * len(entries)
    try:
        return work(store, entries)
    except ClusterError as error:
        return [error] * len(entries)
    except Exception as error:
        log.exception("drive %s", drive.hex())
        return [_internal(error)] * len(entries)


def _elsewhere(drive: bytes) -> Unavailable:
    return Unavailable(f"drive {drive.hex()} is not on this node")


def _internal(error: Exception) -> ClusterError:
    return ClusterError(f"internal error in the node: {type(error).__name__}: {error}")


def _each(calls: Iterable[Callable[[], None]]) -> list[Result]:
    results: list[Result] = []
    for call in calls:
        try:
            call()
            results.append(None)
        except ClusterError as error:
            results.append(error)
    return results


def _write_shards(store: Store, entries: list[tuple[wire.PutShard, memoryview]]) -> list[Result]:
    return _each((lambda p=put, d=data: store.shards.write(p, d)) for put, data in entries)  # type: ignore[misc]


def _put_aside(store: Store, r: wire.Quarantine) -> None:
    store.shards.quarantine(r.chunk, r.index)


def _put_aside_if_bad(store: Store, r: wire.Quarantine) -> None:
    """A client's word is not enough."""
    try:
        store.shards.verify(r.chunk, r.index)
    except Corrupt:
        return _put_aside(store, r)
    raise Refused(f"shard {r.index} of chunk {r.chunk} is intact: it stays where it is")


def _logs(peer: Peer, store: Store, segment: bytes) -> Logs:
    """The store's logs, if this one is for the peer."""
    if is_client(peer) and store.logs.get(segment).head.kind == wire.METADATA_LOG:
        raise Refused("the metadata log is for metadata servers")
    return store.logs


def _append_logs(peer: Peer, store: Store, entries: list[tuple[wire.AppendLog, memoryview]]) -> list[Result]:
    return _each(
        (lambda a=append, d=data: _logs(peer, store, a.segment).append(a.segment, a.first_seq, d))  # type: ignore[misc]
        for append, data in entries
    )


def _delete_shards(store: Store, entries: list[tuple[wire.DeleteShard, memoryview]]) -> list[Result]:
    return store.shards.delete([delete for delete, _ in entries])


def _cut(payload: memoryview, lengths: Sequence[int]) -> list[memoryview]:
    if any(length < 0 for length in lengths) or sum(lengths) != payload.nbytes:
        raise Refused("the payload does not have the length that its entries say")
    parts, at = [], 0
    for length in lengths:
        parts.append(payload[at : at + length])
        at += length
    return parts


def _reply(answer: NodeAnswer, payload: Buffer | Sequence[Buffer] = b"") -> Reply:
    return Reply(wire.encode_node_answer(answer), payload)
