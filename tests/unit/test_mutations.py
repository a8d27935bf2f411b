"""The list of deliberate faults fits the source as it is now; `make mutations` runs them."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from tests.mutations.apply import mutated
from tests.mutations.listed import MUTATIONS, Edit, Mutation


def test_there_are_enough_and_each_has_its_own_name() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 20


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_each_changes_one_place_and_leaves_a_program(mutation: Mutation) -> None:
    for edit in mutation.edits:
        spec = importlib.util.find_spec(edit.module)
        assert spec is not None and spec.origin is not None
        source = Path(spec.origin).read_text()
        changed = mutated(source, [edit])
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))
    for test in mutation.tests:
        assert Path(test.split("::")[0]).exists(), test


def test_a_place_that_is_not_there_is_said() -> None:
    with pytest.raises(ValueError, match="0 places"):
        mutated("a = 1\n", [Edit("m", "b = 1", "b = 2")])
    with pytest.raises(ValueError, match="2 places"):
        mutated("a = 1\na = 1\n", [Edit("m", "a = 1", "a = 2")])
