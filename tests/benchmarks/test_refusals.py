"""Where drafts are refused: what is kept of a run, kinds of tokens, and the tables that the command prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.refusals import KINDS, ROWS, Recording, Seen, Step, kinds, rows_of, seen
from smc_bridge.engine.presets import smc
from smc_bridge.models.pairs import load_pair

TEXT = "So Ann picks up 7 * 9 = 63 shells.\n#### 63"


def test_digits_are_told_apart_by_what_stands_before_them() -> None:
    pair = load_pair("arithmetic")
    tokens = [*pair.tokenizer(TEXT)["input_ids"], 2]
    found = list(kinds(tokens, pair.decode, [2]))
    told = [(pair.decode([token]), kind) for token, kind in zip(tokens, found, strict=True)]
    digits = [kind for text, kind in told if text.strip().isdigit()]
    assert digits == ["digit of an operand"] * 2 + ["digit of a result"] * 2 + ["digit of the answer"] * 2
    assert found[-1] == "end"
    assert dict(told)[" shells"] == dict(told)["So"] == "word begun"
    assert set(found) <= set(KINDS)


def test_pieces_of_a_word_continue_it() -> None:
    pieces = {0: " ma", 1: "de", 2: ",", 3: " x"}
    assert list(kinds([0, 1, 2, 3], lambda ids: pieces[ids[0]], [])) == [
        "word begun", "word continued", "sign or space", "word begun",
    ]


def test_each_committed_token_was_drafted_or_corrects_the_draft() -> None:
    found = seen([Step([0, 1], 1, [0.4, 0.95]), Step([2], 1, [1.0])], lambda ids: "abc"[ids[0]], [2])
    assert found == [
        Seen("word begun", 1, 0.4, False), Seen("word continued", 2, 0.95, True), Seen("end", 1, 1.0, False)
    ]
    assert rows_of(found[1]) == ("all", "word continued", "place 2", "top probability 0.9 to 0.99")
    assert all(row in ROWS for token in found for row in rows_of(token))


def test_a_recorded_run_is_the_same_run_and_its_steps_are_its_tokens() -> None:
    pair, kernel = load_pair("arithmetic"), Recording()
    prompt = pair.encode("Tom has 3 pens. Tom buys 4 more. How many pens does Tom have now?").tolist()
    runs = [
        smc(pair, 1, kernel=each, window=8, lookahead=16).run([prompt], seed=1, max_new_tokens=24)[0]
        for each in ("rejection", kernel)
    ]
    assert runs[0].sequences == runs[1].sequences
    assert [token for step in kernel.steps for token in step.committed] == list(runs[1].sequences[0])
    assert len(kernel.steps) == len(runs[1].trace)
    assert all(len(step.committed) - step.accepted in (0, 1) for step in kernel.steps)
    assert any(step.accepted < len(step.committed) for step in kernel.steps)


def test_the_command_prints_a_table_for_each_temperature_and_w(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra 'analysis'")
    from benchmarks import drafters

    drafters.main(["--quick", "--refusals", "--block", "1", "--threads", "1", "--markdown", "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert "Refusals at target temperature 1, w = 0" in out
    cells: Any = json.loads((tmp_path / "drafters.json").read_text())["cells"]
    assert [cell["proposal"] for cell in cells] == ["marginals", "markov", "selector"]
    for cell in cells:
        assert sum(cell["tokens"].get(kind, 0) for kind in KINDS) == cell["tokens"]["all"]
        assert 0 < cell["refused"]["all"] < cell["tokens"]["all"]
