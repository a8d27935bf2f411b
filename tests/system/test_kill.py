"""kill -9 of each process and of all at once, under load on all three faces: the soak, short (see tests/soak.py)."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.soak import Soak
from tests.system.faces import SYSTEM_PYTHON


def _libnbd() -> bool:
    return subprocess.run([SYSTEM_PYTHON, "-c", "import nbd"], capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="there is no /dev/fuse to mount with"),
    pytest.mark.skipif(shutil.which("fusermount3") is None, reason="needs fuse3"),
    pytest.mark.skipif(shutil.which("nbdkit") is None or not _libnbd(), reason="needs nbdkit and libnbd's bindings"),
]


@pytest.fixture
def soak() -> Iterator[Soak]:
    seed = random.SystemRandom().randrange(1 << 31)
    print(f"seed {seed}")
    with tempfile.TemporaryDirectory(prefix="trivium-kill-") as directory:
        run = Soak(Path(directory), seed)
        try:
            run.begin()
            yield run
        finally:
            run.end()


def test_nothing_is_lost_whatever_is_killed_and_drives_alone_have_it_all(soak: Soak) -> None:
    soak.start()
    for victim in ("pool", "nbd", "mount", "all", "start", "all"):
        soak.round(victim)
        print(f"killed {victim}; answered {soak.answered()}")
    soak.check()
    soak.lose_metadata()
    soak.check()
    print("up again after", {name: [f"{s:.1f}" for s in times] for name, times in soak.restart_s.items()})
