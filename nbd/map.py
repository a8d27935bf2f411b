"""The map of a volume: for each 4 KiB block the place of its bytes, in pages of 512 entries of 8 bytes.

An entry is `chunk number << 16 | block in the chunk`. Numbers are the volume's own, count from 1 and are never given
again; they are translated by the chunk table. 0 is a hole. Block 65,535 exists in no chunk: such an entry means
"zeros, written by that segment" (only in the overlay of unsealed writes, where 0 means "see below").

Invariants
1. A page that is not there is a page of zeros; a page that is one number is 512 times that entry.
2. LiveMap.live[n] is the number of its entries that name chunk n; a count that reaches 0 stays in the table at 0.
3. LiveMap.dirty holds every page that differs from the last checkpoint.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

BLOCK = 4096
BLOCK_SHIFT = 12
PAGE_ENTRIES = 512
PAGE_SHIFT = 9
PAGE_MASK = PAGE_ENTRIES - 1
PAGE_BYTES = PAGE_ENTRIES * 8
POSITION_MASK = 0xFFFF
ZEROS = 0xFFFF  # the position that stands for zeros

Run = tuple[int, int, int]
"""(first block, number of blocks, entry of the first): entries grow by one, or are all the same (hole, zeros)."""
Page = array  # of "Q"


def entry_of(number: int, position: int) -> int:
    return number << 16 | position


def is_flat(entry: int) -> bool:
    """Whether a run of this entry repeats it (holes and zeros) rather than counting up."""
    return entry == 0 or entry & POSITION_MASK == ZEROS


def values_of(entry: int, count: int) -> array[int]:
    """The entries of a run."""
    return array("Q", (entry,)) * count if is_flat(entry) else array("Q", range(entry, entry + count))


def add_run(runs: list[Run], block: int, count: int, entry: int) -> None:
    """Append a run that follows the last one, merged with it where the places go on too."""
    if runs:
        first, length, before = runs[-1]
        goes_on = before == entry if is_flat(entry) else before + length == entry and not is_flat(before)
        if goes_on and first + length == block:
            runs[-1] = (first, length + count, before)
            return
    runs.append((block, count, entry))


def add_values(runs: list[Run], block: int, values: array[int]) -> None:
    """Append the runs of consecutive blocks' entries."""
    count = len(values)
    first = values[0]
    if count == 1 or values == values_of(first, count):
        add_run(runs, block, count, first)
        return
    start, expected = 0, first
    for i, value in enumerate(values):
        if value != expected:
            add_run(runs, block + start, i - start, first)
            start, first = i, value
        expected = value if value == 0 or value & POSITION_MASK == ZEROS else value + 1
    add_run(runs, block + start, count - start, first)


def page_slices(block: int, count: int) -> Iterator[tuple[int, int, int]]:
    """(page, first entry, end entry) of a range of blocks."""
    end = block + count
    while block < end:
        page = block >> PAGE_SHIFT
        stop = min(end, (page + 1) << PAGE_SHIFT)
        yield page, block & PAGE_MASK, stop - (page << PAGE_SHIFT)
        block = stop


class BlockMap:
    """Sparse entries by block. Not locked: the owner does."""

    __slots__ = ("pages",)

    def __init__(self) -> None:
        self.pages: dict[int, array[int] | int] = {}

    def get(self, block: int) -> int:
        page = self.pages.get(block >> PAGE_SHIFT)
        if page is None:
            return 0
        return page if isinstance(page, int) else page[block & PAGE_MASK]

    def values(self, page_number: int, start: int, stop: int) -> array[int]:
        """A copy of some entries of one page."""
        page = self.pages.get(page_number, 0)
        return array("Q", (page,)) * (stop - start) if isinstance(page, int) else page[start:stop]

    def runs(self, block: int, count: int) -> list[Run]:
        """The whole range as runs, holes too."""
        runs: list[Run] = []
        for page_number, start, stop in page_slices(block, count):
            page = self.pages.get(page_number, 0)
            first = (page_number << PAGE_SHIFT) + start
            if isinstance(page, int):
                add_run(runs, first, stop - start, page)
            else:
                add_values(runs, first, page[start:stop])
        return runs

    def put(self, block: int, count: int, entry: int) -> None:
        """Set a run."""
        if count == 1:
            self._page(block >> PAGE_SHIFT)[block & PAGE_MASK] = entry
            return
        flat = is_flat(entry)
        for page_number, start, stop in page_slices(block, count):
            if flat and stop - start == PAGE_ENTRIES:
                self._whole(page_number, entry)
            else:
                self._page(page_number)[start:stop] = values_of(entry, stop - start)
            if not flat:
                entry += stop - start

    def forget(self, block: int, count: int, number: int) -> None:
        """Set to 0 the entries of the range that name `number`."""
        for page_number, start, stop in page_slices(block, count):
            page = self.pages.get(page_number)
            if page is None:
                continue
            if isinstance(page, int):
                if page >> 16 != number:
                    continue
                if stop - start == PAGE_ENTRIES:
                    del self.pages[page_number]
                    continue
                page = self._page(page_number)
            part = page[start:stop]
            first = part[0]
            if first >> 16 == number and part == values_of(first, stop - start):
                page[start:stop] = array("Q", bytes(8 * (stop - start)))
            else:
                page[start:stop] = array("Q", [0 if value >> 16 == number else value for value in part])
            if page.count(0) == PAGE_ENTRIES:
                del self.pages[page_number]

    def _page(self, page_number: int) -> array[int]:
        """The page as one that can be written to."""
        page = self.pages.get(page_number, 0)
        if isinstance(page, int):
            page = array("Q", (page,)) * PAGE_ENTRIES
            self.pages[page_number] = page
        return page

    def _whole(self, page_number: int, entry: int) -> None:
        if entry:
            self.pages[page_number] = entry
        else:
            self.pages.pop(page_number, None)


