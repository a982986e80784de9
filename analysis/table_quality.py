"""How good the rows of a made table are: the measures that tables are judged by.

- `quality`: errors of column shapes and of pair trends, each 1 - score of sdmetrics' quality report. Shapes compare
  columns one by one (Kolmogorov-Smirnov, total variation), trends compare pairs (correlations, contingency tables).
- `efficacy`: a classifier of boosted trees learns a column from the made rows and is tested on real ones: area under
  its ROC curve. Rows that were real set what can be reached.
- `closest_records`: of the made rows, how many are nearer to a row that was learnt from than to any of as many that
  were not: 1/2 if nothing was copied.
- `imputation_errors`: of columns that were drawn anew given the others.

Made tables are random: measure several, and say mean and deviation (`over`).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from smc_bridge.models.arguments import said, whole_number
from smc_bridge.models.extras import need
from smc_bridge.models.tables.data import Table

#: Distances that differ by no more are equal.
TIE = 1e-6


class Quality(NamedTuple):
    """Errors of a table, from 0 to 1.

    Attributes:
        shapes: of columns, mean over them.
        trends: of pairs of columns, mean over them.
    """

    shapes: float
    trends: float


class Over(NamedTuple):
    """A figure over several tables.

    Attributes:
        mean: over the tables.
        deviation: their standard deviation, NaN of one.
        tables: how many.
    """

    mean: float
    deviation: float
    tables: int

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.deviation:.4f} ({self.tables} tables)"


def over(figures: Sequence[float]) -> Over:
    """Mean and standard deviation of a figure over tables.

    Raises:
        ValueError: there is none.
    """
    if not figures:
        raise ValueError("figures = []: measure at least one table")
    return Over(
        statistics.fmean(figures), statistics.stdev(figures) if len(figures) > 1 else float("nan"), len(figures)
    )


def quality(real: Table, made: Table) -> Quality:
    """Errors of column shapes and pair trends, 1 - score of sdmetrics.

    Raises:
        MissingExtraError: sdmetrics is not installed.
        ValueError: tables of other columns, or without rows.
    """
    need("sdmetrics", "errors of tables", extra="tables")
    from sdmetrics.reports.single_table import QualityReport

    _check(real, made)
    kinds = {"number": "numerical", "category": "categorical"}
    columns = {c.name: {"sdtype": kinds[c.kind]} for c in real.columns}
    report = QualityReport()
    report.generate(real.to_frame(), made.to_frame(), {"columns": columns}, verbose=False)
    scores = report.get_properties().set_index("Property")["Score"]
    return Quality(1 - float(scores["Column Shapes"]), 1 - float(scores["Column Pair Trends"]))


def efficacy(made: Table, real: Table, label: str, *, seed: int = 0) -> float:
    """Area under the ROC curve, on real rows, of boosted trees that learnt a column of two values from made rows.

    Args:
        made: rows to learn from.
        real: rows that nothing was learnt from.
        label: name of the column.
        seed: of the trees.
    Raises:
        MissingExtraError: scikit-learn is not installed.
        ValueError: the column has not two values, in the made rows too.
    """
    need("sklearn", "boosted trees", extra="tables")
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score

    _check(made, real)
    kind, at = made.place(label)
    if kind != "category" or made.sizes[at] != 2 or not 0 < int(made.of(label).sum()) < len(made):
        raise ValueError(f"label = {label!r} of {made!r}: give a column of two values that both occur")
    others = [j for j in range(len(made.sizes)) if j != at]
    first = made.numbers.shape[1]
    trees = HistGradientBoostingClassifier(
        categorical_features=list(range(first, first + len(others))), random_state=whole_number("seed", seed, least=0)
    )
    trees.fit(_features(made, others), made.of(label).numpy())
    chances = trees.predict_proba(_features(real, others))[:, 1]
    return float(roc_auc_score(real.of(label).numpy(), chances))


def closest_records(made: Table, learnt: Table, held_out: Table, *, seed: int = 0) -> float:
    """Share of made rows whose closest record is one that was learnt from; a tie counts half.

    Distances are Gower's: the difference of numbers, in ranges of the column, plus 1 for each category that differs.
    Of the larger real part as many rows are drawn as the other has, so that 1/2 is what copies nothing.

    Args:
        made: rows.
        learnt, held_out: real rows, that were and were not learnt from.
        seed: of the rows that are drawn.
    """
    _check(made, learnt)
    _check(made, held_out)
    size = min(len(learnt), len(held_out))
    real = [part.split(seed, size / len(part))[0] for part in (learnt, held_out)]
    low, high = learnt.numbers.amin(0), learnt.numbers.amax(0)
    scale = torch.where(high > low, high - low, 1.0)
    own, train, test = (_place(table, scale) for table in (made, *real))
    further = torch.cat([
        torch.cdist(part, test, p=1).amin(1) - torch.cdist(part, train, p=1).amin(1) for part in torch.split(own, 256)
    ])
    return float(((further > TIE).double() + (further.abs() <= TIE).double() / 2).mean())


def imputation_errors(drawn: Sequence[Table], real: Table, columns: Sequence[str]) -> dict[str, float]:
    """Errors of columns that were drawn anew given the others, by name.

    Of a column of numbers, the root of the mean square error of the draws' mean, in standard deviations of the column;
    of categories, the share of rows whose most frequent draw is wrong.

    Args:
        drawn: tables with the columns drawn anew; several, to be averaged.
        real: what stood there.
        columns: their names.
    """
    if not drawn:
        raise ValueError("drawn = []: give at least one table")
    for table in drawn:
        _check(table, real)
        if len(table) != len(real):
            raise ValueError(f"drawn = {table!r}: give tables of the {len(real)} real rows")
    found = {}
    for name in columns:
        kind, at = real.place(name)
        truth, draws = real.of(name), torch.stack([table.of(name) for table in drawn])
        if kind == "number":
            found[name] = float((draws.mean(0) - truth).square().mean().sqrt() / truth.std())
        else:
            votes = functional.one_hot(draws, real.sizes[at]).sum(0)
            found[name] = float((votes.argmax(1) != truth).double().mean())
    return found


def _features(table: Table, categories: Sequence[int]) -> Any:
    return torch.cat([table.numbers, table.categories[:, list(categories)].double()], 1).numpy()


def _place(table: Table, scale: Tensor) -> Tensor:
    """Rows as points whose distance, summed over coordinates, is Gower's, `[n, D]` float32."""
    parts = [table.numbers / scale]
    parts += [functional.one_hot(table.categories[:, j], size) / 2 for j, size in enumerate(table.sizes)]
    return torch.cat([part.float() for part in parts], 1)


def _check(some: Table, other: Table) -> None:
    if some.columns != other.columns:
        raise ValueError(f"tables = {said(some)} and {said(other)}: give tables of the same columns")
    if not len(some) or not len(other):
        raise ValueError("a table has no rows: give tables with rows")
