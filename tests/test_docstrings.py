"""Every public name says what it is: modules, classes, functions, methods, and the fields of records."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("smc_bridge", "models", "analysis", "benchmarks")
#: Fewer words are a riddle or a pointer.
LEAST = 4

Definition = ast.Module | ast.ClassDef | ast.FunctionDef


def public(node: ast.Module | ast.ClassDef | ast.If, name: str) -> Iterator[tuple[str, Definition]]:
    """The public definitions within one, by their dotted names; overloads and what is private are left out."""
    for inner in node.body:
        if isinstance(inner, ast.If):
            yield from public(inner, name)
        if not isinstance(inner, ast.ClassDef | ast.FunctionDef) or inner.name.startswith("_"):
            continue
        if any(ast.unparse(decorator) == "overload" for decorator in inner.decorator_list):
            continue
        yield f"{name}.{inner.name}", inner
        if isinstance(inner, ast.ClassDef):
            yield from public(inner, f"{name}.{inner.name}")


def definitions(folder: str) -> Iterator[tuple[str, Definition]]:
    """All public definitions below a folder, modules included."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        name = str(path.relative_to(ROOT))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        yield name, tree
        yield from public(tree, name)


def fields(node: Definition) -> Iterator[str]:
    """Public fields of a dataclass or NamedTuple without a docstring of their own."""
    if not isinstance(node, ast.ClassDef):
        return
    made = [ast.unparse(part) for part in (*node.decorator_list, *node.bases)]
    if not any("dataclass" in text or "NamedTuple" in text for text in made):
        return
    for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        constant = "ClassVar" in ast.unparse(statement.annotation)
        if not (told or constant or statement.target.id.startswith("_")):
            yield statement.target.id


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_public_name_has_a_docstring(folder: str) -> None:
    found = {name: ast.get_docstring(node) or "" for name, node in definitions(folder)}
    short = [f"{name}: {text!r}" for name, text in found.items() if len(text.split()) < LEAST]
    assert not short, f"docstrings of fewer than {LEAST} words:\n" + "\n".join(short)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_field_of_a_record_is_explained(folder: str) -> None:
    missing = []
    for name, node in definitions(folder):
        text = ast.get_docstring(node) or ""
        told = {field.strip() for names in re.findall(r"(?m)^    ([\w, ]+):", text) for field in names.split(",")}
        missing += [f"{name}.{field}" for field in fields(node) if field not in told]
    assert not missing, "fields that no `Attributes` section explains:\n" + "\n".join(missing)


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_cite_what_is_in_the_repository(folder: str) -> None:
    citing = [name for name, node in definitions(folder) if re.search(r"\bdesign\b", ast.get_docstring(node) or "")]
    assert not citing, f"cite docs/theory instead of a design page: {citing}"
