"""`Codec`: a row of a table as a sequence of tokens, one per column, and back.

    row: age=37, workclass=Private, ..   <->   [BOS, 14, 4, ..]

A category is its own id. Numbers are cut into at most 32 bins: a value that fills a bin by itself (the 0 of a column
that is mostly 0) is a bin of its own, the rest is cut at its quantiles. A bin keeps up to 16 of its own values, and a
row is made of tokens by drawing one of them, so that a column has the law that it was cut from. Ids are shared by the
columns, so each *position* has an alphabet of its own (`allowed`), the first ids up to its column's size; position 0 is
the token that begins a row, the last id, which has no other place. How a row is written stands in `row_text`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from smc_bridge.models.arguments import said, whole_number
from smc_bridge.models.tables.data import Column, Table, table
from smc_bridge.models.tables.row_text import START, part_text, parts_of, row_text
from smc_bridge.models.tabular import generator_of

#: Bins of a column of numbers, at most; values that a bin keeps.
BINS, KEPT = 32, 16


class Weighted(Protocol):
    """What rows are drawn of: the result of a run (`smc_bridge.Result`)."""

    @property
    def prompt(self) -> Sequence[int]:
        """Token ids before those that are drawn."""
        ...

    def sample_tokens(self, count: int | None = None, *, seed: int | None = None) -> Any:
        """Token ids of a draw from the weights."""
        ...


@dataclass(frozen=True)
class Bins:
    """Bins of a column of numbers.

    Attributes:
        values: kept of each bin, from its least to its greatest, `[bins][KEPT]`; a bin that is one value repeats it.
        edges: least number of each bin from the second on, among those that are no single value.
        single: how many of the bins, the first ones, are single values.
    """

    values: tuple[tuple[float, ...], ...]
    edges: tuple[float, ...]
    single: int

    @classmethod
    def of(cls, numbers: Tensor, most: int = BINS) -> Bins:
        """Bins that hold about as many of the `numbers: [n]` each, or single values that hold as many or more."""
        distinct, count = torch.unique_consecutive(numbers.sort().values, return_counts=True)
        alone = distinct if distinct.numel() <= most else distinct[count * most >= numbers.numel()]
        rest = numbers[~torch.isin(numbers, alone)].sort().values
        bins = most - alone.numel()
        cuts = rest[torch.arange(1, bins) * rest.numel() // bins] if rest.numel() else rest
        cuts = torch.unique_consecutive(cuts[cuts > rest[:1]])
        parts = rest.tensor_split(torch.searchsorted(rest, cuts)) if rest.numel() else ()
        kept = [[value] * KEPT for value in alone.tolist()]
        kept += [part[torch.arange(KEPT) * (part.numel() - 1) // (KEPT - 1)].tolist() for part in parts]
        return cls(tuple(map(tuple, kept)), tuple(cuts.tolist()), alone.numel())

    @cached_property
    def table(self) -> Tensor:
        """The values, `[bins, KEPT]` float64."""
        return torch.tensor(self.values, dtype=torch.float64)

    def ids(self, numbers: Tensor) -> Tensor:
        """Which bin each number falls into, `[n]`; one that no bin holds, into the nearest."""
        alone = self.table[: self.single, 0]
        if self.single == len(self.values):
            return (numbers[:, None] - alone).abs().argmin(1)
        edges = torch.tensor(self.edges, dtype=torch.float64)
        found = self.single + torch.bucketize(numbers.contiguous(), edges, right=True)
        same = numbers[:, None] == alone
        return torch.where(same.any(1), same.long().argmax(1), found) if self.single else found


@dataclass(frozen=True)
class Codec:
    """Tokens of the rows of a table; the "tokenizer" of a pair of models of it.

    Attributes:
        columns: of the table, one position each, in their order, after position 0.
        bins: of each column of numbers, by its name.
    """

    columns: tuple[Column, ...]
    bins: Mapping[str, Bins]

    @classmethod
    def of(cls, rows: Table, *, most: int = BINS) -> Codec:
        """A codec of a table's columns.

        Args:
            rows: whose numbers are cut.
            most: bins of a column of numbers.
        Raises:
            ValueError: there is no row, or fewer than two bins.
        """
        most = whole_number("most", most, least=2)
        if not len(rows):
            raise ValueError(f"rows = {said(rows)}: give at least one row, of which bins are cut")
        return cls(rows.columns, {column.name: Bins.of(rows.of(column.name), most) for column in rows.number_columns})

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many ids each position has, position 0 included."""
        return (1, *(
            len(column.values) if column.kind == "category" else len(self.bins[column.name].values)
            for column in self.columns
        ))

    @property
    def vocab_size(self) -> int:
        """Alphabet size A: the ids of the greatest column, and the token that begins a row."""
        return max(self.sizes) + 1

    @property
    def bos_id(self) -> int:
        """The token that begins a row."""
        return self.vocab_size - 1

    def tokens(self, rows: Table) -> Tensor:
        """Tokens of rows, `[n, 1 + C]`.

        Raises:
            ValueError: the table has other columns.
        """
        if rows.columns != self.columns:
            raise ValueError(f"rows have the columns {said([c.name for c in rows.columns])}: give those of the codec")
        found = [torch.full((len(rows),), self.bos_id)]
        for column in self.columns:
            held = rows.of(column.name)
            found.append(held if column.kind == "category" else self.bins[column.name].ids(held))
        return torch.stack(found, 1)

    def rows(self, tokens: Tensor, *, seed: int) -> Table:
        """Rows of whole sequences of tokens `[n, 1 + C]` (or `[n, C]`, without the first).

        Numbers are values that their bins keep: each is drawn alike, and rows of one bin share them out evenly.

        Raises:
            ValueError: sequences of another length, or an id that its column does not have.
        """
        tokens = tokens.cpu()
        if tokens.ndim != 2 or tokens.shape[1] not in (len(self.columns), len(self.sizes)):
            raise ValueError(f"tokens have shape {list(tokens.shape)}: give whole rows, [n, {len(self.sizes)}]")
        tokens, sizes = tokens[:, -len(self.columns) :], torch.tensor(self.sizes[1:])
        for n, j in ((tokens < 0) | (tokens >= sizes)).nonzero()[:1].tolist():
            raise ValueError(f"tokens[{n}]{self._unknown(j, int(tokens[n, j]))}")
        generator, numbers, categories = generator_of(seed), list[Tensor](), list[Tensor]()
        for column, ids in zip(self.columns, tokens.T, strict=True):
            if column.kind == "category":
                categories.append(ids)
            else:
                numbers.append(self.bins[column.name].table[ids, _spread(ids, generator)])
        return table(self.columns, numbers, categories, len(tokens))

    def table_of(self, results: Sequence[Weighted], *, seed: int) -> Table:
        """A table of one row drawn from the weights of each result, its prompt with it.

        Args:
            results: of runs whose rows are whole, as `Sampler.run` gives them.
            seed: of the draws, as `Result.sample` takes it, and of the numbers within their bins (`rows`).
        Raises:
            ValueError: a row is not whole, every weight of a result is zero, or a seed of more than 32 bits.
        """
        generator_of(seed)  # refused before anything is drawn
        tokens = torch.empty(len(results), len(self.sizes), dtype=torch.long)
        for i, result in enumerate(results):
            row = [*result.prompt, *result.sample_tokens(seed=seed)]
            if len(row) != len(self.sizes) or row[0] != self.bos_id:
                raise ValueError(
                    f"results[{i}] has {len(row)} tokens of a row's {len(self.sizes)}: begin with "
                    f"pair.encode({START!r}), and decode to the end of the row"
                )
            tokens[i] = torch.tensor(row)
        return self.rows(tokens, seed=seed)

    def encode(self, text: str) -> list[int]:
        """Ids of the beginning of a row, `row: age=37, workclass=Private`: its first columns, in their order.

        Raises:
            ValueError: it names other columns, or a value that its column does not have.
        """
        given = parts_of(text)
        if len(given) > len(self.columns):
            raise ValueError(f"prompt = {said(text)} has {len(given)} columns: the table has {len(self.columns)}")
        ids = [self.bos_id]
        for column, (name, value) in zip(self.columns, given, strict=False):
            if name != column.name or value is None:
                part = name if value is None else part_text(name, value)
                raise ValueError(f"prompt has {part!r} where {column.name}=.. stands: name the first columns in order")
            ids.append(self._id(column, value))
        return ids

    def _id(self, column: Column, value: str) -> int:
        if column.kind == "category":
            if value not in column.values:
                raise ValueError(f"prompt has {column.name}={value}: give one of {said(list(column.values))}")
            return column.values.index(value)
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"prompt has {column.name}={value}: give a number")
        return int(self.bins[column.name].ids(torch.tensor([number], dtype=torch.float64)))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of a row, or of a part: from the beginning if the first id begins a row, else of its last columns.

        Of a bin, the value in its middle.

        Raises:
            ValueError: there are more ids than columns, or an id that its column does not have.
        """
        tokens = list(ids)
        begins = tokens[:1] == [self.bos_id]
        tokens = tokens[1:] if begins else tokens
        if len(tokens) > len(self.columns):
            raise ValueError(f"ids = {said(tokens)} are {len(tokens)} columns: the table has {len(self.columns)}")
        first = 0 if begins else len(self.columns) - len(tokens)
        parts = []
        for j, i in enumerate(tokens, first):
            if not 0 <= i < self.sizes[1 + j]:
                raise ValueError(f"ids = {said(tokens)}{self._unknown(j, i)}")
            parts.append(part_text(self.columns[j].name, self._value(self.columns[j], i)))
        return row_text(parts, begins=begins)

    def _value(self, column: Column, i: int) -> str:
        if column.kind == "category":
            return column.values[i]
        value = self.bins[column.name].values[i][KEPT // 2]
        short = f"{value:.10g}"
        if float(short) == value:
            return short
        return str(int(value)) if column.whole else repr(value)

    def _unknown(self, j: int, i: int) -> str:
        """What is said of an id that a column does not have, after the name of the tokens."""
        return f" has {i} for {self.columns[j].name!r}: give an id below {self.sizes[1 + j]}"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON; the file appears whole or not at all."""
        bins = {name: asdict(each) for name, each in self.bins.items()}
        data = {"columns": [asdict(column) for column in self.columns], "bins": bins}
        fresh = Path(path).with_name(f".{Path(path).name}.new")
        try:
            fresh.write_text(json.dumps(data, separators=(",", ":")) + "\n", encoding="utf-8")
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Codec:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is not what it wrote. FileNotFoundError: there is none.
        """
        try:
            data: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            columns = tuple(Column(**{**given, "values": tuple(given["values"])}) for given in data["columns"])
            return cls(columns, {
                name: Bins(tuple(map(tuple, given["values"])), tuple(given["edges"]), given["single"])
                for name, given in data["bins"].items()
            })
        except (IsADirectoryError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"path = {os.fspath(path)!r} is no codec of a table: give what Codec.save wrote"
            ) from error


def _spread(ids: Tensor, generator: torch.Generator) -> Tensor:
    """Which of its bin's values each row has, `[n]`: rows of one bin, in a drawn order, take one after the other."""
    order = torch.randperm(ids.numel(), generator=generator)
    order = order[ids[order].sort(stable=True).indices]
    count = ids.bincount()
    rank = torch.arange(ids.numel()) - (count.cumsum(0) - count).repeat_interleave(count)
    first = torch.randint(KEPT, count.shape, generator=generator).repeat_interleave(count)
    return torch.empty_like(ids).scatter_(0, order, (rank + first) % KEPT)


def allowed(sizes: Sequence[int]) -> Tensor:
    """Which ids each position has, `[1 + C, A]`: the alphabet is shared, and a position has the first of it.

    Args:
        sizes: of the positions, of which the first is the token that begins a row, the last id.
    """
    ids = torch.arange(max(sizes) + 1)
    found = ids < torch.tensor(sizes)[:, None]
    found[0] = ids == max(sizes)
    return found
