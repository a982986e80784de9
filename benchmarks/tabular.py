"""Tables: how columns hang together in rows of a bridge, of either model alone and of plain IS, at what cost.

    python -m benchmarks.tabular [--methods "AR model" "bridge, K = 4"] [--tables 5] [--rows 2000] [--batch 500]
        [--quick] [--page docs/benchmarks/tabular.md] [--threads N] [--seed 0] [--out runs] [--markdown]

The pair `adult` makes tables of so many rows: each row is one sequence, drawn from the final weights of a run of its
own. A table is held against the real one by what tables are judged by (column shapes, pair trends of `sdmetrics`,
where error = 1 - score) and as tokens, if Adult is installed, and in any case against rows of the AR model itself, as
tokens: total variation of columns, and of pairs of columns (`smc_bridge.analysis.token_tables`). Figures are means
over tables with their standard deviation. Plain IS has as many lanes as the bridge scores rows with both models. The
rows shown, and what is wanted of them, are those of `benchmarks/tables.toml`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.harness import HERE, progress
from benchmarks.problems import TABLES
from benchmarks.report import Report, Sheet, Verdict, execute
from smc_bridge.analysis.token_tables import apart
from smc_bridge.commands.base import whole
from smc_bridge.decode import decode
from smc_bridge.models.extras import MissingExtraError
from smc_bridge.models.learned.store import load
from smc_bridge.models.pairs import Pair, load_pair
from smc_bridge.models.tables.data import Table
from smc_bridge.models.tables.datasets import Dataset, adult
from smc_bridge.models.tables.tabdiff import TabDiff
from smc_bridge.models.training.table_diffusion import WEIGHTS
from smc_bridge.registry import spelled

NAME = "tabular"
TABLE: dict[str, Any] = TABLES[NAME]
METHODS: dict[str, str] = TABLE["methods"]
#: Rows that come of no pair: TabDiff's, which has a network of its own, and real ones that nobody has learnt from.
TABDIFF, REAL = "TabDiff, 50 steps", "held-out rows"
#: Rows that stand for the AR model's law, by so many times the rows of a table.
MANY = 5


class Cost(NamedTuple):
    """Means over rows.

    Attributes:
        ar, dlm: forwards of either model.
        rows: rows that both scored.
        nats: of the KL bound; NaN of what has no weights.
    """

    ar: float
    dlm: float
    rows: float
    nats: float


class Made(NamedTuple):
    """One table.

    Attributes:
        errors: by their names in `ERRORS`, per cent; those against the real table are missing where there is none.
        cost: of its rows; None of what comes of no pair.
    """

    errors: Mapping[str, float]
    cost: Cost | None


class Truth(NamedTuple):
    """What tables are held against.

    Attributes:
        exact: tokens of rows of the AR model, `[n, C]`.
        real: the real table; None where it is not installed.
        tokens: of its rows, `[m, C]`.
    """

    exact: Tensor
    real: Dataset | None
    tokens: Tensor | None


#: Columns of the tables of figures: what of `Made.errors`, and its head.
ERRORS = {
    "trend": "pair trends, error %", "shape": "column shapes, error %", "trend_real": "pairs, TV to real rows %",
    "trend_ar": "pairs, TV to AR rows %", "shape_ar": "columns, TV to AR rows %",
}


def configure(parser: argparse.ArgumentParser, quick: bool) -> None:
    """Add the arguments of this benchmark."""
    default = TABLE["quick"] if quick else list(METHODS)
    parser.add_argument(
        "--methods", nargs="+", choices=list(METHODS), default=default, metavar="NAME",
        help="rows of benchmarks/tables.toml (default: all)",
    )
    parser.add_argument("--tables", type=whole(2), default=2 if quick else 5, help="of each method (default: 5)")
    parser.add_argument("--rows", type=whole(2), default=20 if quick else 2000, help="of a table (default: 2000)")
    parser.add_argument("--batch", type=whole(1), default=500, help="rows that are decoded at a time (default: 500)")


def draw(pair: Pair, text: str, count: int, *, seed: int, batch: int) -> tuple[Tensor, Cost]:
    """Rows of a method as tokens, `[n, C]`, one drawn from the weights of each run, and what they cost."""
    begin, columns = pair.tokenizer.bos_id, len(pair.tokenizer.columns)
    decoder = spelled(text).make(SimpleNamespace(dlm=pair.dlm, ar=pair.ar))  # without texts, which nobody reads
    runs = decode(
        decoder, [[begin]] * count, seed=range(seed * count, (seed + 1) * count), max_new_tokens=columns, batch=batch
    )
    rows = [run.sequences[0] if len(run.sequences) == 1 else run.sample(seed=seed) for run in runs]
    works = [run.forwards for run in runs]
    return torch.tensor(rows), Cost(
        statistics.fmean(w.ar_forwards for w in works), statistics.fmean(w.dlm_forwards for w in works),
        statistics.fmean(w.ar_rows + w.dlm_rows for w in works),
        -statistics.fmean(run.log_evidence for run in runs) if runs[0].proper else float("nan"),
    )


def errors(truth: Truth, tokens: Tensor, made: Table) -> dict[str, float]:
    """How far a table is from the AR model's rows and from real ones.

    Args:
        truth: what it is held against.
        tokens: of its rows, `[n, C]`.
        made: the table.
    """
    near = apart(tokens, truth.exact)
    found = {"trend_ar": 100 * near.trends, "shape_ar": 100 * near.shapes}
    if truth.real is None or truth.tokens is None:
        return found
    return found | {"trend_real": 100 * apart(tokens, truth.tokens).trends} | against(truth.real, made)


def against(real: Dataset, made: Table) -> dict[str, float]:
    """Errors of a table's column shapes and pair trends by `sdmetrics`, per cent."""
    from smc_bridge.analysis.table_quality import quality

    found = quality(real.train, made)
    return {"trend": 100 * found.trends, "shape": 100 * found.shapes}


