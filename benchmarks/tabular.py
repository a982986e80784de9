"""Tables: how columns hang together in rows of a bridge, of either model, of plain IS and of TabDiff, at what cost.

    python -m benchmarks.tabular [--methods "AR model" "bridge, K = 4"] [--tables 10] [--tabdiff 20] [--rows 2000]
        [--impute 2000] [--batch 500] [--fresh] [--quick] [--page docs/benchmarks/tabular.md] [--threads N] [--seed 0]
        [--out runs] [--markdown]

The pair `adult` makes tables of so many rows: each row is one sequence, drawn from the final weights of a run of its
own; TabDiff makes some, and real rows that nothing was learnt from stand beside them (`benchmarks.table_rows`). Figures
are means over tables with their standard deviation. Plain IS has as many lanes as the bridge scores rows with both
models. The last columns of test rows are drawn anew given the others. The rows shown, and what is wanted of them, are
those of `benchmarks/tables.toml`. Tables are kept under OUT, so that a second call goes on where the first one was.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.field_labels import label_points
from benchmarks.harness import HERE, progress
from benchmarks.problems import TABLES
from benchmarks.report import Report, Sheet, Verdict, execute
from benchmarks.table_rows import DRAWS, FORMS, PUBLISHED, REAL, STEPS, Made, Tables, rows_of_adult
from smc_bridge.analysis.plots.style import BLUE, GREEN, RED
from smc_bridge.commands.base import whole

NAME = "tabular"
TABLE: dict[str, Any] = TABLES[NAME]
METHODS: dict[str, str] = TABLE["methods"]
#: Size of the picture's letters, points.
LETTERS = 8.0
#: Columns of the tables of figures: what of `Made.errors`, its head, and digits.
ERRORS = {
    "trend": ("pair trends, error %", 2), "shape": ("column shapes, error %", 2),
    "trend_real": ("pairs, TV to real rows %", 2), "auroc": ("AUROC, %", 1), "nearer": ("closest record learnt, %", 0),
}


def configure(parser: argparse.ArgumentParser, quick: bool) -> None:
    """Add the arguments of this benchmark."""
    parser.add_argument(
        "--methods", nargs="+", choices=[*METHODS, *FORMS], metavar="NAME",
        default=TABLE["quick"] if quick else [*METHODS, PUBLISHED],
        help="rows of benchmarks/tables.toml, and forms of TabDiff (default: all, and TabDiff as published)",
    )
    parser.add_argument("--tables", type=whole(2), default=2 if quick else 10, help="of each method (default: 10)")
    parser.add_argument(
        "--tabdiff", type=whole(2), default=2 if quick else 20, help="of TabDiff and of real rows (default: 20)"
    )
    parser.add_argument("--rows", type=whole(2), default=20 if quick else 2000, help="of a table (default: 2000)")
    parser.add_argument("--impute", type=whole(2), default=2000, help="test rows that are imputed (default: 2000)")
    parser.add_argument("--batch", type=whole(1), default=500, help="rows that are decoded at a time (default: 500)")
    parser.add_argument("--fresh", action="store_true", help="draw and measure anew what is kept under OUT")


def measure(options: argparse.Namespace) -> Report:
    """Every method, table by table."""
    real = None if options.quick else rows_of_adult()
    tables = Tables(options.out / NAME, options.rows, options.batch, options.seed, real, options.fresh)
    chosen = sorted(dict.fromkeys(options.methods), key=lambda name: name == TABLE["equal_cost"])  # pays as the bridge
    of_pair = [name for name in chosen if name in METHODS]
    forms = [name for name in FORMS if name in chosen]
    others = [*forms, *([] if real is None else [REAL])]
    counts = {name: options.tables for name in of_pair} | dict.fromkeys(others, options.tabdiff)
    found: dict[str, list[Made]] = {name: [] for name in [*(name for name in METHODS if name in of_pair), *others]}
    lanes = 2
    with progress(NAME, sum(counts.values())) as advance:
        for table in range(max(counts.values())):  # so that whoever stops it has as many of each
            for name in (name for name, count in counts.items() if table < count):
                made = tables.made(name, METHODS.get(name, "").format(lanes) or None, table)
                found[name].append(made)
                if name == TABLE["bridge"] and not table and made.cost:
                    lanes = max(2, round(made.cost.rows) - 1)
                advance()
    verdicts = _verdicts(found, len(tables.pair.tokenizer.columns))
    sheets = [_sheet(found, options, lanes), *([_wanted(verdicts)] if verdicts else [])]
    imputed: Mapping[str, Mapping[str, float]] = {}
    if real is not None:
        own = TABLE["imputed"]
        texts = {name: METHODS[name] for name in own["methods"]}
        imputed = tables.imputed(texts, own["guidance"], own["columns"], options.impute)
        sheets.append(_imputed(imputed, options))
    return Report(
        sheets, {"tables": found, "lanes": lanes, "imputed": imputed}, lambda figure: _draw(figure, found),
        verdicts=verdicts, spread="means over tables ± their standard deviation",
        picture="How far pairs of columns are from those of the AR model, against forwards of both models",
    )


def values(made: Sequence[Made], error: str) -> list[float]:
    """An error of every table."""
    return [each.errors[error] for each in made]


def beyond(made: Sequence[Made], exact: Sequence[Made], error: str) -> tuple[float, float]:
    """How far tables are from the AR model's rows beyond what its own tables are, and the standard error of that."""
    own, chance = values(made, error), values(exact, error)
    spread = sum(statistics.variance(each) / len(each) for each in (own, chance))
    return statistics.fmean(own) - statistics.fmean(chance), math.sqrt(spread)


