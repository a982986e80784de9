"""The pages under `docs/` name tests as their proof: every one of them exists. The front page is short."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md"])
TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    for file, name in TEST.findall(page.read_text(encoding="utf-8")):
        path = ROOT / file
        assert path.is_file(), f"{page.name} names {file}, which does not exist"
        defined = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
        assert not name or name in defined, f"{page.name} names {file}::{name}, which does not exist"


def test_the_theory_page_rests_on_tests() -> None:
    found = TEST.findall((ROOT / "docs/theory.md").read_text(encoding="utf-8"))
    assert len(found) >= 20, f"only {len(found)} tests are named"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_exists(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target and (page.parent / target).resolve().parent != ROOT / "docs" / "reference":  # made with it
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"


def test_the_front_page_is_read_in_one_go() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 8 * 1024
