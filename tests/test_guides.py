"""The guides and the front page are true: their Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDES = sorted(ROOT.glob("docs/guides/*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: What a page may take, words: it is read before something is tried.
SHORT = 900


def blocks(page: Path) -> list[str]:
    """The Python of a page, from top to bottom."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_the_code_of_a_guide_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = blocks(page)
    assert found, f"{page.name} has no Python: what does it guide to?"
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": page.stem}
    for number, block in enumerate(found, 1):
        exec(compile(block, f"{page.name}, block {number}", "exec", dont_inherit=True), names)


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_a_guide_is_short(page: Path) -> None:
    words = len(page.read_text(encoding="utf-8").split())
    assert words <= SHORT, f"{page.name} has {words} words: at most {SHORT}"


def test_the_example_of_the_front_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(blocks(ROOT / "README.md")[0], "README.md", "exec", dont_inherit=True), {"__name__": "readme"})
    assert capsys.readouterr().out.count("proper: gap") == 3
