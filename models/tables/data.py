"""`Table`: rows of numbers and categories, in a fixed order of columns.

Numbers and categories stand apart, as tensors: `numbers[:, j]` is the j-th column that holds numbers, and
`categories[:, j]` the j-th that holds categories, as places in that column's `values`. pandas is imported when a data
frame is asked for or given, and not before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from smc_bridge.models.arguments import real_between, said
from smc_bridge.models.extras import need
from smc_bridge.models.tabular import generator_of

if TYPE_CHECKING:
    import pandas as pd

#: Whole numbers below it are all told apart by float64.
EXACT = 2.0**53


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: of the column.
        kind: "number" or "category".
        values: of a category, in order of its ids; () for numbers.
        whole: whether the numbers are whole; False for a category.
    Raises:
        ValueError: a category without values or with one twice, or numbers with values.
    """

    name: str
    kind: Literal["number", "category"]
    values: tuple[str, ...] = ()
    whole: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("number", "category"):
            raise ValueError(f"kind = {said(self.kind)} of the column {self.name!r}: give 'number' or 'category'")
        if (self.kind == "category") != bool(self.values):
            raise ValueError(f"values = {said(self.values)} of the {self.kind} {self.name!r}: categories have values")
        if len(set(self.values)) < len(self.values):
            raise ValueError(f"values = {said(self.values)} of {self.name!r} hold one twice: give each once")


@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """Rows of a table.

    Attributes:
        columns: in the order of the table.
        numbers: `[n, Cn]`, float64: the columns of numbers, in their order.
        categories: `[n, Cc]`, int64: ids of the columns of categories, in their order.
    Raises:
        ValueError: shapes or types that do not fit the columns, a number that is not finite, an id without a value.
    """

    columns: tuple[Column, ...]
    numbers: Tensor
    categories: Tensor

    def __post_init__(self) -> None:
        names = [c.name for c in self.columns]
        if len(set(names)) < len(names):
            raise ValueError(f"columns = {said(names)} hold a name twice: give each once")
        for kind, held, dtype, wanted in (
            ("numbers", self.numbers, torch.float64, self.number_columns),
            ("categories", self.categories, torch.int64, self.category_columns),
        ):
            if held.ndim != 2 or held.shape[1] != len(wanted) or held.dtype is not dtype:
                raise ValueError(
                    f"{kind} = {str(held.dtype).removeprefix('torch.')} of shape {list(held.shape)}: give "
                    f"{str(dtype).removeprefix('torch.')} of shape [n, {len(wanted)}]"
                )
        if len(self.numbers) != len(self.categories):
            raise ValueError(f"numbers have {len(self.numbers)} rows and categories {len(self.categories)}")
        if not bool(self.numbers.isfinite().all()):
            raise ValueError("numbers hold one that is not finite: leave out those rows")
        sizes = torch.tensor(self.sizes, dtype=torch.int64, device=self.categories.device)
        if bool(((self.categories < 0) | (self.categories >= sizes)).any()):
            raise ValueError(f"categories hold an id outside of the values of its column (sizes {said(self.sizes)})")

    def __len__(self) -> int:
        return len(self.numbers)

    def __repr__(self) -> str:
        return (
            f"Table of {len(self)} rows: {len(self.number_columns)} columns of numbers, "
            f"{len(self.category_columns)} of categories"
        )

    @cached_property
    def number_columns(self) -> tuple[Column, ...]:
        """The columns of `numbers`."""
        return tuple(c for c in self.columns if c.kind == "number")

    @cached_property
    def category_columns(self) -> tuple[Column, ...]:
        """The columns of `categories`."""
        return tuple(c for c in self.columns if c.kind == "category")

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values each column of `categories` has."""
        return tuple(len(c.values) for c in self.category_columns)

    def place(self, name: str) -> tuple[str, int]:
        """Kind of a column, and where it stands in `numbers` or `categories`.

        Raises:
            ValueError: there is no such column.
        """
        for kind, columns in (("number", self.number_columns), ("category", self.category_columns)):
            for j, column in enumerate(columns):
                if column.name == name:
                    return kind, j
        raise ValueError(f"column = {said(name)}: the table has {', '.join(c.name for c in self.columns)}")

    def of(self, name: str) -> Tensor:
        """A column, `[n]`: numbers in float64, or ids of categories in int64."""
        kind, j = self.place(name)
        return (self.numbers if kind == "number" else self.categories)[:, j]

    def rows(self, index: Tensor | Sequence[int] | slice) -> Table:
        """The rows of an index: places, a mask, or a slice."""
        at: Any = index if isinstance(index, Tensor | slice) else torch.tensor(list(index), dtype=torch.int64)
        return Table(self.columns, self.numbers[at], self.categories[at])

    def split(self, seed: int, share: float) -> tuple[Table, Table]:
        """Two tables that hold every row once, in a drawn order.

        Args:
            seed: of the order.
            share: of the rows that are in the first, rounded to whole rows.
        """
        real_between("share", share, 0.0, 1.0, remedy="give a number from 0 to 1")
        order = torch.randperm(len(self), generator=generator_of(seed))
        cut = round(share * len(self))
        return self.rows(order[:cut]), self.rows(order[cut:])

    def to_frame(self) -> pd.DataFrame:
        """The table as a data frame: floats or ints, and texts, in the order of the columns.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        need("pandas", "data frames", extra="tables")
        import pandas as pd

        data: dict[str, Any] = {}
        for column in self.columns:
            held = self.of(column.name).cpu().numpy()
            if column.kind == "category":
                data[column.name] = pd.Series([column.values[i] for i in held], dtype="str")
            else:
                data[column.name] = held.round().astype("int64") if column.whole else held
        return pd.DataFrame(data)

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, columns: Sequence[Column] | None = None) -> Table:
        """A table of a data frame.

        Args:
            frame: numbers are columns of a numeric type, all others are categories of texts. Names that are no texts
                are read as such.
            columns: of the table. Default: those of the frame, values in alphabetical order.
        Raises:
            ValueError: a value that its column does not have, or that is missing, a column that is not there or whose
                name stands there twice, or a whole number of more than 53 bits.
        """
        names = [str(name) for name in frame.columns]
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if twice:
            raise ValueError(f"frame has {names.count(twice[0])} columns of the name {twice[0]!r}: give each its own")
        given = {name: frame.iloc[:, j] for j, name in enumerate(names)}
        wanted = names if columns is None else [column.name for column in columns]
        for name in wanted:
            if name not in given:
                raise ValueError(f"frame has no column {name!r}: it has {said(names)}")
            _check_there(name, given[name])
        found = tuple(_column(name, given[name]) for name in wanted) if columns is None else tuple(columns)
        numbers = [_numbers(column.name, given[column.name]) for column in found if column.kind == "number"]
        texts = [(c, given[c.name].astype("str").tolist()) for c in found if c.kind == "category"]
        return table(found, numbers, [ids(column, held) for column, held in texts], len(frame))


