"""TabDiff on UCI Adult: how good its rows are, with and without forecasts, and how well it imputes.

    python -m benchmarks.table_diffusion [--tables 3] [--rows 5000] [--impute 2000] [--seed 0] [--json FILE]

Errors of column shapes and pair trends (1 - score of `sdmetrics`) against the rows that it learnt from; area under the
ROC curve of boosted trees that learn the income from made rows and are tested on the real test rows; share of rows
whose closest record was learnt from. Means over tables with their standard deviation, beside as many held-out real
rows, which are what chance alone gives. Imputation: each column alone given the others, four draws of test rows
averaged.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from smc_bridge.analysis.table_quality import closest_records, efficacy, imputation_errors, over, quality
from smc_bridge.commands.base import whole
from smc_bridge.models.learned.store import load
from smc_bridge.models.tables.data import Table
from smc_bridge.models.tables.datasets import Dataset, adult
from smc_bridge.models.tables.sampler import Sampling, Source, draw
from smc_bridge.models.tables.skipping import Skipping
from smc_bridge.models.tables.tabdiff import TabDiff
from smc_bridge.models.training.table_diffusion import WEIGHTS

#: What is measured: how rows are drawn.
FORMS: dict[str, Sampling] = {
    "as published, 50 steps": Sampling(),
    "forecast, growth 0.75": Sampling(skipping=Skipping()),
    "forecast, growth 3": Sampling(skipping=Skipping(growth=3.0)),
    "as many calls: 15 steps": Sampling(steps=15),
    "as many calls: 11 steps": Sampling(steps=11),
}
#: Columns that are imputed, with guidance of these weights; draws that are averaged, and their steps.
IMPUTED, GUIDANCE, DRAWS, STEPS = ("income", "age", "education", "occupation", "hours-per-week"), (0.0, 0.6), 4, 10


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure tables that TabDiff made, and print the figures."""
    parser = argparse.ArgumentParser("python -m benchmarks.table_diffusion", description="TabDiff on UCI Adult.")
    parser.add_argument("--tables", type=whole(1), default=3, help="of each form (default: 3)")
    parser.add_argument("--rows", type=whole(2), default=5000, help="of a table (default: 5000)")
    parser.add_argument("--impute", type=whole(2), default=2000, help="test rows that are imputed (default: 2000)")
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS), metavar="FORM", help="of rows")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the first table")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="file of a TabDiff of Adult")
    parser.add_argument("--json", type=Path, help="file for the figures of each table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data, model = adult(), load(options.weights, kind="table_diffusion")
    assert isinstance(model, TabDiff)
    found: dict[str, list[dict[str, float]]] = {}

    def note(name: str, make: Callable[[int], tuple[Table, int, Table]]) -> None:
        found[name] = [measured(data, *make(options.seed + table), seed=table) for table in range(options.tables)]
        figures = (f"{key} {over([one[key] for one in found[name]])}" for key in found[name][0])
        print(f"{name}: {', '.join(figures)}", flush=True)

    note("held-out real rows", partial(real, data.test, options.rows))
    for form in options.forms:
        note(form, partial(made, model, data.test, options.rows, FORMS[form]))
    rows, _ = data.test.split(options.seed, options.impute / len(data.test))
    for weight in GUIDANCE:
        errors = imputed(model, rows, options.seed, weight)
        found[f"imputed, guidance {weight}"] = [errors]
        told = ", ".join(f"{name} {error:.4f}" for name, error in errors.items())
        print(f"imputed, guidance {weight}: {told}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"options": vars(options) | {"json": None}, "found": found}, default=str))


def real(test: Table, rows: int, seed: int) -> tuple[Table, int, Table]:
    """Real rows as a table, no calls, and the other real rows."""
    some, others = test.split(seed, rows / len(test))
    return some, 0, others


def made(model: TabDiff, test: Table, rows: int, sampling: Sampling, seed: int) -> tuple[Table, int, Table]:
    """A table of a TabDiff, the calls of its network for a row, and real rows that it has not seen."""
    calls = draw(model, Source((torch.Generator().manual_seed(0),), 1), sampling).calls
    return model.sample(rows, seed, sampling=sampling), calls, test


def measured(data: Dataset, table: Table, calls: int, unseen: Table, *, seed: int) -> dict[str, float]:
    """Figures of one table; of real rows, the closest record is sought among others."""
    started = time.process_time()
    errors = quality(data.train, table)
    return {
        "shapes": errors.shapes, "trends": errors.trends, "auroc": efficacy(table, data.test, data.label, seed=seed),
        "nearer to learnt": closest_records(table.rows(slice(0, 1000)), data.train, unseen, seed=seed),
        "calls": calls, "seconds of measuring": time.process_time() - started,
    }


def imputed(model: TabDiff, rows: Table, seed: int, guidance: float) -> dict[str, float]:
    """Imputation errors of single columns, by name."""
    errors: dict[str, float] = {}
    for name in IMPUTED:
        drawn = [
            model.impute(rows, (name,), seed + draw_, guidance=guidance, sampling=Sampling(steps=STEPS))
            for draw_ in range(DRAWS)
        ]
        errors |= imputation_errors(drawn, rows, (name,))
    return errors


if __name__ == "__main__":
    main(sys.argv[1:])
