"""Start a process in the background and wait until it says that it is ready.

The child gets the write end of a pipe (its number in TRIVIUM_READY_FD). It writes one JSON line when it is ready; the
parent returns it. When the pipe closes without one, the child failed: its last words are in its log.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trivium.admin.errors import CommandError

READY = "TRIVIUM_READY_FD"


def start_detached(arguments: Sequence[str], log: Path) -> dict[str, Any]:
    """Run `trivium ARGUMENTS` in a session of its own; returns what it announced. CommandError with its own words."""
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    reading, writing = os.pipe()
    position = log.stat().st_size if log.exists() else 0
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "trivium.admin.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=(writing,),
            env=os.environ | {READY: str(writing)},
            cwd="/",
        )
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        line = pipe.readline()
    if line:
        announced: dict[str, Any] = json.loads(line)
        return announced
    status = child.wait()
    with log.open("rb") as text:
        text.seek(position)
        words = text.read().decode(errors="replace").strip().splitlines()
    raise CommandError(f"{_last_words(words) or f'it ended with status {status}'} (log: {log})", max(status, 1))


def _last_words(lines: list[str]) -> str:
    """The sentence that a failed process ended with: its `Error:`, else the last line that is no traceback's frame."""
    for line in reversed(lines):
        if line.startswith("Error: "):
            return line.removeprefix("Error: ")
    return next((text for line in reversed(lines) if (text := line.strip(" |+-"))), "")


def announce(facts: dict[str, Any]) -> bool:
    """Tell the parent that this process is ready. False when nobody waits (foreground)."""
    number = os.environ.pop(READY, None)
    if number is None:
        return False
    with os.fdopen(int(number), "wb") as pipe:
        pipe.write(json.dumps(facts).encode() + b"\n")
    return True