def measure(options: argparse.Namespace) -> Report:
    """Every method, table by table."""
    pair, real = load_pair("adult", device="cpu"), None if options.quick else rows_of_adult()
    chosen = list(dict.fromkeys(options.methods))
    equal, bridge = TABLE["equal_cost"], TABLE["bridge"]
    chosen.sort(key=lambda name: name == equal)  # has the lanes that the bridge pays for
    found: dict[str, list[Made]] = {name: [] for name in chosen}
    with progress(NAME, len(chosen) * options.tables + 1) as advance:
        law, many = METHODS[TABLE["exact"]], MANY * options.rows
        exact, _ = draw(pair, law, many, seed=options.seed + 10_000, batch=options.batch)
        truth = Truth(exact, real, None if real is None else pair.tokenizer.tokens(real.train)[:, 1:])
        advance()
        lanes = 1
        for name in chosen:
            text = METHODS[name].format(lanes)
            for table in range(options.tables):
                rows, cost = draw(pair, text, options.rows, seed=options.seed + table, batch=options.batch)
                found[name].append(Made(errors(truth, rows, pair.tokenizer.rows(rows, seed=table)), cost))
                advance()
            if name == bridge:
                lanes = max(2, round(statistics.fmean(made.cost.rows for made in found[name] if made.cost)) - 1)
    for name, make in others(real, options.rows).items():
        found[name] = []
        for table in range(options.tables):
            made = make(table)
            found[name].append(Made(errors(truth, pair.tokenizer.tokens(made)[:, 1:], made), None))
    order = [name for name in METHODS if name in chosen] + [name for name in found if name not in METHODS]
    return Report(
        [_sheet({name: found[name] for name in order}, options, lanes)],
        {"tables": found, "lanes": lanes}, lambda figure: _draw(figure, found), verdicts=_verdicts(found, pair),
        spread="means over tables ± their standard deviation",
        picture="Error of pair trends against forwards of the AR model",
    )


