"""Measures of made tables, where what they should say is known."""

from __future__ import annotations

import sys

import pytest
import torch

from smc_bridge.analysis.table_quality import closest_records, efficacy, imputation_errors, over, quality
from smc_bridge.models.extras import MissingExtraError
from smc_bridge.models.tables.data import Column, Table
from smc_bridge.models.tables.datasets import small

DATA = small()


def shuffled(table: Table) -> Table:
    """The same columns, each in an order of its own."""
    generator = torch.Generator().manual_seed(0)
    numbers, categories = table.numbers.clone(), table.categories.clone()
    for held in (numbers, categories):
        for j in range(held.shape[1]):
            held[:, j] = held[torch.randperm(len(held), generator=generator), j]
    return Table(table.columns, numbers, categories)


def test_a_table_has_no_error_against_itself() -> None:
    same = quality(DATA.train, DATA.train)
    assert same.shapes == pytest.approx(0, abs=1e-9)
    assert same.trends == pytest.approx(0, abs=1e-9)


def test_shuffled_columns_keep_shapes_and_lose_trends() -> None:
    found = quality(DATA.train, shuffled(DATA.train))
    assert found.shapes == pytest.approx(0, abs=1e-9)
    assert found.trends > 0.05


def test_shapes_are_one_minus_the_distance_of_known_columns() -> None:
    columns = (Column("a", "number"), Column("b", "category", values=("x", "y")))
    real = Table(columns, torch.arange(10).double()[:, None], torch.tensor([0, 1] * 5)[:, None])
    made = Table(columns, torch.arange(5, 15).double()[:, None], torch.zeros(10, 1, dtype=torch.int64))
    assert quality(real, made).shapes == pytest.approx(0.5)  # Kolmogorov-Smirnov 1/2 and total variation 1/2


def test_real_rows_teach_the_label_and_shuffled_rows_do_not() -> None:
    real = efficacy(DATA.train, DATA.test, DATA.label)
    nothing = efficacy(shuffled(DATA.train), DATA.test, DATA.label)
    assert real > 0.7
    assert nothing < real - 0.1


def test_copies_are_nearer_to_what_was_learnt_and_new_rows_are_not() -> None:
    assert closest_records(DATA.train, DATA.train, DATA.test) > 0.6
    first, second = DATA.train.split(1, 0.5)
    assert closest_records(second, second, first) == 1.0
    assert closest_records(first, second, first) == 0.0
    assert 0.3 < closest_records(DATA.test, first, second) < 0.7


def test_imputation_errors_are_known_for_the_truth_and_for_a_constant() -> None:
    truth = DATA.test
    names = ("glucose", "progression")
    assert imputation_errors([truth], truth, names) == {"glucose": 0.0, "progression": 0.0}
    glucose = truth.place("glucose")[1]
    numbers, categories = truth.numbers.clone(), truth.categories.clone()
    numbers[:, glucose], categories[:, -1] = numbers[:, glucose].mean(), 0
    constant = imputation_errors([Table(truth.columns, numbers, categories)], truth, names)
    assert constant["glucose"] == pytest.approx(1, abs=0.01)
    assert constant["progression"] == pytest.approx(truth.of("progression").double().mean().item())


def test_a_figure_over_tables_is_their_mean_and_deviation() -> None:
    assert over([0.1, 0.3])[:2] == pytest.approx((0.2, 0.02**0.5))
    assert str(over([0.1, 0.3])) == "0.2000 ± 0.1414 (2 tables)"


def test_what_does_not_fit_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    other = DATA.train.rows(slice(0, 0))
    for call in (
        lambda: quality(DATA.train, other), lambda: efficacy(DATA.train, DATA.test, "glucose"), lambda: over([]),
        lambda: imputation_errors([DATA.train], DATA.test, ("glucose",)),
    ):
        with pytest.raises(ValueError, match=r"give|measure") as caught:
            call()
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "sdmetrics", None)
    with pytest.raises(MissingExtraError, match=r"errors of tables need sdmetrics: .*\[tables\]"):
        quality(DATA.train, DATA.train)
