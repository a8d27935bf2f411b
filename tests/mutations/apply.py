"""Break the product while it is imported: sources are changed in memory, never in the work tree.

    python -m tests.mutations.apply NAME sim SEED [SEED ...]      whole-cluster schedules
    python -m tests.mutations.apply NAME tests PYTEST-ID [...]    narrower tests

Exit status: 0 nothing noticed (the mutation survived), 1 caught, 97 the mutation does not fit the source any more.
A breach is printed as its last line.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
from collections import defaultdict
from pathlib import Path
from types import CodeType

from tests.mutations.listed import MUTATIONS, Edit

SURVIVED, CAUGHT, STALE = 0, 1, 97


def mutated(source: str, edits: list[Edit]) -> str:
    """The source with each edit made at its one place. ValueError when there is none, or more than one."""
    for edit in edits:
        if source.count(edit.old) != 1:
            raise ValueError(f"{edit.module} has {source.count(edit.old)} places with {edit.old!r}, not 1")
        source = source.replace(edit.old, edit.new)
    return source


def install(edits: tuple[Edit, ...]) -> None:
    """Import the modules concerned with their changes (compiled anew: no cached bytecode is used or made).

    Nothing of the product may have been imported before. ValueError: an edit does not fit.
    """
    early = [name for name in sys.modules if name.startswith("trivium")]
    assert not early, f"imported before it could be changed: {early}"
    wanted: dict[str, list[Edit]] = defaultdict(list)
    for edit in edits:
        wanted[edit.module].append(edit)
    loader = importlib.machinery.SourceFileLoader
    original = loader.get_code

    def get_code(self: importlib.machinery.SourceFileLoader, fullname: str) -> CodeType | None:
        if fullname not in wanted:
            return original(self, fullname)
        path = self.get_filename(fullname)
        return compile(mutated(Path(path).read_text(), wanted[fullname]), path, "exec", dont_inherit=True)

    loader.get_code = get_code  # type: ignore[method-assign]
    for module in wanted:
        importlib.import_module(module)


def run_seeds(seeds: list[int]) -> str:
    """The first breach, or "" when there is none."""
    from tests.simulation.clusterrun import schedule
    from tests.simulation.runner import run_one

    for seed in seeds:
        print(f"seed {seed}", file=sys.stderr, flush=True)
        try:
            run_one(schedule, seed)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return f"seed {seed}: {innermost(error)}"
    return ""


def innermost(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def main(name: str, how: str, arguments: list[str]) -> int:
    mutation = next(one for one in MUTATIONS if one.name == name)
    try:
        install(mutation.edits)
    except ValueError as error:
        print(error)
        return STALE
    if how == "sim":
        breach = run_seeds([int(argument) for argument in arguments])
        print(breach)
        return CAUGHT if breach else SURVIVED
    import pytest

    status = pytest.main(["-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider", *arguments])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return STALE  # a test that is not there proves nothing
    return CAUGHT if status == pytest.ExitCode.TESTS_FAILED else SURVIVED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
