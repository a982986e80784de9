"""Two frontiers: tokens per DLM forward and accuracy against the KL bound, of the product of experts and of `Clamp`.

    python -m benchmarks.frontier [--n 200] [--threads N] [--seed 0] [--fresh] [--quick]
        [--page docs/benchmarks/frontier.md] [--out runs] [--markdown]

Every row is a call of `smc-bridge compare`, whose arguments stand in its first column; rows with many particles have
fewer problems. The rows are those of `benchmarks/tables.toml`. Each is kept in a file under `OUT/rows`
(`benchmarks.comparisons`).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.comparisons import Case, Figures, add_arguments, make_rows
from benchmarks.harness import HERE
from benchmarks.pages import error_bars
from benchmarks.problems import TABLES
from benchmarks.report import Report, Sheet, execute
from smc_bridge.analysis.plots.style import looks
from smc_bridge.estimate import Estimate

NAME = "frontier"
TABLE: dict[str, Any] = TABLES[NAME]
#: Frontiers, and how a point on each is spelled.
SPELLED = {"PoE, over w": "w={:g}", "Clamp, over beta": "intermediate=clamp,beta={:g}"}
#: Temperature and N.
Panel = tuple[float, int]
Rows = dict[str, list[Case]]


def panels(n: int, seed: int, *, quick: bool = False) -> dict[Panel, Rows]:
    """The rows of every panel, by frontier; `quick` gives the first point of each, of one particle."""
    found: dict[Panel, Rows] = {}
    for temperature, (count, share) in itertools.product(TABLE["temperatures"], TABLE["share"].items()):
        if quick and int(count) > 1:
            continue
        found[temperature, int(count)] = {
            name: [
                Case(f"smc-{count},{text.format(at)}", max(2, round(share * n)), temperature, seed)
                for at in TABLE["points"][name][: 1 if quick else None]
            ]
            for name, text in SPELLED.items()
        }
    return found


def measure(options: argparse.Namespace) -> Report:
    """A table for each temperature and N, and the picture."""
    plan = panels(options.n, options.seed, quick=options.quick)
    cases = [case for rows in plan.values() for line in rows.values() for case in line]
    made = make_rows(cases, options.out / "rows", processes=options.threads, fresh=options.fresh)
    columns = ("smc-bridge compare", "KL bound, nats / token", "tokens / DLM forward", "accuracy, %")
    sheets = [
        Sheet(f"Temperature {temperature:g}, N = {count}", columns, [
            [f"`{case.arguments}`", *(estimate.text() for estimate in _point(made[case]))]
            for line in rows.values() for case in line
        ])
        for (temperature, count), rows in plan.items()
    ]
    data = {"rows": [{"command": f"smc-bridge compare {case.arguments}", **vars(row)} for case, row in made.items()]}
    columns_drawn, rows_drawn = len(TABLE["share"]), 2 * len(TABLE["temperatures"])
    return Report(
        sheets, data, partial(draw, plan, made), size=(2.8 * columns_drawn + 0.8, 2.3 * rows_drawn),
        spread="in brackets 95 % intervals, of bounds those of certificate.md",
        picture="Tokens per DLM forward and accuracy against the KL bound",
    )


def _point(found: Figures) -> tuple[Estimate, Estimate, Estimate]:
    """KL bound per token, tokens per DLM forward, and accuracy in per cent."""
    row = found.row
    assert row.nats_per_token is not None, "smc is properly weighted"
    assert row.tokens_per_dlm_forward is not None, "smc drafts"
    assert row.accuracy is not None, "the task has answers"
    return row.nats_per_token, row.tokens_per_dlm_forward, row.accuracy.times(100)


def draw(plan: Mapping[Panel, Rows], made: Mapping[Case, Figures], figure: Any) -> None:
    """Tokens per forward and accuracy over the bound, a row of both for each temperature, a column for each N."""
    temperatures, counts = (list(dict.fromkeys(every)) for every in zip(*plan, strict=True))
    rows = list(itertools.product(temperatures, ((1, "tokens / DLM forward"), (2, "accuracy, %"))))
    axes = figure.subplots(len(rows), len(counts), squeeze=False, sharey="row")
    for (row, (temperature, (place, label))), (column, count) in itertools.product(enumerate(rows), enumerate(counts)):
        ax = axes[row, column]
        for look, (name, line) in zip(looks(len(SPELLED)), plan[temperature, count].items(), strict=True):
            found = [_point(made[case]) for case in line]
            bounds, heights = [each[0].times(1000) for each in found], [each[place] for each in found]
            ax.errorbar(
                [x.value for x in bounds], [y.value for y in heights], xerr=error_bars(bounds),
                yerr=error_bars(heights), color=look.color, marker=look.marker, linestyle=look.linestyle, label=name,
                markersize=4, elinewidth=0.6,
            )
        ax.set_xscale("symlog", linthresh=1.0)
        ax.set_title(f"T = {temperature:g}, N = {count}", fontsize=8)
        ax.tick_params(labelsize=7)
        ax.grid(visible=True, color="0.93")
        if not column:
            ax.set_ylabel(label, fontsize=8)
        if row == len(rows) - 1:
            ax.set_xlabel("KL bound (nats / 1,000 tokens)", fontsize=8)
    axes[0, 0].legend(fontsize=7)


PAGE: Path = HERE / "docs" / "benchmarks" / f"{NAME}.md"
main = partial(execute, NAME, __doc__, add_arguments, measure, page=PAGE, shared=True)

if __name__ == "__main__":
    main()