def others(real: Dataset | None, count: int) -> dict[str, Callable[[int], Table]]:
    """Tables of so many rows that come of no pair, by name, of a seed each: where there are weights, and real rows."""
    found: dict[str, Callable[[int], Table]] = {}
    if WEIGHTS.is_file():
        network = load(WEIGHTS, kind="table_diffusion")
        assert isinstance(network, TabDiff)
        found[TABDIFF] = lambda seed: network.sample(count, seed)
    if real is not None:
        found[REAL] = lambda seed: real.test.split(seed, min(1.0, count / len(real.test)))[0]
    return found


def rows_of_adult() -> Dataset | None:
    """The real rows, None where they or their measures are not installed."""
    try:
        return adult()
    except MissingExtraError:
        return None


def mean(made: Sequence[Made], error: str) -> float:
    """Mean of an error over tables."""
    return statistics.fmean(each.errors[error] for each in made)


def _sheet(found: Mapping[str, Sequence[Made]], options: argparse.Namespace, lanes: int) -> Sheet:
    shown = [name for name in ERRORS if all(name in each.errors for made in found.values() for each in made)]
    columns = ("rows of", *(ERRORS[name] for name in shown))
    lines = []
    for name, made in found.items():
        cells = [
            f"{mean(made, error):.2f} ± {statistics.stdev(each.errors[error] for each in made):.2f}" for error in shown
        ]
        costs = [each.cost for each in made if each.cost]
        spent = [statistics.fmean(column) for column in zip(*costs, strict=True)] if costs else []
        nats = "-" if not spent or spent[3] != spent[3] else f"{max(spent[3], 0.0):.2f}"
        lines.append((name, *cells, *(f"{x:.1f}" for x in spent[:3]), *(["-"] * (3 - len(spent[:3]))), nats))
    return Sheet(
        f"{options.tables} tables of {options.rows} rows", (*columns, "AR forwards", "DLM forwards", "rows scored",
        "KL bound, nats"), lines,
        note=f"Plain IS has {lanes} lanes. Forwards and rows scored are those for one row of a table.",
    )


def _verdicts(found: Mapping[str, Sequence[Made]], pair: Pair) -> list[Verdict]:
    own, ar, bad = found.get(TABLE["bridge"]), found.get(TABLE["exact"]), found.get(TABLE["equal_cost"])
    dlm = found.get(TABLE["dlm"])
    if not (own and ar and bad and dlm):
        return []
    forwards = statistics.fmean(made.cost.ar for made in own if made.cost)
    half = len(pair.tokenizer.columns) // 2
    verdicts = [Verdict("AR forwards of a row of the bridge", forwards, half, False)]
    for error in ("trend", "trend_real", "trend_ar"):
        if error in own[0].errors:
            head, by = ERRORS[error], mean(own, error)
            verdicts += [
                Verdict(f"{head}: bridge over AR model", by / mean(ar, error), TABLE["trends"], False),
                Verdict(f"{head}: DLM over bridge", mean(dlm, error) / by, 1.0),
                Verdict(f"{head}: plain IS over bridge", mean(bad, error) / by, 1.0),
            ]
    return verdicts


def _draw(figure: Any, found: Mapping[str, Sequence[Made]]) -> None:
    ax = figure.subplots()
    error = "trend_real" if all("trend_real" in made[0].errors for made in found.values()) else "trend_ar"
    for name, made in found.items():
        costs = [each.cost.ar for each in made if each.cost]
        if not costs:
            ax.axhline(mean(made, error), color="0.5", linestyle=":" if name == REAL else "--", label=name)
            continue
        values = [each.errors[error] for each in made]
        ax.errorbar(statistics.fmean(costs), statistics.fmean(values), statistics.stdev(values), fmt="o", label=name)
    ax.set(xlabel="forwards of the AR model for a row", ylabel=ERRORS[error], ylim=(0, None))
    ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


main = partial(execute, NAME, __doc__, configure, measure, page=HERE / "docs" / "benchmarks" / f"{NAME}.md")

if __name__ == "__main__":
    main()