class LiveMap(BlockMap):
    """The map of what is sealed in chunks: counts live blocks, remembers dirty pages. It holds no zeros entries."""

    __slots__ = ("dirty", "live", "used_blocks")

    def __init__(self) -> None:
        super().__init__()
        self.dirty: set[int] = set()
        self.live: dict[int, int] = {}
        self.used_blocks = 0

    def put(self, block: int, count: int, entry: int) -> None:
        for page_number, start, stop in page_slices(block, count):
            length = stop - start
            old = self.pages.get(page_number)
            if old is None and entry == 0:
                continue
            self.dirty.add(page_number)
            if old is not None:
                self._uncount(old[start:stop] if not isinstance(old, int) else array("Q", (old,)) * length)
            if entry == 0:
                self._clear(page_number, start, stop)
            else:
                self._page(page_number)[start:stop] = values_of(entry, length)
                self.live[entry >> 16] = self.live.get(entry >> 16, 0) + length
                self.used_blocks += length
                entry += length

    def move(self, block: int, count: int, source: int, target: int) -> int:
        """Point the run at `target` where it still points at `source`. Returns how many blocks moved."""
        moved = 0
        for first, length, entry in self.runs(block, count):
            if entry == source + (first - block):
                self.put(first, length, target + (first - block))
                moved += length
            elif entry and not is_flat(entry) and entry >> 16 == source >> 16:
                moved += self._move_single(first, length, block, source, target)
        return moved

    def _move_single(self, first: int, length: int, block: int, source: int, target: int) -> int:
        moved = 0
        for at in range(first, first + length):
            if self.get(at) == source + (at - block):
                self.put(at, 1, target + (at - block))
                moved += 1
        return moved

    def load_page(self, page_number: int, page: array[int]) -> None:
        """Take a page from a checkpoint (clean; counted by the checkpoint's chunk table, not here)."""
        self.pages[page_number] = page

    def _clear(self, page_number: int, start: int, stop: int) -> None:
        if stop - start == PAGE_ENTRIES:
            self.pages.pop(page_number, None)
        elif page_number in self.pages:
            page = self._page(page_number)
            page[start:stop] = array("Q", bytes(8 * (stop - start)))
            if page.count(0) == PAGE_ENTRIES:
                del self.pages[page_number]

    def _uncount(self, old: array[int]) -> None:
        holes = old.count(0)
        if holes == len(old):
            return
        self.used_blocks -= len(old) - holes
        live = self.live
        first = old[0]
        if first and old[-1] == first + len(old) - 1 and old == values_of(first, len(old)):
            live[first >> 16] -= len(old)
            return
        for value in old:
            if value:
                live[value >> 16] -= 1


def lookup(over: BlockMap, under: BlockMap, block: int, count: int) -> list[Run]:
    """Runs of a range where `over` (0 = not there) hides `under`."""
    if count == 1:
        return [(block, 1, over.get(block) or under.get(block))]
    runs: list[Run] = []
    for page_number, start, stop in page_slices(block, count):
        first = (page_number << PAGE_SHIFT) + start
        top = over.pages.get(page_number)
        if top is None:
            values = under.values(page_number, start, stop)
        elif isinstance(top, int):
            add_run(runs, first, stop - start, top)
            continue
        else:
            values = top[start:stop]
            if 0 in values:
                below = under.values(page_number, start, stop)
                values = array("Q", [a or b for a, b in zip(values, below, strict=True)])
        add_values(runs, first, values)
    return runs
