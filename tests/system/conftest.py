from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.pool import SystemPool


def _pool() -> Iterator[SystemPool]:
    with tempfile.TemporaryDirectory(prefix="trivium-test-") as directory:
        pool = SystemPool(Path(directory))
        try:
            yield pool
        finally:
            pool.clean_up()


@pytest.fixture
def pool() -> Iterator[SystemPool]:
    """A pool of its own, not started."""
    yield from _pool()


@pytest.fixture(scope="module")
def running() -> Iterator[SystemPool]:
    """A running pool that the tests of a module share."""
    for pool in _pool():
        pool.up()
        yield pool
