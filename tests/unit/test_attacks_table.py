"""docs/attacks.md names tests that exist, and every scenario."""

from __future__ import annotations

import re
from pathlib import Path

TOP = Path(__file__).parents[2]
NUMBERS = [*range(1, 23), *range(26, 62)]


def test_every_scenario_has_a_row_and_every_test_in_it_exists() -> None:
    text = (TOP / "docs" / "attacks.md").read_text().replace("`file::name`", "")
    assert [int(number) for number in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)] == NUMBERS
    file = ""
    for name in re.finditer(r"([\w/]+\.py)?::(\w+)", text):
        file = name.group(1) or file
        source = (TOP / "tests" / file).read_text()
        assert re.search(rf"def {name.group(2)}\b", source), f"{file}::{name.group(2)}"
