"""The guides and the front page are true: their Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from smc_bridge.commands.doctor_report import Report
from smc_bridge.commands.doctor_tables import amount
from smc_bridge.models.conventions import CONVENTIONS, UNWRAPPED, Convention
from smc_bridge.models.facts import facts_of
from smc_bridge.models.huggingface import HuggingFaceCausalLM, HuggingFaceMaskedLM

ROOT = Path(__file__).parents[1]
GUIDES = sorted(ROOT.glob("docs/guides/*.md"))
MODELS = ROOT / "docs/guides/own_models.md"
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


def rows_of(page: Path, *, columns: int) -> list[list[str]]:
    """Cells of the rows of a page's tables that have so many columns."""
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if len(row) == columns and not set(row[0]) <= {"-", ":", " "}]


def test_the_table_of_families_is_that_of_the_conventions() -> None:
    rows = rows_of(MODELS, columns=5)[1:]
    found: dict[str, list[str]] = {name: row for row in rows for name in re.findall(r"`([^`]+)`", row[0])}
    known: dict[str, Convention] = {name: each for name, each in CONVENTIONS.items() if each.native is not None}
    assert found.keys() - known.keys() == {"diffusion"}, "rows of model types that are not known"
    for name, convention in known.items():
        _, networks, sees, mask, cache = found[name]
        assert convention.native is not None
        assert convention.native.architecture.removesuffix("ForCausalLM") in networks.split(", "), name
        blocks = convention.attention == "block"
        size = f" of {convention.block_size}" if convention.block_size else ""
        expected = "all or blocks" if convention.either else f"blocks{size}" if blocks else "all"
        assert sees == f"{expected}, {'shifted' if convention.shift else 'unshifted'}", name
        assert cache == ("approximate or exact" if convention.either else "exact" if blocks else "approximate"), name
        assert (mask == "last id") == convention.last_is_mask, name
    [wrapped] = [row for row in rows if row[0] == "DiffuGPT, DiffuLLaMA"]
    assert all(each.shift and each.attention == "full" for each in UNWRAPPED.values())
    assert wrapped[2] == "all, shifted"


def test_the_memory_of_the_papers_pair_is_what_the_doctor_counts() -> None:
    """Both models have the sizes of Qwen2.5-7B; networks without numbers take no memory here."""
    config = Qwen2Config(
        vocab_size=152_064, hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, tie_word_embeddings=False,
    )
    with torch.device("meta"):
        dlm, ar = (Qwen2ForCausalLM(config).to(torch.bfloat16) for _ in range(2))
    drafts = HuggingFaceMaskedLM(dlm, mask_id=151_666, shift=True, eos_id=None, cache="auto")
    facts = {
        "dlm": facts_of(drafts, diffusion=True),
        "ar": facts_of(HuggingFaceCausalLM(ar, eos_id=None), diffusion=False),
    }
    report = Report("paper", facts, {"particles": 1, "lanes": 4, "window": 32, "lookahead": 256}, prompts="")
    memory = report.memory
    sizes = [size for _, _, size in memory if size is not None]
    assert len(sizes) == len(memory) == 8
    # Per model: weights, scores, a token's keys and values, those of 1,000 tokens. Both models are of one shape.
    weights, (scores_dlm, scores_ar), (token, row) = sizes[:2], sizes[2:4], sizes[4:6]
    assert weights[0] == weights[1]
    assert sizes[6:] == [token, row]
    table = {name: size for name, _, size in rows_of(MODELS, columns=3)[1:]}
    assert table == {
        "weights, each model": amount(weights[0]), "keys and values of a token, each": amount(token),
        "of 1,000 tokens, each": amount(row), "scores of the diffusion model": amount(scores_dlm),
        "scores of the target": amount(scores_ar),
    }
    text = MODELS.read_text(encoding="utf-8")
    assert f"{facts['ar'].parameters:,} numbers" in text
    assert report.total == sum(weights) + scores_dlm + scores_ar + 2 * row
    assert f"Together {amount(report.total)};" in text
