"""Errors of the command line: one sentence that says what to do, and an exit status.

Exit statuses: 0 success, 1 failed, 2 wrong usage (click's own), 3 the pool cannot be reached, 4 something is missing
on this machine, 5 in use by another process, 6 found damage (fsck, verify).
"""

from __future__ import annotations

import click


class CommandError(click.ClickException):
    """Ends the command with a sentence on stderr."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.exit_code = status  # type: ignore[misc]


def unreachable(data: object) -> CommandError:
    return CommandError(
        f"no pool answers at {data}. Start one with `trivium up --data {data}`, or name another with --connect.", 3
    )