def _sheet(found: Mapping[str, Sequence[Made]], options: argparse.Namespace, lanes: int) -> Sheet:
    shown = {key: told for key, told in ERRORS.items() if all(key in each.errors for m in found.values() for each in m)}
    exact = found.get(TABLE["exact"])
    heads = ["rows of", "tables"]
    for key, (head, _) in shown.items():
        heads += [head, *(["their median"] if key == "trend" else [])]
    if exact:
        heads += ["pairs, TV to AR rows beyond chance, %", "columns, TV to AR rows beyond chance, %"]
    lines = []
    for name, made in found.items():
        cells = [name, str(len(made))]
        for key, (_, digits) in shown.items():
            own = values(made, key)
            cells.append(f"{statistics.fmean(own):.{digits}f} ± {statistics.stdev(own):.{digits}f}")
            cells += [f"{statistics.median(own):.{digits}f}"] if key == "trend" else []
        if exact and made is exact:
            cells += ["-", "-"]
        elif exact:
            cells += ["{:z.2f} ± {:.2f}".format(*beyond(made, exact, key)) for key in ("trend_ar", "shape_ar")]
        costs = [each.cost for each in made if each.cost]
        spent = [statistics.fmean(column) for column in zip(*costs, strict=True)] if costs else []
        nats = "-" if not spent or math.isnan(spent[3]) else f"{max(spent[3], 0.0):.2f}"
        lines.append((*cells, *(f"{x:.1f}" for x in spent[:3]), *(["-"] * (3 - len(spent[:3]))), nats))
    chance = f"{statistics.fmean(values(exact, 'trend_ar')):.2f} %" if exact else "-"
    heads += ["AR forwards", "DLM forwards", "rows scored", "KL bound, nats"]
    return Sheet(
        f"Tables of {options.rows} rows", heads, lines,
        note=f"Plain IS has {lanes} lanes. Forwards and rows scored are those for one row of a table; TabDiff: "
        f"calls of its network. Beyond chance: less what tables of the AR model have themselves ({chance} for pairs), "
        "± standard error.",
    )


