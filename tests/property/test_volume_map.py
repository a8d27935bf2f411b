"""The map of a volume against a dict, and its formats against damage."""

from __future__ import annotations

import random
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.nbd import checkpoint as form
from trivium.nbd.buffer import Segment
from trivium.nbd.errors import Damaged
from trivium.nbd.journal import (
    DATA,
    FOOTER_BYTES,
    PIECE_BYTES,
    TRIM,
    ZERO,
    decode_record,
    decode_table,
    encode_table,
    records_of,
)
from trivium.nbd.map import ZEROS, BlockMap, LiveMap, entry_of, is_flat, lookup

SPACE = 3000
runs = st.tuples(
    st.integers(0, SPACE - 1),
    st.sampled_from([1, 2, 7, 300, 513, 1500]),
    st.one_of(st.just(0), st.builds(entry_of, st.integers(1, 6), st.integers(0, 400))),
)


def expand(found: list[tuple[int, int, int]]) -> dict[int, int]:
    return {block + i: entry if is_flat(entry) else entry + i for block, count, entry in found for i in range(count)}


@given(st.lists(runs, max_size=25))
@settings(max_examples=60, deadline=None)
def test_a_map_is_a_dict_that_counts(puts: list[tuple[int, int, int]]) -> None:
    table, model = LiveMap(), dict.fromkeys(range(SPACE + 1500), 0)
    for block, count, entry in puts:
        table.put(block, count, entry)
        for i in range(count):
            model[block + i] = entry + i if entry else 0
    found = table.runs(0, SPACE + 1500)
    assert expand(found) == model
    assert all(a[0] + a[1] == b[0] for a, b in pairwise(found))
    live: dict[int, int] = {}
    for entry in model.values():
        if entry:
            live[entry >> 16] = live.get(entry >> 16, 0) + 1
    assert {number: count for number, count in table.live.items() if count} == live
    assert table.used_blocks == sum(live.values())


@given(st.lists(st.tuples(runs, st.booleans()), max_size=20))
@settings(max_examples=60, deadline=None)
def test_an_overlay_hides_what_lies_below_and_is_forgotten_by_number(
    steps: list[tuple[tuple[int, int, int], bool]],
) -> None:
    over, under = BlockMap(), LiveMap()
    top, bottom = dict.fromkeys(range(SPACE + 1500), 0), dict.fromkeys(range(SPACE + 1500), 0)
    for (block, count, entry), above in steps:
        if above:
            entry = entry or entry_of(3, ZEROS)
            over.put(block, count, entry)
        else:
            under.put(block, count, entry)
        for i in range(count):
            (top if above else bottom)[block + i] = entry if is_flat(entry) else entry + i
    assert expand(lookup(over, under, 0, SPACE + 1500)) == {b: top[b] or bottom[b] for b in top}
    over.forget(0, SPACE + 1500, 3)
    top = {b: 0 if e >> 16 == 3 else e for b, e in top.items()}
    assert expand(lookup(over, under, 0, SPACE + 1500)) == {b: top[b] or bottom[b] for b in top}


@given(st.lists(runs, min_size=1, max_size=20), st.lists(runs, max_size=10))
@settings(max_examples=40, deadline=None)
def test_copies_apply_only_where_the_map_still_points_to_their_source(first, later) -> None:  # type: ignore[no-untyped-def]
    table = LiveMap()
    for block, count, entry in first:
        table.put(block, count, entry)
    copies = [run for run in table.runs(0, SPACE + 1500) if run[2]]
    for block, count, entry in later:
        table.put(block, count, entry)
    model, target = expand(table.runs(0, SPACE + 1500)), 0
    for block, count, entry in copies:
        table.move(block, count, entry, entry_of(99, target))
        for i in range(count):
            if model[block + i] == entry + i:
                model[block + i] = entry_of(99, target) + i
        target += count
    assert expand(table.runs(0, SPACE + 1500)) == model


