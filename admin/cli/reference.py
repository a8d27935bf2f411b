"""docs/commands.md, rendered from the commands themselves: `python -m trivium.admin.cli.reference > docs/commands.md`.

A test holds the file to this rendering, so that no command or option goes undocumented.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from trivium.admin.cli import main


def commands(group: click.Group, path: str = "trivium") -> Iterator[tuple[str, click.Command]]:
    """Every command with its whole name; of groups those that do something without a command."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            if command.invoke_without_command and command.help:
                yield f"{path} {name}", command
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def render() -> str:
    lines = [
        "# Commands",
        "",
        "Exit statuses: 0 success, 1 failed, 2 wrong usage, 3 no pool answers, 4 something is missing on this machine, "
        "5 in use by another process, 6 damage was found.",
        "",
        "`--connect WHERE` (or `TRIVIUM_CONNECT`) names the pool: its data directory, or HOST:PORT of the metadata "
        "server with `--identity FILE` (`TRIVIUM_IDENTITY`); default: `~/.local/share/trivium`.",
    ]
    for name, command in commands(main):
        arguments = " ".join(
            p.make_metavar(click.Context(command)) for p in command.params if isinstance(p, click.Argument)
        )
        lines += ["", f"## {name} {arguments}".rstrip(), "", _text(command.help or "")]
        options = [p for p in command.params if isinstance(p, click.Option) and "--connect" not in p.opts]
        if options:
            lines += ["", "| option | meaning |", "|---|---|"]
        for option in options:
            record = option.get_help_record(click.Context(command))
            if record is not None:
                name_cell, meaning = (text.replace("|", "\\|") for text in record)
                lines.append(f"| `{name_cell}` | {meaning} |")
    return "\n".join(lines) + "\n"


def _text(help_text: str) -> str:
    """Paragraphs as they are; those that click leaves alone (\\b) become code."""
    parts = []
    for part in inspect.cleandoc(help_text).split("\n\n"):
        parts.append("```\n" + part[1:].strip("\n") + "\n```" if part.startswith("\b") else part.replace("\n", " "))
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(render(), end="")
