"""The command line on rows of a table: one length fits, a trace shows it, tasks of other pairs name the remedy."""

from __future__ import annotations

import pytest

from smc_bridge.cli import main
from smc_bridge.decode import decode
from smc_bridge.models.pairs import load_pair
from smc_bridge.registry import spelled


def test_a_row_is_decoded_to_its_end_without_a_limit_and_may_be_traced(capsys: pytest.CaptureFixture[str]) -> None:
    row = ["decode", "age=42, workclass=Private", "--pair", "adult", "--seed", "1"]
    for more in ([], ["--trace"]):
        assert main([*row, *more]) == 0
        assert "income=" in capsys.readouterr().out
    assert main([*row, "--max-new-tokens", "128"]) == 2
    assert "allow at most 13 new tokens" in capsys.readouterr().err


def test_a_comparison_on_a_table_says_that_prompts_are_to_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--pair", "adult", "--n", "2", "--methods", "smc-1"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--prompts" in err


def test_a_prompt_that_begins_no_row_is_refused_by_every_method() -> None:
    pair = load_pair("adult")
    for text in ("smc-1", "tabdiff,steps=2"):
        for ids in ([3], [42, 41]):
            with pytest.raises(ValueError, match="prompt") as caught:
                decode(spelled(text).make(pair), [ids], seed=0, max_new_tokens=3)
            assert "\n" not in str(caught.value)