def table(columns: Sequence[Column], numbers: Sequence[Tensor], categories: Sequence[Tensor], rows: int) -> Table:
    """A table of `rows` rows, of columns `[n]` of numbers and of ids."""
    return Table(
        tuple(columns),
        torch.stack([x.double() for x in numbers], 1) if numbers else torch.zeros(rows, 0, dtype=torch.float64),
        torch.stack(list(categories), 1) if categories else torch.zeros(rows, 0, dtype=torch.int64),
    )


def ids(column: Column, texts: Sequence[str]) -> Tensor:
    """Ids of texts in a column of categories, `[n]`.

    Raises:
        ValueError: a text that is no value of the column.
    """
    at = {value: i for i, value in enumerate(column.values)}
    unknown = next((text for text in texts if text not in at), None)
    if unknown is not None:
        raise ValueError(f"{column.name} = {said(unknown)}: the column has {said(list(column.values))}")
    return torch.tensor([at[text] for text in texts], dtype=torch.int64)


def _column(name: str, held: pd.Series[Any]) -> Column:
    if not len(held):
        raise ValueError(f"column {name!r} of the frame has no rows: give at least one, or the table's columns")
    if held.dtype.kind in "iuf":
        return Column(name, "number", whole=held.dtype.kind in "iu")
    return Column(name, "category", values=tuple(sorted(set(held.astype("str")))))


def _check_there(name: str, held: pd.Series[Any]) -> None:
    """Raise ValueError, naming the column, if some of its values are missing."""
    count = int(held.isna().sum())
    if count:
        remedy = "leave those rows out" if held.dtype.kind in "iuf" else 'leave those rows out, or give a value, as "?"'
        raise ValueError(f"column {name!r} of the frame has no value in {count} of {len(held)} rows: {remedy}")


def _numbers(name: str, held: pd.Series[Any]) -> Tensor:
    """A column of numbers, `[n]` float64."""
    try:
        found = torch.tensor(held.to_numpy(dtype="float64"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"column {name!r} of the frame holds {said(held.iloc[0])}: give numbers") from error
    endless = int((~found.isfinite()).sum())
    if endless:
        raise ValueError(f"column {name!r} of the frame has {endless} endless numbers: leave those rows out")
    if held.dtype.kind in "iu" and bool((found.abs() >= EXACT).any()):
        raise ValueError(f"column {name!r} of the frame has whole numbers of more than 53 bits: give them as texts")
    return found