def _wanted(verdicts: Sequence[Verdict]) -> Sheet:
    lines = []
    for each in verdicts:
        bound = f"at {'least' if each.least else 'most'} {each.wanted:g}"
        lines.append((each.claim, f"{each.seen:.2f}", bound, "met" if each.met else "missed"))
    return Sheet("What is wanted of the bridge of four lanes", ("figure", "seen", "wanted", "verdict"), lines)


def _imputed(found: Mapping[str, Mapping[str, float]], options: argparse.Namespace) -> Sheet:
    columns = list(next(iter(found.values())))
    return Sheet(
        f"The last columns of {options.impute} test rows, drawn anew given the others",
        ("drawn by", *columns), [(name, *(f"{own[c]:.3f}" for c in columns)) for name, own in found.items()],
        note=f"Means of {DRAWS} draws: of a number, the root of the mean square error in standard deviations; of a "
        f"category, the share of rows whose most frequent draw is wrong. TabDiff takes {STEPS} steps.",
    )


def _verdicts(found: Mapping[str, Sequence[Made]], columns: int) -> list[Verdict]:
    named = {role: found.get(TABLE[role]) for role in ("bridge", "exact", "equal_cost", "dlm")}
    own, ar, bad, dlm = (named[role] for role in ("bridge", "exact", "equal_cost", "dlm"))
    if not (own and ar and bad and dlm):
        return []
    forwards = statistics.fmean(made.cost.ar for made in own if made.cost)
    verdicts = [Verdict("AR forwards of a row", forwards, columns // 2, False)]
    rivals = {TABLE["dlm"]: dlm, TABLE["equal_cost"]: bad}
    if "trend" in own[0].errors:
        by = statistics.fmean(values(own, "trend"))
        ratio = by / statistics.fmean(values(ar, "trend"))
        verdicts.append(Verdict("pair trends: over the AR model's own", ratio, TABLE["trends"], False))
        verdicts += [
            Verdict(f"pair trends: {name}, over the bridge", statistics.fmean(values(made, "trend")) / by, 1.0)
            for name, made in rivals.items()
        ]
    excess, error = beyond(own, ar, "trend_ar")
    verdicts.append(Verdict("pairs beyond chance, in standard errors", excess / error, 2.0, False))
    for name, made in rivals.items():
        more, spread = beyond(made, own, "trend_ar")
        verdicts.append(Verdict(f"pairs: {name}, beyond the bridge, in standard errors", more / spread, 2.0))
    return verdicts


def _draw(figure: Any, found: Mapping[str, Sequence[Made]]) -> None:
    ax = figure.subplots()
    points = {
        name: (
            statistics.fmean(each.cost.ar + each.cost.dlm for each in made if each.cost),
            statistics.fmean(values(made, "trend_ar")), statistics.stdev(values(made, "trend_ar")),
        )
        for name, made in found.items() if name in METHODS
    }
    for name, (x, y, spread) in points.items():
        ax.errorbar(x, y, spread, fmt="o", color=BLUE if "bridge" in name else GREEN if METHODS[name] == "ar" else RED)
    for name in found.keys() - METHODS.keys():
        y = statistics.fmean(values(found[name], "trend_ar"))
        ax.axhline(y, color="0.6", linewidth=0.8, linestyle=":" if name == REAL else "--")
        ax.annotate(name, (1.0, y), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
                    fontsize=LETTERS, va="center", annotation_clip=False)
    ax.set(xlabel="forwards of both models for a row", ylabel="pairs, TV to AR rows %")
    ax.margins(0.12)
    ax.set(xlim=ax.get_xlim(), ylim=(0, ax.get_ylim()[1]))
    label_points(ax, [x for x, _, _ in points.values()], [y for _, y, _ in points.values()], [*points], LETTERS)


main = partial(execute, NAME, __doc__, configure, measure, page=HERE / "docs" / "benchmarks" / f"{NAME}.md")

if __name__ == "__main__":
    main()
