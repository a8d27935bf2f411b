"""What the pool says that it survives."""

from __future__ import annotations

from trivium.admin.survival import Place, Survival, in_words, of_chunks, of_members
from trivium.cluster.model import Group

DRIVES = tuple(bytes([i]) * 16 for i in range(6))
GROUP = Group(1, 1, 4, 2, DRIVES)


def places(disks: list[int], down: tuple[int, ...] = ()) -> dict[bytes, Place]:
    return {drive: Place(i not in down, disks[i], "h", "r") for i, drive in enumerate(DRIVES)}


def test_six_directories_on_one_disk_survive_two_drives_and_no_disk() -> None:
    assert of_chunks([(GROUP, 0)], places([1] * 6)) == Survival(2, 0, 0, 0)


def test_six_disks_survive_two_disks_and_no_host() -> None:
    assert of_chunks([(GROUP, 0)], places([1, 2, 3, 4, 5, 6])) == Survival(2, 2, 0, 0)


def test_two_drives_per_disk_survive_one_disk() -> None:
    assert of_chunks([(GROUP, 0)], places([1, 1, 2, 2, 3, 3])) == Survival(2, 1, 0, 0)


def test_the_weakest_chunk_decides_and_missing_shards_count() -> None:
    assert of_chunks([(GROUP, 0), (GROUP, 0b11)], places([1, 2, 3, 4, 5, 6])) == Survival(0, 0, 0, 0)


def test_a_missing_shard_on_a_drive_that_is_down_is_counted_once() -> None:
    found = of_chunks([(GROUP, 0b1)], places([1, 2, 3, 4, 5, 6], down=(0,)))
    assert found is not None and found.drives == 1


def test_too_many_gone() -> None:
    assert of_members(DRIVES, 4, places([1] * 6, down=(0, 1, 2))).drives == -1


def test_words() -> None:
    assert in_words("data", Survival(2, 0, 0, 0)) == "data survives the loss of any 2 drives, of no disk and of no host"


def test_no_chunks_survive_vacuously() -> None:
    assert of_chunks([], places([1] * 6)) is None
