"""Errors of the command line: one sentence that says what to do, and an exit status.

Exit statuses: 0 success, 1 failed, 2 wrong usage (click's own), 3 the pool cannot be reached, 4 something is missing
on this machine, 5 in use by another process, 6 found damage (fsck, verify).
"""

from __future__ import annotations

import errno
import os
import pwd

import click


class CommandError(click.ClickException):
    """Ends the command with a sentence on stderr."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.exit_code = status  # type: ignore[misc]


def of_os_error(error: OSError) -> CommandError:
    """The sentence for what the machine refused: which file, why, and what helps where that is known."""
    why = error.strerror or str(error)
    hints = {
        errno.EACCES: f"you are {_user()}; use the account that runs the pool, or sudo",
        errno.EPERM: f"you are {_user()}; use the account that runs the pool, or sudo",
        errno.EROFS: "choose a place that can be written",
        errno.ENOSPC: "make room, or choose another disk",
    }
    hint = hints.get(error.errno or 0)
    said = f"{os.fsdecode(error.filename)}: {why}" if error.filename else why
    return CommandError(f"{said} ({hint})" if hint else said)


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a user without a name
        return f"user {os.geteuid()}"


def unreachable(data: object) -> CommandError:
    return CommandError(
        f"no pool answers at {data}. Start one with `trivium up --data {data}`, or name another with --connect.", 3
    )
