"""Every command and option is documented, and the document is what the commands say."""

from __future__ import annotations

from pathlib import Path

from trivium.admin.cli import main
from trivium.admin.cli.reference import commands, render

ROOT = Path(__file__).parents[2]


def test_the_reference_is_what_the_commands_say() -> None:
    assert (ROOT / "docs" / "commands.md").read_text() == render(), "make docs writes it anew"


def test_every_command_explains_itself() -> None:
    for name, command in commands(main):
        assert command.help and len(command.help) > 20, name
        for parameter in command.params:
            assert parameter.param_type_name == "argument" or getattr(parameter, "help", None), (name, parameter.name)
