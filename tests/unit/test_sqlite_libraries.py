"""Two SQLite libraries in one process drop each other's file locks (attack 10): only one module may name another."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGES = ("admin", "cluster", "metadata", "fs", "nbd", "s3")
OTHER = ("sqlite3", "sqlite_utils", "pysqlite3")
COMMAND = Path("admin/cli/metadata.py")  # a process of its own, on a copy


def imports(tree: ast.AST) -> list[str]:
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module or "")
    return found


def test_nothing_that_opens_the_database_has_a_second_library() -> None:
    top = Path(__file__).parents[2]
    for package in PACKAGES:
        for path in (top / package).rglob("*.py"):
            names = imports(ast.parse(path.read_text()))
            if any(name.split(".")[0] in OTHER for name in names):
                assert path.relative_to(top) == COMMAND, path
                assert not any(name.startswith("apsw") for name in names)
