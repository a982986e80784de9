"""Tables of figures: what is kept is not drawn again, every measure is there, and what is beyond chance is said so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="plots need the extra 'analysis'")

from benchmarks import table_rows
from benchmarks.table_rows import PUBLISHED, REAL, Made, Tables
from benchmarks.tabular import ERRORS, METHODS, TABLE, beyond
from smc_bridge.models.pairs import load_pair
from smc_bridge.models.tables.datasets import Dataset

#: A method of one forward.
QUICK = "dlm-all"


def test_a_table_that_is_kept_is_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Tables(tmp_path, 5, 10, 0, None).made("DLM", QUICK, 1)
    monkeypatch.setattr(table_rows, "decode", lambda *_, **__: pytest.fail("drawn again"))
    again = Tables(tmp_path, 5, 10, 0, None).made("DLM", QUICK, 1)
    assert again.errors == first.errors
    assert again.cost is not None
    assert again.cost[:3] == (0, 1, 1)
    with pytest.raises(pytest.fail.Exception, match="drawn again"):
        Tables(tmp_path, 5, 10, 0, None).made("DLM", QUICK, 2)


def test_every_measure_is_taken_of_methods_of_tabdiff_and_of_real_rows(tmp_path: Path) -> None:
    pytest.importorskip("sdmetrics")
    pytest.importorskip("sklearn")
    codec = load_pair("adult").tokenizer
    tokens, _ = Tables(tmp_path, 5, 100, 0, None).drawn(QUICK, 300, 7)
    train, test = codec.rows(tokens, seed=0).split(0, 0.5)
    tables = Tables(tmp_path, 60, 100, 0, Dataset("adult", train, test, "income"))
    for name, text in (("DLM", QUICK), (PUBLISHED, None), (REAL, None)):
        made = tables.made(name, text, 0)
        assert {*ERRORS} <= made.errors.keys()
        assert all(0 <= error <= 100 for error in made.errors.values()), made
    found = tables.imputed({"AR": "ar"}, [0.0, 0.6], 2, 4)
    assert {tuple(errors) for errors in found.values()} == {("native-country", "income")}
    assert [*found] == ["AR", "TabDiff, guidance 0", "TabDiff, guidance 0.6"]


def test_beyond_chance_is_the_difference_of_means_with_its_standard_error() -> None:
    def tables(*errors: float) -> list[Made]:
        return [Made({"trend_ar": error}, None) for error in errors]

    more, error = beyond(tables(5.0, 7.0), tables(1.0, 1.0), "trend_ar")
    assert (more, error) == pytest.approx((5.0, 1.0))


def test_rows_that_the_page_names_are_methods_of_the_table() -> None:
    named = [TABLE[role] for role in ("exact", "bridge", "equal_cost", "dlm")] + TABLE["imputed"]["methods"]
    assert {*named} <= METHODS.keys()
    assert torch.tensor(TABLE["imputed"]["guidance"]).min() == 0