def test_a_sealed_segment_holds_the_last_write_of_each_block() -> None:
    for seed in range(40):
        rng = random.Random(seed)
        segment, model = Segment(5, 100, 1 << 20), {}
        write = 99
        while segment.room_blocks() > 20 and write < 190:
            write += 1
            block, count = rng.randrange(60), rng.randrange(1, 9)
            if rng.random() < 0.7:
                data = b"".join(rng.randbytes(8) * 512 for _ in range(count))
                segment.append(block, count, memoryview(data), write)
                model |= {block + i: data[i * 4096 : i * 4096 + 4096] for i in range(count)}
            else:
                segment.append_zeros(block, count, rng.choice([ZERO, TRIM]), write)
                model |= {block + i: bytes(4096) for i in range(count)}
        sealed = segment.seal(b"v" * 16)
        chunk = b"".join(sealed.buffers)
        table = decode_table(chunk)
        assert (table.volume, table.number, table.first, table.last) == (b"v" * 16, 5, 100, write)
        found: dict[int, bytes] = {}
        for block, count, kind, _, position, _ in table.pieces:
            for i in range(count):
                at = (position + i) * 4096
                found[block + i] = chunk[at : at + 4096] if kind == DATA else bytes(4096)
        assert found == model, seed
        replayed: dict[int, bytes] = {}
        for _, payload in records_of(100, segment.extents, segment.view):
            record = decode_record(b"".join(payload))
            for block, count, kind, _, position in record.extents:
                for i in range(count):
                    at = (position + i) * 4096
                    replayed[block + i] = bytes(record.data[at : at + 4096]) if kind == DATA else bytes(4096)
        assert replayed == model, seed


def test_records_are_at_most_a_mebibyte_and_their_ranges_follow() -> None:
    segment = Segment(1, 1)
    for write in range(1, 11):
        segment.append(write * 192, 192, memoryview(bytes(192 * 4096)), write)
    first = 1
    for last, payload in records_of(1, segment.extents, segment.view):
        data = b"".join(payload)
        record = decode_record(data)
        assert len(data) <= 1 << 20 and record.first == first and record.last == last
        first = last + 1
    assert first == 11


@given(st.binary(max_size=300))
def test_any_bytes_as_a_record_or_table_are_damage_or_sense(data: bytes) -> None:
    for decode in (decode_record, decode_table):
        with suppress(Damaged):
            decode(data)


def test_a_flipped_bit_in_a_table_is_damage() -> None:
    good = encode_table(b"v" * 16, 1, 1, 9, 4, [(0, 4, DATA, 9, 0, 0)])
    rng = random.Random(3)
    for at in [*range(PIECE_BYTES), *range(len(good) - FOOTER_BYTES, len(good))]:
        table = bytearray(good)
        table[at] ^= 1 << rng.randrange(8)
        with pytest.raises(Damaged):
            decode_table(table)


def test_incremental_drafts_give_every_page_again() -> None:
    rng = random.Random(1)
    table, model = form.PageTable(), {}
    stored: dict[int, list[bytes]] = {}
    numbers = iter(range(1, 10_000))
    for _ in range(30):
        dirty = {rng.randrange(3000): rng.choice([b"", rng.randbytes(16) * 256]) for _ in range(rng.randrange(1, 60))}
        model |= dirty
        made = form.draft(table, dirty, numbers)
        stored |= dict(made.chunks)
        for number, pages in made.chunks:
            table.maps[number] = form.MapInfo(None, len(pages), 0)  # type: ignore[arg-type]
        for number, info in table.maps.items():
            info.live = made.live[number]
        table.pages.update(made.pages)
        table.places = made.places
        live = {number: 0 for number in table.maps}
        found = {}
        for which, place in table.places.items():
            live[place >> 16] += 1
            entries = form.page_values(stored[place >> 16][place & 0xFFFF])
            assert entries == table.pages[which]
            for i, entry in enumerate(entries):
                if entry:
                    live[entry >> 16] += 1
                    found[(which << 9) + i] = stored[entry >> 16][entry & 0xFFFF]
        assert found == {number: page for number, page in model.items() if page}
        assert live == {number: info.live for number, info in table.maps.items()}
