"""What a volume holds after its writer has gone: checkpoint, then chunks and log records by write number.

Invariants
1. Chunks commit in order of their writes, so those after the checkpoint follow each other; anything else is damage.
   Records that end at or before the last chunk are skipped (a chunk holds what its records held), later ones apply.
2. A gap before a record ends it: what comes after was never answered by a flush. It is left out for good: its numbers
   are passed over, and a chunk or checkpoint that covers them is committed before anything new is accepted.
3. Copies apply in order of chunk numbers, and only where the map still points to their source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

from trivium.cluster.model import ChunkId, ChunkKind, Ref
from trivium.metadata.messages import VolumeChunk, VolumeState
from trivium.nbd.backend import ChunkStore
from trivium.nbd.buffer import Segment
from trivium.nbd.checkpoint import MapInfo, PageTable, decode_index, decode_part, page_values
from trivium.nbd.core import ChunkInfo, apply_copies, apply_pieces
from trivium.nbd.errors import Damaged
from trivium.nbd.journal import Record, Table, decode_record, decode_table, table_length
from trivium.nbd.map import BLOCK, PAGE_BYTES, PAGE_SHIFT, LiveMap
from trivium.nbd.together import together

TAIL_BYTES = 64 * 1024


def volume_owner(volume: int) -> bytes:
    """How pieces and log segments name a volume."""
    return volume.to_bytes(16, "little")


@dataclass(slots=True)
class Recovered:
    base: LiveMap
    table: dict[int, ChunkInfo]
    pages: PageTable
    upto: int
    next_number: int
    segments: list[Segment] = field(default_factory=list)  # log records that no chunk holds
    stale: set[ChunkId] = field(default_factory=set)  # rows that are not used (any more)
    must_checkpoint: bool = False


async def recover(state: VolumeState, chunks: ChunkStore, payloads: Sequence[bytes | memoryview]) -> Recovered:
    """Read everything and merge it. Writes nothing."""
    done = await _load_checkpoint(state, chunks)
    known = {info.ref.chunk for info in done.table.values()} | {info.ref.chunk for info in done.pages.maps.values()}
    known |= done.pages.parts
    unknown = [row for row in state.chunks if row.chunk.chunk not in known]
    # a map chunk that the checkpoint does not know belongs to one that was never completed
    done.stale |= {row.chunk.chunk for row in unknown if row.chunk.kind == ChunkKind.MAP}
    tables = await _read_tables([row for row in unknown if row.chunk.kind == ChunkKind.VOLUME], state, chunks)
    records = [decode_record(payload) for payload in payloads]
    merge(done, tables, records)
    return done


def merge(done: Recovered, tables: Sequence[tuple[Ref, Table]], records: Sequence[Record]) -> None:
    """Apply chunks and records to what the checkpoint gave."""
    highest = max([done.upto, *(table.last for _, table in tables), *(record.last for record in records)])
    done.next_number = max([done.next_number, *(table.number + 1 for _, table in tables)])
    for ref, table in sorted(tables, key=lambda pair: pair[1].first):
        if not table.copies:
            _apply_chunk(done, ref, table)
    for ref, table in sorted(tables, key=lambda pair: pair[1].number):
        if table.copies:
            _add_chunk(done, ref, table)
            apply_copies(done.base, table.number, table.pieces)
    position = _apply_records(done, records)
    if highest > position:
        done.must_checkpoint = True
        if done.segments:
            done.segments[-1].last_write = done.segments[-1].logged_write = highest
        else:
            done.upto = highest


def _apply_chunk(done: Recovered, ref: Ref, table: Table) -> None:
    if table.last <= done.upto:
        done.stale.add(ref.chunk)
        return
    if table.first != done.upto + 1:
        raise Damaged(
            f"volume chunk {ref.chunk} begins with write {table.first}, but what is known ends with {done.upto}: "
            "a chunk between them is missing; nothing was changed"
        )
    _add_chunk(done, ref, table)
    apply_pieces(done.base, table.number, table.pieces)
    done.upto = table.last


def _add_chunk(done: Recovered, ref: Ref, table: Table) -> None:
    done.table[table.number] = ChunkInfo(table.number, ref, table.first, table.last, table.data_blocks)
    done.base.live.setdefault(table.number, 0)


def _apply_records(done: Recovered, records: Sequence[Record]) -> int:
    """Make segments of the records that no chunk holds. Returns the last write that there is without a gap."""
    position = done.upto
    for record in sorted(records, key=lambda r: (r.first, -r.last)):
        if record.last <= position:
            continue
        if record.first > position + 1:
            break
        if not done.segments or not done.segments[-1].fits(record):
            done.segments.append(Segment(done.next_number, position + 1))
            done.next_number += 1
        done.segments[-1].take_record(record)
        position = record.last
    return position


# ---- reading ------------------------------------------------------------------------------------------------


async def _load_checkpoint(state: VolumeState, chunks: ChunkStore) -> Recovered:
    done = Recovered(LiveMap(), {}, PageTable(), state.checkpoint_upto, 1)
    if state.checkpoint is None:
        return done
    index = decode_index(await chunks.get(state.checkpoint))
    if index.upto != state.checkpoint_upto:
        raise Damaged(f"the checkpoint says it covers write {index.upto}, the volume's row {state.checkpoint_upto}")
    done.next_number = index.next_number
    done.base.used_blocks = index.used_blocks
    done.pages.parts = {chunk for chunk, _, _ in index.parts}
    parts = await together(lambda part: chunks.get(Ref(*part)), index.parts)
    for number, chunk, offset, length, first, last, blocks, live in chain(index.chunks, *map(decode_part, parts)):
        done.table[number] = ChunkInfo(number, Ref(chunk, offset, length), first, last, blocks)
        done.base.live[number] = live
    pages = done.pages
    for number, chunk, offset, length, count, live in index.map_chunks:
        pages.maps[number] = MapInfo(Ref(chunk, offset, length), count, live)
    pages.places = dict(index.directory)
    await _load_pages(done, chunks)
    # the checkpoint's own chunk is named by the volume's row; it is not one of the chunks that can be stale
    return done


async def _load_pages(done: Recovered, chunks: ChunkStore) -> None:
    pages = done.pages
    numbers = list(pages.maps)
    content = dict(zip(numbers, await together(lambda n: chunks.get(pages.maps[n].ref), numbers), strict=True))

    def page_at(entry: int) -> memoryview:
        start = (entry & 0xFFFF) * PAGE_BYTES
        page = content[entry >> 16][start : start + PAGE_BYTES]
        if len(page) != PAGE_BYTES:
            raise Damaged("the checkpoint names a page that its chunk does not have")
        return page

    for which, entry in pages.places.items():
        pages.pages[which] = page_values(page_at(entry))
        for i, place in enumerate(pages.pages[which]):
            if place:
                done.base.load_page((which << PAGE_SHIFT) + i, page_values(page_at(place)))


async def _read_tables(rows: Sequence[VolumeChunk], state: VolumeState, chunks: ChunkStore) -> list[tuple[Ref, Table]]:
    """The tables of volume chunks that the checkpoint does not know."""
    owner = volume_owner(state.info.id)

    async def one(row: VolumeChunk) -> tuple[Ref, Table]:
        ref = Ref(row.chunk.chunk, 0, row.chunk.length)
        table = await read_table(chunks, ref)
        if table.volume != owner:
            raise Damaged(f"chunk {ref.chunk} belongs to another volume")
        return ref, table

    return await together(one, rows)


async def read_table(chunks: ChunkStore, ref: Ref) -> Table:
    """The table at the end of a volume chunk."""
    length = min(TAIL_BYTES, ref.length)
    tail = await chunks.get(Ref(ref.chunk, ref.offset + ref.length - length, length))
    needed = min(table_length(tail[-BLOCK:]), ref.length)
    if needed > length:
        tail = await chunks.get(Ref(ref.chunk, ref.offset + ref.length - needed, needed))
    return decode_table(tail)
