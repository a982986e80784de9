"""Imports point one way: models <- smc_bridge <- analysis, also where only type checkers look."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Folder -> what its modules may not import.
ABOVE = {
    "models": lambda name: name.startswith("smc_bridge") and not name.startswith("smc_bridge.models"),
    "smc_bridge": lambda name: name.startswith("smc_bridge.analysis"),
}


def imported(path: Path) -> Iterator[str]:
    """Names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", ABOVE)
def test_nothing_is_imported_from_above(folder: str) -> None:
    upward = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / folder).rglob("*.py")) for name in imported(path) if ABOVE[folder](name)
    ]
    assert upward == []
